"""A zoo and a task on which the whole main job takes a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft.planner.family import Family
from regraft.planner.reuse import reuse
from regraft.store import Store

Reuse = Callable[..., Family]


@pytest.fixture(scope="session")
def toy_zoo(tiny_bert: Path) -> str:
    """A BERT of four layers, its first two, and a random one."""
    return f"{tiny_bert},{tiny_bert}#layers=2"


# Where cuts are tested, kills among them; elsewhere they would only take time.
_WITH_CUTS = ("test_cuts.py",)


@pytest.fixture(autouse=True)
def without_cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cut members, but in the tests of them."""
    if request.path.name not in _WITH_CUTS:
        monkeypatch.setattr("regraft.planner.cuts.MOST_CUTS", 0)


@pytest.fixture
def run_reuse(toy_zoo: str, toy_task_files: Path, tmp_path: Path) -> Reuse:
    """`reuse` on the toy task, with a store of its own."""

    def run(budget: str = "14trials", out: str = "run", **options: Any) -> Family:
        store = options.pop("store", None) or Store(tmp_path / f"store-{out}")
        return reuse(
            options.pop("task", str(toy_task_files)),
            options.pop("zoo", toy_zoo),
            budget,
            out=tmp_path / out,
            store=store,
            **options,
        )

    return run
