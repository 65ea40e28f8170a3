"""mergekit's recipes mean here what they mean there, or are refused with their line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from regraft import methods
from regraft.errors import RecipeError
from regraft.merge.options import options_of
from regraft.merge.recipe.file import read_merge
from regraft.merge.recipe.mergekit import _dropped
from regraft.merge.recipe.spec import Input, Output, Spec
from regraft.merge.recipe.twins import TWINS
from regraft.merge.register import traits_of
from regraft.merge.select import part_of
from regraft.merge.settings import Rule
from regraft.merge.stack import Stack

LAYERS = 3
# name, layer, side
PLACES: list[tuple[str, int | None, Literal["before", "after"]]] = [
    ("model.embed_tokens.weight", None, "before"),
    *((f"model.layers.{layer}.{part}.weight", layer, "before") for layer in range(LAYERS) for part in ("mlp.up", "attn.q")),
    ("model.norm.weight", None, "after"),
]  # fmt: skip

TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/a@main
    parameters:
      weight: 0.5
  - model: ./b+org/lora
    parameters:
      weight: [0.2, 0.8]
      density:
        - {filter: mlp, value: [0, 1]}
        - {filter: "*", value: 0.5}
parameters: {density: 0.25, int8_mask: true,
  normalize: yes, lambda: 1.0e-1}
dtype: bfloat16
out_dtype: float32
tokenizer_source: base
"""


def read(tmp_path: Path, text: str) -> Spec:
    path = tmp_path / "mergekit.yaml"
    path.write_text(textwrap.dedent(text))
    return read_merge(path)


def merged(spec: Spec, base: np.ndarray | None, inputs: list[np.ndarray], place: Any) -> np.ndarray:
    """One tensor, merged as the spec says."""
    name, block, side = place

    weights, options = spec.options_at(name, block, LAYERS, side)
    found = methods.get("merge", spec.method)(Stack.of(inputs, base, weights, name), **options)
    return np.asarray(found)


def gradient(values: list[float], place: Any) -> float:
    """mergekit's gradient: tensors outside the layers take the first value."""
    depth = 0.0 if place[1] is None else place[1] / (LAYERS - 1)
    return float(np.interp(depth, np.linspace(0, 1, len(values)), values))


@pytest.fixture
def arrays() -> tuple[np.ndarray, list[np.ndarray]]:
    draw = np.random.default_rng(0)
    base = draw.standard_normal((8, 10)).astype(np.float32)
    return base, [(base + 0.1 * draw.standard_normal((8, 10))).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("name", TWINS)
def test_every_twin_fits_its_method(name: str) -> None:
    twin, known, traits = TWINS[name], options_of(TWINS[name].method), traits_of(TWINS[name].method)
    assert (traits.base == "required") == twin.base
    for number in twin.numbers.values():
        worked_out = (name, number.ours) in {("breadcrumbs", "density"), ("nuslerp", "weight")}
        assert worked_out or known[number.ours].per_input == number.per_input
    flags = [means for flag in twin.flags.values() for means in (flag.true, flag.false) if means]
    assert {key for means in [twin.fixed, *flags] for key in means} <= set(known)
    for key, value in twin.fixed.items():
        assert known[key].check(value) == value


def test_a_recipe_becomes_a_spec(tmp_path: Path) -> None:
    spec = read(tmp_path, TIES)
    density = (Rule(0.0, "mlp", "after"), Rule((0.0, 1.0), "mlp"), Rule(0.5))
    assert spec == Spec(
        "ties", "hf:org/base",
        (
            Input("hf:org/a@main", {"weight": 0.5, "density": 0.25}),
            Input("./b+hf:org/lora", {"weight": (Rule(0.2, None, "after"), Rule((0.2, 0.8))), "density": density}),
        ),
        {"trim": "tensor", "elect": "weighted", "divide": "weight", "scale": 0.1},
        Output("float32", "hf:org/base"),
    )  # fmt: skip
    assert [one.where for one in spec.inputs] == [f"{tmp_path / 'mergekit.yaml'}, line {line}" for line in (5, 8)]
    assert spec.notes == ()


def test_ties_trims_elects_and_divides_as_there(tmp_path: Path, arrays: Any) -> None:
    base, inputs = arrays
    spec = read(tmp_path, TIES)
    for place in PLACES:
        weights = [0.5, gradient([0.2, 0.8], place)]
        density = [0.25, gradient([0, 1], place) if "mlp" in place[0] else 0.5]
        deltas = []
        for weight, share, values in zip(weights, density, inputs, strict=False):
            delta = values.astype(np.float64) - base
            kept = np.argsort(-np.abs(delta), axis=None)[: int(share * delta.size)]
            mask = np.zeros(delta.size)
            mask[kept] = 1
            deltas.append(weight * delta * mask.reshape(delta.shape))
        sign = np.where(sum(deltas) >= 0, 1, -1)
        agree = [np.sign(delta) == sign for delta in deltas]
        total = sum(delta * mask for delta, mask in zip(deltas, agree, strict=True))
        share_of = sum(weight * mask for weight, mask in zip(weights, agree, strict=True))
        oracle = base + 0.1 * total / np.where(share_of == 0, 1, share_of)
        np.testing.assert_allclose(merged(spec, base, inputs[:2], place), oracle, atol=1e-6)


def test_linear_is_normalised_unless_told_otherwise(tmp_path: Path, arrays: Any) -> None:
    _, (one, two, _) = arrays
    text = """\
        merge_method: linear
        models:
          - {model: ./a, parameters: {weight: [1, 3]}}
          - {model: ./b, parameters: {weight: "1e0"}}
        parameters: {normalize: %s}
        """
    for place in PLACES:
        weight = gradient([1, 3], place)
        plain = weight * one.astype(np.float64) + two
        kept = read(tmp_path, text % "true")
        np.testing.assert_allclose(merged(kept, None, [one, two], place), plain / (weight + 1), atol=1e-6)
        np.testing.assert_allclose(merged(read(tmp_path, text % "off"), None, [one, two], place), plain, atol=1e-6)


def test_task_arithmetic_adds_or_averages(tmp_path: Path, arrays: Any) -> None:
    base, inputs = arrays
    text = """\
        merge_method: task_arithmetic
        base_model: ./base
        models: [{model: ./a}, {model: ./b}, {model: ./c, parameters: {weight: -1}}]
        parameters: {weight: 0.75, lambda: [0.5, 1.5], normalize: %s}
        """
    for place in PLACES:
        total = 0.75 * (inputs[0] - base) + 0.75 * (inputs[1] - base) - (inputs[2] - base)
        scale = gradient([0.5, 1.5], place)
        for words, divisor in (("false", 1.0), ("true", 0.5)):
            found = merged(read(tmp_path, text % words), base, inputs, place)
            np.testing.assert_allclose(found, base + scale * total / divisor, atol=2e-6)


def test_the_usual_slerp(tmp_path: Path, arrays: Any) -> None:
    text = """\
        slices:
          - sources:
              - {model: org/other, layer_range: [0, 3]}
              - {model: org/base, layer_range: [0, 3]}
        merge_method: slerp
        base_model: org/base
        parameters:
          t:
            - filter: attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: bfloat16
        """
    spec = read(tmp_path, text)
    assert (spec.layers, spec.base, spec.output) == (3, None, Output("bfloat16", "hf:org/base"))
    assert [one.reference for one in spec.inputs] == ["hf:org/base", "hf:org/other"]
    base, (other, *_) = arrays
    angle = np.arccos((base * other).sum() / np.linalg.norm(base) / np.linalg.norm(other))
    for place in PLACES:
        t = 0.5
        if "attn" in place[0]:
            t = gradient([0, 0.5, 0.3, 0.7, 1], place)
        if "mlp" in place[0]:
            t = gradient([1, 0.5, 0.7, 0.3, 0], place)
        oracle = (np.sin((1 - t) * angle) * base + np.sin(t * angle) * other) / np.sin(angle)
        np.testing.assert_allclose(merged(spec, None, [base, other], place), oracle, atol=1e-5)


def test_nuslerp_is_slerp_by_weights(tmp_path: Path) -> None:
    text = (
        "merge_method: nuslerp\nmodels: [{model: a, parameters: {weight: %s}}, {model: b, parameters: {weight: 3}}]\n"
    )
    assert read(tmp_path, text % 1).options == {"t": 0.75}
    assert read(tmp_path, text % -3).options == {"t": 0.5}
    assert [one.options for one in read(tmp_path, text % 1).inputs] == [{}, {}]


@pytest.mark.parametrize(
    ("density", "gamma", "beta", "top"), [(0.5, 0.1, 0.4, 0.1), (0.95, 0.1, 0.0, 0.05), (1, 0.1, 0.0, 0.0), (0.5, 0, 0.5, 0)]
)  # fmt: skip
def test_breadcrumbs_drops_the_same_shares(
    tmp_path: Path, density: float, gamma: float, beta: float, top: float
) -> None:
    spec = read(
        tmp_path,
        f"merge_method: breadcrumbs\nbase_model: x\nmodels: [{{model: a}}]\n"
        f"parameters: {{weight: 1, density: {density}, gamma: {gamma}}}\n",
    )  # fmt: skip
    assert spec.inputs[0].options == {"weight": 1.0, "beta": pytest.approx(beta), "gamma": pytest.approx(top)}


def test_defaults_are_mergekits(tmp_path: Path) -> None:
    text = "merge_method: %s\nbase_model: x\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    ties = read(tmp_path, text % "ties")
    assert (ties.inputs[0].options["density"], ties.options["scale"], ties.options["divide"]) == (1.0, 1.0, "weight")
    dare = read(tmp_path, text % "dare_ties")
    assert (dare.options["elect"], dare.options["divide"]) == ("weighted", "none")
    assert "other random numbers" in dare.notes[-1]
    assert read(tmp_path, text % "dare_linear").options["normalize"] is False
    della = read(tmp_path, text % "della")
    assert (della.inputs[0].options["epsilon"], della.options["divide"]) == (0.15, "weight")
    assert read(tmp_path, (text % "sce").replace("weight: 1", "select_topk: 0.1")).options == {"density": 0.1}
    assert read(tmp_path, (text % "sce").replace("weight: 1", "")).options == {"density": 1.0}
    assert read(tmp_path, (text % "model_stock").replace("weight: 1", "")).options == {}


def test_settings_are_handed_on_from_model_to_slice_to_recipe_to_default(tmp_path: Path) -> None:
    spec = read(tmp_path, """\
        merge_method: ties
        base_model: base
        slices:
          - sources:
              - model: base
                layer_range: [0, 3]
              - model: a
                layer_range: [0, 3]
                parameters:
                  weight: {filter: mlp, value: 3}
                  density: {filter: mlp, value: 0.3}
              - model: b
                layer_range: [0, 3]
            parameters:
              weight: [{filter: attn, value: 2}]
        parameters:
          weight: 1
        """)  # fmt: skip
    a, b = (one.options for one in spec.inputs)
    assert a["weight"] == (Rule(3.0, "mlp"), Rule(2.0, "attn"), Rule(1.0))
    assert b["weight"] == (Rule(2.0, "attn"), Rule(1.0))
    assert a["density"] == (Rule(0.3, "mlp"), Rule(1.0))
    assert b["density"] == 1.0


def test_where_the_weights_are_not_mergekits_it_is_said(tmp_path: Path) -> None:
    text = "merge_method: %s\nbase_model: x\nmodels: [{model: a}, {model: b}]\nparameters: {%s}\n"
    for name, parameters in (("sce", "select_topk: 0.5"), ("breadcrumbs", "weight: 1, density: 0.9")):
        assert read(tmp_path, text % (name, parameters)).notes == (TWINS[name].note,)


@pytest.mark.parametrize(
    ("density", "gamma"), [(0.9, 0.01), (0.5, 0.01), (0.85, 0.2), (1.0, 0.1), (0.3, 0.0), (0.99, 0.05)]
)
def test_breadcrumbs_keeps_up_to_two_elements_more(density: float, gamma: float) -> None:
    """Beside mergekit's count: `int(density * size)` of those that the outliers leave."""
    shares = _dropped(density, gamma)
    for size in range(1, 400):
        here = size - int(part_of(size, np.array(shares["beta"]))) - int(part_of(size, np.array(shares["gamma"])))
        there = size if density >= 1 else int(density * size)
        assert 0 <= here - there <= 2


def test_a_base_that_is_not_listed_is_a_model_where_the_method_knows_no_base(tmp_path: Path) -> None:
    text = "merge_method: %s\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 2}\n"
    spec = read(tmp_path, text % "linear")
    assert [one.reference for one in spec.inputs] == ["hf:a", "hf:b", "hf:base"]
    assert [one.options["weight"] for one in spec.inputs] == [2.0] * 3
    assert (spec.base, spec.output.tokenizer) == (None, "hf:base")
    karcher = read(tmp_path, (text % "karcher").replace("weight: 2", "max_iter: 10"))
    assert [one.reference for one in karcher.inputs] == ["hf:a", "hf:b", "hf:base"]
    assert karcher.notes == (TWINS["karcher"].note,)
    with pytest.raises(RecipeError, match=r"line 2: mergekit's linear needs weight"):
        read(tmp_path, "merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]\n")
    sliced = "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nparameters: {weight: 1}\n"
    spec = read(tmp_path, "merge_method: linear\nbase_model: c\n" + sliced)
    assert [one.reference for one in spec.inputs] == ["hf:a"]


def test_what_mergekit_passes_over_is_said(tmp_path: Path) -> None:
    spec = read(tmp_path, """\
        merge_method: linear
        models:
          - model: a
            parameters: {weight: 1, density: 0.5, int8_mask: true}
          - {model: b, parameters: {weight: 1, normalize: false}}
        """)  # fmt: skip
    assert spec.options == {"normalize": True}
    assert [note.partition(": ")[2] for note in spec.notes] == [
        "mergekit's linear does not read density there; neither does this merge.",
        "mergekit's linear does not read normalize there; neither does this merge.",
    ]
    assert [note.partition(": ")[0].rpartition(" ")[2] for note in spec.notes] == ["4", "5"]


def test_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    mapping = "{model: {path: org/x, revision: v1}, lora: org/y}"
    models = ("org/name", "org/other", "gpt2", "./missing", mapping, "hf:org/z", "/abs/x")
    listed = "".join(f"  - model: {one}\n" for one in models)
    rest = "parameters: {weight: 1}\ntokenizer: {source: org/name}\n"
    spec = read(tmp_path, f"merge_method: linear\nmodels:\n{listed}{rest}")
    assert [one.reference for one in spec.inputs] == [
        "org/name", "hf:org/other", "hf:gpt2", "./missing", "hf:org/x@v1+hf:org/y", "hf:org/z", "/abs/x",
    ]  # fmt: skip
    assert spec.output.tokenizer == "org/name"


REFUSED = [
    # what is replaced, what it is replaced with, the line that is named, the words
    ("merge_method: ties", "merge_method: tise", 1, "mergekit has no method 'tise'. Did you mean 'ties'"),
    ("merge_method: ties", "merge_method: nearswap", 1, "mergekit's nearswap is not here"),
    ("merge_method: ties", "merge_method: passthrough", 1, "mergekit's passthrough is not here"),
    ("merge_method: ties", "merge_method: [ties]", 1, "merge_method is a list, expected a text"),
    ("base_model: org/base\n", "", 1, "mergekit's ties needs base_model"),
    ("base_model: org/base", "base_modle: org/base", 2, "no key 'base_modle'. Did you mean 'base_model'"),
    ("base_model: org/base", "base_model: a+b+c", 2, "more than one lora"),
    ("base_model: org/base", "base_model: {model: x, override_architecture: y}", 2, "override_architecture: not here"),
    ("base_model: org/base", "base_model: {model: {pth: x}}", 2, "model has no key 'pth'. Did you mean 'path'"),
    ("base_model: org/base", "base_model: {model: [x]}", 2, "model is a list, expected a text"),
    ("models:\n", "modules:\n", 3, "modules: not here"),
    ("models:\n", "slices: []\nmodels:\n", 3, "expected models or slices, one of them"),
    ("  - model: org/base\n", "  - org/base\n", 4, "a model is 'org/base', expected a mapping"),
    ("  - model: org/base\n", "  - modle: org/base\n", 4, "model has no key 'modle'. Did you mean 'model'"),
    ("  - model: org/base\n", "  - model: org/a@main\n", 5, "hf:org/a@main is listed twice"),
    ("weight: 0.5", "wieght: 0.5", 7, "mergekit has no parameter 'wieght'. Did you mean 'weight'"),
    ("weight: 0.5", "zzz: 0.5", 7, "ties has density, lambda"),
    ("      weight: 0.5\n", "      density: 0.5\n", 5, "mergekit's ties needs weight"),
    ("weight: 0.5", "weight: half", 7, "'half', expected a number"),
    ("weight: [0.2, 0.8]", "weight: [0.2, [0.8]]", 10, "a list, expected a number"),
    ("{filter: mlp, value: [0, 1]}", "{filter: mlp, vlaue: [0, 1]}", 12, "a rule has no key 'vlaue'"),
    ("{filter: mlp, value: [0, 1]}", "{filter: mlp}", 12, "a rule has no value"),
    ("{filter: mlp, value: [0, 1]}", "0.5", 12, "a rule is 0.5"),
    ('{filter: "*", value: 0.5}', "{value: -0.5}", 13, "density is -0.5, expected a number in [0, 1]"),
    ("density: 0.25", "density: 1.25", 14, "density is 1.25"),
    ("normalize: yes", "normalize: [true, false]", 15, "normalize is a list, expected true or false"),
    ("normalize: yes", "rescale: true", 15, "ties with rescale: true is not here"),
    ("parameters: {density: 0.25, int8_mask: true,\n  ", "parameters: 3\n#", 14, "parameters is 3, expected a mapping"),
    ("dtype: bfloat16", "dtype: int8", 16, "dtype is 'int8', expected float32"),
    ("out_dtype: float32", "out_dtype: float64", 17, "out_dtype is 'float64'"),
    ("out_dtype: float32", "chat_template: auto", 17, "chat_template: not here"),
    (
        "dtype: bfloat16\nout_dtype: float32",
        "dtype: float64",
        16,
        "float64 is not written here. Add out_dtype: float32",
    ),
    ("tokenizer_source: base", "tokenizer_source: union", 18, "a union of vocabularies: not here"),
    ("tokenizer_source: base", "tokenizer: {source: union}", 18, "a union of vocabularies: not here"),
    ("tokenizer_source: base", "tokenizer: {pad_to_multiple_of: 8}", 18, "pad_to_multiple_of changes the vocabulary"),
    ("tokenizer_source: base", "tokenizer: {tokens: {x: y}, source: base}", 18, "tokens changes the vocabulary"),
    ("tokenizer_source: base", "tokenizer: {source: base}\ntokenizer_source: base", 18, "expected one"),
    ("tokenizer_source: base", "name: my-merge", 18, "mergekit recipe has no key 'name'"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), REFUSED)
def test_what_is_not_here_is_named_with_its_line(old: str, new: str, line: int, words: str, tmp_path: Path) -> None:
    assert old in TIES
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, TIES.replace(old, new, 1))
    assert words in str(caught.value)
    assert f"line {line}:" in str(caught.value)
    assert caught.value.remedy


SLICES = """\
merge_method: linear
parameters: {weight: 1}
slices:
  - sources:
      - {model: b, layer_range: [0, 4]}
      - %s
"""


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("{model: a, layer_range: [2, 6]}", 6, "layer_range starts with layer 2, a part of the model"),
        ("{model: a, layer_range: [0, 5]}", 4, "sources with different layer_range"),
        ("{model: a, layer_range: 4}", 6, "layer_range is no [first, end]"),
        ("{model: a, layer_range: [0, 0]}", 6, "layer_range is no [first, end]"),
        ("{model: a}", 6, "model lacks layer_range"),
        ("{model: a, layer_range: [0, 4]}\n  - sources: [{model: c, layer_range: [4, 8]}]", 7, "several slices"),
        ("{model: a, layer_range: [0, 4]}\n    residual_weight: 1", 7, "slice has no key 'residual_weight'"),
    ],
)
def test_slices_that_are_no_whole_models_are_refused(source: str, line: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, SLICES % source)
    assert words in str(caught.value)
    assert f"line {line}:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}\n", "slerp needs base_model"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n", "slerp needs t"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {t: 1}\n", "given 3 inputs"),
        ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n", "ties is given 0 inputs"),
        ("merge_method: nuslerp\nbase_model: x\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n", "to a base: not"),
        ("merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: [0, 1]}\n", "differs by tensor"),
        (
            "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, nuslerp_flatten: false}\n",
            "line 3: nuslerp with nuslerp_flatten: false is not here",
        ),
        (
            "merge_method: model_stock\nbase_model: x\nmodels: [{model: a}, {model: b}]\nparameters: {filter_wise: true}\n",
            "line 4: model_stock with filter_wise: true is not here",
        ),
        ("merge_method: dare_ties\nbase_model: x\nmodels: [{model: a}]\nparameters: {weight: 1, rescale: 0}\n", "rescale: false"),
        ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\ntokenizer_source: base\n", "no base_model"),
    ],
)  # fmt: skip
def test_what_a_method_lacks_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read(tmp_path, text)
