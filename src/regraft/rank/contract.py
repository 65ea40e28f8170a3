"""What a ranking method promises, as checks that anyone can run: `check(methods.get("rank", "mine"))`.

Every method gives the same finite number twice, whatever the classes are called, and more for inputs that hold the classes than
for noise. Each invariance that it declares is checked on examples with more rows than columns, and with fewer. A method that does
not declare one may still have it; nothing is checked then.

What a method is given follows from what it needs: "source outputs" are rows of probabilities; everything else gets features, and
the numbers of classes as labels or as real-valued "targets". Probabilities that were rotated or scaled are none, so a method that
needs source outputs cannot declare these.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from regraft.errors import MethodError
from regraft.methods import Method
from regraft.randomness import generator, permutation

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Change = Callable[[Floats, Labels], tuple[Floats, Labels]]

# Scores agree to this absolute difference: one rounding error of the features must not decide.
TOLERANCE = 1e-6
CLASSES = 4
# No invariance, but declared among them: with fewer rows than columns the score may be at its end for all features.
SATURATES = "saturates at N < D"
# Rows and columns of the examples, both more and fewer rows than columns.
SHAPES = ((80, 12), (40, 90))


def check(method: Method) -> None:
    """Hold a method to everything it declares.

    Raises:
        MethodError: The first promise that it breaks, in words with the numbers.
    """
    unknown = method.invariances - invariances(method).keys() - {SATURATES}
    if unknown:
        raise MethodError(
            f"{method.name} declares {', '.join(sorted(unknown))}, which no check knows.",
            f"Declare words of {', '.join([*invariances(method), SATURATES])}.",
        )
    check_deterministic(method)
    check_names(method)
    check_separable(method)
    for name in invariances(method):
        if name in method.invariances:
            check_invariance(method, name)


def check_deterministic(method: Method) -> None:
    """The same number twice, finite, with the inputs untouched."""
    features, labels = given(method, SHAPES[0])
    kept = features.copy(), labels.copy()
    first, second = method(features, labels, seed=0), method(features, labels, seed=0)
    if not (np.isfinite(first) and first == second):
        raise MethodError(f"{method.name} gives {first!r}, then {second!r} on the same features.", "Seed it.")
    if not (np.array_equal(kept[0], features) and np.array_equal(kept[1], labels)):
        raise MethodError(f"{method.name} changes the features or labels that it is given.", "Work on a copy.")


def check_names(method: Method) -> None:
    """Classes need not be 0 .. C-1: numbers with gaps, in the same order, give the same number."""
    if "targets" in method.needs:
        return
    features, labels = given(method, SHAPES[0])
    before, after = method(features, labels, seed=0), method(features, 7 * labels + 3, seed=0)
    if not abs(before - after) <= TOLERANCE:
        raise MethodError(
            f"{method.name} gives {before:.9f}, and {after:.9f} when class c is called 7 c + 3.",
            "Renumber the labels (`regraft.rank.scores.checked`).",
        )


def check_separable(method: Method) -> None:
    """Features that hold the classes score higher than features that do not.

    Not asked of a score that declares to see nothing of that: "class means" never, "any labels at N < D" not there. One that
    "saturates at N < D" may give both the same there.
    """
    for shape in SHAPES:
        wide = shape[0] < shape[1]
        if "class means" in method.invariances or (wide and "any labels at N < D" in method.invariances):
            continue
        good, labels = given(method, shape, signal=4.0)
        noise, _ = given(method, shape, signal=0.0)
        high, low = method(good, labels, seed=0), method(noise, labels, seed=0)
        if not high > low and not (wide and SATURATES in method.invariances and high >= low - TOLERANCE):
            raise MethodError(f"{method.name} gives separable features {shape} {high:.6f}, and noise {low:.6f}.")


def check_invariance(method: Method, name: str) -> None:
    """One declared invariance, on every example that it is about."""
    for shape in SHAPES:
        if name == "any labels at N < D" and shape[0] > shape[1]:
            continue
        before, after = scores(method, name, shape)
        if not abs(before - after) <= TOLERANCE:
            raise MethodError(
                f"{method.name} declares {name}, but moves from {before:.9f} to {after:.9f} on features {shape}.",
                "Correct the method, or do not declare it.",
            )


def scores(method: Method, name: str, shape: tuple[int, int]) -> tuple[float, float]:
    """The score of an example before and after the change that an invariance is about."""
    features, labels = given(method, shape)
    return float(method(features, labels, seed=0)), float(method(*INVARIANCES[name](features, labels), seed=0))


def given(method: Method, shape: tuple[int, int], signal: float = 1.0) -> tuple[Floats, Labels]:
    """What a method is given: features, or probabilities where it needs those, and labels."""
    features, labels = example(*shape, signal=signal)
    if "source outputs" in method.needs:
        return outputs(*shape, signal=signal), labels
    return features, labels


def example(rows: int, columns: int, signal: float = 1.0) -> tuple[Floats, Labels]:
    """Gaussian features [rows, columns] whose first columns hold the classes with a strength, and labels [rows].

    The columns differ in scale and have means, so that a change that should not matter has something to disturb.
    """
    draw = generator(0, "rank contract", rows, columns)
    labels = np.arange(rows) % CLASSES
    features = draw.standard_normal((rows, columns))
    features[:, :CLASSES] += signal * np.eye(CLASSES)[labels]
    return features * np.linspace(0.5, 2.0, columns) + 0.3, labels


def outputs(rows: int, columns: int, signal: float = 1.0) -> Floats:
    """Probabilities [rows, columns] of source classes, some of which go with a target class of `example` with a strength."""
    draw = generator(0, "rank contract outputs", rows, columns)
    logits = draw.standard_normal((rows, columns))
    logits[:, :CLASSES] += signal * np.eye(CLASSES)[np.arange(rows) % CLASSES]
    odds = np.exp(logits)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def rotated(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """Another orthogonal basis of the feature space (reflections included)."""
    width = features.shape[1]
    basis, _ = np.linalg.qr(generator(0, "rotation", width).standard_normal((width, width)))
    return features @ basis, labels


def scaled(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """All features times one number."""
    return 37.0 * features, labels


def padded(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """A thousand columns of zeros at the end: the case that common copies of LogME get wrong."""
    return np.concatenate([features, np.zeros((len(features), 1000))], axis=1), labels


def relabelled(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """Other numbers for the same classes."""
    return features, np.roll(np.arange(CLASSES), 1)[labels]


def reordered(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """The same examples in another order."""
    order = permutation(len(labels), 0, "rows")
    return features[order], labels[order]


def swapped(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """The same columns in another order."""
    return features[:, permutation(features.shape[1], 0, "columns")], labels


def shifted(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """Every class moved as a whole, by a vector of its own."""
    moves = generator(0, "class means", features.shape[1]).standard_normal((CLASSES, features.shape[1]))
    return features + 5.0 * moves[labels], labels


def shuffled(features: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """The labels of other examples: classes of the same sizes that mean nothing."""
    return features, labels[permutation(len(labels), 0, "labels")]


INVARIANCES: dict[str, Change] = {
    "rotation": rotated,
    "scaling": scaled,
    "zero columns": padded,
    "column permutation": swapped,
    "label permutation": relabelled,
    "row permutation": reordered,
    "class means": shifted,
    "any labels at N < D": shuffled,
}
OF_OUTPUTS = ("zero columns", "column permutation", "label permutation", "row permutation")


def invariances(method: Method) -> dict[str, Change]:
    """The invariances that a method can have, given what it needs."""
    if "source outputs" in method.needs:
        return {name: INVARIANCES[name] for name in OF_OUTPUTS}
    return INVARIANCES
