"""Specs are checked when they are made, and say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft import methods
from regraft.errors import MethodError
from regraft.merge import register
from regraft.merge.options import options_of
from regraft.merge.recipe.spec import Input, Output, Spec, spec_of
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.settings import Rule
from regraft.methods import Source

SOURCE = Source("Nobody", 2026, "", "A test")
AB = (Input("./a"), Input("./b"))


@pytest.fixture(autouse=True)
def blend() -> Iterator[None]:
    """A method with every kind of option, gone after the test."""
    methods.methods("merge")
    kept, traits = dict(methods._registry), dict(register._traits)

    @merge_method(
        "blend", source=SOURCE, claim="none",
        traits=Traits(
            base="optional", per_input=("density", "share"), inputs=(1, 3), wants=("num_layers",),
            options={"density": Range(0, 1, low_open=True), "rounds": Range(1, 9)},
            choices={"mode": ("near", "far")},
        ),
    )  # fmt: skip
    def blend(
        stack: Any, *, density: np.ndarray | float, share: np.ndarray | None = None, scale: float = 1.0,
        rounds: int = 2, mode: str = "near", fast: bool = False, word: str | None = None, cut: float | None = None,
        num_layers: int = 0, prepared: Any = None,
    ) -> None: ...  # fmt: skip

    yield
    methods._registry.clear()
    methods._registry.update(kept)
    register._traits.clear()
    register._traits.update(traits)


def test_options_are_those_of_the_signature() -> None:
    known = options_of("blend")
    assert list(known) == ["weight", "density", "share", "scale", "rounds", "mode", "fast", "word", "cut"]
    kinds = {name: option.kind for name, option in known.items()}
    assert kinds == {
        "weight": "number", "density": "number", "share": "number", "scale": "number", "rounds": "whole",
        "mode": "word", "fast": "flag", "word": "text", "cut": "number",
    }  # fmt: skip
    assert [name for name, option in known.items() if option.per_input] == ["weight", "density", "share"]
    assert [name for name, option in known.items() if option.required] == ["density"]


@pytest.mark.parametrize("name", [one.name for one in methods.methods("merge")])
def test_the_defaults_of_every_method_pass_its_own_check(name: str) -> None:
    for option in options_of(name).values():
        assert option.required or option.default is None or option.check(option.default) == option.default


def test_python_values_become_a_spec() -> None:
    spec = spec_of(
        "blend", ["./a", Path("b")], base=Path("./base"), density=0.2, weight=[1, [0.2, 0.8]], scale=[0, 1], mode="far",
        fast=True, rounds=3, word="x", cut=None, output=Output(dtype="bfloat16"), seed=7,
    )  # fmt: skip
    assert spec.base == "base"
    assert spec.inputs == (Input("./a", {"weight": 1.0}), Input("b", {"weight": (0.2, 0.8)}))
    assert spec.options == {
        "density": 0.2, "scale": (0.0, 1.0), "mode": "far", "fast": True, "rounds": 3, "word": "x", "cut": None,
    }  # fmt: skip
    assert (spec.output.dtype, spec.seed) == ("bfloat16", 7)


def test_a_setting_for_all_a_setting_for_each() -> None:
    rules = [{"filter": "mlp", "value": 0.5}, {"value": 1}]
    shared = spec_of("blend", ["a", "b"], density=rules, weight=2)
    assert shared.options["density"] == (Rule(0.5, "mlp"), Rule(1.0))
    assert [one.options for one in shared.inputs] == [{"weight": 2.0}, {"weight": 2.0}]  # weights are inputs' own
    each = spec_of("blend", ["a", "b"], density=np.array([0.2, 0.4]), weight=[rules, 1])
    assert [one.options["density"] for one in each.inputs] == [0.2, 0.4]
    assert each.inputs[0].options["weight"] == (Rule(0.5, "mlp"), Rule(1.0))
    mixed = Spec("blend", None, (Input("a", {"weight": 3}), Input("b")), {"density": 1, "weight": 2})
    assert [one.options["weight"] for one in mixed.inputs] == [3.0, 2.0]


def test_where_an_input_was_written_and_notes_are_no_part_of_what_it_is() -> None:
    one = Spec("blend", None, (Input("a", where="x.yaml, line 3"),), {"density": 1.0}, notes=("hello",))
    assert one == Spec("blend", None, (Input("a"),), {"density": 1.0})


def test_a_spec_as_plain_data() -> None:
    spec = spec_of("blend", ["a"], base="base", density=[[0.1, 0.2]], output=Output(tokenizer="base"), scale=2)
    assert spec.as_dict() == {
        "merge": "blend", "base": "base", "inputs": [{"checkpoint": "a", "density": [0.1, 0.2]}],
        "options": {"scale": 2.0},
        "output": {"tokenizer": "base", "format": "checkpoint"}, "seed": 0,
    }  # fmt: skip


def test_options_of_a_tensor() -> None:
    rules = [{"filter": "mlp", "value": 0.5}, {"value": 1}]
    spec = spec_of("blend", ["a", "b"], density=[rules, [0.2, 0.8]], scale=[0, 1], rounds=3, mode="far", cut=None)
    weights, options = spec.options_at("layers.1.mlp", 1, 3, "before")
    assert weights.tolist() == [1.0, 1.0]
    assert options.pop("density").tolist() == [0.5, 0.5]
    assert options == {"scale": 0.5, "rounds": 3, "mode": "far", "cut": None}
    partly = Spec("blend", None, (Input("a", {"density": 0.5}), Input("b")), {"density": 1, "weight": [0, 1]})
    weights, options = partly.options_at("norm", None, 3, "after")
    assert (weights.tolist(), options["density"].tolist()) == ([1.0, 1.0], [0.5, 1.0])
    missing = Spec("blend", None, (Input("a"),), {"density": [{"filter": "mlp", "value": 1}]})
    with pytest.raises(MethodError, match="No rule names the tensor 'norm'"):
        missing.options_at("norm", None, 3, "after")


def test_filters_that_name_nothing() -> None:
    rules = [{"filter": "mpl", "value": 0.5}, {"filter": "attn", "value": 0.5}, {"value": 1}]
    spec = spec_of("blend", ["a", "b"], density=rules, weight=[rules, 1], scale=[0, 1])
    assert spec.idle_filters(["attn.q", "mlp.up"]) == ["mpl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"densty": 0.2}, r"blend has no option 'densty'\. Did you mean 'density'\?"),
        ({"zzz": 0.2}, r"no option 'zzz'\. It has cut, density"),
        ({}, r"blend needs density\. Give it, a number in \(0, 1\]"),
        ({"density": -0.2}, r"density is -0.2, expected a number in \(0, 1\]"),
        ({"density": [0.2, 1.5]}, "density is 1.5"),
        ({"density": [0.2, 0.3, 0.4]}, "density has 3 values for 2 inputs"),
        ({"density": [{"filter": "mlp", "value": 0}, {"value": 1}]}, "density is 0, expected"),
        ({"density": 0.2, "share": [0.5, None]}, "A setting is None"),
        ({"density": 0.2, "scale": "big"}, "'big', expected a number"),
        ({"density": 0.2, "rounds": 2.5}, r"rounds is 2.5, expected a whole number in \[1, 9\]"),
        ({"density": 0.2, "rounds": 10}, "rounds is 10"),
        ({"density": 0.2, "rounds": True}, "rounds is True"),
        ({"density": 0.2, "mode": "neer"}, r"mode is 'neer', expected near or far\. Did you mean 'near'\?"),
        ({"density": 0.2, "mode": 3}, "mode is 3"),
        ({"density": 0.2, "fast": 1}, "fast is 1, expected true or false"),
        ({"density": 0.2, "word": 3}, "word is 3, expected a text"),
        ({"density": 0.2, "num_layers": 3}, "no option 'num_layers'"),
        ({"density": 0.2, "prepared": 3}, "no option 'prepared'"),
        ({"density": 0.2, "seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        spec_of("blend", ["a", "b"], **options)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(MethodError, match=r"blend is given 4 inputs, expected 1 to 3\."):
        spec_of("blend", ["a"] * 4, density=1)
    with pytest.raises(MethodError, match=r"slerp is given 3 inputs, expected 2\."):
        spec_of("slerp", ["a"] * 3)
    with pytest.raises(MethodError, match=r"linear is given 0 inputs, expected at least 1\."):
        spec_of("linear", [])
    with pytest.raises(MethodError, match=r"ties needs a base\."):
        spec_of("ties", ["a"])
    with pytest.raises(MethodError, match=r"linear uses no base\."):
        spec_of("linear", ["a"], base="b")
    with pytest.raises(MethodError, match=r"no reference to a checkpoint"):
        spec_of("linear", ["  "])
    with pytest.raises(MethodError, match=r"scale of blend holds for all inputs"):
        Spec("blend", None, (Input("a", {"scale": 2.0}), Input("b")), {"density": 1.0})
    with pytest.raises(MethodError, match=r"share is given for some inputs only"):
        Spec("blend", None, (Input("a", {"share": 2.0}), Input("b")), {"density": 1.0})
    with pytest.raises(MethodError, match=r"merge has no method 'tise'\. Did you mean ties"):
        spec_of("tise", ["a"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dtype": "bf16"}, "dtype is 'bf16', expected float32 or bfloat16 or float16. Did you mean 'bfloat16'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"format": "gguf"}, "format is 'gguf', expected checkpoint or lora"),
        ({"rank": 8}, "no LoRA"),
        ({"rank": 0, "format": "lora"}, "rank is 0, expected a whole number of at least 1"),
        ({"rank": 0, "format": "lora"}, "rank is 0"),
        ({"rank": True, "format": "lora"}, "rank is True"),
        ({"tokenizer": ""}, "tokenizer is ''"),
    ],
)
def test_wrong_outputs_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        Output(**given)


def test_the_rest_is_checked_with_the_spec() -> None:
    with pytest.raises(MethodError, match="tokenizer is base, but there is no base"):
        Spec("linear", None, AB, output=Output(tokenizer="base"))
    with pytest.raises(MethodError, match="layers is 0"):
        Spec("linear", None, AB, layers=0)
    with pytest.raises(MethodError, match=r"seed is 1\.5"):
        Spec("linear", None, AB, seed=1.5)  # type: ignore[arg-type]
