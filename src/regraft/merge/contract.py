"""What a merge method promises, as checks that anyone can run: `check(methods.get("merge", "mine"))`.

Every method gives the same finite float32 tensor of the right shape twice, for tensors of every kind (numbers, empty ones,
one element, any number of axes), without changing its inputs; zero deltas give no NaN; threads and the size of blocks
change no bit. Each invariance that it declares is checked:

    identity      equal inputs come back bit for bit, whatever the base (the sign of zero aside, here and below)
    base          inputs equal to the base give the base, bit for bit
    zero weight   what an input of weight 0 holds changes no bit, and neither does leaving the last one out
    permutation   the order of the inputs changes nothing but the rounding to float32

A method that does not declare one may still have it; nothing is checked then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from regraft.errors import MethodError
from regraft.merge.register import INVARIANCES, Traits, traits_of
from regraft.merge.stack import GRAIN, Stack
from regraft.methods import Method
from regraft.randomness import generator

# Numbers, empty tensors, one element, and tensors of up to three axes.
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (0, 3), (1,), (1, 1), (7,), (3, 5), (2, 3, 4))
# More than two grains, the last one not full; in rows that do not divide them.
LONG = ((2 * GRAIN + 4099,), (150, 467))
# A tensor of the second of four layers, so that methods that tell layers apart do something.
NAME, LAYERS = "model.layers.1.weight", 4
# Of the largest magnitude: what float32 rounds, and a sum of a few of them.
TOLERANCE = 2.0**-20


def check(method: Method, traits: Traits | None = None, **options: Any) -> None:
    """Hold a method to everything it declares.

    Args:
        method: A registered merge method.
        traits: Its traits, when it is not registered.
        options: Options that have no default, or other values than the defaults.

    Raises:
        MethodError: The first promise that it breaks, in words.
    """
    unknown = method.invariances - INVARIANCES
    if unknown:
        raise MethodError(
            f"{method.name} declares {', '.join(sorted(unknown))}, which no check knows.",
            f"Declare words of {', '.join(sorted(INVARIANCES))}.",
        )
    traits = traits or traits_of(method.name)
    # A base that is optional is left out once.
    uses = [replace(traits, base="none"), replace(traits, base="required")] if traits.base == "optional" else [traits]
    for used in uses:
        for one in (check_shapes, check_zeros, check_blocks):
            one(method, used, options)
        for name, checked in CHECKS.items():
            if name in method.invariances and (name, used.base) != ("base", "none"):
                checked(method, used, options)


def run(method: Method, traits: Traits, stack: Stack, options: dict[str, Any]) -> np.ndarray:
    """The merged tensor, as the engine would ask for it."""
    signature = inspect.signature(method.function).parameters
    given: dict[str, Any] = {"num_layers": LAYERS} if "num_layers" in traits.wants else {}
    given.update(options)
    for name in traits.per_input:
        value = given.get(name, signature[name].default)
        given[name] = np.broadcast_to(np.asarray(value, np.float64), (stack.n,)).copy()
    if traits.prepare is not None:
        prepared = traits.prepare([stack], **given)
        if prepared is not None:
            given["prepared"] = prepared
    merged = method(stack, **given)
    if not isinstance(merged, np.ndarray | np.float32) or merged.dtype != np.float32 or merged.shape != stack.shape:
        said = f"{merged.dtype} {merged.shape}" if isinstance(merged, np.ndarray) else type(merged).__name__
        raise MethodError(f"{method.name} gives {said} for tensors {stack.shape}, expected float32 of that shape.")
    if not np.isfinite(merged).all():
        raise MethodError(f"{method.name} gives NaN or infinite values for tensors {stack.shape}.")
    return np.asarray(merged)


def example(shape: tuple[int, ...], n: int, grid: bool = False) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base, float32: small changes of the base. On the grid deltas are exact, and many are equal or zero."""
    draw = generator(0, "merge contract", *shape)
    base = draw.standard_normal(shape)
    inputs = [base + 0.1 * draw.standard_normal(shape) for _ in range(n)]
    if grid:
        base, inputs = np.round(base * 64) / 64, [np.round(values * 64) / 64 for values in inputs]
    return [np.asarray(values, np.float32) for values in inputs], np.asarray(base, np.float32)


def counts(traits: Traits, more: int = 0) -> Iterator[int]:
    """Numbers of inputs to try: the least that the method takes, and three, or as many as it takes."""
    least, most = max(1, traits.inputs[0]), traits.inputs[1]
    yield from sorted({max(least, 1 + more), min(max(least, 3), most or 3)} & set(range(least, (most or 99) + 1)))


def _stack(traits: Traits, inputs: Sequence[np.ndarray], base: np.ndarray, **more: Any) -> Stack:
    return Stack.of(inputs, None if traits.base == "none" else base, name=NAME, seed=3, **more)


def _promise(method: Method, kept: bool, promise: str) -> None:
    if not kept:
        raise MethodError(f"{method.name}: {promise}.", "Correct the method, or do not declare it.")


def check_shapes(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """Tensors of every kind give a finite tensor of their shape, the same twice, and are not changed."""
    for shape in SHAPES:
        for n in counts(traits):
            inputs, base = example(shape, n)
            before = [values.copy() for values in (*inputs, base)]
            first = run(method, traits, _stack(traits, inputs, base), options)
            second = run(method, traits, _stack(traits, inputs, base), options)
            _promise(method, _same(first, second), f"twice over tensors {shape} gives two results")
            unchanged = all(_same(*pair) for pair in zip(before, (*inputs, base), strict=True))
            _promise(method, unchanged, f"the inputs {shape} are changed")


def check_zeros(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """Deltas of zero, one or all of them, and tensors of zeros give no NaN."""
    for shape in ((), (4,), (3, 5)):
        for n in counts(traits):
            inputs, base = example(shape, n)
            run(method, traits, _stack(traits, [base] * n, base), options)
            run(method, traits, _stack(traits, [*inputs[1:], base], base), options)
            zeros = np.zeros_like(base)
            run(method, traits, _stack(traits, [zeros] * n, zeros), options)
            run(method, traits, _stack(traits, [*inputs[1:], zeros], zeros), options)


def check_blocks(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """Threads change no bit, and smaller blocks neither."""
    for shape in LONG if traits.working is None else ((60, 47),):
        n = max(counts(traits))
        inputs, base = example(shape, n, grid=True)
        stack = _stack(traits, inputs, base)
        alone = run(method, traits, stack, options)
        with ThreadPoolExecutor(3) as pool:
            shared = Stack(**{**stack.__dict__, "pool": pool, "workers": 3})
            _promise(
                method, _same(alone, run(method, traits, shared, options)), f"three threads change tensors {shape}"
            )
        split = run(method, traits, _Finer(**stack.__dict__), options)
        _promise(method, _same(alone, split), f"smaller blocks change tensors {shape}")


def check_identity(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """Equal inputs come back unchanged."""
    for shape, n in _cases(traits):
        (one, *_), base = example(shape, n)
        one.reshape(-1)[: one.size // 2 : 3] = 0.0  # where the base is not
        merged = run(method, traits, _stack(traits, [one] * n, base), options)
        _promise(method, _same(merged, one), f"declares identity, but equal inputs {shape} come back changed")


def check_base(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """Inputs equal to the base give the base."""
    for shape, n in _cases(traits):
        _, base = example(shape, n)
        merged = run(method, traits, _stack(traits, [base] * n, base), options)
        _promise(method, _same(merged, base), f"declares base, but inputs {shape} equal to the base change it")


def check_zero_weight(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """An input of weight 0 is ignored."""
    for shape, n in _cases(traits, more=1):
        inputs, base = example(shape, n)
        for which in range(n):
            weights = np.linspace(0.5, 1.5, n)
            weights[which] = 0.0
            others = [values if number != which else 7.0 - 3.0 * values for number, values in enumerate(inputs)]
            before = run(method, traits, _stack(traits, inputs, base, weights=weights), options)
            after = run(method, traits, _stack(traits, others, base, weights=weights), options)
            _promise(
                method, _same(before, after), f"declares zero weight, but input {which} of {n} {shape} matters with it"
            )
        if n > traits.inputs[0] and n > 1:  # the last one: its number is nobody else's when it is gone
            without = run(method, traits, _stack(traits, inputs[:-1], base, weights=weights[:-1]), options)
            _promise(method, _same(before, without), f"declares zero weight, but without that input {shape} differs")


def check_permutation(method: Method, traits: Traits, options: dict[str, Any]) -> None:
    """The order of the inputs, with their weights, changes nothing but the rounding."""
    for shape, n in _cases(traits, more=1):
        inputs, base = example(shape, n)
        weights = np.linspace(0.5, 1.5, n)
        before = run(method, traits, _stack(traits, inputs, base, weights=weights), options)
        after = run(method, traits, _stack(traits, inputs[::-1], base, weights=weights[::-1]), options)
        apart = np.abs(before - after).max(initial=0.0)
        limit = TOLERANCE * max(np.abs(values).max(initial=0.0) for values in (*inputs, base))
        _promise(
            method, bool(apart <= limit), f"declares permutation, but another order moves {shape} by {float(apart):.3g}"
        )


CHECKS: dict[str, Callable[[Method, Traits, dict[str, Any]], None]] = {
    "identity": check_identity,
    "base": check_base,
    "zero weight": check_zero_weight,
    "permutation": check_permutation,
}


def _cases(traits: Traits, more: int = 0) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every shape with every number of inputs."""
    large: tuple[tuple[int, ...], ...] = ((40, 33), (1500,)) if traits.working is None else ((20, 16),)
    for shape in (*SHAPES, *large):
        for n in counts(traits, more):
            yield shape, n


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two float32 tensors have the same bits; the sign of zero aside."""
    return one.shape == other.shape and bool(np.array_equal(one, other))


class _Finer(Stack):
    """A stack whose grains are handed out in smaller blocks, of whole rows where rows are asked for."""

    def _run(self, work: Callable[..., None], width: int) -> None:
        columns = max(1, self.shape[-1] if self.shape else 1)
        step = 5 * columns if width % columns == 0 else 1013

        def parts(number: int, start: int, stop: int, *more: Any) -> None:
            for first in range(start, stop, step):
                work(number, first, min(stop, first + step), *more)

        super()._run(parts, width)
