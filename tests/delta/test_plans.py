"""Plans against their formulas, word by word in plain Python, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.delta.chunks import decode, encode, squeeze, unsqueeze
from regraft.delta.plans import KINDS, check_plan, from_planes, to_planes
from regraft.errors import CheckpointError


def expected_word(plan: str, dtype: str, child: int, parent: int) -> int:
    """The head of plans.py, on whole numbers."""
    kind = KINDS[dtype]
    bits = 8 * kind.width
    top, everything = 1 << (bits - 1), (1 << bits) - 1

    def rank(word: int) -> int:
        """-NaN to NaN as signed numbers; whole numbers in two's complement, where the offset does not matter."""
        if not kind.exponent:
            return word
        return -1 - (word & (top - 1)) if word & top else word

    if plan.startswith("subtract"):
        step = (rank(child) - rank(parent)) & everything
        signed = step - (1 << bits) if step & top else step
        return 2 * signed if signed >= 0 else -2 * signed - 1
    word = child if plan == "plain" else child ^ parent
    return ((word << 1) | (word >> (bits - 1))) & everything if kind.exponent else word


def expected_planes(plan: str, dtype: str, child: list[int], parent: list[int]) -> list[list[int]]:
    kind = KINDS[dtype]
    words = [expected_word(plan, dtype, mine, theirs) for mine, theirs in zip(child, parent, strict=True)]
    if plan.endswith("/exponent"):
        exponents = [theirs >> kind.mantissa & ((1 << kind.exponent) - 1) for theirs in parent]
        words = [words[at] for at in sorted(range(len(words)), key=lambda at: exponents[at])]
    return [[word >> 8 * byte & 255 for word in words] for byte in reversed(range(kind.width))]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    """A dtype and words of two tensors: any bits, near their parent's or not, NaN of all kinds among them."""
    dtype = draw(st.sampled_from(sorted(KINDS)))
    bits = 8 * KINDS[dtype].width
    word = st.integers(0, 2**bits - 1)
    parent = draw(st.lists(word, min_size=1, max_size=23))
    near = st.integers(-3, 3)
    child = [draw(st.one_of(word, near.map(lambda by, of=of: (of + by) % 2**bits))) for of in parent]
    return dtype, child, parent


@settings(max_examples=200)
@given(pairs())
def test_planes_are_the_formula_and_come_back(pair: tuple[str, list[int], list[int]]) -> None:
    dtype, child, parent = pair
    kind = KINDS[dtype]
    mine, theirs = np.array(child, kind.word), np.array(parent, kind.word)
    for plan in kind.plans:
        found = to_planes(plan, kind, mine.copy(), theirs.copy())
        assert found.tolist() == expected_planes(plan, dtype, child, parent), plan
        back = np.empty(len(child), kind.word)
        from_planes(back, plan, kind, list(found), theirs.copy())
        assert back.tolist() == child, plan


@pytest.mark.parametrize(("dtype", "real"), [("F16", np.float16), ("F32", np.float32), ("F64", np.float64)])
def test_neighbouring_floats_are_one_step_apart(dtype: str, real: type) -> None:
    """Across powers of two and through zero: where XOR flips many bits, the subtraction counts one."""
    kind = KINDS[dtype]
    values = np.array([1.0, -2.0, 0.5, -0.0009765625, 4.0], real)
    above = np.nextafter(values, np.array(np.inf, real))
    planes = to_planes("subtract", kind, above.view(kind.word), values.view(kind.word))
    assert planes[-1].tolist() == [2, 2, 2, 2, 2] and not planes[:-1].any()  # zigzag of +1
    planes = to_planes("subtract", kind, np.array([0.0], real).view(kind.word), np.array([-0.0], real).view(kind.word))
    assert planes[-1].tolist() == [2]


def test_bfloat16_planes_are_exponent_and_the_rest() -> None:
    """1.5 is 0 01111111 1000000; -2.0 is 1 10000000 0000000: exponents 127 and 128; mantissa, then the sign."""
    planes = to_planes("plain", KINDS["BF16"], np.array([0x3FC0, 0xC000], "<u2"), None)
    assert planes.tolist() == [[127, 128], [0b10000000, 0b00000001]]


@given(st.binary(min_size=1, max_size=300), st.booleans())
def test_a_plane_comes_back_and_never_grows(data: bytes, repeated: bool) -> None:
    plane = np.frombuffer(data * (20 if repeated else 1), np.uint8).copy()
    stored = squeeze(plane)
    assert len(stored) <= plane.size
    assert unsqueeze(memoryview(stored), plane.size).tolist() == plane.tolist()


def test_zeros_take_nothing() -> None:
    words = np.arange(1000, dtype="<u2")
    block = encode("xor", KINDS["BF16"], words.copy(), words.copy())
    assert [len(chunk) for chunk in block.chunks] == [0, 0]
    back = np.empty_like(words)
    decode(back, "xor", KINDS["BF16"], memoryview(b""), [0, 0], words)
    assert back.tolist() == words.tolist()


def test_a_bomb_is_not_unpacked() -> None:
    """A frame of a few bytes that claims, or holds, far more than its plane."""
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    with pytest.raises(CheckpointError, match="claims 67108864 bytes where 10000 belong"):
        unsqueeze(memoryview(bomb), 10_000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26))
    with pytest.raises(CheckpointError, match="claims -1 bytes where"):
        unsqueeze(memoryview(unsized), 10_000)
    with pytest.raises(CheckpointError, match="does not unpack"):
        unsqueeze(memoryview(zstandard.ZstdCompressor().compress(bytes(10_000)) + b"more"), 10_000)
    with pytest.raises(CheckpointError, match="does not unpack"):
        unsqueeze(memoryview(b"no frame at all"), 10_000)


def test_unknown_plans_are_refused() -> None:
    check_plan("subtract/exponent", "BF16", True)
    for plan, dtype, has_parent in (("bits", "F32", True), ("xor/exponent", "I8", True), ("xor", "F32", False)):
        with pytest.raises(CheckpointError, match="unknown for"):
            check_plan(plan, dtype, has_parent)


def test_what_exponents_tell_of_the_bytes() -> None:
    """Bytes that are the group, or have its spread, are told; independent ones are not, in any sample."""
    from regraft.delta.encode import _told

    random = np.random.default_rng(0)
    groups = random.integers(110, 118, 8192)
    alike = (groups % 8).astype(np.uint8)
    assert _told(alike[None], groups) == pytest.approx(3.0, abs=0.01)  # eight even groups: three bits
    assert _told(random.integers(0, 2 ** (groups - 109), dtype=np.int64).astype(np.uint8)[None], groups) > 0.5
    for _ in range(5):
        assert abs(_told(random.integers(0, 256, (2, 8192), dtype=np.uint8), groups)) < 0.05
