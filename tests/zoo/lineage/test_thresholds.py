"""Thresholds lie in one place, each with its words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from regraft.zoo.lineage import thresholds

PLACE = Path(thresholds.__file__)


def numbers(path: Path) -> list[str]:
    """Names in capitals that a module gives a number, or several, at its top level."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign):
            continue
        inside = list(ast.walk(node.value))
        kinds = (ast.Constant, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
        if all(isinstance(one, kinds) for one in inside) and any(
            isinstance(one, ast.Constant) and isinstance(one.value, int | float) for one in inside
        ):
            found += [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return found


def test_no_other_module_of_lineage_sets_a_number() -> None:
    others = {path.name: numbers(path) for path in PLACE.parent.glob("*.py") if path != PLACE}
    assert {name: found for name, found in others.items() if found} == {"model.py": ["OUTER"]}, "OUTER is a name"


def test_every_threshold_says_what_it_decides_and_how_it_was_chosen_and_is_used() -> None:
    lines = PLACE.read_text().splitlines()
    used = " ".join(path.read_text() for path in PLACE.parent.glob("*.py") if path != PLACE)
    names = numbers(PLACE)
    assert len(names) > 50
    for name in names:
        at = next(number for number, line in enumerate(lines) if re.match(rf"(\w+, )*{name}\b.*=", line))
        above = []
        while lines[at - 1 - len(above)].startswith("# "):
            above.append(lines[at - 1 - len(above)])
        words = " ".join(reversed(above))
        assert re.search(r"Set on MiniLM|By the argument|Cost\b|Not recorded", words), name
        assert re.search(rf"\b{name}\b", used), name
