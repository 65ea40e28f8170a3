"""YAML of strangers: scalars, lists and mappings, without aliases, dates and the yes/no of YAML 1.1, and of limited depth.

A few lines of aliases to aliases unfold to gigabytes, so they are refused; `language: no` is Norwegian, not false (YAML 1.2);
dates stay text. PyYAML's C parser is used where it is installed: it is ten times as fast.
"""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

_DEEPEST = 200  # levels; the C parser overruns the stack of the process at some tens of thousands
_STARTS = re.compile("(?:^|[\r\n\x85\u2028\u2029])([ \t?:-]+)")  # YAML ends lines at all of these
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    """A safe loader that knows null, true, false, whole numbers, decimals and text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  PyYAML's own name and form


_TAG = "tag:yaml.org,2002:"
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"^[-+]?[0-9]{1,300}$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)  # fmt: skip
_Loader.add_constructor(f"{_TAG}int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor(f"{_TAG}float", lambda loader, node: float(loader.construct_scalar(node)))


class YamlFault(Exception):
    """Text that is no YAML, or YAML that is not read here; the message says which."""


def load(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        YamlFault: Broken, too deep, with aliases, or with tags that ask for more than plain data.
    """
    try:
        if _may_be_deep(text) or ("&" in text and "*" in text):
            _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError) as error:
        raise YamlFault(_first_line(error)) from None


def _may_be_deep(text: str) -> bool:
    """A cheap look that no deep document passes: most texts need no second one.

    Every level takes a bracket, or a block that starts further right on its line, after blanks and dashes alone; a list may start
    at the column of the mapping that it is in.
    """
    if text.count("[") + text.count("{") > _DEEPEST // 2:
        return True
    return any(len(start) > _DEEPEST // 4 - 2 for start in _STARTS.findall(text))


def _check_events(text: str) -> None:
    """Refuse aliases and depth by the parser's events, which nest no calls: what makes values of them does."""
    depth = 0
    for event in yaml.parse(text, Loader=_BASE):
        if isinstance(event, yaml.AliasEvent):
            raise YamlFault("it has aliases (*name), which are not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise YamlFault(f"it is more than {_DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _first_line(error: Exception) -> str:
    problem = getattr(error, "problem", None)
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    return f"{problem or str(error).splitlines()[0] if str(error) else type(error).__name__}{where}"[:200]
