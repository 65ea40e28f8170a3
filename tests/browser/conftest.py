"""Chromium, headless, and the reports that it opens. Nothing is skipped: without a browser these tests fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from regraft.report import write_report

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Debian's chromium and chromium-driver, and the extra `browser`")


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    """A browser that logs its console and every request."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.fail("No chromium or chromedriver on PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield found
    found.quit()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report for each of the results that the report's own tests use, by name."""
    path = Path(__file__).parents[1] / "report" / "variants.py"
    spec = importlib.util.spec_from_file_location("browser_variants", path)
    assert spec is not None
    assert spec.loader is not None
    variants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(variants)
    made: dict[str, Callable[[], dict[str, Any]]] = variants.VARIANTS
    folder = tmp_path_factory.mktemp("reports")
    return {name: write_report(result(), folder / f"{name}.html") for name, result in made.items()}
