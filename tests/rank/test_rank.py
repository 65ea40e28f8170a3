"""Ranking checkpoints: places, groups, deadlines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from regraft.budget import Deadline
from regraft.errors import NonFiniteError, TaskError
from regraft.rank import left_out_correct, rank

CLASSES = 3
LABELS = np.arange(150) % CLASSES


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class View:
    """Features of a made-up checkpoint; reading any costs `cost` seconds."""

    features: np.ndarray
    clock: Clock = field(default_factory=Clock)
    cost: float = 1.0

    def _read(self) -> np.ndarray:
        self.clock.now += self.cost
        return self.features

    last = mean = all = property(_read)


def view(signal: float, seed: int = 0, **more: Any) -> View:
    features = np.random.default_rng(seed).normal(size=(len(LABELS), 6))
    features[:, :CLASSES] += signal * np.eye(CLASSES)[LABELS]
    return View(features.astype(np.float32), **more)


def test_the_better_features_come_first_with_their_scores() -> None:
    ranked = rank({"bad": view(0.3), "good": view(2.5), "fair": view(1.5)}, LABELS, n_classes=CLASSES)
    assert [one.checkpoint for one in ranked] == ["good", "fair", "bad"]
    assert [one.rank for one in ranked] == [1, 2, 3]
    assert [one.group for one in ranked] == [1, 2, 3]
    for one in ranked:
        assert set(one.scores) == {"probe_last", "probe_mean", "knn", "logme", "probe_all"}
        assert 0.0 <= one.low <= one.score <= one.high <= 1.0
        assert one.low < one.high
        assert one.seconds > 0.0
    assert ranked[0].score == left_out_correct(view(2.5).features, LABELS).mean()


def test_the_score_is_that_of_the_best_probe() -> None:
    class Mixed:
        last, mean, all = view(0.3).features, view(4.0).features, view(1.0).features

    (only,) = rank({"mixed": Mixed()}, LABELS, n_classes=CLASSES)
    assert only.score == only.scores["probe_mean"] > only.scores["probe_all"] > only.scores["probe_last"]


def test_equal_features_are_too_close_to_call() -> None:
    ranked = rank({"b": view(1.5), "a": view(1.5), "bad": view(0.2)}, LABELS, n_classes=CLASSES)
    assert [(one.checkpoint, one.group) for one in ranked] == [("a", 1), ("b", 1), ("bad", 2)]


def test_a_perfect_probe_is_not_certain() -> None:
    (only,) = rank({"perfect": view(50.0)}, LABELS, n_classes=CLASSES)
    assert (only.score, only.high) == (1.0, 1.0)
    assert 0.95 < only.low < 1.0


def test_close_features_share_a_group() -> None:
    ranked = rank({"a": view(1.5, seed=1), "b": view(1.55, seed=2)}, LABELS, n_classes=CLASSES)
    assert [one.group for one in ranked] == [1, 1]
    assert ranked[0].score > ranked[1].score


def without_seconds(ranked: list[Any]) -> list[tuple[Any, ...]]:
    return [(one.checkpoint, one.rank, one.group, one.score, one.low, one.high, dict(one.scores)) for one in ranked]


def test_neither_the_order_of_discovery_nor_of_examples_changes_anything() -> None:
    found = {"a": view(1.0), "b": view(1.1, seed=1), "c": view(2.0), "d": view(0.1)}
    ranked = without_seconds(rank(found, LABELS, n_classes=CLASSES))
    backwards = dict(reversed(found.items()))
    assert without_seconds(rank(backwards, LABELS, n_classes=CLASSES)) == ranked
    shuffle = np.random.default_rng(0).permutation(len(LABELS))
    shuffled = {name: View(one.features[shuffle]) for name, one in found.items()}
    again = rank(shuffled, LABELS[shuffle], n_classes=CLASSES)
    assert [one[:6] for one in without_seconds(again)] == [one[:6] for one in ranked]


def test_with_no_time_left_only_the_first_is_probed() -> None:
    clock = Clock()
    found = {name: view(2.0, clock=clock) for name in ("b", "a", "c")}
    ranked = rank(found, LABELS, n_classes=CLASSES, deadline=Deadline(0.0, clock=clock))
    assert [(one.checkpoint, one.rank, one.group) for one in ranked] == [("a", 1, 1), ("b", 2, 2), ("c", 3, 2)]
    assert set(ranked[0].scores) == {"probe_last"}
    for one in ranked[1:]:
        assert (one.score, one.low, one.high, dict(one.scores), one.seconds) == (0.0, 0.0, 1.0, {}, 0.0)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.5, 7.0, 12.5, 100.0])
def test_nothing_is_started_that_would_not_be_ready_in_time(seconds: float) -> None:
    clock = Clock()
    found = {name: view(2.0, clock=clock) for name in ("a", "b", "c")}
    ranked = rank(found, LABELS, n_classes=CLASSES, deadline=Deadline(seconds, clock=clock))
    # Each score costs one second; the first is always computed, the last one must end before the deadline does.
    assert sum(len(one.scores) for one in ranked) == min(15, max(1, int(np.ceil(seconds)) - 1)) == clock.now
    assert clock.now <= max(seconds, 1.0)
    assert {one.checkpoint: one.seconds for one in ranked} == {one.checkpoint: len(one.scores) for one in ranked}


def test_a_view_that_only_some_have_decides_nothing() -> None:
    clock = Clock()

    class Layered(View):
        all = property(lambda self: view(4.0, clock=clock)._read())

    found = {"a": Layered(view(0.5).features, clock), "b": Layered(view(1.5).features, clock)}
    ranked = rank(found, LABELS, n_classes=CLASSES, deadline=Deadline(9.5, clock=clock))
    assert [one.checkpoint for one in ranked] == ["b", "a"]
    assert ranked[1].scores["probe_all"] > 0.9 > ranked[0].score
    assert "probe_all" not in ranked[0].scores


def test_in_a_short_time_all_are_ranked_on_fewer_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(), []

    def probe(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        clock.now += len(labels) / 100
        seen.append(np.bincount(labels).tolist())
        return left_out_correct(features, labels)

    monkeypatch.setattr(sys.modules["regraft.rank.rank"], "left_out_correct", probe)
    labels = np.arange(600) % CLASSES
    found = {
        name: View(np.tile(view(signal).features, (4, 1)), clock, 0.0) for name, signal in (("a", 0.5), ("b", 2.0))
    }
    ranked = rank(found, labels, n_classes=CLASSES, deadline=Deadline(10.0, clock=clock))
    assert [one.checkpoint for one in ranked] == ["b", "a"]
    assert seen[0] == [200, 200, 200]
    assert seen[1] == seen[2]
    assert sum(seen[1]) == 160  # 6 of 10 seconds went into the first look, 0.8 of the other 4 pay for two probes
    assert max(seen[1]) - min(seen[1]) <= 1
    assert clock.now <= 10.0


def test_progress_grows_to_the_whole() -> None:
    told: list[tuple[str, float]] = []
    rank({"a": view(1.0), "b": view(2.0)}, LABELS, n_classes=CLASSES, progress=lambda *seen: told.append(seen))
    shares = [share for _, share in told]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1.0
    assert [name for name, _ in told] == ["a", "b"] * 5


def test_nothing_to_rank_is_no_ranking() -> None:
    assert rank({}, LABELS, n_classes=CLASSES) == []


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(TaskError, match="Labels from 0 to 2 for 2 classes"):
        rank({"a": view(1.0)}, LABELS, n_classes=2)
    with pytest.raises(TaskError, match="at least two classes"):
        rank({"a": view(1.0)}, np.zeros_like(LABELS), n_classes=2)
    broken = view(1.0)
    broken.features[3, 2] = np.inf
    with pytest.raises(NonFiniteError):
        rank({"a": broken}, LABELS, n_classes=CLASSES)


def test_a_class_of_the_task_may_be_absent() -> None:
    assert rank({"a": view(4.0)}, LABELS, n_classes=7)[0].score > 0.9
