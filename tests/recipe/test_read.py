"""Recipes are refused before anything is computed, in words that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.errors import RecipeError
from regraft.recipe import read_recipe

GOOD = """\
regraft: 1
version: 0.1.0
task: {reference: data, metric: accuracy, max_rows: null, seed: 0}
threads: 1
steps:
  tiny-full:
    op: export
    model: tiny-full.adapt
  tiny-full.adapt:
    op: adapt
    features: tiny.features
    checkpoint: tiny
    method: full
    head: {view: mean, rank_rows: 40, rest_rows: 0, l2: 0.001, iterations: 20}
    settings: {batch: 8, learning_rate: 1.0e-3, bfloat16: true}
    legs: [[10, 0], [5, 5]]
  tiny.features: {op: features, checkpoint: tiny}
  measured: {op: evaluate, model: tiny-full.adapt, split: validation, rows: 20}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_recipe_is_read_into_plain_values_in_order(path: Path) -> None:
    path.write_text(GOOD)
    recipe = read_recipe(path)
    assert recipe.task == {"reference": "data", "metric": "accuracy", "max_rows": None, "seed": 0}
    assert recipe.threads == 1
    names = [step.name for step in recipe.steps]
    assert sorted(names) == ["measured", "tiny-full", "tiny-full.adapt", "tiny.features"]
    assert names[:2] == ["tiny.features", "tiny-full.adapt"]
    adapt = recipe.steps[1]
    assert (adapt.op, adapt.line) == ("adapt", 9)
    assert adapt.values["legs"] == [[10, 0], [5, 5]]
    settings = adapt.values["settings"]
    assert settings == {"batch": 8, "learning_rate": 1e-3, "bfloat16": True}
    assert {type(value) for value in settings.values()} == {int, float, bool}
    assert type(adapt.values) is type(settings) is dict


REFUSED = [
    # what is replaced, what it is replaced with, the line that is named, the words
    ("regraft: 1\n", "regraft: 2\n", 1, "version 2, expected 1"),
    ("regraft: 1\n", "", 1, "not a recipe"),
    ("version: 0.1.0", "vresion: 0.1.0", 2, "recipe has no key 'vresion'. Did you mean 'version'"),
    ("threads: 1", "threads: 0", 4, "threads of recipe is 0, expected a whole number of at least 1"),
    ("threads: 1", "threads: true", 4, "threads of recipe is True"),
    ("task: {reference: data,", "task: {", 3, "task lacks reference"),
    (
        "task: {reference: data,",
        "task: {reference: data, txt_column: x,",
        3,
        "task has no key 'txt_column'. Did you mean 'text_column'",
    ),
    ("task: {reference: data,", "task: {reference: [data],", 3, "expected a text"),
    ("seed: 0}", "seed: zero}", 3, "seed of task is 'zero', expected a whole number"),
    ("max_rows: null", "max_rows: -5", 3, "max_rows of task is -5"),
    ("op: export", "op: exprot", 6, "step 'tiny-full' has the op 'exprot'. Use one of features, adapt"),
    ("op: export", "op: [export]", 6, "has the op"),
    ("    op: export\n", "", 6, "has the op None"),
    ("tiny.features: {op: features, checkpoint: tiny}", "tiny.features: 3", 17, "step 'tiny.features' has the op 3"),
    ("    model: tiny-full.adapt\n", "    modle: tiny-full.adapt\n", 8, "no key 'modle'. Did you mean 'model'"),
    ("    model: tiny-full.adapt\n", "", 7, "step 'tiny-full' lacks model"),
    (
        "    model: tiny-full.adapt\n",
        "    model: tiny-full.adpat\n",
        6,
        "which is no step. Did you mean 'tiny-full.adapt'",
    ),
    ("    model: tiny-full.adapt\n", "    model: tiny.features\n", 6, "a step of features. Name a step of adapt"),
    ("    model: tiny-full.adapt\n", "    model: tiny-full\n", 6, "tiny-full -> tiny-full need each other"),
    ("    model: tiny-full.adapt\n", "    model: measured\n", 6, "a step of evaluate"),
    ("    features: tiny.features\n", "    features: tiny-full\n", 6, "need each other"),
    ("    checkpoint: tiny\n", "    checkpoint: other\n", 9, "adapts other, its features are of tiny"),
    ("    checkpoint: tiny\n", "", 10, "lacks checkpoint"),
    ("    method: full\n", "    method: [full]\n", 13, "expected a text"),
    ("view: mean", "veiw: mean", 14, "head of step 'tiny-full.adapt' has no key 'veiw'. Did you mean 'view'"),
    ("view: mean", "view: middle", 14, "expected last, both or mean"),
    ("l2: 0.001", "l2: small", 14, "expected a number"),
    ("settings: {batch: 8, learning_rate: 1.0e-3, bfloat16: true}", "settings: 8", 15, "expected a mapping"),
    ("[[10, 0], [5, 5]]", "[10, 0]", 16, r"expected a list of [steps, decay]"),
    ("[[10, 0], [5, 5]]", "[[10, -1]]", 16, r"expected a list of [steps, decay]"),
    ("split: validation", "split: tset", 18, "expected one of train, validation, test"),
    ("rows: 20", "rows: 0", 18, "at least 1"),
    ("tiny-full:\n", "../evil:\n", 6, "'../evil' cannot name a step"),
    ("tiny-full:\n", '"..":\n', 6, "cannot name a step"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), REFUSED)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, line: int, words: str, path: Path) -> None:
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert words in str(caught.value)
    assert f"{path}, line {line}:" in str(caught.value)
    assert caught.value.remedy


NO_RECIPE: list[tuple[str | bytes, str]] = [
    ("", "line 1: no mapping"),
    ("- regraft\n", "line 1: no mapping"),
    ("just words\n", "line 1: no mapping"),
    ("regraft: 1\ntask: {reference: data}\n", "line 1: recipe lacks steps"),
    ("regraft: 1\ntask: data\nsteps: {a: {op: features, checkpoint: b}}\n", "line 2: task is no mapping"),
    ("regraft: 1\ntask: {reference: data}\nsteps: {}\n", "line 3: steps holds no step"),
    ("regraft: 1\ntask: {reference: data}\nsteps:\n", "line 3: steps holds no step"),
    ("regraft: 1\nregraft: 1\n", "line 2"),
    ("regraft: 1\ntask: [unclosed\n", "is not YAML"),
    ("regraft: 1\n\ttask: tab\n", "is not YAML"),
    ("regraft: 1\ntask: !!python/object:os.system {reference: data}\nsteps: {a: 3}\n", "line 3"),
    (
        "regraft: 1\ntask: {reference: data}\nsteps:\n"
        "  a: {op: export, model: b}\n  b: {op: evaluate, model: c}\n  c: {op: export, model: a}\n",
        "need each other. Break the circle",
    ),
    (b"regraft: \xff\xfe", "cannot be read"),
    (b"#" * (5 * 2**20), "is larger than"),
]


@pytest.mark.parametrize(("content", "words"), NO_RECIPE, ids=[words for _, words in NO_RECIPE])
def test_what_is_no_recipe_is_refused(content: str | bytes, words: str, path: Path) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeError, match=r"recipe.yaml") as caught:
        read_recipe(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["recipe.yaml", "."])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / name)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2-l3-full", "my model-probe", "mödell", "a+b-lora", "1"])
def test_every_name_that_a_checkpoint_can_have_is_a_step(name: str, path: Path) -> None:
    path.write_text(f"regraft: 1\ntask: {{reference: data}}\nsteps:\n  {name}: {{op: features, checkpoint: a}}\n")
    assert [step.name for step in read_recipe(path).steps] == [name]


MERGED = """\
regraft: 1
task: {reference: data}
steps:
  soup: {op: export, model: soup.merge}
  one: {op: adapt, checkpoint: tiny, method: probe}
  measured: {op: evaluate, model: soup.merge}
  two: {op: adapt, checkpoint: tiny, method: full, head: {view: last}}
  soup.merge: {op: merge, method: linear, models: [one, two]}
"""


def test_a_merge_comes_after_its_models_and_before_what_uses_it(path: Path) -> None:
    path.write_text(MERGED)
    assert [step.name for step in read_recipe(path).steps] == ["one", "two", "soup.merge", "soup", "measured"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[one, two]", "[one]", "expected a list of at least two steps"),
        ("[one, two]", "one", "expected a list of at least two steps"),
        ("[one, two]", "[one, tow]", "needs 'tow', which is no step. Did you mean 'two'"),
        ("[one, two]", "[one, measured]", "need each other"),
        ("[one, two]", "[one, soup.merge]", "need each other"),
        ("method: linear", "method: ties", "has the method 'ties', expected 'linear'"),
        ("merge, method: linear,", "merge,", "step 'soup.merge' lacks method"),
        ("tiny, method: full", "other, method: full", "'one' on the checkpoint tiny with 'two' on other"),
        ("view: last", "view: both", "'one' on the view last with 'two' on both"),
        ("method: probe", "method: as-is", "averages 'one', a checkpoint as it is"),
        ("models: [one, two]", "models: [one, two], weights: [1, 2]", "no key 'weights'"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_line(old: str, new: str, words: str, path: Path) -> None:
    assert old in MERGED
    path.write_text(MERGED.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert words in str(caught.value)
    assert "line " in str(caught.value)


CUT = """\
regraft: 1
task: {reference: data}
steps:
  small: {op: export, model: small.resize}
  small.resize: {op: resize, model: one, sizes: {layer: 2, ffn: 20}, texts: 60, legs: [[4, 4]]}
  measured: {op: evaluate, model: small.resize}
  one: {op: adapt, checkpoint: tiny, method: full, head: {view: last}}
"""


def test_a_cut_comes_after_its_model(path: Path) -> None:
    path.write_text(CUT)
    steps = read_recipe(path).steps
    assert [step.name for step in steps] == ["one", "small.resize", "small", "measured"]
    assert steps[1].values["sizes"] == {"layer": 2, "ffn": 20}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{layer: 2, ffn: 20}", "{}", "expected a mapping from axes to whole numbers"),
        ("{layer: 2, ffn: 20}", "{layer: 0}", "expected a mapping from axes to whole numbers"),
        ("{layer: 2, ffn: 20}", "half", "expected a mapping from axes to whole numbers"),
        ("sizes: {layer: 2, ffn: 20}, ", "", "step 'small.resize' lacks sizes"),
        ("texts: 60", "texts: 0", "expected a whole number of at least 1"),
        ("texts: 60", "criterion: random", "no key 'criterion'"),
        ("resize, model: one", "resize, model: measured", "need each other"),
        ("method: full", "method: as-is", "cuts 'one', which is as it came"),
        ("view: last", "view: mean", "or has a weight for each layer"),
        (
            "  measured: {op: evaluate, model: small.resize}",
            "  less: {op: resize, model: small.resize, sizes: {layer: 1}}",
            "cuts 'small.resize', which is cut already",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_line(old: str, new: str, words: str, path: Path) -> None:
    assert old in CUT
    path.write_text(CUT.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert words in str(caught.value)
    assert "line " in str(caught.value)
