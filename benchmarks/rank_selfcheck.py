"""How well each score, the prior alone and the fusion predict the table of benchmarks/rank_truth.py.

    python benchmarks/rank_selfcheck.py

Each task is left out in turn, and each family of checkpoints; weighted tau, regret of the first choice and coverage of the
intervals with 95 % bootstrap intervals over tasks, and the noise ceiling of the table. hwu64, its scenarios and its actions are
the same texts: they are left out together and count as one. MiniLM's layers and fine-tunes are one family.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
from rank_truth import SHARED_TEXTS

from regraft.rank.fusion.history import Result
from regraft.rank.fusion.selfcheck import LEFT_OUT, selfcheck

FIELDS = ("checkpoint", "task", "accuracy", "rows", "seed", "facts", "scores", "early")
FAMILY = {"fine-tuned": "minilm"}


def main() -> None:
    """Check both ways of leaving out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results files")
    given = parser.parse_args()
    table = common.Results("rank_truth", given.results)
    history = [
        Result(
            **{name: cell[name] for name in FIELDS}, family=FAMILY.get(cell["family"], cell["family"]),
            source=SHARED_TEXTS[0] if cell["task"] in SHARED_TEXTS else "",
        ) for _, cell in sorted(table.cells.items())
    ]  # fmt: skip
    results = common.Results("rank_selfcheck", given.results)
    for leave_out in LEFT_OUT:
        found = selfcheck(history, leave_out=leave_out)
        figures: dict[str, Any] = {one.name: asdict(one) for one in found}
        results.put(leave_out, {"ways": figures, "results": len(history)})
        print(f"\nwithout the {leave_out}")
        for one in sorted(found, key=lambda one: -one.tau[0]):
            covered = "" if one.coverage is None else f", {one.coverage[0]:.0%} inside"
            print(
                f"{one.name:24} tau {one.tau[0]:+.3f} [{one.tau[1]:+.3f}, {one.tau[2]:+.3f}], "
                f"regret {100 * one.regret[0]:.2f} [{100 * one.regret[1]:.2f}, {100 * one.regret[2]:.2f}] points{covered}"
            )


if __name__ == "__main__":
    main()
