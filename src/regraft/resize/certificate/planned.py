"""What the steps on record make of the parent, planned once more: which numbers were computed, and what they were at first.

| numbers | are held to |
|---|---|
| all moved, none computed, in any type | `EXACT`: every stored number is one of the parent's |
| some computed, F64 | `EXACT` |
| some computed, F32 | `ROUNDED` |
| some computed, F16 or BF16 | `EXACT` before rounding, and each stored number to the computed one, rounded |

Rounding to 16 bits moves outputs by as much as a fault may: nothing is allowed for it.
"""

from __future__ import annotations

from regraft import methods
from regraft.anatomy import Opened, Plan, plan_change
from regraft.anatomy.choices import Choice
from regraft.checkpoint.weights import FLOATS
from regraft.resize.certificate.steps import Asked
from regraft.resize.cuts.minitron import Lookup
from regraft.resize.growth.check import EXACT, narrowest
from regraft.resize.growth.mixing import Growth, Mixture

# Of the largest output, where numbers that were computed are stored in float32.
ROUNDED = 1e-5


def planned(parent: Opened, asked: Asked) -> Plan:
    """One change for all steps, from headers alone: maps of different axes do not depend on each other.

    Raises:
        AnatomyError: A map that an axis does not allow.
        MethodError: A growth method that is not there.
    """
    choices: dict[str, Choice] = {} if asked.tokens is None else {"vocab": asked.tokens}
    choices |= {axis: Lookup(places) for axis, places in asked.kept.items()}
    if asked.grown is not None:
        name, sizes, seed = asked.grown
        growth: Growth = methods.get("resize", name)(parent.binding, sizes, seed=seed)
        assert not isinstance(growth.change, Mixture), "what is promised to compute the same is an index map"
        choices |= growth.change
    return plan_change(parent.binding, choices)


def computes(parent: Opened, plan: Plan) -> bool:
    """Whether numbers are computed, not only moved."""
    return any(one.computed and parent.tensors[one.source].dtype in FLOATS for one in plan.outputs)


def tolerance(computed: bool, result: Opened) -> float | None:
    """What outputs of the stored numbers are held to, of the largest; None: they show nothing, see the head of this file."""
    if not computed:
        return EXACT
    return {"F64": EXACT, "F32": ROUNDED}.get(narrowest(result.tensors))


def beside_rounding(parent: Opened, result: Opened, asked: Asked) -> str:
    """What a promise of outputs leaves out, in words; empty where it is of the numbers as they are stored."""
    if tolerance(computes(parent, planned(parent, asked)), result) is None:
        return ", before its numbers are rounded"
    return "" if asked.half is None else f", rounded to {asked.half} as well"
