"""Linear algebra that is counted before a merge: beside what the methods then call, and in the predicted time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft import methods
from regraft.merge import flops
from regraft.merge.checks import room
from regraft.merge.checks.preflight import Preflight, preflight_of
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack

WHOLE = ("iso_c", "iso_cts", "tsv_m", "wudi", "opcm", "knots", "lora_svd", "regmean", "regmean_plus")
SHAPES = ((48, 48), (48, 96), (80, 32), (8, 200))


def counted(method: str, shape: tuple[int, ...], inputs: int = 3, name: str = "h.0.w", **options: Any) -> float:
    function = traits_of(method).flops
    assert function is not None
    return function(name, shape, inputs, **({"low": None} | options))


def looked_at(spec: Spec, workers: int = 1, limit: int = 2**30) -> Preflight:
    return preflight_of(*open_inputs(spec), max_memory=limit, workers=workers, allow=["lora-loss"])


def test_every_method_of_whole_matrices_counts() -> None:
    """And no other: without a count nothing is timed."""
    for one in methods.methods("merge"):
        traits = traits_of(one.name)
        matrices = traits.working is not None and traits.working((64, 64), 3) > 0
        assert (traits.flops is not None) == matrices, one.name
    assert {one.name for one in methods.methods("merge") if traits_of(one.name).flops} == set(WHOLE)


@pytest.mark.parametrize("method", WHOLE)
def test_what_is_no_matrix_or_has_no_input_takes_none(method: str) -> None:
    for shape in ((), (7,), (2, 3, 4), (0, 5)):
        assert counted(method, shape) == 0.0
    assert counted(method, (64, 64), inputs=0) == 0.0


# The products of each method for a matrix [m, n] of k = min(m, n), l = max(m, n) and inputs N, as its formula has them; a
# matrix times its own transpose is half of one. Decompositions are counted where they are called.
def products(method: str, m: int, n: int, count: int) -> float:
    k, longer = min(m, n), max(m, n)
    half = longer * k * k  # A^T A
    if method == "iso_c":
        return half + 2 * longer * k * k + 2 * m * n * k
    if method == "tsv_m":
        t = k // count
        r = count * t
        made = count * (half + 2 * longer * k * t)
        return made + (m + n) * r * r + 6 * r**3 + 2 * m * r * r + 2 * m * r * n
    if method == "iso_cts":
        t = min(round((k - int(0.8 * k)) / count), k // count)
        c = k - count * t
        r = c + count * t
        made = half + 2 * longer * k * c + count * (4 * m * n * c + half + 2 * longer * k * t if t else 0)
        return made + (m + n) * r * r + 6 * r**3 + 2 * m * r * r + 2 * m * r * n
    if method == "opcm":
        s = k // 2
        return (count - 1) * (half + 2 * longer * k * k + 4 * m * n * k + 4 * m * s * s)
    raise AssertionError(method)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "opcm"])
def test_the_count_is_what_the_formula_multiplies_and_the_method_decomposes(
    method: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    draw, count = np.random.default_rng(0), 3
    base = draw.standard_normal(shape).astype(np.float32)
    inputs = [base + draw.standard_normal(shape).astype(np.float32) for _ in range(count)]
    options = {"distance": "tensor"} if method == "opcm" else {}
    methods.get("merge", method)(Stack.of(inputs, base, name="h.0.w"), **options)
    # 9 k^3 operations at 0.4 of the rate of a product
    expected = products(method, *shape, count) + sum(9 * size**3 / 0.4 for size in sizes)
    assert counted(method, shape, count, **options) == pytest.approx(expected, rel=1e-9)
    assert sizes


@pytest.mark.parametrize("inputs", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_wudi_takes_products_by_the_step_or_one_decomposition(
    shape: tuple[int, int], inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, n = shape
    joined = inputs * m
    step = 2 * m * n * n if joined >= n else 4 * m * n * joined  # in float32: half
    steps = [counted("wudi", shape, inputs, steps=steps) for steps in (0, 1, 300)]
    assert steps[1] - steps[0] == pytest.approx(step / 2 + 120 * m * n)
    assert steps[2] - steps[0] == pytest.approx(300 * (step / 2 + 120 * m * n))
    assert steps[2] == counted("wudi", shape, inputs)
    made = inputs * (m * n * n + 2 * m * n * n if joined >= n else m * m * n)
    assert steps[0] == pytest.approx(made) == counted("wudi", shape, inputs, solve="adam", steps=0)
    assert counted("wudi", shape, 1) < counted("wudi", shape, 2) / 2  # the delta itself
    sizes: list[int] = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    draw = np.random.default_rng(0)
    given = [draw.standard_normal(shape).astype(np.float32) for _ in range(inputs)]
    methods.get("merge", "wudi")(Stack.of(given, np.zeros(shape, np.float32), name="h.0.w"), solve="exact")
    assert sizes == [min(joined, n)]
    decomposed = 9 * sizes[0] ** 3 / 0.4
    assert made + decomposed < counted("wudi", shape, inputs, solve="exact") < made + decomposed + 2 * step + 9 * n**3


def test_options_change_the_count() -> None:
    shape = (64, 48)
    assert (
        counted("opcm", shape)
        == counted("opcm", shape, distance="model")
        == 2 * counted("opcm", shape, distance="tensor")
    )
    assert counted("opcm", shape, inputs=1) == 0.0  # nothing to be projected away from
    for method in ("iso_c", "iso_cts", "tsv_m", "wudi", "opcm"):
        default = "vector" if method in ("wudi", "opcm") else "matrix"
        table = "model.embed_tokens.weight"
        assert counted(method, shape, name=table, embeddings="vector") == 0.0
        assert counted(method, shape, name=table, embeddings="matrix") == counted(method, shape)
        assert bool(counted(method, shape, name=table)) == (default == "matrix")
    assert counted("tsv_m", (2, 50), inputs=3) == 0.0
    assert counted("regmean", shape, alpha=1.0) > counted("regmean", shape, alpha=0.9)
    assert counted("regmean", (30522, 48)) == 0.0  # a table: averaged
    assert counted("knots", shape, rule="task_arithmetic") == 0.0
    assert 2 * counted("knots", shape) < counted("knots", shape, trim="global") < 3 * counted("knots", shape)
    assert counted("knots", (64, 20), side="columns") == counted("knots", (20, 64), side="rows")
    assert counted("lora_svd", shape, rank=48) == 0.0
    assert counted("lora_svd", shape, rank=32) > counted("lora_svd", shape, rank=8)


@pytest.mark.parametrize("method", ["knots", "lora_svd"])
def test_low_ranks_take_a_projection(method: str) -> None:
    """Twice the side: at most 4 times the work where a space of 128 directions holds everything, 8 times where it does not."""
    few = [counted(method, (side, side), low=24) for side in (2048, 4096)]
    all_of_them = [counted(method, (side, side)) for side in (2048, 4096)]
    assert few[1] / few[0] < 4.2
    assert 7 < all_of_them[1] / all_of_them[0] <= 8
    assert counted(method, (2048, 2048), low=0) < 0.1 * few[0]


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> float:
    """A nanosecond an operation, and none for bytes."""
    monkeypatch.setattr(room, "seconds_per_byte", lambda _: 0.0)
    monkeypatch.setattr(room, "seconds_per_flop", lambda: 1e-9)
    return 1e-9


def test_the_predicted_time_has_it(paced: float, three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    tensors = open_inputs(spec_of("iso_c", [a, b], base))[1].template.tensors
    own = {name: counted("iso_c", info.shape, 2, name) for name, info in tensors.items()}
    total, largest = sum(own.values()), max(own.values())
    for workers in (1, 2):
        found = looked_at(spec_of("iso_c", [a, b], base), workers)
        assert found.flops == pytest.approx(total) == found.to_json()["flops"]
        assert found.seconds == float(f"{paced * total / workers:.1g}") > 0
    # However many threads there are, the largest tensor has one.
    assert looked_at(spec_of("iso_c", [a, b], base), 1000, 2**40).seconds == float(f"{paced * largest:.1g}")
    assert "operations of linear algebra" in dict(found.rows())["time"]
    for method in ("ties", "task_arithmetic"):
        plain = looked_at(spec_of(method, [a, b], base))
        assert (plain.flops, plain.seconds) == (0.0, 0.0)
        assert "linear algebra" not in dict(plain.rows())["time"]


def test_settings_of_each_tensor_count(paced: float, three: tuple[Path, Path, Path]) -> None:
    base, a, b = three

    def of(method: str, **options: Any) -> float:
        return looked_at(spec_of(method, [a, b], base, **options)).flops

    assert of("tsv_m", weight=[1.0, 0.0]) < of("tsv_m")
    assert of("tsv_m", weight=[[{"filter": "layer.1.", "value": 1.0}, {"value": 0.0}], 1.0]) < of("tsv_m")
    assert of("iso_c", embeddings="vector") < of("iso_c")
    assert of("wudi", steps=10) < of("wudi")
    assert of("wudi", embeddings="matrix") > of("wudi")


def test_a_lora_is_cut_by_linear_algebra(
    paced: float, three: tuple[Path, Path, Path], adapter_maker: Any, tmp_path: Path
) -> None:
    base, a, b = three
    lora = Output(format="lora", rank=4)
    whole = looked_at(spec_of("task_arithmetic", [a, b], base, output=lora))
    more = looked_at(spec_of("task_arithmetic", [a, b], base, output=replace(lora, rank=16)))
    assert whole.seconds > 0 and more.flops > whole.flops
    assert looked_at(spec_of("iso_c", [a, b], base, output=lora)).flops == pytest.approx(
        looked_at(spec_of("iso_c", [a, b], base)).flops + whole.flops
    )
    adapters = [f"{base}+{adapter_maker(base, tmp_path / name, r=rank)}" for name, rank in (("x", 2), ("y", 3))]
    exact = looked_at(spec_of("lora_cat", adapters, base, output=Output(format="lora")))
    # B A of rank 5 twice, over the queries and values of 4 layers, 32 x 32.
    assert exact.flops == 2 * 8 * 2 * 32 * 5 * 32
    assert looked_at(spec_of("task_arithmetic", adapters, base, output=lora)).flops < whole.flops


def test_the_pace_is_that_of_the_threads_of_a_tensor(
    three: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, however many the library would take; and a product is timed for methods that have some alone."""
    from threadpoolctl import threadpool_info

    seen: list[set[int]] = []

    def timed() -> float:
        seen.append({one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"})
        return 1e-9

    monkeypatch.setattr(room, "seconds_per_flop", timed)
    base, a, b = three
    looked_at(spec_of("ties", [a, b], base))
    assert seen == []
    looked_at(spec_of("iso_c", [a, b], base))
    assert seen == [{1}]


def test_the_best_of_several_products_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steps = [0.0], iter([0.0, 9.0, 0.0, 2.0, *[0.0, 5.0] * 4])

    def ticked() -> float:
        clock[0] += next(steps)
        return clock[0]

    monkeypatch.setattr(flops.time, "perf_counter", ticked)
    assert flops.seconds_per_flop() == pytest.approx(2.0 / (2 * 384**3))
