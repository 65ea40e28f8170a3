"""What a recipe says, against the method and the tensors: settings that cannot hold are refused where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.errors import MethodError
from regraft.merge.checks.preflight import preflight_of
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.file import read_merge
from regraft.merge.recipe.spec import Spec, spec_of
from regraft.merge.run import merge


def problems(spec: Spec) -> list[str]:
    found = preflight_of(*open_inputs(spec), max_memory=2**29)
    return [one.problem for one in found.findings if one.refuses]


VARYING: Any = [[0.2, 0.8], [{"filter": "query", "value": 0.1}, {"value": 0.3}]]


@pytest.mark.parametrize("setting", VARYING, ids=["gradient", "rules"])
@pytest.mark.parametrize(
    ("method", "option", "whole", "apart"),
    [
        ("ties", "density", {"trim": "global"}, {"trim": "tensor"}),
        ("pcb", "density", {"scope": "global"}, {"scope": "tensor"}),
        ("opcm", "alpha", {"distance": "model"}, {"distance": "tensor"}),
        ("knots", "density", {"trim": "global"}, {"trim": "tensor"}),
    ],
)
def test_one_threshold_for_all_tensors_has_one_setting(
    method: str, option: str, whole: dict[str, str], apart: dict[str, str], setting: Any, three: tuple[Path, Path, Path]
) -> None:
    base, a, b = three
    per_input = method in ("ties", "knots")
    given = {option: [setting, 0.5] if per_input else setting}
    (found,) = problems(spec_of(method, [a, b], base, **given, **whole))
    assert f"{option} differs from tensor to tensor, but {method} with " in found
    assert all(f"{key} {word}" in found for key, word in whole.items())
    assert problems(spec_of(method, [a, b], base, **given, **apart)) == []
    same: Any = [0.4, 0.4] if not per_input else [[0.4, 0.4], 0.4]
    assert problems(spec_of(method, [a, b], base, **{option: same}, **whole)) == []
    # Settings that do not enter into what is prepared may still differ.
    if method == "ties":
        assert problems(spec_of(method, [a, b], base, scale=[0.5, 1.0], weight=[[0.1, 1.0], 1.0], **whole)) == []


def test_the_line_of_the_setting_is_named(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = three
    path = tmp_path / "merge.yaml"
    path.write_text(f"""\
merge: ties
base: {base}
inputs:
  - checkpoint: {a}
    weight: 0.5
    density: [0.1, 0.9]
  - {b}
options:
  trim: global
  density: [{{filter: query, value: 0.1}}, {{value: 0.2}}]
""")
    found = problems(read_merge(path))
    assert [one.split(": ")[0] for one in found] == [f"{path}, line 10", f"{path}, line 6"]
    with pytest.raises(MethodError, match="density differs"):
        merge(read_merge(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mergekit_gradient_is_named_by_its_model(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """mergekit trims each tensor, so a gradient of densities is fine there."""
    base, a, b = three
    path = tmp_path / "mergekit.yaml"
    path.write_text(f"""\
merge_method: ties
base_model: {base}
models:
  - {{model: {a}, parameters: {{density: [0.1, 0.9], weight: 0.5}}}}
  - {{model: {b}, parameters: {{density: 0.3, weight: 0.5}}}}
""")
    assert problems(read_merge(path)) == []


@pytest.fixture
def unnumbered(written: Any, llama: Any, on_a_grid: Any) -> list[Path]:
    """Three checkpoints whose names do not tell layers apart."""
    tensors = {name.replace(".layers.", ".stages."): values for name, values in llama(0).items()}
    return [written(name, on_a_grid(tensors, seed)) for seed, name in enumerate(("base", "a", "b"))]


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("layer_swap", {}, "layer_swap goes by the layers"),
        ("rws", {}, "rws goes by the layers"),
        ("linear", {"weight": [[0.2, 0.8], 1.0]}, "weight differs with the depth"),
        ("ties", {"scale": [0.5, 1.0]}, "scale differs with the depth"),
        ("ties", {"density": [{"where": "layers", "value": 0.3}, {"value": 0.2}]}, "density differs with the depth"),
    ],
)  # fmt: skip
def test_what_goes_by_layers_needs_some(method: str, options: Any, words: str, unnumbered: list[Path]) -> None:
    base, a, b = unnumbered
    spec = spec_of(method, [a, b], None if method in ("layer_swap", "linear") else base, **options)
    (found,) = problems(spec)
    assert words in found and "cannot be told apart by its tensors' names" in found


def test_what_does_not_go_by_layers_needs_none(unnumbered: list[Path]) -> None:
    base, a, b = unnumbered
    rules: Any = [{"filter": "mlp", "value": 0.3}, {"value": 0.2}]
    assert problems(spec_of("ties", [a, b], base, density=rules, scale=[0.5, 0.5])) == []
