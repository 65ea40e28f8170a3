"""The list of fault points is that of the points that are passed."""

from __future__ import annotations

import re
from pathlib import Path

import regraft
from regraft import faults


def test_every_point_that_is_passed_is_in_the_list_and_no_other() -> None:
    source = Path(regraft.__file__).parent
    passed = [
        name for path in source.rglob("*.py") for name in re.findall(r"faults\.point\(\"([^\"]+)\"\)", path.read_text())
    ]
    assert sorted(passed) == sorted(faults.POINTS)
    calls = sum(path.read_text().count("faults.point(") for path in source.rglob("*.py"))
    assert calls == len(passed)  # none with a name that is put together


def test_without_a_hook_a_point_does_nothing() -> None:
    assert faults.hook is None
    faults.point("tensor merged")
