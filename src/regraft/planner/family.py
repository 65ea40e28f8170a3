"""What `reuse` gives back: the members, the baselines they were held against, and where everything lies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.errors import RegraftError, RunError


@dataclass(frozen=True)
class Member:
    """A model of the family: a stock folder and what was measured about it (see `facts`)."""

    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name in tables."""
        return str(self.facts["name"])

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(self.facts["path"])

    @property
    def format(self) -> str:
        """The stock library that loads it: `sentence-transformers` or `transformers`."""
        return str(self.facts["format"])

    @property
    def parameters(self) -> int:
        """Parameters in all, embeddings and head included."""
        return int(self.facts["parameters"])

    @property
    def bytes(self) -> int:
        """Bytes of the folder."""
        return int(self.facts["bytes"])

    @property
    def latency_ms(self) -> float | None:
        """Median milliseconds of one example on this machine."""
        return self.facts.get("latency_ms")

    @property
    def validation(self) -> Mapping[str, Any]:
        """`accuracy`, `macro_f1`, `calibration_error` and `intervals` on validation data."""
        return dict(self.facts["validation"])

    @property
    def test(self) -> Mapping[str, Any]:
        """The same on test data."""
        return dict(self.facts["test"])

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The label of each text."""
        from regraft.checkpoint.classifier import probabilities
        from regraft.checkpoint.export import load_member

        classifier = load_member(self.path)
        return [classifier.labels[row] for row in np.asarray(probabilities(classifier, list(texts))).argmax(axis=1)]


def at_home(result: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """A result with its paths below the run folder as it is called now: it may have been moved, or be read from elsewhere.

    Raises:
        KeyError: A part of the result that is always there is missing.
    """
    family = [{**facts, "path": str(run / "family" / facts["name"])} for facts in result["family"]]
    return {**result, "family": family, "report": str(run / Path(result["report"]).name)}


def is_whole(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a member's folder holds the weights that were written, by their hash; what cannot be read does not."""
    from regraft.checkpoint import open_checkpoint

    try:
        if not (folder / "certificate.json").is_file():
            return False
        return bool(open_checkpoint(str(folder)).weights_id == facts["weights_id"])
    except (OSError, RegraftError):
        return False


class Family:
    """The members of a run, the best first.

    family.best                     the member (or, in a run too short for one, None: see `answer`)
    family.under(latency_ms=3)      the best member within limits
    family.report                   the path of the HTML report
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.result = result
        self.members = [Member(facts) for facts in result["family"]]

    @classmethod
    def load(cls, run: Path | str) -> Family:
        """The family of a finished run folder, wherever the folder lies now.

        Raises:
            RunError: There is no result, or it is damaged.
        """
        path = Path(run) / "result.json"
        try:
            return cls(at_home(json.loads(path.read_text(encoding="utf-8")), Path(run)))
        except (OSError, ValueError) as fault:
            raise RunError(
                f"{path} cannot be read: {fault}.", "Run the same `regraft reuse` command again to finish it."
            ) from fault
        except (KeyError, TypeError, AttributeError) as fault:
            raise RunError(f"{path} is no result of a run: {fault!r}.", "Give the folder of a finished run.") from fault

    @property
    def answer(self) -> str:
        """The name of what to take: a member, or a baseline when none beats it."""
        return str(self.result["best"])

    @property
    def best(self) -> Member | None:
        """The member with the best validation score; None when there is no member."""
        metric = self.result["task"]["metric"]
        return max(self.members, key=lambda member: member.validation[metric], default=None)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return Path(self.result["report"])

    def under(
        self, *, params: float | None = None, latency_ms: float | None = None, bytes: float | None = None
    ) -> Member | None:
        """The best member, on validation data, within all the limits; None when none is."""
        metric = self.result["task"]["metric"]
        fitting = [
            member for member in self.members
            if (params is None or member.parameters <= params)
            and (bytes is None or member.bytes <= bytes)
            and (latency_ms is None or (member.latency_ms is not None and member.latency_ms <= latency_ms))
        ]  # fmt: skip
        return max(fitting, key=lambda member: member.validation[metric], default=None)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"Family({', '.join(member.name for member in self.members)}; take {self.answer})"
