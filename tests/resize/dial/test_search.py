"""The search: what it tries, what it keeps, what it leaves behind; scores and training are the caller's."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from regraft.anatomy import change, open_bound
from regraft.budget import Deadline
from regraft.errors import ResizeError
from regraft.resize.dial import Agreement, Limit, Search, Shapes, agreement, interleaved, measured
from regraft.resize.dial.agreement import linear_cka
from regraft.resize.dial.shapes import Counts
from regraft.resize.dial.speed import Weigher


def layers_of(folder: Path) -> int:
    return open_bound(str(folder)).binding.sizes["layer"]


def weight_of(folder: Path) -> int:
    return Shapes(open_bound(str(folder))).size({}).parameters


class Trainer:
    """Copies what it is given; two layers are worth most after training, whatever they were before."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def __call__(self, folder: Path, seconds: float, target: Path) -> float:
        shutil.copytree(folder, target)
        self.asked.append((layers_of(folder), seconds))
        return 1.0 if layers_of(folder) == 2 else 0.5


@pytest.fixture
def limit(tiny_bert: Path) -> Limit:
    return Limit.parse(f"params={int(0.9 * Shapes(open_bound(str(tiny_bert))).size({}).parameters)}")


def test_the_best_scored_is_written_and_nothing_else_stays(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    search = Search(str(tiny_bert), limit, score=lambda folder: float(layers_of(folder) == 3))
    found = search.run(tmp_path / "out")
    assert layers_of(tmp_path / "out") == 3
    assert Shapes(open_bound(str(tmp_path / "out"))).size({}).parameters <= limit.value
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert [one.score for one in found.tried] == sorted((one.score for one in found.tried), reverse=True)
    assert {one.counts.get("layer", 4) for one in found.tried} == {1, 2, 3, 4}


def test_training_decides_between_the_best_few(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    trainer = Trainer()
    # By their scores, shapes of 3 and 2 layers lead; after training those of 2 do.
    search = Search(
        str(tiny_bert), limit, score=lambda folder: {4: 0.1, 3: 0.9, 2: 0.8, 1: 0.0}[layers_of(folder)], recover=trainer
    )
    search.run(tmp_path / "out")
    assert layers_of(tmp_path / "out") == 2
    assert len(trainer.asked) == 4  # three beside each other, then the best of them
    assert trainer.asked[-1][0] == 2


def test_overhead_counts(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    search = Search(str(tiny_bert), limit, score=lambda _: 0.0, overhead=5000)
    search.run(tmp_path / "out")
    assert Shapes(open_bound(str(tmp_path / "out"))).size({}).parameters <= limit.value - 5000


def test_a_limit_that_holds_cuts_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    search = Search(str(tiny_bert), Limit.parse("params=1G"), score=lambda folder: float(weight_of(folder)))
    found = search.run(tmp_path / "out")
    assert found.counts == {}
    assert layers_of(tmp_path / "out") == 4


def test_without_scores_the_deepest_is_taken_and_said(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    found = Search(str(tiny_bert), limit).run(tmp_path / "out")
    assert layers_of(tmp_path / "out") == 4
    assert any("not tried" in note for note in found.notes)


def test_a_search_that_fails_leaves_nothing(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    def fail(_: Path) -> float:
        raise ResizeError("No score.", "")

    with pytest.raises(ResizeError, match="No score"):
        Search(str(tiny_bert), limit, score=fail).run(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def cost(weigher: Weigher, counts: Counts) -> float:
    """A machine that takes 1 ms, 0.5 ms a layer, and 2 ms for a whole model's products."""
    layers, work = weigher.load(counts)
    return 1.0 + 0.5 * layers + 2.0 * work / weigher.load({})[1]


def test_latency_is_fitted_to_what_was_timed(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = Shapes(open_bound(str(tiny_bert)))
    monkeypatch.setattr(Weigher, "time", cost)
    weigher = Weigher(shapes, Limit.parse("latency=5ms"))
    for counts in ({}, {"layer": 2}, {"layer": 3, "ffn": 8}):
        assert weigher(counts) == pytest.approx(cost(weigher, counts))
    found = list(shapes.under(Limit.parse("latency=4ms"), weigher))
    assert found
    assert all(cost(weigher, one) <= 4.0 for one in found)


def test_shapes_that_turn_out_slower_are_left(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two layers are slower than anything.
    monkeypatch.setattr(Weigher, "time", lambda self, counts: 9.0 if counts.get("layer") == 2 else cost(self, counts))
    search = Search(str(tiny_bert), Limit.parse("latency=3ms"), score=lambda folder: 1.0 / layers_of(folder))
    found = search.run(tmp_path / "out")
    assert layers_of(tmp_path / "out") == 1
    assert all(one.counts.get("layer") != 2 for one in found.tried)
    with pytest.raises(ResizeError, match=r"No shape .*keeps to latency=0\.5ms"):
        Search(str(tiny_bert), Limit.parse("latency=0.5ms")).run(tmp_path / "again")


def test_a_shape_that_fails_is_left_out_and_said(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    def score(folder: Path) -> float:
        if layers_of(folder) == 3:
            raise ResizeError("NaN in the third.", "")
        return float(layers_of(folder))

    found = Search(str(tiny_bert), limit, score=score).run(tmp_path / "out")
    assert layers_of(tmp_path / "out") == 4
    assert any("left out: NaN in the third." in note for note in found.notes)


def test_a_rival_that_cannot_be_trained_loses(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    def recover(folder: Path, seconds: float, target: Path) -> float:
        if layers_of(folder) == 3:
            raise ResizeError("It diverges.", "")
        shutil.copytree(folder, target)
        return 0.5

    found = Search(str(tiny_bert), limit, score=lambda folder: float(layers_of(folder) == 3), recover=recover).run(
        tmp_path / "out"
    )
    assert layers_of(tmp_path / "out") != 3
    assert any("could not be trained: It diverges." in note for note in found.notes)
    assert found.cut()[1].outputs  # of the shape that was written


def test_what_measures_beyond_the_limit_gives_way_to_the_next(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    search = Search(
        str(tiny_bert), limit, score=lambda folder: float(layers_of(folder)),
        measure=lambda folder: limit.value + (1.0 if layers_of(folder) == 4 else 0.0),
    )  # fmt: skip
    found = search.run(tmp_path / "out")
    assert layers_of(tmp_path / "out") < 4
    assert found.measured == limit.value
    assert any("beyond the limit" in note for note in found.notes)
    with pytest.raises(ResizeError, match="the limit is"):
        Search(str(tiny_bert), limit, score=lambda _: 1.0, measure=lambda _: 2 * limit.value).run(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_time_that_is_gone_is_not_spent(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    now, trainer = [0.0], Trainer()

    def recover(folder: Path, seconds: float, target: Path) -> float:
        now[0] += 2 * seconds  # everything takes twice as long as it may
        return trainer(folder, seconds, target)

    def score(folder: Path) -> float:
        now[0] += 10.0
        return float(layers_of(folder))

    found = Search(
        str(tiny_bert), limit, score=score, recover=recover, deadline=Deadline(60.0, clock=lambda: now[0])
    ).run(tmp_path / "out")  # fmt: skip
    assert len(found.tried) == 2  # 30 % of 60 s
    assert any("were not tried: the budget" in note for note in found.notes)
    assert len(trainer.asked) == 3
    assert now[0] <= 60.0 + 2 * trainer.asked[-1][1]


def test_criteria_that_need_labels_are_refused_at_once(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    with pytest.raises(ResizeError, match="taylor needs labels") as fault:
        Search(str(tiny_bert), limit, criterion="taylor").run(tmp_path / "out")
    assert "activation" in fault.value.remedy


def test_timings_take_turns() -> None:
    now, calls = [0.0], list[str]()

    def clock() -> float:
        return now[0]

    def run(name: str, seconds: float) -> object:
        calls.append(name)
        now[0] += seconds
        return None

    found = interleaved({"fast": lambda: run("fast", 0.001), "slow": lambda: run("slow", 0.003)}, 0.1, clock)
    assert found["fast"].median_ms == pytest.approx(1.0)
    assert found["slow"].median_ms == pytest.approx(3.0)
    assert abs(calls.count("fast") - calls.count("slow")) == 0
    firsts = calls[6::2]
    assert {"fast", "slow"} <= set(firsts)  # neither is always the first of a round


def test_what_is_beyond_the_limit_is_refused() -> None:
    measured(Limit.parse("latency=2ms"), 2.0)
    with pytest.raises(ResizeError, match=r"takes 2\.10 ms, and the limit is latency=2ms"):
        measured(Limit.parse("latency=2ms"), 2.1)


def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    for width in (3, 5):
        yield generator.normal(size=(20, 4)), generator.normal(size=(20, width))


def test_cka_is_its_definition_by_kernels() -> None:
    for one, other in pairs():
        centre = np.eye(20) - 1 / 20
        k, m = centre @ one @ one.T @ centre, centre @ other @ other.T @ centre
        expected = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))  # HSIC of linear kernels
        assert linear_cka(one, other) == pytest.approx(expected, abs=1e-12)
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
        assert linear_cka(one @ turn * 3.0, other) == pytest.approx(expected, abs=1e-12)
    assert linear_cka(one, one) == pytest.approx(1.0)


def test_cka_keeps_no_copy_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    whole = linear_cka(states, states[:, :16])
    tracemalloc.start()
    try:
        linear_cka(states, states[:, :16])
        assert tracemalloc.get_traced_memory()[1] < states.size * 8 / 4
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(agreement, "ROWS", 20_000)
    assert linear_cka(states, states[:, :16]) == pytest.approx(whole, rel=1e-12)


def test_cka_of_what_cannot_be_compared() -> None:
    with pytest.raises(ResizeError, match="20 and 19"):
        linear_cka(np.ones((20, 2)), np.ones((19, 2)))
    with pytest.raises(ResizeError, match="same hidden state"):
        linear_cka(np.ones((20, 2)), np.ones((20, 2)))


def test_agreement_falls_with_what_is_cut(tiny_bert: Path, limit: Limit, tmp_path: Path) -> None:
    opened = open_bound(str(tiny_bert))
    agree = Agreement(opened, ["the cat and the dog", "rain again today", "a song"])
    assert agree(tiny_bert) == pytest.approx(1.0)
    for name, units in {"cut": {"layer": [0, 1]}, "turned": {"ffn": list(range(63, -1, -1))}}.items():
        change(opened, units, tmp_path / name)
    assert 0.0 < agree(tmp_path / "cut") < 0.999
    assert agree(tmp_path / "turned") == pytest.approx(1.0)  # the same function
