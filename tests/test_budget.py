"""Budgets are read strictly, and deadlines count down on a clock that is passed in."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError

import pytest

from regraft.budget import Budget, Deadline, downloaded
from regraft.errors import BudgetError

INFINITE = float("inf")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "seconds", "trials"),
    [
        ("30s", 30.0, None),
        ("10m", 600.0, None),
        ("1.5h", 5400.0, None),
        ("0.5s", 0.5, None),
        ("  10 M ", 600.0, None),
        ("2h", 7200.0, None),
        ("40trials", None, 40),
        ("1trial", None, 1),
        ("1 trial", None, 1),
        ("3.0trials", None, 3),
    ],
)
def test_what_can_be_read(text: str, seconds: float | None, trials: int | None) -> None:
    budget = Budget.parse(text)
    assert (budget.seconds, budget.trials) == (seconds, trials)
    assert budget.text == text.strip().lower()


@pytest.mark.parametrize(
    "text",
    ["", "10", "m", "-5m", "10 minutes", "1h30m", "1e3s", "ten", "10mm", "5 trialss", "nan s", "infs", ".5s", "1,5h"],
)
def test_what_cannot_be_read_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BudgetError, match="Cannot read the budget") as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value)
    assert "Write it as 30s, 10m, 1.5h or 40trials." in str(caught.value)


@pytest.mark.parametrize("text", ["0s", "0.0h", "0trials"])
def test_a_budget_of_zero_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="is zero"):
        Budget.parse(text)


def test_half_a_trial_is_refused() -> None:
    with pytest.raises(BudgetError, match="not a whole number of trials"):
        Budget.parse("2.5trials")


def test_a_budget_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Budget.parse("10m").seconds = 1.0  # type: ignore[misc]


def test_a_deadline_counts_down_and_stops_at_zero() -> None:
    clock = Clock()
    deadline = Deadline(10.0, clock=clock)
    assert (deadline.spent(), deadline.left()) == (0.0, 10.0)
    clock.now += 4
    assert (deadline.spent(), deadline.left()) == (4.0, 6.0)
    clock.now += 40
    assert (deadline.spent(), deadline.left()) == (44.0, 0.0)


def test_what_earlier_processes_spent_counts() -> None:
    clock = Clock()
    deadline = Deadline(10.0, spent_s=7.0, clock=clock)
    assert (deadline.spent(), deadline.left()) == (7.0, 3.0)
    clock.now += 1
    assert (deadline.spent(), deadline.left()) == (8.0, 2.0)


def test_without_a_limit_everything_fits() -> None:
    clock = Clock()
    deadline = Deadline(None, clock=clock)
    clock.now += 1e9
    assert deadline.left() == INFINITE
    assert deadline.allows(1e12, reserve_s=1e12)
    assert deadline.spent() == 1e9


def test_work_fits_when_it_leaves_the_reserve() -> None:
    deadline = Deadline(10.0, spent_s=4.0, clock=Clock())
    assert deadline.allows(6.0)
    assert not deadline.allows(6.1)
    assert deadline.allows(4.0, reserve_s=2.0)
    assert not deadline.allows(4.0, reserve_s=2.1)
    assert deadline.allows(0.0)


def test_a_part_ends_on_its_own_or_with_the_whole() -> None:
    clock = Clock()
    whole = Deadline(10.0, clock=clock)
    clock.now += 4
    short, long = whole.part(2.0), whole.part(100.0)
    assert (short.left(), long.left()) == (2.0, 6.0)
    clock.now += 3
    assert (short.left(), long.left(), whole.left()) == (0.0, 3.0, 3.0)
    assert (short.spent(), whole.spent()) == (3.0, 7.0)


def test_a_part_of_an_unlimited_deadline() -> None:
    whole = Deadline(None, clock=Clock())
    assert whole.part(5.0).left() == 5.0
    assert whole.part(INFINITE).left() == INFINITE
    assert whole.part(INFINITE).seconds is None


def test_nothing_is_left_of_a_part_of_nothing() -> None:
    assert Deadline(1.0, spent_s=3.0, clock=Clock()).part(5.0).left() == 0.0


def test_a_download_is_waited_for_until_the_deadline() -> None:
    never = threading.Event()
    with pytest.raises(
        BudgetError, match=r"hf:org/name was not downloaded within 0 s.*files that have arrived are kept"
    ):
        downloaded("hf:org/name", never.wait, Deadline(0.05))
    assert downloaded("hf:org/name", lambda: "there", Deadline(60.0)) == "there"
    with pytest.raises(KeyError):
        downloaded("hf:org/name", lambda: {}["its own fault"], Deadline(60.0))


@pytest.mark.parametrize("deadline", [None, Deadline(None)])
def test_without_a_limit_a_download_takes_as_long_as_it_needs(deadline: Deadline | None) -> None:
    assert downloaded("hf:org/name", threading.current_thread, deadline) is threading.current_thread()


def test_the_own_clock_runs() -> None:
    deadline = Deadline(1000.0)
    first = deadline.spent()
    assert 0.0 <= first <= deadline.spent() < 1000.0
