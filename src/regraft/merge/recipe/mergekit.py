"""Read a recipe of mergekit 0.1.5 as one of ours, where its method exists here; what is not understood is refused.

What mergekit means is written out, so that the same weights come out, to the rounding of float32, where nothing is drawn at
random and no note (see `twins`) says otherwise:

- Its TIES trims each tensor, elects signs by weight, and divides by the agreeing weight, or not at all (`normalize`).
- Settings are looked up at the model, then the slice, then the recipe. Filters that do not name a tensor hand it on to the
  next of these, and at last to mergekit's own default.
- A gradient over depth gives tensors after the layers (final norm, head) its *first* value, ours the last: a gradient becomes
  two rules, one for those tensors and one for all others.
- A base that is not listed among the models is added to them, which matters for methods that know no base.
- It computes in `dtype`; here sums are in float32 or wider and are rounded once, whatever `dtype` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.errors import MethodError, RecipeError
from regraft.merge.options import Option, near, options_of
from regraft.merge.recipe.lines import Lines, scalar
from regraft.merge.recipe.mergekit_models import Model, Models, dtype_of, read_models, tokenizer_of
from regraft.merge.recipe.spec import Input, Output, Spec, check_count
from regraft.merge.recipe.twins import ELSEWHERE, PARAMETERS, SILENT, TWINS, Flag, Number, Twin
from regraft.merge.settings import Rule, Setting, covers_all, said

_KEYS = ("base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
         "chat_template")  # fmt: skip
# YAML 1.1's words, which mergekit reads.
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read(lines: Lines) -> Spec:
    """The spec that a mergekit recipe means.

    Raises:
        RecipeError: Something that is not here, or that is not understood; with the line.
    """
    content = lines.content
    lines.check_keys(content, "mergekit recipe", _KEYS, ("merge_method",))
    if content.get("modules") is not None:
        raise lines.refuse(content, "modules", "modules: not here.", "Give models.")
    name = lines.text(content, "merge_method", "merge_method")
    twin = _twin(lines, name)
    with lines.placed(content, "merge_method"):
        options_of(twin.method)
    return _Reading(lines, name, twin, read_models(lines)).spec()


def _twin(lines: Lines, name: str) -> Twin:
    if name in ELSEWHERE:
        raise lines.refuse(
            lines.content, "merge_method", f"mergekit's {name} is not here.", f"These are: {', '.join(TWINS)}."
        )
    if name not in TWINS:
        hint = near(name, (*TWINS, *ELSEWHERE)) or f"These are here: {', '.join(TWINS)}."
        raise lines.refuse(lines.content, "merge_method", f"mergekit has no method {name!r}.", hint)
    return TWINS[name]


@dataclass(frozen=True)
class _Reading:
    """A recipe that is being read."""

    lines: Lines
    name: str
    twin: Twin
    models: Models

    def spec(self) -> Spec:
        lines, twin = self.lines, self.twin
        inputs = self._inputs()
        base = self.models.base if twin.base else None
        with lines.placed(lines.content, "merge_method"):
            if self.models.base is None and (twin.base or self.name == "slerp"):
                raise MethodError(f"mergekit's {self.name} needs base_model.", "Name the base.")
            check_count(twin.method, len(inputs))
        notes = [*self._check_names(), *([twin.note] if twin.note else [])]
        options, own = self._options(inputs)
        tokenizer = tokenizer_of(lines, self.models.base)
        if tokenizer is None and base is None and self.models.base is not None:
            tokenizer = self.models.base  # mergekit takes the base's even where the method knows no base
        output = Output(dtype_of(lines), tokenizer)
        found = tuple(Input(one.reference, settings, one.where) for one, settings in zip(inputs, own, strict=True))
        with lines.placed(lines.content, "merge_method"):
            return Spec(twin.method, base, found, options, output, layers=self.models.layers, notes=tuple(notes))

    def _inputs(self) -> list[Model]:
        """What our method merges, in its order."""
        base, listed = self.models.base, list(self.models.listed)
        others = [one for one in listed if one.reference != base]
        if self.twin.base or base is None:
            return others
        if len(others) == len(listed) and self.models.whole:
            listed.append(Model(base, {}, self.lines.at(self.lines.content, "base_model")))
        if self.name == "slerp":  # t counts from the base
            listed.sort(key=lambda one: one.reference != base)
        if self.name == "nuslerp":
            raise self.lines.refuse(
                self.lines.content, "base_model", "nuslerp of differences to a base: not here.", "Remove base_model."
            )
        return listed

    def _check_names(self) -> list[str]:
        """Refuse parameters that mergekit does not have; say which it passes over."""
        read = {*self.twin.numbers, *self.twin.flags}
        notes = dict[str, None]()
        for holder, shared in self._holders():
            for key in holder:
                where = self.lines.at(holder, key)
                if key not in PARAMETERS:
                    hint = near(key, PARAMETERS) or f"{self.name} has {', '.join(sorted(read))}."
                    raise RecipeError(f"{where}: mergekit has no parameter {said(key)}.", hint)
                number = self.twin.numbers.get(key)
                passed = key not in read or not (shared or (number and number.per_input))
                if passed and key not in (*SILENT, *self.twin.idle):
                    notes[f"{where}: mergekit's {self.name} does not read {key} there; neither does this merge."] = None
        return list(notes)

    def _holders(self) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """Every mapping of parameters, and whether it is for all models."""
        yield self.lines.mapping(self.lines.content, "parameters", "parameters"), True
        yield self.models.parameters, True
        for one in self.models.listed:
            yield one.parameters, False

    def _scopes(self, own: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        """Where settings are looked up, the first first."""
        return own, self.models.parameters, self.lines.mapping(self.lines.content, "parameters", "parameters")

    def _options(self, inputs: list[Model]) -> tuple[dict[str, Any], list[dict[str, Setting]]]:
        """Our options, and those of every input."""
        shared = dict(self.twin.fixed)
        own: list[dict[str, Setting]] = [{} for _ in inputs]
        for name, flag in self.twin.flags.items():
            shared |= self._flag(name, flag)
        for name, number in self.twin.numbers.items():
            if number.per_input:
                for one, settings in zip(inputs, own, strict=True):
                    settings[number.ours] = self._number(name, number, one.parameters, one.where)
            else:
                shared[number.ours] = self._number(name, number, {}, self.lines.at(self.lines.content, "merge_method"))
        if self.name == "nuslerp":
            first, second = (self._constant(settings.pop("weight"), "weight") for settings in own)
            shared["t"] = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
        if self.name == "breadcrumbs":
            for settings in own:
                density = self._constant(settings.pop("density"), "density")
                settings |= _dropped(density, self._constant(settings["gamma"], "gamma"))
        return shared, own

    def _constant(self, setting: Setting, name: str) -> float:
        if isinstance(setting, tuple):
            raise self.lines.refuse(
                self.lines.content, "merge_method", f"{self.name} with a {name} that differs by tensor: not here.",
                "Give one number for each model.",
            )  # fmt: skip
        return setting

    def _flag(self, name: str, flag: Flag) -> Mapping[str, Any]:
        """Our options for a flag."""
        value, where = flag.default, self.lines.at(self.lines.content, "merge_method")
        for holder in self._scopes({})[1:]:
            if name in holder:
                where = self.lines.at(holder, name)
                found = _FLAGS.get(str(scalar(holder[name])).lower())
                if found is None:
                    raise RecipeError(
                        f"{where}: {name} is {said(holder[name])}, expected true or false.", "Correct it."
                    )
                value = found
                break
        means, known = flag.true if value else flag.false, options_of(self.twin.method)
        if means is None or any(known[key].choices and word not in known[key].choices for key, word in means.items()):
            raise RecipeError(f"{where}: {self.name} with {name}: {str(value).lower()} is not here.", "Change it.")
        return means

    def _number(self, name: str, number: Number, own: Mapping[str, Any], where: str) -> Setting:
        """Our setting for a number of one model, or of all."""
        option = options_of(self.twin.method).get(number.ours)
        rules: list[Rule] = []
        for holder in self._scopes(own):
            if name in holder:
                rules += self._rules(holder, name, option)
            if rules and covers_all(tuple(rules)):
                break
        else:
            if number.default is None and not rules:
                raise RecipeError(f"{where}: mergekit's {self.name} needs {name}.", f"Give {name}.")
            if number.default is not None:
                rules.append(Rule(float(number.default)))
        if len(rules) == 1 and rules[0].filter is None and rules[0].where is None:
            return rules[0].value
        return tuple(rules)

    def _rules(self, holder: Any, name: str, option: Option | None) -> list[Rule]:
        """A setting as rules, each checked where it stands."""
        value = holder[name]
        items = value if isinstance(value, list) and any(isinstance(one, Mapping) for one in value) else None
        found = []
        for number, item in enumerate([value] if items is None else items):
            place = (holder, name) if items is None else (items, number)
            with self.lines.placed(*place):
                if items is not None and not isinstance(item, Mapping):
                    raise MethodError(f"a rule is {said(item)}, expected a mapping.", "Write {value: 0.5}.")
                for rule in _rules_of(item if isinstance(item, Mapping) else {"value": item}):
                    if option is not None:
                        option.check((rule,))
                    found.append(rule)
        return found


def _dropped(density: float, gamma: float) -> dict[str, Setting]:
    """The shares of the smallest and of the largest changes that mergekit's breadcrumbs drops.

    It keeps `density` of all, below the `gamma` largest; where there are not so many, it drops fewer of the largest, and
    none where density is 1.
    """
    top = min(gamma, max(0.0, 1.0 - density))
    return {"beta": max(0.0, 1.0 - density - top), "gamma": top}


def _rules_of(item: Mapping[str, Any]) -> list[Rule]:
    """One of mergekit's rules as ours: two, where a gradient gives another value to the tensors after the layers."""
    unknown = [key for key in item if key not in ("filter", "value")]
    if unknown or "value" not in item:
        raise MethodError(
            f"a rule has no key {said(unknown[0])}." if unknown else "a rule has no value.", "Correct it."
        )
    named = scalar(item.get("filter"))
    named = None if named == "*" else named
    value = item["value"]
    rule = Rule([_parsed(one) for one in value] if isinstance(value, list) else _parsed(value), named)  # type: ignore[arg-type]
    if isinstance(rule.value, tuple) and rule.value[0] != rule.value[-1]:
        return [Rule(rule.value[0], named, "after"), rule]
    return [rule]


def _parsed(value: Any) -> Any:
    """A number; mergekit reads those that YAML takes for texts ("1e-3"), too."""
    found = scalar(value)
    if isinstance(found, str):
        try:
            return float(found)
        except ValueError:
            return found
    return found
