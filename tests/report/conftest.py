"""Fixtures of the report's tests: results from `variants.py`, fresh for each test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load() -> ModuleType:
    # Tests are imported by file (importlib mode), so a helper beside them is too.
    spec = importlib.util.spec_from_file_location("report_variants", Path(__file__).parent / "variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_variants = _load()


@pytest.fixture
def variants() -> ModuleType:
    return _variants


@pytest.fixture
def result() -> dict[str, Any]:
    """The realistic one: banking77, ten minutes."""
    made: dict[str, Any] = _variants.realistic()
    return made


@pytest.fixture(params=sorted(_variants.VARIANTS))
def any_result(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each of the results that a report must survive."""
    made: dict[str, Any] = _variants.VARIANTS[request.param]()
    return made
