"""Tables in order, and whiskers on an axis."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from regraft.report import rows, words


def test_whiskers_are_sorted_and_inside_the_axis(any_result: dict[str, Any]) -> None:
    found = rows.whiskers(words.clean(any_result))
    values = [row.value for row in found.rows]
    assert values == sorted(values, reverse=True)
    for row in found.rows:
        assert 0 <= row.left <= row.right <= 100
        if row.at is None:
            assert row.value < found.low
        else:
            assert row.left <= row.at <= row.right


def test_the_axis_holds_family_and_best_baseline_and_leaves_out_what_is_far_below(result: dict[str, Any]) -> None:
    found = rows.whiskers(result)
    placed = {row.name: row.at for row in found.rows}
    assert placed["TF-IDF + logistic regression"] is not None
    assert placed["most frequent label"] is None
    assert (found.low, found.high) == (0.88, 0.95)
    assert [row.name for row in found.rows if row.chosen] == ["minilm-l6-full"]


def test_with_many_members_the_answer_and_the_best_baseline_are_listed(variants: ModuleType) -> None:
    made = variants.many()
    made["best"] = "member-24"
    found = rows.whiskers(made)
    names = [row.name for row in found.rows]
    assert len(names) == 8
    assert {"member-24", "TF-IDF + logistic regression", "minilm-l6-full"} <= set(names)
    assert found.more == len(made["family"]) + len(made["baselines"]) - 8


@pytest.mark.parametrize("bounds", [[], [(0.5, 0.5)], [(0.0, 0.0), (0.0, 0.0)], [(1.0, 1.0)]])
def test_an_axis_is_never_empty(bounds: list[tuple[float, float]]) -> None:
    low, high = rows.axis(bounds, 1)
    assert 0 <= low < high <= 1


def test_groups_keep_the_order_of_ranks(result: dict[str, Any]) -> None:
    result["ranking"].reverse()
    found = rows.groups(result["ranking"])
    assert [group for group, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [one["checkpoint"] for one in found[0][1]] == ["minilm-l6", "minilm-l5"]


def test_score_names_known_first() -> None:
    ranking = [{"scores": {"zeta": 1.0, "knn": 0.5}}, {"scores": {"probe_last": 0.5}}]
    assert rows.score_names(ranking) == ["probe_last", "knn", "zeta"]
    assert rows.score_name("zeta") == "zeta"
    assert rows.score_text("logme", 0.9731) == "0.973"
    assert rows.score_text("knn", 0.5) == f"50.0{words.SPACE}%"


def test_candidates_best_first_unmeasured_last(result: dict[str, Any]) -> None:
    found = rows.candidates(result)
    assert found[0]["name"] == "minilm-l6-full"
    assert found[0]["key"] == "A"
    assert found[0]["settings"] == "learning rate 2e-05, epochs 3, batch size 32"
    assert found[-1]["name"] == "minilm-l2-full"


def test_decisions_by_time_with_their_share_of_the_largest_cost(result: dict[str, Any]) -> None:
    result["decisions"].reverse()
    found = rows.decisions(result["decisions"])
    assert [one["at_s"] for one in found] == sorted(one["at_s"] for one in found)
    assert max(one["share"] for one in found) == 100
    assert rows.decisions([{"at_s": 0.0, "cost_s": None}])[0]["share"] == 0
