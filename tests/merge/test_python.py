"""`regraft.merge` from Python: every method is a function, and nothing is imported that is not asked for."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import regraft.merge
from regraft import methods
from regraft.errors import MethodError
from regraft.merge import Input, Output, Spec, spec_of

NAMES = sorted(one.name for one in methods.methods("merge"))


@pytest.fixture
def three(tiny_bert: Path, tuned: Any) -> tuple[Path, Path, Path]:
    return tiny_bert, tuned(tiny_bert, "a", 1), tuned(tiny_bert, "b", 2)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_a_method_is_a_function(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = three
    result = regraft.merge.ties([a, b], base=base, density=0.2, out=tmp_path / "out")
    assert (result.out, result.method) == (tmp_path / "out", "ties")
    by_spec = regraft.merge.merge(spec_of("ties", [a, b], base, density=0.2), str(tmp_path / "spec"))
    found, same = arrays(result.out), arrays(by_spec.out)
    assert all(np.array_equal(found[name], values) for name, values in same.items())
    for name, values in arrays(base).items():  # a fifth of both inputs' changes, some of which coincide
        changed = int((found[name] != values).sum())
        assert int(0.2 * values.size) <= changed <= 2 * int(0.2 * values.size)


def test_lists_are_one_setting_an_input(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = three
    weights = regraft.merge.linear([str(a), str(b)], weight=[3.0, 1.0], out=str(tmp_path / "out"))
    parts = [arrays(folder) for folder in (weights.out, a, b)]
    for name, values in parts[0].items():
        np.testing.assert_allclose(values, 0.75 * parts[1][name] + 0.25 * parts[2][name], rtol=1e-6, atol=1e-8)
    only = regraft.merge.ties([a, b], base, density=[1.0, 0.0], out=tmp_path / "first")
    found, one = arrays(only.out), arrays(a)
    assert all(np.allclose(found[name], values, rtol=1e-6, atol=1e-8) for name, values in one.items())


def test_where_it_goes_when_nothing_is_said(
    three: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, a, b = three
    monkeypatch.chdir(tmp_path)
    one, other = (regraft.merge.task_arithmetic([a, b], base, scale=scale) for scale in (0.3, 0.4))
    assert one.out.parent == other.out.parent == Path("merged")
    assert one.out != other.out
    assert all(result.out.name.startswith("task_arithmetic-") for result in (one, other))
    assert (tmp_path / one.out / "model.safetensors").exists()


def test_output_seed_and_limits_are_handed_on(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = three
    made = [
        regraft.merge.dare_linear(
            [a, b], base, density=0.5, seed=seed, output=Output(dtype="float16"), out=tmp_path / str(at), workers=1
        )
        for at, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (arrays(result.out) for result in made)
    assert {values.dtype for values in first.values()} == {np.dtype(np.float16)}
    assert all(np.array_equal(first[name], values) for name, values in again.items())
    assert not all(np.array_equal(first[name], values) for name, values in other.items())
    with pytest.raises(regraft.errors.BudgetError, match=r"the limit is 1\.0 KiB"):
        regraft.merge.linear([a, b], max_memory=1024, out=tmp_path / "none")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_there_with_its_words(name: str) -> None:
    function = getattr(regraft.merge, name)
    assert callable(function) and function.__doc__ == methods.get("merge", name).function.__doc__


def test_no_method_is_hidden_by_a_module() -> None:
    """A module of the package would take the place of a method of its name once it is imported."""
    modules = {one.name for one in pkgutil.iter_modules(regraft.merge.__path__)}
    assert not modules & set(NAMES)
    for name in modules:
        importlib.import_module(f"regraft.merge.{name}")
    assert not [name for name in regraft.merge.__all__ if isinstance(getattr(regraft.merge, name), ModuleType)]


def test_a_preflight_stays_a_function(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The module of that name is imported by the first call."""
    base, a, b = three
    for _ in range(2):
        found = regraft.merge.preflight(spec_of("ties", [a, b], base), out=str(tmp_path / "out"))
        assert found.errors == () and isinstance(found, regraft.merge.Preflight)
    assert not (tmp_path / "out").exists()
    assert regraft.merge.preflight(spec_of("ties", [a, b], base), max_memory=1024).errors


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tyes'"):
        _ = regraft.merge.tyes
    with pytest.raises(AttributeError, match="_private"):
        _ = regraft.merge._private


@pytest.mark.parametrize(("call", "words"), [
    (lambda: regraft.merge.ties(["./a"], base="./b", densty=0.2), r"ties has no option 'densty'.*Did you mean 'density'"),
    (lambda: regraft.merge.ties(["./a"], base="./b", density=2.0), r"density is 2, expected a number in \[0, 1\]"),
    (lambda: regraft.merge.ties(["./a"]), "base"),
    (lambda: regraft.merge.ties(["./a", "./b"], base="./c", weight=[1.0, 2.0, 3.0]), "weight has 3 values for 2 inputs"),
    (lambda: regraft.merge.linear([]), "linear"),
    (lambda: regraft.merge.linear(["./a"], workers=0), r"workers is 0, expected at least 1\. Leave it out"),
    (lambda: regraft.merge.ties(["./a"], base="./b", trim="tensors"), "Did you mean 'tensor'"),
])  # fmt: skip
def test_mistakes_are_words(call: Any, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        call()


def test_public_names() -> None:
    assert set(regraft.merge.__all__) >= {
        "Input",
        "MergeResult",
        "Output",
        "Preflight",
        "Spec",
        "merge",
        "preflight",
        "spec_of",
    }
    assert all(hasattr(regraft.merge, name) for name in regraft.merge.__all__)
    assert inspect.isclass(Spec) and inspect.isclass(Input)


def test_looking_at_a_recipe_needs_neither_torch_nor_numba() -> None:
    code = (
        "import sys, regraft.merge\n"
        "slow = ('torch', 'transformers', 'sklearn')\n"
        "print([name for name in (*slow, 'numba', 'scipy') if name in sys.modules])\n"
        "regraft.merge.ties, regraft.merge.merge, regraft.merge.linear\n"
        "print([name for name in slow if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["[]", "[]"]


@pytest.mark.parametrize("method", ["ties", "iso_c"])
def test_a_whole_merge_does_without_torch(method: str, three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """From the recipe to the certificate, which is then checked."""
    base, a, b = three
    code = (
        f"import sys\nfrom pathlib import Path\nout = Path({str(tmp_path / 'out')!r})\n"
        "from regraft import certificate\nfrom regraft.merge import merge, spec_of\n"
        f"merge(spec_of({method!r}, [{str(a)!r}, {str(b)!r}], {str(base)!r}), out)\n"
        "print({one.outcome for one in certificate.verify(out)})\n"
        "print([name for name in ('torch', 'transformers', 'sklearn', 'datasets') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["{'pass'}", "[]"]
