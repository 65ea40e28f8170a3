"""The fusion leans on what has been right, and is as sure as it may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import kendalltau, weightedtau

from regraft.errors import TaskError
from regraft.rank.fusion.design import Parts, measured
from regraft.rank.fusion.fusion import Candidate, Prediction, predict
from regraft.rank.fusion.history import Result


def logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def world(
    seed: int, *, checkpoints: int = 12, tasks: int = 6, skill: float = 0.8, own: float = 0.3, noise: float = 0.1
) -> list[Result]:
    """Checkpoints with a skill that shows on every task, and something that only a score (`good`) and a short run see."""
    rng = np.random.default_rng(seed)
    skills = rng.normal(0, skill, checkpoints)
    found = []
    for task in range(tasks):
        level = rng.normal(1.0, 0.5)
        for at in range(checkpoints):
            special = rng.normal(0, own)
            truth = level + skills[at] + special
            found.append(
                Result(
                    f"m{at}", f"t{task}", logistic(truth + rng.normal(0, noise)), family=f"f{at % 3}",
                    facts={"size": float(at)}, scores={"good": special * 7 + 3, "noise": rng.normal()},
                    early={"probe": logistic(truth - 0.5 + rng.normal(0, 0.2))},
                )
            )  # fmt: skip
    return found


def candidates_of(results: Sequence[Result]) -> list[Candidate]:
    return [Candidate(one.checkpoint, one.family, one.facts, one.scores, one.early) for one in results]


def apart(history: Sequence[Result], task: str) -> tuple[list[Result], list[Result]]:
    return [one for one in history if one.task != task], [one for one in history if one.task == task]


def error(predictions: Sequence[Prediction], wanted: Sequence[Result]) -> float:
    truth = {one.checkpoint: one.accuracy for one in wanted}
    return float(np.mean([abs(one.accuracy - truth[one.checkpoint]) for one in predictions]))


def test_each_part_that_holds_something_helps() -> None:
    errors: dict[str, list[float]] = {"prior": [], "and scores": [], "all": []}
    for seed in range(4):
        known, wanted = apart(world(seed), "t5")
        ways = {"prior": Parts(scores=False, early=False), "and scores": Parts(early=False), "all": Parts()}
        for name, parts in ways.items():
            errors[name].append(error(predict(known, candidates_of(wanted), "t5", parts=parts), wanted))
    assert np.mean(errors["all"]) < np.mean(errors["and scores"]) < np.mean(errors["prior"])


def test_intervals_hold_what_they_say() -> None:
    inside = []
    for seed in range(12):
        known, wanted = apart(world(seed), "t5")
        predictions = {one.checkpoint: one for one in predict(known, candidates_of(wanted), "t5")}
        inside += [
            predictions[one.checkpoint].low <= one.accuracy <= predictions[one.checkpoint].high for one in wanted
        ]
    assert 0.88 <= np.mean(inside) <= 1.0


def test_a_stranger_is_less_certain() -> None:
    known, wanted = apart(world(1), "t5")
    stranger = Candidate("stranger", "another family", {}, {}, {})
    widths = {one.checkpoint: one.high - one.low for one in predict(known, [*candidates_of(wanted), stranger], "t5")}
    assert widths["stranger"] > max(width for name, width in widths.items() if name != "stranger")


def lower(accuracy: float) -> float:
    """Three logits down."""
    return logistic(float(np.log(accuracy / (1 - accuracy))) - 3)


def test_without_a_short_run_a_checkpoint_stands_where_its_task_does() -> None:
    known, wanted = apart(world(1, tasks=8), "t5")
    hard = [
        Candidate(one.checkpoint, one.family, one.facts, one.scores, {"probe": lower(one.early["probe"])})
        for one in wanted
    ]
    full = {one.checkpoint: one for one in predict(known, hard, "t5")}
    middle = sorted(full.values(), key=lambda one: one.accuracy)[len(full) // 2].checkpoint
    lacking = [dataclasses.replace(one, early={}) if one.checkpoint == middle else one for one in hard]
    found = predict(known, lacking, "t5")
    one = next(one for one in found if one.checkpoint == middle)
    assert abs(one.accuracy - full[middle].accuracy) < 0.1  # 0.3 or so higher at the level of easier tasks
    assert one.high - one.low > full[middle].high - full[middle].low
    assert found[0].checkpoint != middle and one.best < 0.5


def test_an_unknown_score_widens_the_interval() -> None:
    known, wanted = apart(world(2), "t5")
    full = {one.checkpoint: one for one in predict(known, candidates_of(wanted), "t5", parts=Parts(early=False))}
    without = [Candidate(one.checkpoint, one.family, one.facts, {}, {}) if one.checkpoint == "m3" else one
               for one in candidates_of(wanted)]  # fmt: skip
    found = {one.checkpoint: one for one in predict(known, without, "t5", parts=Parts(early=False))}
    assert found["m3"].high - found["m3"].low > full["m3"].high - full["m3"].low


def test_what_was_only_surveyed_is_what_scores_are_compared_with() -> None:
    known, wanted = apart(world(3), "t5")
    beside = [
        Result(one.checkpoint, "t0", None, scores=one.scores, early=one.early) for one in known if one.task == "t0"
    ]
    fewer = [one for one in known if one.task != "t0" or one.checkpoint in ("m0", "m1", "m2")]
    one = predict([*fewer, *beside[3:]], candidates_of(wanted), "t5")
    other = predict(fewer, candidates_of(wanted), "t5")
    assert [found.accuracy for found in one] != [found.accuracy for found in other]
    with pytest.raises(TaskError, match="no results to learn from"):
        predict(beside, candidates_of(wanted), "t5")


def test_equal_candidates_are_too_close_to_call_and_distant_ones_are_not() -> None:
    known, wanted = apart(world(2, noise=0.01), "t5")
    best = max(wanted, key=lambda one: one.accuracy)
    twins = [
        Candidate(name, best.family, best.facts, best.scores, best.early) for name in ("new a", "new b")
    ]  # nothing tells them apart
    found = {one.checkpoint: one for one in predict(known, [*candidates_of(wanted), *twins], "t5")}
    assert found["new a"].group == found["new b"].group
    assert found["new a"].accuracy == pytest.approx(found["new b"].accuracy)
    assert max(one.group for one in found.values()) > 1


def test_chances_add_up_and_the_order_of_the_input_changes_nothing() -> None:
    known, wanted = apart(world(3), "t5")
    one = predict(known, candidates_of(wanted), "t5")
    two = predict(known[::-1], candidates_of(wanted)[::-1], "t5")
    assert sum(found.best for found in one) == pytest.approx(1.0)
    assert [found.checkpoint for found in one] == [found.checkpoint for found in two]
    for first, second in zip(one, two, strict=True):
        assert first.accuracy == pytest.approx(second.accuracy, abs=1e-4)
    assert all(found.low <= found.accuracy <= found.high for found in one)


def test_another_candidate_changes_no_order() -> None:
    known, wanted = apart(world(5), "t5")
    without = [one.checkpoint for one in predict(known, candidates_of(wanted), "t5")]
    stranger = Candidate("stranger", "another family", {"size": 40.0}, {"good": -90.0, "noise": 12.0}, {"probe": 0.01})
    found = [one.checkpoint for one in predict(known, [*candidates_of(wanted), stranger], "t5")]
    assert [name for name in found if name != "stranger"] == without


def test_results_on_the_task_itself_count() -> None:
    known, wanted = apart(world(4), "t5")
    some = wanted[:6]
    without = error(predict(known, candidates_of(some), "t5"), some)
    assert error(predict([*known, *some], candidates_of(some), "t5"), some) < without


@pytest.mark.parametrize(("accuracy", "rows"), [(0.5, 50), (0.9, 200), (0.75, 5000)])
def test_sampling_variance_is_that_of_drawn_accuracies(accuracy: float, rows: int) -> None:
    drawn = np.random.default_rng(0).binomial(rows, accuracy, 200_000)
    logits = np.log((drawn + 0.5) / (rows - drawn + 0.5))
    value, variance = measured(accuracy, rows)
    assert variance == pytest.approx(logits.var(), rel=0.08)
    assert value == pytest.approx(logits.mean(), abs=0.03)
    shrunk = (rows * accuracy + 0.5) / (rows + 1)
    assert variance == pytest.approx(1 / ((rows + 1) * shrunk * (1 - shrunk)))  # p (1 - p) / n over (p (1 - p))^2


def test_all_right_of_few_is_no_outlier() -> None:
    assert measured(1.0, 10)[0] < measured(1.0, 1000)[0] < 8
    assert measured(1.0, 10)[1] > measured(0.5, 10)[1] > measured(0.5, 1000)[1] > 0
    assert measured(1.0, None) == measured(1.0, 0) == (pytest.approx(np.log(999)), 0.0)


def test_equal_rows_everywhere_change_hardly_anything() -> None:
    for seed in range(5):
        known, wanted = apart(world(seed), "t5")
        counted = [dataclasses.replace(one, rows=3000) for one in known]
        one = {found.checkpoint: found for found in predict(known, candidates_of(wanted), "t5")}
        two = {found.checkpoint: found for found in predict(counted, candidates_of(wanted), "t5")}
        names = sorted(one)
        first, second = ([way[name].accuracy for name in names] for way in (one, two))
        assert kendalltau(first, second).statistic > 0.96
        np.testing.assert_allclose(first, second, atol=0.005)


def test_a_lucky_accuracy_on_few_rows_counts_less_than_on_many() -> None:
    known, wanted = apart(world(2, own=0.1), "t5")
    lucky = [dataclasses.replace(one, accuracy=0.99) if one.checkpoint == "m3" else one for one in known]

    def of_m3(rows: int, history: Sequence[Result]) -> float:
        history = [dataclasses.replace(one, rows=rows if one.checkpoint == "m3" else 5000) for one in history]
        candidates = [dataclasses.replace(one, scores={}, early={}) for one in candidates_of(wanted)]
        return next(one.accuracy for one in predict(history, candidates, "t5") if one.checkpoint == "m3")

    assert of_m3(20, lucky) < of_m3(100, lucky) < of_m3(5000, lucky)


def as_measured(results: Sequence[Result], rows: Sequence[int], seed: int) -> list[Result]:
    """Each accuracy as it is measured on so many examples of its task."""
    rng, tasks = np.random.default_rng(seed), sorted({one.task for one in results})
    counts = [rows[tasks.index(one.task)] for one in results]
    return [
        dataclasses.replace(one, accuracy=rng.binomial(count, one.accuracy) / count, rows=count)
        for one, count in zip(results, counts, strict=True)
    ]


def test_tasks_with_few_test_rows_spoil_the_order_less_where_their_number_is_known() -> None:
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(8):
        truth = world(seed, tasks=7, own=0.15, skill=0.5)
        known, _ = apart(as_measured(truth, [30, 4000, 30, 4000, 30, 4000, 4000], seed), "t6")
        wanted = [one for one in truth if one.task == "t6"]
        for told in (True, False):
            history = known if told else [dataclasses.replace(one, rows=None) for one in known]
            predictions = {
                one.checkpoint: one.accuracy
                for one in predict(history, candidates_of(wanted), "t6", parts=Parts(early=False))
            }
            found[told].append(
                float(weightedtau([one.accuracy for one in wanted], [predictions[one.checkpoint] for one in wanted])[0])
            )
    assert np.mean(found[True]) > np.mean(found[False]) + 0.03


def test_the_interval_of_what_is_measured_holds_the_sampling_variance() -> None:
    known, wanted = apart(as_measured(world(3), [500] * 6, 0), "t5")
    asked = candidates_of(wanted)
    itself = {one.checkpoint: one for one in predict(known, asked, "t5")}
    for one in predict(known, [dataclasses.replace(one, rows=40) for one in asked], "t5"):
        other = itself[one.checkpoint]
        assert one.accuracy == other.accuracy and one.best == other.best and one.group == other.group
        half, without = (logit(found.high) - logit(found.accuracy) for found in (one, other))
        right, wrong = 40 * one.accuracy + 0.5, 40 * (1 - one.accuracy) + 0.5
        assert half**2 - without**2 == pytest.approx(1.959964**2 * (1 / right + 1 / wrong), rel=1e-6)


def test_bad_input() -> None:
    known, wanted = apart(world(0), "t5")
    with pytest.raises(TaskError, match="no results to learn from"):
        predict([], candidates_of(wanted), "t5")
    with pytest.raises(TaskError, match="different names"):
        predict(known, [*candidates_of(wanted), candidates_of(wanted)[0]], "t5")
    with pytest.raises(TaskError, match="0 candidates"):
        predict(known, [], "t5")
