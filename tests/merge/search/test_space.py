"""What a search tries: every candidate is a spec that the engine takes, and proposals are a function of what was told."""

from __future__ import annotations

from typing import Any

import pytest

from regraft import methods
from regraft.errors import MethodError
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.search.space import (
    ARITHMETIC,
    AVERAGE,
    SPACES,
    Candidate,
    Proposer,
    average_of,
    baselines,
    built,
    coefficients,
    not_in_space,
    short_names,
)


def recipe(count: int = 2, base: str | None = "./base", method: str = "ties", **options: Any) -> Spec:
    return spec_of(method, [f"./{name}" for name in "abcd"[:count]], base, **options)


@pytest.mark.parametrize("method", SPACES)
@pytest.mark.parametrize("end", ["low", "first", "high"])
def test_every_corner_of_the_space_is_a_merge(method: str, end: str) -> None:
    assert method in {one.name for one in methods.methods("merge")}
    values = {name: getattr(one, end) for name, one in coefficients(method, 2).items()}
    made = built(recipe(), method, values, "look")
    assert made.spec.method == method
    assert all(one.low <= one.first <= one.high for one in SPACES[method].values())


def test_the_dull_candidates_are_there() -> None:
    found = baselines(recipe())
    assert [(one.name, one.kind) for one in found] == [
        ("a", "input"), ("b", "input"), ("base", "base"), (AVERAGE, "baseline"), (ARITHMETIC, "baseline"),
    ]  # fmt: skip
    assert [one.spec.method for one in found] == ["linear"] * 4 + ["task_arithmetic"]
    without = baselines(recipe(base=None, method="linear"))
    assert [one.name for one in without] == ["a", "b", AVERAGE]


def test_output_and_seed_are_the_recipes() -> None:
    given = Spec("ties", "./base", recipe().inputs, output=Output("bfloat16", "base"), seed=5)
    for one in baselines(given):
        assert (one.spec.output.dtype, one.spec.seed) == ("bfloat16", 5)
        assert one.spec.output.tokenizer == ("base" if one.spec.base else "./base")


def test_one_merge_has_one_key_however_it_is_written() -> None:
    plain = Candidate("a", "recipe", recipe(method="task_arithmetic"))
    spelt = Candidate("b", "recipe", recipe(method="task_arithmetic", scale=1.0, weight=1.0))
    other = Candidate("c", "recipe", recipe(method="task_arithmetic", scale=0.5))
    assert plain.key == spelt.key == baselines(recipe())[-1].key
    assert other.key != plain.key
    assert (
        built(recipe(), "linear", {"weight0": 1.0, "weight1": 1.0}, "look").key
        == Candidate("", "", average_of(recipe())).key
    )


def test_what_cannot_be_tried_is_said() -> None:
    assert set(not_in_space(recipe(), None)) == {"fisher", "regmean", "regmean_plus"}
    assert "slerp" in not_in_space(recipe(3), None)
    without = not_in_space(recipe(base=None, method="linear"), None)
    assert set(SPACES) - set(without) == {"linear", "slerp", "karcher"}
    assert not_in_space(recipe(base=None, method="linear"), ["ties"]) == {
        "ties": "it needs a base, and the recipe has none"
    }
    with pytest.raises(MethodError, match=r"layer_swap cannot be searched\. Known: linear, "):
        not_in_space(recipe(), ["layer_swap"])


def test_the_inputs_tasks_go_with_them() -> None:
    """Methods that look at examples are tried with the data that the recipe names; no other method is given any."""
    given = recipe(method="fisher", data=["x.csv", "y.csv"], rows=32)
    assert not_in_space(given, ["fisher", "regmean"]) == {}
    looked = built(given, "regmean", {"alpha": 0.5}, "look").spec
    assert [one.options["data"] for one in looked.inputs] == ["x.csv", "y.csv"]
    assert looked.options == {"rows": 32, "alpha": 0.5}
    assert all("data" not in one.options for one in average_of(given).inputs)
    for_all = recipe(method="regmean", data="z.csv")
    assert [one.options["data"] for one in built(for_all, "fisher", {}, "look").spec.inputs] == ["z.csv", "z.csv"]


def test_names_tell_inputs_apart() -> None:
    assert short_names(["./runs/a", "hf:org/b"]) == ["a", "b"]
    assert short_names(["./one/model/", "./two/model"]) == ["1: model", "2: model"]
    assert short_names(["./base", "./b"]) == ["1: base", "b"]


def test_proposals_begin_with_a_look_at_each_method() -> None:
    chosen = ["linear", "ties", "model_stock", "iso_cts"]
    proposer = Proposer(recipe(), chosen, 0)
    seen = []
    for _ in range(proposer.looks):
        trial, candidate = proposer.ask()
        proposer.tell(trial, 0.5)
        seen.append(candidate)
    assert [one.spec.method for one in seen] == ["linear", "ties", "iso_cts"]
    assert [one.kind for one in seen] == ["look"] * 3
    assert seen[1].name == "ties density 0.2 scale 1"
    assert proposer.ask()[1].kind == "proposal"


def test_proposals_follow_what_they_are_told() -> None:
    def course(seed: int) -> list[float]:
        proposer, found = Proposer(recipe(), ["ties", "task_arithmetic"], seed), []
        for _ in range(60):
            trial, candidate = proposer.ask()
            scale = candidate.spec.options.get("scale")
            proposer.tell(trial, -1.0 if scale is None else -abs(scale - 0.5))
            found.append(scale)
        return [scale for scale in found if scale is not None]

    first = course(0)
    assert first == course(0)
    assert first != course(1)
    early, late = (sum(abs(scale - 0.5) for scale in part) / 10 for part in (first[1:11], first[-10:]))
    assert late < 0.6 * early
