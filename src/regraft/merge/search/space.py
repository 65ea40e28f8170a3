"""What a search tries: the dull candidates that are always measured, every method once, then what TPE proposes.

    recipe   its method, its options as they are                         baseline   plain average, task arithmetic, inputs, base
    look     each method of `SPACES` at its first values                 proposal   TPE over methods and their coefficients

Methods whose inputs have roles (`layer_swap`, `transfer`, `rws`) and those that are another one for whole checkpoints
(`lora_cat`, `lora_svd`, `knots`) are not in the space; a recipe that names one has it measured. Methods that look at examples
are tried where the recipe names the inputs' data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from regraft.errors import MethodError, RegraftError
from regraft.merge.options import WEIGHT, options_of
from regraft.merge.recipe.spec import Input, Spec, check_count
from regraft.merge.register import traits_of
from regraft.merge.settings import plain
from regraft.randomness import seed_of
from regraft.store import key_of

AVERAGE, ARITHMETIC = "plain average", "task arithmetic"
# All coefficients are whole multiples of this, so that a recipe can be read.
STEP = 0.01


@dataclass(frozen=True)
class Coefficient:
    """The range of an option that is searched, and where a method is looked at first. `weight` stands for one an input."""

    low: float
    high: float
    first: float


def _scale(first: float = 1.0, high: float = 2.0) -> Coefficient:
    return Coefficient(0.1, high, first)


# In the order of the first looks. Sums of the inputs' changes start at a scale of 0.4 (Ilharco et al. choose 0.3 to 0.5 for
# several tasks), means of them at 1; all other first values are the methods' own defaults.
SPACES: Mapping[str, Mapping[str, Coefficient]] = MappingProxyType({
    "linear": {WEIGHT: Coefficient(0.01, 1.0, 1.0)},
    "task_arithmetic": {WEIGHT: Coefficient(0.01, 1.2, 0.4)},
    "ties": {"density": Coefficient(0.05, 1.0, 0.2), "scale": _scale()},
    "model_stock": {},
    "slerp": {"t": Coefficient(0.1, 0.9, 0.5)},
    "karcher": {},
    "dare_ties": {"density": Coefficient(0.1, 0.9, 0.8), "scale": _scale()},
    "dare_linear": {"density": Coefficient(0.1, 0.9, 0.8), "scale": _scale(0.4, 1.2)},
    "della": {"density": Coefficient(0.2, 0.9, 0.7), "scale": _scale()},
    "breadcrumbs": {"beta": Coefficient(0.5, 0.95, 0.85), "scale": _scale(0.4, 1.2)},
    "sce": {"density": Coefficient(0.05, 1.0, 0.1), "scale": _scale()},
    "pcb": {"density": Coefficient(0.02, 0.5, 0.1), "scale": _scale()},
    "iso_c": {"scale": _scale()},
    "iso_cts": {"common": Coefficient(0.2, 1.0, 0.8), "scale": _scale()},
    "tsv_m": {"scale": _scale()},
    "opcm": {"alpha": Coefficient(0.1, 0.9, 0.5)},
    "wudi": {"scale": _scale()},
    "fisher": {},
    "regmean": {"alpha": Coefficient(0.1, 1.0, 0.9)},
    "regmean_plus": {"alpha": Coefficient(0.1, 1.0, 0.9)},
})  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """Something that is measured: a merge, or a checkpoint as it is (the average of one)."""

    name: str
    kind: str
    spec: Spec

    @property
    def key(self) -> str:
        """Equal for candidates that are the same merge, whether defaults are written out or not."""
        parts, known = self.spec.as_dict(), options_of(self.spec.method)
        parts["inputs"] = [{WEIGHT: 1.0, **one} for one in parts["inputs"]]
        parts["options"] = {key: value for key, value in parts["options"].items() if value != known[key].default}
        return key_of("candidate", **parts)


def made(
    recipe: Spec, method: str, options: Mapping[str, Any], weights: Sequence[float] | None = None,
    inputs: Sequence[str] | None = None,
) -> Spec:  # fmt: skip
    """A merge of the recipe's inputs (or of some checkpoints) with another method; output and seed are the recipe's.

    Raises:
        MethodError: The method takes another number of inputs, or needs a base that there is not.
    """
    references = [one.reference for one in recipe.inputs] if inputs is None else list(inputs)
    base = None if traits_of(method).base == "none" else recipe.base
    output = recipe.output
    if output.tokenizer == "base" and base is None:
        output = replace(output, tokenizer=recipe.base)
    own: list[dict[str, Any]] = [{}] * len(references) if weights is None else [{WEIGHT: one} for one in weights]
    tasks = data_of(recipe) if "data" in options_of(method) else {}
    merged = tuple(
        Input(one, given | ({"data": tasks[one]} if one in tasks else {}))
        for one, given in zip(references, own, strict=True)
    )
    shared = {"rows": recipe.options["rows"]} if tasks and "rows" in recipe.options else {}
    return Spec(method, base, merged, shared | dict(options), output, recipe.seed, recipe.layers)


def data_of(recipe: Spec) -> dict[str, Any]:
    """The task that the recipe names beside each input, for methods that look at examples; by reference."""
    found = {one.reference: one.options.get("data", recipe.options.get("data")) for one in recipe.inputs}
    return {reference: task for reference, task in found.items() if task is not None}


def average_of(recipe: Spec, inputs: Sequence[str] | None = None) -> Spec:
    """The plain average of the recipe's inputs, or of some checkpoints."""
    count = len(recipe.inputs if inputs is None else inputs)
    return made(recipe, "linear", {}, [1.0] * count, inputs)


def baselines(recipe: Spec) -> list[Candidate]:
    """What stands in every table: the inputs and the base as they are, the plain average, task arithmetic at its default."""
    names = short_names([one.reference for one in recipe.inputs])
    found = [
        Candidate(name, "input", average_of(recipe, [one.reference]))
        for name, one in zip(names, recipe.inputs, strict=True)
    ]
    if recipe.base is not None:
        found.append(Candidate("base", "base", average_of(recipe, [recipe.base])))
    found.append(Candidate(AVERAGE, "baseline", average_of(recipe)))
    if recipe.base is not None:
        count = len(recipe.inputs)
        found.append(Candidate(ARITHMETIC, "baseline", made(recipe, "task_arithmetic", {}, [1.0] * count)))
    return found


def short_names(references: Sequence[str]) -> list[str]:
    """The last part of every reference; numbered where two are the same."""
    short = [Path(one.rstrip("/")).name or one for one in references]
    return [
        name if short.count(name) == 1 and name not in {"base", AVERAGE, ARITHMETIC} else f"{number}: {name}"
        for number, name in enumerate(short, 1)
    ]


def not_in_space(recipe: Spec, methods: Collection[str] | None) -> dict[str, str]:
    """The methods of the space that cannot be tried with a recipe, and why; and what was asked for and is not in it.

    Raises:
        MethodError: A method is asked for that is not in the space.
    """
    unknown = sorted(set(methods or ()) - set(SPACES))
    if unknown:
        raise MethodError(
            f"{', '.join(unknown)} cannot be searched.", f"Known: {', '.join(SPACES)}; others can be the recipe's own."
        )
    found = {}
    for name in SPACES:
        if methods is not None and name not in methods:
            continue
        try:
            check_count(name, len(recipe.inputs))
        except RegraftError as fault:
            found[name] = fault.problem
            continue
        if "data" in options_of(name) and len(data_of(recipe)) < len(recipe.inputs):
            found[name] = "it needs examples of each input's task, and the recipe names none (data)"
        if traits_of(name).base == "required" and recipe.base is None:
            found[name] = "it needs a base, and the recipe has none"
    return found


def named(method: str, values: Mapping[str, float], inputs: int) -> str:
    """A method with its coefficients, in words."""
    weights = [values[key] for number in range(inputs) if (key := f"{WEIGHT}{number}") in values]
    parts = [f"weights {'/'.join(f'{weight:g}' for weight in weights)}"] if weights else []
    parts += [f"{key} {value:g}" for key, value in values.items() if not key.startswith(WEIGHT)]
    return " ".join([method, *parts])


def built(recipe: Spec, method: str, values: Mapping[str, float], kind: str) -> Candidate:
    """The candidate of a method and its coefficients."""
    count = len(recipe.inputs)
    weights = [values[f"{WEIGHT}{number}"] for number in range(count)] if f"{WEIGHT}0" in values else None
    options = {key: value for key, value in values.items() if not key.startswith(WEIGHT)}
    return Candidate(named(method, values, count), kind, made(recipe, method, options, weights))


def coefficients(method: str, inputs: int) -> dict[str, Coefficient]:
    """The coefficients of a method by name; `weight` has become `weight0`, `weight1`, ..."""
    found: dict[str, Coefficient] = {}
    for name, one in SPACES[method].items():
        found |= {f"{WEIGHT}{number}": one for number in range(inputs)} if name == WEIGHT else {name: one}
    return found


class Proposer:
    """Proposals of the tree-structured Parzen estimator over methods and coefficients, after a first look at each method.

    TPE: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Optuna's, seeded, each number by itself, because
    every method has numbers of its own. The same values told give the same proposals.
    """

    def __init__(self, recipe: Spec, methods: Sequence[str], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed_of(seed, "search") % 2**32, multivariate=False)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._recipe = recipe
        self._spaces = {one: coefficients(one, len(recipe.inputs)) for one in methods if SPACES[one]}
        self.looks = len(self._spaces)
        for method, space in self._spaces.items():
            first = {f"{method}/{name}": one.first for name, one in space.items()}
            self._study.enqueue_trial({"method": method, **first})
        self._asked = 0

    def ask(self) -> tuple[Any, Candidate]:
        """The next proposal, and what its value is told by."""
        trial = self._study.ask()
        method = trial.suggest_categorical("method", list(self._spaces))
        values = {
            name: round(trial.suggest_float(f"{method}/{name}", one.low, one.high, step=STEP), 2)
            for name, one in self._spaces[method].items()
        }
        self._asked += 1
        kind = "look" if self._asked <= self.looks else "proposal"
        return trial, built(self._recipe, method, values, kind)

    def tell(self, trial: Any, value: float) -> None:
        """The score of a proposal. One that failed needs a low one: what Optuna takes for failed, it proposes again and again."""
        self._study.tell(trial, value)


def described(spec: Spec) -> str:
    """The recipe's own method with its options, in words."""
    options = " ".join(f"{key} {plain(value)}" for key, value in spec.options.items())
    return f"recipe: {spec.method} {options}".strip()
