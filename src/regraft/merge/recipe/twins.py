"""mergekit's methods and parameters, and what each of them is here. Facts of mergekit 0.1.5, as it documents and does them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Number:
    """A parameter that is a number.

    Args:
        ours: The option that it is here, or from which options are worked out.
        default: mergekit's; None when it must be given.
        per_input: Whether mergekit looks it up for every model.
    """

    ours: str
    default: float | None = None
    per_input: bool = False


@dataclass(frozen=True)
class Flag:
    """A parameter that is true or false.

    Args:
        default: mergekit's.
        true: The options that true is here; None when there is no such thing here.
        false: The same for false.
    """

    default: bool
    true: Mapping[str, Any] | None = field(default_factory=dict)
    false: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Twin:
    """The method here that is a method of mergekit.

    Args:
        method: Its name here.
        base: Whether mergekit takes the base apart from the models; else it is a model like the others.
        numbers: Parameters that are numbers, by mergekit's name.
        flags: Parameters that are true or false.
        fixed: Options that make it the same.
        idle: Parameters that mergekit reads and that have no bearing here; the note says why.
        note: What the user must be told.
    """

    method: str
    base: bool = True
    numbers: Mapping[str, Number] = field(default_factory=dict)
    flags: Mapping[str, Flag] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    note: str = ""


_WEIGHT = {"weight": Number("weight", per_input=True)}
_DELTAS = {**_WEIGHT, "lambda": Number("scale", 1.0)}
_DENSITY = {**_DELTAS, "density": Number("density", 1.0, per_input=True)}
_RESCALE, _NO_RESCALE = Flag(True, false=None), Flag(False, true=None)
_DRAWN = "mergekit draws other random numbers, and rescales what is kept to the sum of magnitudes before; here {} each value."
_ADDED = {"normalize": Flag(False, {"normalize": True}, {"normalize": False})}


def _elected(normalize: bool, rescale: Flag) -> dict[str, Flag]:
    return {"normalize": Flag(normalize, {"divide": "weight"}, {"divide": "none"}), "rescale": rescale}


TWINS: Mapping[str, Twin] = {
    "linear": Twin(
        "linear", base=False, numbers=_WEIGHT,
        flags={"normalize": Flag(True, {"normalize": True}, {"normalize": False})},
    ),
    "slerp": Twin("slerp", base=False, numbers={"t": Number("t")}),
    "nuslerp": Twin(
        "slerp", base=False, numbers=_WEIGHT,
        flags={"nuslerp_flatten": Flag(True, false=None), "nuslerp_row_wise": Flag(False)},
        note="mergekit's nuslerp keeps to the arc where slerp takes the line (a cosine beyond 0.9995): 0.013 % apart at most.",
    ),
    "karcher": Twin(
        "karcher", base=False, idle=("max_iter", "tol"),
        note="mergekit's karcher stops after max_iter steps, or at tol; here the mean is followed until it has converged.",
    ),
    "task_arithmetic": Twin("task_arithmetic", numbers=_DELTAS, flags=_ADDED),
    "ties": Twin(
        "ties", numbers=_DENSITY, flags=_elected(True, _NO_RESCALE), fixed={"trim": "tensor", "elect": "weighted"}
    ),
    "dare_linear": Twin(
        "dare_linear", numbers=_DENSITY, flags={**_ADDED, "rescale": _RESCALE}, note=_DRAWN.format("density divides")
    ),
    "dare_ties": Twin(
        "dare_ties", numbers=_DENSITY, flags=_elected(False, _RESCALE), fixed={"elect": "weighted"},
        note=_DRAWN.format("density divides"),
    ),
    "della": Twin(
        "della", numbers={**_DENSITY, "epsilon": Number("epsilon", 0.15, per_input=True)},
        flags=_elected(True, _RESCALE), fixed={"elect": "weighted"}, note=_DRAWN.format("its own probability divides"),
    ),
    "breadcrumbs": Twin(
        "breadcrumbs", numbers={**_DENSITY, "gamma": Number("gamma", 0.01, per_input=True)},
        flags={"normalize": Flag(False, true=None), "rescale": _NO_RESCALE},
        note="mergekit counts what it keeps, here what is dropped is counted, each share rounded down: in a tensor up to two "
        "more elements are kept, those of the smallest magnitudes.",
    ),
    "model_stock": Twin(
        "model_stock", flags={"filter_wise": Flag(False, true=None)},
        note="Where the inputs' changes point apart, mergekit's model_stock goes beyond the base; here the base is kept.",
    ),
    "sce": Twin(
        "sce", numbers={"select_topk": Number("density", 1.0)},
        note="Where the mean squares of a tensor's changes sum to less than 1e-6, as those of short fine-tunes do, mergekit "
        "takes equal coefficients; here they are the changes' energies, however small.",
    ),
}  # fmt: skip

# Its other methods, which are not here.
ELSEWHERE = (
    "arcee_fusion", "breadcrumbs_ties", "della_linear", "multislerp", "nearswap", "passthrough", "ram", "ramplus_tl",
)  # fmt: skip
# Every parameter of its methods: it reads those of the method, and passes over the others.
PARAMETERS = frozenset({
    *(name for twin in TWINS.values() for name in (*twin.numbers, *twin.flags, *twin.idle)),
    "int8_mask", "scale", "eps", "normalize_weights", "r", "alpha",
})  # fmt: skip
# Of no consequence to the result: a smaller mask.
SILENT = frozenset({"int8_mask"})
