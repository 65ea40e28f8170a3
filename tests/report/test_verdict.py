"""Which model to take and why, in words."""

from __future__ import annotations

import ast
from types import ModuleType
from typing import Any

import pytest

from regraft.report import words
from regraft.report.verdict import MAX_ALTERNATIVES, keys, replay, snippet, too_close, verdict


def text_of(result: dict[str, Any]) -> str:
    return " ".join(verdict(words.clean(result)).sentences).replace(words.SPACE, " ")


def choose(result: dict[str, Any], name: str) -> None:
    """Another answer, with which nothing has been compared yet."""
    result["best"] = name
    for one in [*result["family"], *result["baselines"]]:
        one["against_best"] = None


def test_the_answer_and_why(result: dict[str, Any]) -> None:
    assert verdict(result).title == "Take minilm-l6-full"
    assert text_of(result) == (
        "It is right on 93.4 % of 3,080 test examples (95 % interval 92.6\u201394.3), "
        "which played no part in the choice. That is 4.0 points above the best baseline, "
        "TF-IDF + logistic regression (89.4 %). "
        "Of the 16 models that were measured within the budget of 10m, it was the best on validation data."
    )


def test_the_distance_to_a_baseline_is_that_on_the_examples_that_both_saw(result: dict[str, Any]) -> None:
    tfidf = next(one for one in result["baselines"] if one["name"] == "tfidf")
    tfidf["against_best"] = {"difference": -0.05, "low": -0.06, "high": -0.04, "rows": 2000}
    assert "That is 5.0 points above the best baseline" in text_of(result)


def test_a_choice_that_is_not_the_best_on_validation_is_not_said_to_be(result: dict[str, Any]) -> None:
    choose(result, "minilm-l3-full")
    assert "best on validation" not in text_of(result)


def test_a_result_too_close_to_a_baseline_says_so(result: dict[str, Any]) -> None:
    choose(result, "minilm-l2-probe")
    assert "0.3 points above the best baseline" in text_of(result)
    tfidf = next(one for one in result["baselines"] if one["name"] == "tfidf")
    tfidf["against_best"] = {"difference": -0.003, "low": -0.011, "high": 0.005, "rows": 3080}
    assert "too close to call against the best baseline" in text_of(result)


def test_a_result_below_a_baseline_says_so(variants: ModuleType) -> None:
    made = variants.baseline_beats_family()
    choose(made, "minilm-l6-full")
    assert "2.0 points below the best baseline" in text_of(made)


def test_a_baseline_as_the_answer_is_said_first(variants: ModuleType) -> None:
    found = verdict(variants.baseline_best())
    assert found.title == "Take the baseline: TF-IDF + logistic regression"
    assert found.sentences[0].startswith("The budget of 5s left no time to try a checkpoint")
    assert found.snippet == ""
    other = verdict(variants.baseline_beats_family())
    assert other.sentences[0].startswith("No adapted checkpoint did better on validation data")


def test_nothing_measured(variants: ModuleType) -> None:
    found = verdict(variants.nothing())
    assert found.title == "No model to take"
    assert found.entry is None


def test_macro_f1_is_named(variants: ModuleType) -> None:
    assert "Its macro F1 is 93.3 % on 3,080 test examples" in text_of(variants.one_member())


def test_alternatives_say_what_they_gain_and_cost(result: dict[str, Any]) -> None:
    lines = [
        f"{one.key} {one.advantage}: {one.name}: {one.gains}; {one.cost}".replace(words.SPACE, " ")
        for one in verdict(result).alternatives
    ]
    assert lines == [
        "B About as good: minilm-l6-probe: made in 6.3 s, not 3 min 35 s; costs 0.1 points: too close to call",
        "C Smaller and faster: minilm-l4-full: 67 % of the encoder, 19.0M parameters in all, 2.9 ms, 1.4\u00d7 as fast"
        "; costs 1 point",
        "D Smaller and faster: minilm-l3-full: 50 % of the encoder, 17.3M parameters in all, 2.2 ms, 1.9\u00d7 as fast"
        "; costs 1.8 points",
        "E Smaller and faster: minilm-l2-probe: 33 % of the encoder, 15.5M parameters in all, 1.6 ms, 2.6\u00d7 as fast"
        "; costs 3.7 points",
    ]


def test_of_many_alternatives_the_smallest_and_the_fastest_stay(variants: ModuleType) -> None:
    made = variants.many()
    found = verdict(made).alternatives
    assert len(found) == MAX_ALTERNATIVES
    others = [member for member in made["family"] if member["name"] != made["best"]]
    names = {one.name for one in found}
    assert min(others, key=lambda one: one["bytes"])["name"] in names
    assert min(others, key=lambda one: one["latency_ms"])["name"] in names


def test_a_larger_and_worse_member_is_no_alternative(result: dict[str, Any]) -> None:
    choose(result, "minilm-l2-probe")
    assert verdict(result).alternatives == ()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"against_best": {"low": -0.01, "high": 0.002}}, True),
        ({"against_best": {"low": 0.0, "high": 0.0}}, True),
        ({"against_best": {"low": -0.01, "high": -0.002}}, False),
        ({"against_best": {"low": 0.002, "high": 0.01}}, False),
        ({"against_best": {"low": None, "high": None}}, False),
        ({"against_best": None}, False),
        ({}, False),
    ],
)
def test_too_close_is_an_interval_of_the_difference_that_holds_zero(entry: Any, expected: bool) -> None:
    assert too_close(entry) is expected


@pytest.mark.parametrize("format", ["transformers", "sentence-transformers"])
def test_the_snippet_is_three_lines_of_python_that_name_the_path(format: str) -> None:
    path = 'runs/it\'s "here"\\ {x}'
    code = snippet({"path": path, "format": format})
    assert len(code.splitlines()) == 3
    strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert path in strings


def test_the_replay_command_is_quoted_for_a_shell(result: dict[str, Any]) -> None:
    assert replay(result) == "regraft run runs/banking77-10m/family/recipe.yaml --out runs/banking77-10m-again"
    result["report"] = "my runs/$(rm x)/report.html"
    assert replay(result) == "regraft run 'my runs/$(rm x)/family/recipe.yaml' --out 'my runs/$(rm x)-again'"


def test_keys_go_on_after_z() -> None:
    found = keys([None] * 80)
    assert found[:2] + found[25:28] + found[52:53] == ["A", "B", "Z", "AA", "AB", "BA"]
    assert len(set(found)) == 80
