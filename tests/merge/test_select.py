"""The k largest magnitudes: exactly as many as are asked for, the first of equal ones, found without sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge import kept, select, select_sampled, stack
from regraft.merge.kept import Kept
from regraft.merge.select import keep_share, largest
from regraft.merge.stack import Stack


def chosen(thresholds: Kept, deltas: np.ndarray) -> list[list[int]]:
    """The indices that a threshold keeps of each delta, by its definition."""
    found = []
    for bits, last, delta in zip(thresholds.bits, thresholds.last, deltas, strict=True):
        threshold = float(np.array([bits], np.uint32).view(np.float32)[0])
        found.append([
            at for at, value in enumerate(map(float, np.abs(delta)))
            if value > threshold or (value == threshold and at <= last)
        ])  # fmt: skip
    return found


def sorted_out(delta: np.ndarray, count: int) -> list[int]:
    """By sorting: magnitudes from the largest down, of equal ones the first."""
    order = sorted(range(delta.size), key=lambda at: (-abs(float(delta[at])), at))
    return sorted(order[:count])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_what_is_kept_is_what_sorting_keeps(data: st.DataObject) -> None:
    n, size = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 30))
    few = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-42, -1e-42, 3e38])
    value = st.one_of(few, st.floats(width=32, allow_nan=False, allow_infinity=False))
    deltas = np.array(
        data.draw(st.lists(st.lists(value, min_size=size, max_size=size), min_size=n, max_size=n)), np.float32
    )
    deltas = deltas.reshape(n, size)
    keep = np.array([data.draw(st.integers(0, size)) for _ in range(n)])
    (found,) = largest(Stack.of(list(deltas), np.zeros(size, np.float32)), keep)
    assert chosen(found, deltas) == [sorted_out(delta, count) for delta, count in zip(deltas, keep, strict=True)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_several_tensors_count_as_one(data: st.DataObject) -> None:
    """Also where equal values are spread over them: the first tensor's go first."""
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    value = st.sampled_from([0.0, 0.25, -0.25, 1.0, -2.0])
    parts = [np.array([data.draw(value) for _ in range(2 * size)], np.float32).reshape(2, size) for size in sizes]
    keep = np.array([data.draw(st.integers(0, sum(sizes))) for _ in range(2)])
    found = largest([Stack.of(list(part), np.zeros(part.shape[1], np.float32)) for part in parts], keep)
    whole = np.concatenate(parts, axis=1)
    starts = np.cumsum([0, *sizes])
    for number in range(2):
        mine = [int(start) + at for start, one, part in zip(starts, found, parts, strict=False)
                for at in chosen(one, part)[number]]  # fmt: skip
        assert mine == sorted_out(whole[number], int(keep[number]))


@pytest.mark.parametrize("keep", [1, 500, 999, 1000, 1001, 1500, 2500, 2999, 3000])
def test_equal_values_over_many_blocks(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 of 4,000 elements have one magnitude: the first are kept, wherever the block ends lie."""
    for module in (stack, select, kept, select_sampled):
        monkeypatch.setattr(module, "GRAIN", 500)
    delta = np.where(np.arange(4000) % 4 == 3, 0.25, 0.5).astype(np.float32) * np.where(np.arange(4000) % 3, 1, -1)
    (found,) = largest(Stack.of([delta], np.zeros(4000, np.float32)), np.array([keep]))
    assert chosen(found, delta[None])[0] == np.flatnonzero(np.abs(delta) == 0.5)[:keep].tolist()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    inputs, base = draw.integers(-5, 6, (3, 2000)).astype(np.float32), draw.integers(-2, 3, 2000).astype(np.float32)
    keep = np.array([17, 600, 1999])
    (whole,) = largest(Stack.of(list(inputs), base), keep)
    for grain in (1, 7, 64, 1999):
        for module in (stack, select, kept, select_sampled):
            monkeypatch.setattr(module, "GRAIN", grain)
        (cut,) = largest(Stack.of(list(inputs), base), keep)
        assert chosen(cut, inputs - base) == chosen(whole, inputs - base)
    assert [len(one) for one in chosen(whole, inputs - base)] == keep.tolist()


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Sampling for small tensors too; what it says is written down: whether it had an answer."""
    answers: list[bool] = []

    def among(one: Stack, keep: np.ndarray) -> Kept | None:
        found = select_sampled.among_sampled(one, keep)
        answers.append(found is not None)
        return found

    for module in (stack, select, kept, select_sampled):
        monkeypatch.setattr(module, "GRAIN", 256)
    for name, value in (("LEAST", 600), ("RUNS", 8), ("RUN", 64), ("MARGIN", 0.05), ("SHARE", 2)):
        monkeypatch.setattr(select_sampled, name, value)
    monkeypatch.setattr(select, "among_sampled", among)
    return answers


DRAWS = {
    "normal": lambda draw: draw.standard_normal(3000),
    "grid": lambda draw: draw.integers(-40, 41, 3000) / 16,
    "few": lambda draw: draw.integers(-2, 3, 3000),
    "mostly zero": lambda draw: draw.standard_normal(3000) * (draw.random(3000) < 0.1),
    "one value": lambda draw: np.full(3000, 0.5),
    "sorted": lambda draw: np.sort(draw.standard_normal(3000)),
    "rows apart": lambda draw: draw.standard_normal(3000) * 10.0 ** (np.arange(3000) // 100 % 7 - 3),
    "subnormal": lambda draw: draw.integers(-9000, 9000, 3000) * 2.0**-149,
}


@pytest.mark.parametrize("share", [1 / 3000, 0.01, 0.2, 0.5, 0.9, 0.999, 2999 / 3000])
@pytest.mark.parametrize("kind", DRAWS)
def test_a_sample_changes_the_time_and_not_the_result(kind: str, share: float, sampling: list[bool]) -> None:
    draw = np.random.default_rng(0)
    deltas = np.array([DRAWS[kind](draw) for _ in range(2)], np.float32)
    keep = np.array([round(3000 * share), round(3000 * (1 - share))])
    (found,) = largest(Stack.of(list(deltas), np.zeros(3000, np.float32)), keep)
    assert chosen(found, deltas) == [sorted_out(delta, count) for delta, count in zip(deltas, keep, strict=True)]
    assert len(sampling) == 1


def test_a_sample_mostly_has_the_answer(sampling: list[bool]) -> None:
    """And none where it misleads: the large values lie between its runs."""
    draw = np.random.default_rng(1)
    zeros = np.zeros(3000, np.float32)
    for share in (0.1, 0.2, 0.5, 0.8):
        largest(Stack.of([draw.standard_normal(3000)], zeros), np.array([round(3000 * share)]))
    assert sampling == [True] * 4
    starts = [run * (3000 - 64) // 7 for run in range(8)]
    hidden = np.ones(3000)
    for start in starts:
        hidden[start : start + 64] = 1e-3 * draw.random(64)
    hidden *= 1 + draw.random(3000)
    (found,) = largest(Stack.of([hidden], zeros), np.array([1500]))
    assert sampling[-1] is False
    assert chosen(found, hidden.astype(np.float32)[None]) == [sorted_out(hidden.astype(np.float32), 1500)]


class InPieces(Stack):
    """A stack that calls several times for a block, as the contract suite does."""

    def _run(self, work: Any, rows: bool) -> None:
        def several(number: int, start: int, stop: int, *more: Any) -> None:
            for first in range(start, stop, 37):
                work(number, first, min(stop, first + 37), *more)

        super()._run(several, rows)


def test_blocks_that_come_in_pieces(sampling: list[bool]) -> None:
    draw = np.random.default_rng(2)
    delta = draw.standard_normal(3000).astype(np.float32)
    (found,) = largest(InPieces(**Stack.of([delta], np.zeros(3000, np.float32)).__dict__), np.array([600]))
    assert sampling == [True]
    assert chosen(found, delta[None]) == [sorted_out(delta, 600)]


def test_a_threshold_by_hand() -> None:
    (found,) = largest(Stack.of([np.array([3.0, -1.0, 2.0, 1.0])], np.zeros(4)), np.array([3]))
    assert found.bits.view(np.float32) == [1.0]
    assert found.last.tolist() == [1]
    (none,) = largest(Stack.of([np.array([3.0, -1.0])], np.zeros(2)), np.array([0]))
    assert none.last.tolist() == [-1]
    assert none.bits.tolist() == [0x7FFFFFFF]


@pytest.mark.parametrize(("size", "density", "count"), [
    (0, 0.5, 0), (0, 1.0, 0), (1, 0.0, 0), (1, 1e-9, 1), (1, 1.0, 1), (10, 0.2, 2), (10, 0.29, 2), (10, 0.05, 1),
    (10, 0.0, 0), (1000, 0.9999, 999), (3, 1.0, 3), (10**12, 0.1, 10**11),
])  # fmt: skip
def test_how_many_a_density_is(size: int, density: float, count: int) -> None:
    """Rounded down as in the published codes, but one at least, unless the density is zero."""
    assert keep_share(size, np.array([density])).tolist() == [count]


def test_every_input_has_its_own_count() -> None:
    assert keep_share(50, np.array([0.0, 0.5, 1.0])).tolist() == [0, 25, 50]
