"""Loops from stored bits to stored bits: formats to the bit, and the same bytes as the blocks of float32 give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft import methods
from regraft.errors import NonFiniteError
from regraft.merge import stack as module
from regraft.merge.kept import Kept, pieces
from regraft.merge.sources import FileSink
from regraft.merge.stack import GRAIN, ArraySource, Stack
from regraft.merge.stored import BITS, MOST, bits_as, decode, encode

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def rounded(values: np.ndarray, form: str) -> np.ndarray:
    """As torch rounds, in the array that a file of that format gives."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(TORCH[form])
    bits = tensor.view(torch.int32 if form == "F32" else torch.int16).numpy()
    return bits.view({"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[form])


def in_float32(raw: np.ndarray, form: str) -> np.ndarray:
    """As torch reads it."""
    bits = torch.from_numpy(raw.view(np.int32 if form == "F32" else np.int16))
    return np.asarray(bits.view(TORCH[form]).to(torch.float32).numpy())


@pytest.mark.parametrize("form", ["BF16", "F16"])
def test_every_word_is_read_as_torch_reads_it(form: str) -> None:
    raw = np.arange(2**16, dtype=np.uint16)
    out = np.empty(raw.size, np.float32)
    assert not decode(out, bits_as(raw, form))
    expected = in_float32(raw, form)
    finite = np.isfinite(expected)
    assert np.array_equal(out[finite].view(np.uint32), expected[finite].view(np.uint32))
    assert not np.isfinite(out[~finite]).any()
    assert decode(out[finite], bits_as(raw[finite], form))


@pytest.mark.parametrize("form", BITS)
def test_what_is_written_is_rounded_as_torch_rounds(form: str) -> None:
    """Around every number of the format and every half-way place: upper halves and the lower bits that decide."""
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF], np.uint32)
    values = (upper | lower).reshape(-1).view(np.float32)
    values = values[np.isfinite(values)]
    expected = rounded(values, form)
    held = np.isfinite(in_float32(expected, form))
    found = np.empty_like(expected)
    assert encode(bits_as(found, form), values) == held.all()
    assert np.array_equal(bits_as(found, form)[held], bits_as(expected, form)[held])
    assert encode(bits_as(found[held], form), values[held])
    for one in values[~held][:: max(1, (~held).sum() // 50)]:
        assert not encode(bits_as(found[:1], form), np.array([one]))


@dataclass(frozen=True)
class Stored:
    """A tensor in memory in a stored format."""

    raw: np.ndarray
    form: str

    @property
    def stored(self) -> tuple[np.ndarray, str]:
        return self.raw, self.form

    def read(self, out: np.ndarray, start: int) -> bool:
        return ArraySource(in_float32(self.raw, self.form)).read(out, start)

    def where(self) -> str:
        return "here"


@dataclass
class Bytes:
    """Stands in for a file."""

    parts: dict[int, np.ndarray] = field(default_factory=dict)

    def write(self, _name: str, raw: np.ndarray, start: int) -> None:
        self.parts[start] = np.array(raw)

    @property
    def whole(self) -> np.ndarray:
        return np.concatenate([self.parts[start] for start in sorted(self.parts)])


def merged(method: str, raws: list[np.ndarray], form: str, out: str, weights: Any, **options: Any) -> np.ndarray:
    """Of stored values: the base first where the method takes one."""
    based = method != "linear"
    sources = [Stored(raw, form) for raw in raws]
    file: Any = Bytes()
    one = Stack(
        "a", raws[0].shape, sources[based:], sources[0] if based else None, np.asarray(weights, np.float64),
        sink=FileSink(file, "a", out),  # type: ignore[arg-type]
    )  # fmt: skip
    assert methods.get("merge", method)(one, **options) is None
    return np.asarray(file.whole)


def slowly(method: str, raws: list[np.ndarray], form: str, out: str, weights: Any, **options: Any) -> np.ndarray:
    """The same through blocks of float32, which the suites of the methods hold to their formulas, and torch's rounding."""
    values = [in_float32(raw, form) for raw in raws]
    based = method != "linear"
    one = Stack.of(values[based:], values[0] if based else None, weights)
    return rounded(methods.get("merge", method)(one, **options), out)


MERGES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "sum": ("linear", {"normalize": False}),
    "task arithmetic": ("task_arithmetic", {"scale": 0.7}),
    "ties": ("ties", {"density": 0.3}),
    "ties, all": ("ties", {"density": 1.0, "elect": "weighted", "divide": "weight", "scale": -0.5}),
    "ties, sum": ("ties", {"density": np.array([0.1, 0.5, 0.0]), "divide": "none"}),
}
WEIGHTS = ([1.0, 1.0, 1.0], [0.7, 0.0, -1.3])


def values(n: int, size: int, form: str, seed: int = 0) -> list[np.ndarray]:
    """A base and values near it; many differences have equal magnitudes, and some values are zeros of both signs."""
    draw = np.random.default_rng(seed)
    base = draw.standard_normal(size) * 0.02 * (draw.random(size) > 0.1)
    step = 2.0**-12
    every = [base] + [base + step * draw.integers(-6, 7, size) * (draw.random(size) > 0.3) for _ in range(n)]
    return [rounded(np.where(draw.random(size) < 0.02, -0.0, one), form) for one in every]


@pytest.mark.parametrize("weights", WEIGHTS, ids=["equal", "mixed"])
@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize("merge", MERGES)
def test_bytes_are_those_of_float32_blocks(merge: str, form: str, weights: list[float]) -> None:
    method, options = MERGES[merge]
    if method == "linear" and merge == "linear" and sum(weights) < 0:
        weights = [0.7, 0.0, 0.5]
    raws = values(3, 2 * GRAIN + 4099, form)[method == "linear" :]
    for out in BITS:
        found = merged(method, raws, form, out, weights, **options)
        assert found.tobytes() == slowly(method, raws, form, out, weights, **options).tobytes()


@pytest.mark.parametrize("n", [1, 2, 6, MOST + 1])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_any_number_of_inputs(method: str, n: int) -> None:
    raws = values(n, 5000, "BF16", seed=n)[method == "linear" :]
    weights = np.linspace(0.2, 1.0, n)
    found = merged(method, raws, "BF16", "BF16", weights)
    assert found.tobytes() == slowly(method, raws, "BF16", "BF16", weights).tobytes()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_blocks_change_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raws = values(3, 3000, "BF16")[method == "linear" :]
    whole = merged(method, raws, "BF16", "BF16", [1.0] * 3)
    for grain in (1, 7, 256, 2999):
        monkeypatch.setattr(module, "GRAIN", grain)
        assert merged(method, raws, "BF16", "BF16", [1.0] * 3).tobytes() == whole.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize("merge", MERGES)
def test_what_is_not_finite_is_refused(merge: str, form: str, which: int, bad: float) -> None:
    """Also in an input that has no weight."""
    method, options = MERGES[merge]
    raws = values(3, 2000, form)[method == "linear" :]
    raws[which][1500] = rounded(np.array([bad]), form)[0]
    with pytest.raises(NonFiniteError, match="holds NaN or infinite"):
        merged(method, raws, form, form, [1.0, 0.5, 0.0] if which == 2 else [1.0] * 3, **options)


def test_what_the_output_cannot_hold_is_refused() -> None:
    raws = [rounded(np.full(1000, 1e5), "BF16")] * 2
    with pytest.raises(NonFiniteError, match="float16 cannot hold"):
        merged("linear", raws, "BF16", "F16", [1.0, 1.0])


@given(st.data())
def test_pieces_keep_what_is_kept(data: st.DataObject) -> None:
    n, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    start = data.draw(st.integers(0, 5))
    lasts = st.one_of(st.integers(-1, 20), st.just(np.iinfo(np.int64).max))
    kept = Kept(
        np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.uint32),
        np.array(data.draw(st.lists(lasts, min_size=n, max_size=n)), np.int64),
    )
    covered = []
    for first, stop, least in pieces(kept, start, start + size):
        assert first < stop
        covered += range(first, stop)
        for number in range(n):
            for at in range(first, stop):
                for magnitude in range(5):
                    limit, last = int(kept.bits[number]), int(kept.last[number])
                    wanted = magnitude > limit or (magnitude == limit and at <= last)
                    assert (magnitude >= least[number]) == wanted
    assert covered == list(range(start, start + size))
