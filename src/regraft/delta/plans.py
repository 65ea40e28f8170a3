"""How the words of a tensor are turned into bytes that compress: plans, exact both ways.

A word is an element as an unsigned integer of its width (C64: two words of 32 bits). With child c and parent p:

    plain       rotl(c)                        no parent, or a parent that does not help
    xor         rotl(c ^ p)                    most bits of a fine-tune are its parent's: zeros
    subtract    zigzag(ord(c) - ord(p))        the steps between neighbouring numbers: few, whatever bits they carry over
    xor/exponent, subtract/exponent            the same, ordered by the exponent of p

    rotl        rotates a float left by one: the exponent fills the top bits and the sign goes to the bottom. For bfloat16
                and float32 the first byte is then the exponent alone. Whole numbers are not rotated.
    ord         numbers the floats upwards from -NaN to NaN (sign and magnitude to two's complement); a bijection of all
                bit patterns. Whole numbers number themselves.
    zigzag      0, -1, 1, -2, 2 ... -> 0, 1, 2, 3, 4 ...: small steps either way have zeros in front
    exponent    a change of a weight spans more steps the smaller the weight is. Words that lie side by side by the parent's
                exponent, which the reader has, are alike, and an entropy coder that adapts as it goes gains. Within a
                block, stable.

Then the bytes of the words are laid out as planes, the most significant first, and every plane is compressed by itself.

Sources: ZipNN (Hershcovitch et al. 2024, arXiv 2411.05239): exponents apart, entropy coding alone; ZipLLM (Wang et al. 2025,
arXiv 2505.06252): XOR with the base, planes, zstd (BitX). Numbering floats in order: Lindstrom and Isenburg (2006), Fast and
efficient compression of floating-point data. The subtraction and the order by exponent are measured in docs/zoo_pack.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regraft.delta.kernels import add_plane, apart, apart_two, gather_by, scatter_by, together_two
from regraft.delta.scratch import scratch
from regraft.errors import CheckpointError

PLANS = ("plain", "xor", "subtract", "xor/exponent", "subtract/exponent")


@dataclass(frozen=True)
class Kind:
    """The words of a dtype: bytes, and where the exponent lies (exponent 0: a whole number)."""

    width: int
    mantissa: int = 0
    exponent: int = 0

    @property
    def word(self) -> np.dtype[np.unsignedinteger]:
        """Of numpy."""
        return np.dtype(f"<u{self.width}")

    @property
    def plans(self) -> tuple[str, ...]:
        """Those that mean something for it."""
        return PLANS if self.exponent else PLANS[:3]


KINDS = {
    "BOOL": Kind(1), "U8": Kind(1), "I8": Kind(1), "I16": Kind(2), "U16": Kind(2), "I32": Kind(4), "U32": Kind(4),
    "I64": Kind(8), "U64": Kind(8), "F16": Kind(2, 10, 5), "BF16": Kind(2, 7, 8), "F32": Kind(4, 23, 8),
    "C64": Kind(4, 23, 8), "F64": Kind(8, 52, 11),
}  # fmt: skip


def to_planes(plan: str, kind: Kind, child: np.ndarray, parent: np.ndarray | None) -> np.ndarray:
    """The bytes of a block by planes: uint8 [bytes of a word, words]; `child` and `parent` are words, flat.

    They lie in scratch memory: good until this thread calls it again.
    """
    words = _forward(plan, kind, child, parent)
    if plan.endswith("/exponent"):
        assert parent is not None
        ordered = scratch("other words", words.size, kind.word)
        gather_by(ordered, words, parent, kind.mantissa, (1 << kind.exponent) - 1)
        words = ordered
    planes = scratch("planes", kind.width * words.size).reshape(kind.width, words.size)
    if kind.width == 2:
        apart_two(planes[0], planes[1], words)
    else:
        apart(planes, words)
    return planes


def from_planes(out: np.ndarray, plan: str, kind: Kind, planes: list[np.ndarray], parent: np.ndarray | None) -> None:
    """The words of a block, into `out`, from the rows of `to_planes`."""
    is_ordered = plan.endswith("/exponent")
    words = scratch("words", out.size, kind.word) if is_ordered else out
    if kind.width == 2:
        together_two(words, planes[0], planes[1])
    else:
        for number, plane in enumerate(planes):
            add_plane(words, plane, 8 * (kind.width - 1 - number), number == 0)
    if is_ordered:
        assert parent is not None
        scatter_by(out, words, parent, kind.mantissa, (1 << kind.exponent) - 1)
    _backward(out, plan, kind, parent)


def check_plan(plan: object, dtype: str, has_parent: bool) -> None:
    """Refuse a plan that cannot be undone.

    Raises:
        CheckpointError: Unknown, not of this dtype, or without the parent that it needs.
    """
    known = KINDS[dtype].plans if has_parent else PLANS[:1]
    if plan not in known:
        raise CheckpointError(
            f"The plan {str(plan)[:40]!a} is unknown for {dtype} {'with' if has_parent else 'without'} a parent, "
            f"expected one of {', '.join(known)}."
        )


def _forward(plan: str, kind: Kind, child: np.ndarray, parent: np.ndarray | None) -> np.ndarray:
    """The words before they are ordered; `child` itself where nothing is done to it."""
    words, other = (scratch(name, child.size, kind.word) for name in ("words", "other words"))
    one, last = kind.word.type(1), kind.word.type(8 * kind.width - 1)
    if plan.startswith("subtract"):
        assert parent is not None
        _rank(words, kind, child)
        _rank(other, kind, parent)
        words -= other
        _signs(other, kind, words)  # zigzag
        words <<= one
        words ^= other
        return words
    if plan != "plain":
        assert parent is not None
        np.bitwise_xor(child, parent, out=words)
        child = words
    if kind.exponent:
        np.right_shift(child, last, out=other)  # rotated left by one
        np.left_shift(child, one, out=words)
        words |= other
        child = words
    return child


def _backward(words: np.ndarray, plan: str, kind: Kind, parent: np.ndarray | None) -> None:
    """The inverse of `_forward`, in place."""
    other = scratch("other words", words.size, kind.word)
    one, last = kind.word.type(1), kind.word.type(8 * kind.width - 1)
    if plan.startswith("subtract"):
        assert parent is not None
        np.bitwise_and(words, one, out=other)
        np.negative(other, out=other)  # 0 or all bits, modulo the word
        words >>= one
        words ^= other
        _rank(other, kind, parent)
        words += other
        if kind.exponent:
            _rank(words, kind, words)  # its own inverse
        return
    if kind.exponent:
        np.left_shift(words, last, out=other)  # rotated right by one
        words >>= one
        words |= other
    if plan != "plain":
        assert parent is not None
        words ^= parent


def _rank(out: np.ndarray, kind: Kind, words: np.ndarray) -> None:
    """Floats: all bits but the sign are flipped where the sign is set. `out` may be `words`."""
    if not kind.exponent:
        out[:] = words
        return
    flips = scratch("flips", words.size, kind.word)
    _signs(flips, kind, words)
    flips >>= kind.word.type(1)
    np.bitwise_xor(words, flips, out=out)


def _signs(out: np.ndarray, kind: Kind, words: np.ndarray) -> None:
    """All bits set where the top bit is set, else none: an arithmetic shift."""
    signed = f"<i{kind.width}"
    np.right_shift(words.view(signed), 8 * kind.width - 1, out=out.view(signed))
