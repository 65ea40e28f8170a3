"""The report in a real browser, from file://: silent, offline, in light and dark, on a narrow screen, and on paper."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

pytestmark = pytest.mark.browser

NAMES = (
    "realistic",
    "hostile",
    "baseline_best",
    "baseline_beats_family",
    "one_member",
    "many",
    "predicted",
    "nulls",
    "nothing",
)

# WCAG 2 contrast of every element that holds text against the nearest background behind it.
CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgb(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const holds = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!holds || ["TITLE", "DESC"].includes(element.tagName.toUpperCase()) || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const colour = rgb(element.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 80)]);
}
return found;
"""


def show(driver: webdriver.Chrome, path: Path, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": [feature]})
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(path.as_uri())


def requests(driver: webdriver.Chrome) -> list[str]:
    """The address of everything that the page asked for since it was opened, itself included."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("name", NAMES)
def test_silent_and_offline(driver: webdriver.Chrome, reports: dict[str, Path], name: str) -> None:
    show(driver, reports[name])
    assert driver.get_log("browser") == []
    others = [url for url in requests(driver) if url != reports[name].as_uri() and not url.startswith("data:")]
    assert others == []
    assert driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") in (
        [],
        ["data:,"],
    )


def test_every_variant_is_opened(reports: dict[str, Path]) -> None:
    assert sorted(NAMES) == sorted(reports)


def test_names_do_not_run(driver: webdriver.Chrome, reports: dict[str, Path]) -> None:
    show(driver, reports["hostile"])
    assert driver.title.startswith("Take <script>")
    assert driver.execute_script("return document.querySelectorAll('script, img, iframe').length") == 0


def test_the_first_screen_answers(driver: webdriver.Chrome, reports: dict[str, Path]) -> None:
    """Headline, reason, figures, code and alternatives lie within 1280 x 800; on a phone headline and reason do."""
    bottom = (
        "return Math.max(...[...document.querySelectorAll(arguments[0])].map((e) => e.getBoundingClientRect().bottom))"
    )
    show(driver, reports["realistic"])
    assert driver.find_element("css selector", "h1").text == "Take minilm-l6-full"
    for part in ("h1", ".lead", ".figures", ".glance", ".code", ".alternatives"):
        assert driver.execute_script(bottom, part) < 800, part
    show(driver, reports["realistic"], width=360, height=800)
    for part in ("h1", ".lead", ".figures"):
        assert driver.execute_script(bottom, part) < 800, part


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_page_scrolls_sideways(driver: webdriver.Chrome, reports: dict[str, Path], name: str, width: int) -> None:
    show(driver, reports[name], width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_wide_tables_scroll_inside_and_can_be_reached_by_keyboard(
    driver: webdriver.Chrome, reports: dict[str, Path]
) -> None:
    show(driver, reports["realistic"], width=360)
    regions = driver.find_elements("css selector", ".scroll")
    assert any(
        driver.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", one) for one in regions
    )
    assert all(one.get_attribute("tabindex") == "0" for one in regions)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(driver: webdriver.Chrome, reports: dict[str, Path], scheme: str) -> None:
    """WCAG AA: a contrast of at least 4.5 for every text, plots included; and the page is as light as it was asked."""
    show(driver, reports["realistic"], scheme=scheme)
    found = driver.execute_script(CONTRAST)
    assert len(found) > 300
    assert [one for one in found if one[0] < 4.5] == []
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    level = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) / 3
    assert level > 240 if scheme == "light" else level < 40


def test_plots_have_a_readable_size(driver: webdriver.Chrome, reports: dict[str, Path]) -> None:
    for width in (360, 768, 1280):
        show(driver, reports["realistic"], width=width)
        heights = driver.execute_script(
            "return [...document.querySelectorAll('svg.plot text')].map((e) => e.getBoundingClientRect().height)"
        )
        assert min(heights) > 9
        assert len(driver.find_elements("css selector", "svg.plot")) == 3


def test_it_prints_whole(driver: webdriver.Chrome, reports: dict[str, Path]) -> None:
    """On A4 (186 mm between the margins are 703 pixels) nothing is wider than the page, in dark mode too."""
    show(driver, reports["realistic"], width=703, scheme="dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    wide = driver.execute_script(
        "return [...document.querySelectorAll('table, pre, svg.plot')]"
        ".filter((e) => e.getBoundingClientRect().right > 703)"
        ".map((e) => [e.getBoundingClientRect().right, e.textContent.slice(0, 60)])"
    )
    assert wide == []
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    paper = driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert base64.b64decode(paper["data"]).startswith(b"%PDF")
