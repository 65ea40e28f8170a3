"""Robust weight signatures: what training on corrupted data changed, added to another checkpoint as a patch."""

from __future__ import annotations

from math import ceil

import numpy as np

from regraft.checkpoint.blocks import block_of
from regraft.errors import MethodError
from regraft.merge.kernels import STRIP, kernel
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import GRAIN, Stack
from regraft.methods import Source

_SOURCE = Source(
    "Cai et al.", 2023, "2302.12480", "Robust weight signatures: gaining robustness as easy as patching weights?"
)
_CLAIM = (
    "robustness to corrupted inputs sits in the shallow layers, and can be added to other checkpoints, quantised even"
)
_OPTIONS = {"scale": Range(-100.0, 100.0), "layers": Range(0.0, 1e4), "bits": Range(0.0, 16.0)}


@merge_method(
    "rws",
    source=_SOURCE,
    claim=_CLAIM,
    traits=Traits(base="required", inputs=(2, None), wants=("num_layers",), kin=False, options=_OPTIONS),
    invariances=("base",),
)
def rws(
    stack: Stack, *, scale: float = 1.0, layers: int | None = None, bits: int = 0, num_layers: int | None = None
) -> np.ndarray | None:
    """target + scale * sum_j w_j (robust_j - clean); inputs are target, then the robust ones; the base is the clean one.

    Only the `layers` shallowest layers, embeddings among them, are patched (without a number half of them, as the authors do
    with 7 of 13); all else is the target's. With `bits` a signature is rounded to that many bits, evenly up to its largest
    magnitude in each tensor, zero to zero; the authors' grid from least to largest moves zero. Minus the scale takes a patch
    off again.

    The first input's weight is not used, and the order of the inputs says which is the target. Not an identity: a target
    that is also the robust one goes twice as far from the clean one.
    """
    signatures = np.eye(stack.n)[1:]
    return _patched(stack, signatures, -np.ones(stack.n - 1), stack.weights[1:] * scale, layers, bits, num_layers)


@merge_method(
    "rws_projected",
    source=_SOURCE,
    claim=_CLAIM,
    traits=Traits(base="required", inputs=(3, None), wants=("num_layers",), kin=False, options=_OPTIONS),
    invariances=("base",),
)
def rws_projected(
    stack: Stack, *, scale: float = 1.0, layers: int | None = None, bits: int = 0, num_layers: int | None = None
) -> np.ndarray | None:
    """target + scale * sum_j w_j s_j, s_j = d_j - (<d_j, d> / <d, d>) d: inputs are target, clean, then the robust ones.

    The paper's signature: from the pretrained base, d_j is what training on corrupted data changed, d what training on clean
    data did; what the two share is projected out, in each tensor. `layers`, `bits` and the rest as in `rws`.
    """
    if not is_shallow(stack.name, layers, num_layers):
        return stack.combine(np.eye(stack.n)[0])
    gram = stack.gram()
    shared = gram[1, 2:] / gram[1, 1] if gram[1, 1] > 0.0 else np.zeros(stack.n - 2)
    signatures = np.eye(stack.n)[2:]
    signatures[:, 1] = -shared
    return _patched(stack, signatures, shared - 1.0, stack.weights[2:] * scale, layers, bits, num_layers)


def is_shallow(name: str, layers: int | None, num_layers: int | None) -> bool:
    """Whether a tensor is in the shallowest layers; embeddings are.

    Raises:
        MethodError: Neither number is given.
    """
    if layers is None:
        if num_layers is None:
            raise MethodError("How many layers are patched, and how many there are, is not given.", "Give layers.")
        layers = ceil(num_layers / 2)
    block = block_of(name)
    if block is None:
        return layers > 0 and ("embed" in name or name.endswith(("wte.weight", "wpe.weight")))
    return block < round(layers)


def _patched(
    stack: Stack,
    signatures: np.ndarray,
    of_base: np.ndarray,
    weights: np.ndarray,
    layers: int | None,
    bits: int,
    num_layers: int | None,
) -> np.ndarray | None:
    """The first input plus the weighted signatures: rows of coefficients of the inputs, float64 [k, n], and of the base, [k]."""
    if bits == 1:
        raise MethodError("bits is 1, expected 0 (none) or 2 to 16: a sign and a magnitude.", "Give more bits.")
    target = np.eye(stack.n)[0]
    if not is_shallow(stack.name, layers, num_layers):
        return stack.combine(target)
    if not bits:
        return stack.combine(target + weights @ signatures, base=float(weights @ of_base))
    peaks = np.zeros((max(1, -(-stack.size // GRAIN)), len(weights)))
    stack.count(_find_peaks, 1, signatures, of_base, peaks, GRAIN)
    steps = peaks.max(axis=0) / (2 ** (bits - 1) - 1)
    return stack.map(add_rounded, signatures, of_base, weights, steps)


@kernel
def _find_peaks(
    _counts: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    start: int,
    signatures: np.ndarray,
    of_base: np.ndarray,
    peaks: np.ndarray,
    grain: int,
) -> None:
    """The largest magnitude of every signature in a grain, into the grain's own row: nothing is counted."""
    values = np.empty(STRIP)
    mine = peaks[start // grain]
    for which in range(signatures.shape[0]):
        highest = mine[which]
        for first in range(0, base.size, STRIP):
            size = min(STRIP, base.size - first)
            _signature(values, base, inputs, first, size, signatures[which], of_base[which])
            for at in range(size):
                highest = max(highest, abs(values[at]))
        mine[which] = highest


@kernel
def _signature(
    values: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    first: int,
    size: int,
    coefficients: np.ndarray,
    of_base: float,
) -> None:
    """A strip of a signature, float64."""
    origin = base[first : first + size]
    for at in range(size):
        values[at] = of_base * np.float64(origin[at])
    for number in range(inputs.shape[0]):
        row, coefficient = inputs[number, first : first + size], coefficients[number]
        for at in range(size):
            values[at] += coefficient * np.float64(row[at])


@kernel
def add_rounded(
    out: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    start: int,
    signatures: np.ndarray,
    of_base: np.ndarray,
    weights: np.ndarray,
    steps: np.ndarray,
) -> None:
    """The first input plus the weighted signatures, each rounded to a whole number of its steps; rounded to float32 once."""
    values, total = np.empty(STRIP), np.empty(STRIP)
    for first in range(0, out.size, STRIP):
        size = min(STRIP, out.size - first)
        row, target = inputs[0, first : first + size], out[first : first + size]
        for at in range(size):
            total[at] = np.float64(row[at])
        for which in range(weights.size):
            step = steps[which]
            if step > 0.0:
                _signature(values, base, inputs, first, size, signatures[which], of_base[which])
                for at in range(size):
                    total[at] += weights[which] * step * np.rint(values[at] / step)
        for at in range(size):
            target[at] = np.float32(total[at])
