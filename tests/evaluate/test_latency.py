"""Timing with clocks that are told what passes."""

from __future__ import annotations

import pytest

from regraft.errors import TaskError
from regraft.evaluate import measure_latency, measure_throughput
from regraft.evaluate.latency import batch_within


class Model:
    """Takes `costs` seconds in turn (the last one for ever), and is the clock that they pass on."""

    def __init__(self, *costs: float) -> None:
        self.costs, self.now, self.seen = list(costs), 0.0, []  # type: ignore[var-annotated]

    def clock(self) -> float:
        return self.now

    def __call__(self, texts: list[str]) -> None:
        self.seen.append(texts)
        self.now += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]


def test_latency_is_the_median_in_milliseconds_after_warming_up() -> None:
    model = Model(0.5, 0.1, 0.2, 9.0, 0.3)
    assert measure_latency(model, ["a"], warmup=1, repeats=4, deadline_s=99, clock=model.clock) == pytest.approx(250)


def test_latency_takes_the_examples_in_turn_one_at_a_time() -> None:
    model = Model(0.01)
    measure_latency(model, ["a", "b", "c"], warmup=2, repeats=4, clock=model.clock)
    assert model.seen == [["a"], ["b"], ["a"], ["b"], ["c"], ["a"]]


def test_a_slow_model_is_warmed_up_once_and_timed_once() -> None:
    model = Model(20.0, 10.0)
    assert measure_latency(model, ["a"], deadline_s=1.5, clock=model.clock) == 10_000
    assert len(model.seen) == 2


@pytest.mark.parametrize("cost", [0.01, 0.1, 0.4])
def test_latency_stays_in_its_time(cost: float) -> None:
    model = Model(cost)
    measure_latency(model, ["a"], repeats=10_000, deadline_s=1.5, clock=model.clock)
    assert model.now <= 1.5 + cost + 1e-9


def test_at_least_one_example_is_timed() -> None:
    model = Model(0.25)
    assert measure_latency(model, ["a"], warmup=0, repeats=0, clock=model.clock) == 250
    assert measure_throughput(model, ["a"], batch_size=4, repeats=0, clock=model.clock) == 16


def test_throughput_is_the_median_over_batches_after_one_to_warm_up() -> None:
    model = Model(8.0, 1.0, 2.0, 4.0)
    rate = measure_throughput(model, ["a"], batch_size=8, repeats=3, deadline_s=99, clock=model.clock)
    assert rate == pytest.approx(8 / 2.0)


def test_batches_are_full_and_go_round_the_examples() -> None:
    model = Model(0.1)
    measure_throughput(model, ["a", "b", "c"], batch_size=4, repeats=2, clock=model.clock)
    assert ["".join(batch) for batch in model.seen] == ["abca", "abca", "bcab"]


def test_throughput_stays_in_its_time() -> None:
    model = Model(1.0)
    assert measure_throughput(model, ["a"], repeats=100, deadline_s=1.5, clock=model.clock) == 32
    assert model.now == 2.0


def test_a_clock_that_stands_still_gives_a_finite_rate() -> None:
    model = Model(0.0)
    assert 0 < measure_throughput(model, ["a"], clock=model.clock) < float("inf")


@pytest.mark.parametrize("measure", [measure_latency, measure_throughput])
def test_without_a_text_nothing_can_be_timed(measure) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TaskError, match="without a text"):
        measure(Model(1.0), [])


@pytest.mark.parametrize("text_s", [0.001, 0.0187, 0.019, 0.1, 0.5, 20.0])
def test_a_batch_of_a_slow_model_is_small(text_s: float) -> None:
    class Slow(Model):
        def __call__(self, texts: list[str]) -> None:
            self.seen.append(texts)
            self.now += text_s * len(texts)

    model, batch = Slow(0.0), batch_within(0.6, text_s)
    assert batch == 32 or (text_s > 0.6 / 32 and 1 <= batch < 32)
    rate = measure_throughput(model, ["a"], batch_size=batch, deadline_s=0.6, clock=model.clock)
    assert rate == pytest.approx(1 / text_s)
    assert model.now <= 0.6 + max(0.6, 2 * text_s) + 1e-9
