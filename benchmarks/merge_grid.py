"""What is tried of every merge method: its published settings, and a small grid where its paper chooses on held-out data.

A grid is never the reader's to extend silently: it is written into the results with what every point scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from regraft import methods
from regraft.merge.register import traits_of

Options = dict[str, Any]

# Methods that are no way to put several tasks into one model.
ELSEWHERE: Mapping[str, str] = {
    "transfer": "brings a fine-tune to a newer base: claims/merge.py",
    "rws": "patches robustness into a model: claims/merge.py",
    "rws_projected": "the same",
}

# The word embeddings are half of a MiniLM's weights and are not trained (regraft.adapt): a share of the whole model is twice
# that share of what was trained. So 0.1 stands for the 20 % of the TIES paper, and 0.05 for the 10 % of PCB's code.
TIES_DENSITY, PCB_DENSITY = 0.1, 0.05

# Settings that a paper recommends without held-out data, where they are not the method's own defaults.
PUBLISHED: Mapping[str, Options] = {
    "task_arithmetic": {"scale": 0.4},  # as in the TIES paper's comparison
    "ties": {"trim": "global", "density": TIES_DENSITY},  # over the whole model, as in the paper's code
    "pcb": {"density": PCB_DENSITY},
    "dare_linear": {"scale": 0.4},  # DARE before task arithmetic
    "della": {"scale": 1.1},
    "breadcrumbs": {"scale": 0.2},  # where the authors' search begins
    # Adapters are added up; all at full weight is what task arithmetic with a scale of 1 is.
    "lora_cat": {"weight": 0.4},
    "lora_svd": {"weight": 0.4},
}

# The papers' ranges, coarser: task arithmetic 0.1 .. 1.0, TIES 0.8 .. 2.5, PCB 0.8 .. 2.2 (their code); eight points each.
TASK_ARITHMETIC = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
TIES = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3)
PCB = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
_SIGNED = (0.8, 1.0, 1.5, 2.0)  # methods that average what agrees

# Their papers tune nothing, or nothing that matters here.
_UNTUNED = ("linear", "karcher", "model_stock", "slerp", "layer_swap", "opcm", "tsv_m", "wudi", "fisher", "regmean",
            "regmean_plus")  # fmt: skip

GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "task_arithmetic": {"scale": TASK_ARITHMETIC},
    "ties": {"trim": ("global",), "density": (0.05, TIES_DENSITY, 0.2), "scale": _SIGNED},
    "dare_linear": {"density": (0.1, 0.5, 0.8), "scale": (0.2, 0.3, 0.4, 0.6)},
    "dare_ties": {"density": (0.1, 0.5, 0.8), "scale": _SIGNED},
    "della": {"density": (0.3, 0.5, 0.7), "scale": (0.8, 1.1, 1.5, 2.0)},
    "breadcrumbs": {"scale": (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)},
    "sce": {"density": (0.1, 0.3, 1.0), "scale": (1.0, 1.5, 2.0)},
    "pcb": {"density": (PCB_DENSITY,), "scale": PCB},
    "iso_c": {"scale": (0.5, 1.0, 1.5, 2.0)},
    "iso_cts": {"scale": (0.5, 1.0, 1.5, 2.0)},
    "knots": {"scale": _SIGNED},
    "lora_cat": {"weight": TASK_ARITHMETIC},
    "lora_svd": {"weight": TASK_ARITHMETIC},
    **{name: {} for name in _UNTUNED},
}

# A method that is not named above and has one of these options: the points that are tried.
USUAL: Mapping[str, Sequence[Any]] = {"scale": (0.3, 0.5, 1.0, 1.5), "density": (0.1, 0.3, 0.7)}


def known_options(name: str) -> set[str]:
    """The numbers that a method takes."""
    return set(traits_of(name).options)


def published(name: str) -> Options:
    """The settings that its paper recommends without held-out data."""
    return dict(PUBLISHED.get(name, {}))


def grid(name: str) -> list[Options]:
    """The settings among which held-out data chooses; the published ones are always among them."""
    chosen = GRIDS.get(name)
    if chosen is None:
        chosen = {option: points for option, points in USUAL.items() if option in known_options(name)}
    points = (
        [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())] if chosen else []
    )
    first = published(name)
    return [first, *(point for point in points if point != first)]


def usable(inputs: int) -> tuple[list[str], dict[str, str]]:
    """The methods that merge so many fine-tunes of one base, and why the others are left out."""
    taken, left_out = [], {}
    for method in methods.methods("merge"):
        traits = traits_of(method.name)
        least, most = traits.inputs
        if method.name in ELSEWHERE:
            left_out[method.name] = ELSEWHERE[method.name]
        elif not least <= inputs or (most is not None and inputs > most):
            left_out[method.name] = f"takes {least} to {most} inputs"
        else:
            taken.append(method.name)
    return taken, left_out
