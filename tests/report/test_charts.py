"""Plots: what is drawn, where labels go, and that only drawing elements come out."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.report import svg, words
from regraft.report.charts import floor, plots
from regraft.report.drawing import HEIGHT, WIDTH, Mark, Scale, place_labels, scale, ticks

positive = st.floats(1e-3, 1e12)


def tooltips(picture: str) -> list[str]:
    return [found.text or "" for found in ET.fromstring(picture).iter("title")][1:]


def test_three_plots_with_every_model_that_has_a_place(result: dict[str, Any]) -> None:
    found = plots(result)
    assert [plot.heading for plot in found] == ["Size", "Latency", "Time to make"]
    measured = {one["name"] for one in result["candidates"] if one["validation"]}
    for plot in found:
        text = "\n".join(tooltips(plot.svg))
        assert all(name in text for name in measured)
        assert "TF-IDF + logistic regression" in text
        assert plot.missing[0].startswith("from scratch (minilm-random) (68.8")


def test_kinds_differ_in_shape_not_only_in_colour(result: dict[str, Any]) -> None:
    root = ET.fromstring(plots(result)[0].svg)
    outlines: dict[str, set[str]] = {}
    for path in root.iter("path"):
        label = path.findtext("title")
        if label:
            kind = "member" if label[1:3] == ": " else "baseline" if label.startswith("TF-IDF") else "candidate"
            outlines.setdefault(kind, set()).add(path.get("d", ""))
    assert set(outlines) == {"member", "baseline", "candidate"}
    assert len(set.union(*outlines.values())) == 3


def test_a_plot_is_one_image_with_words(result: dict[str, Any]) -> None:
    root = ET.fromstring(plots(result)[0].svg)
    assert root.get("role") == "img"
    ids = {element.get("id"): element.text for element in root if element.tag in {"title", "desc"}}
    assert list(ids) == (root.get("aria-labelledby") or "").split()
    assert ids["plot-parameters-title"] == "Validation accuracy against parameters"
    assert "A 94.1 % at 22.6M" in (ids["plot-parameters-text"] or "").replace(words.SPACE, " ")


def test_only_drawing_comes_out(any_result: dict[str, Any]) -> None:
    for plot in plots(words.clean(any_result)):
        for element in ET.fromstring(plot.svg).iter():
            assert element.tag in {"svg", "g", "path", "line", "text", "rect", "title", "desc"}
            assert not [name for name in element.attrib if name.startswith("on") or "href" in name or name == "style"]


def test_an_svg_with_a_script_loses_it() -> None:
    source = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="5" onload="x()"><script>x()</script>'
        '<g><a href="http://example.org"><text>in</text></a><path d="M0 0" fill="#0B57A4" onclick="x()"/></g></svg>'
    )
    assert svg.inline(source, "p", "<t>", "d") == (
        '<svg class="plot" viewBox="0 0 10 5" role="img" aria-labelledby="p-title p-text">'
        '<title id="p-title">&lt;t&gt;</title><desc id="p-text">d</desc>'
        '<g><path d="M0 0" class="fill-member" /></g></svg>'
    )


def test_baselines_alone_make_no_plot(variants: ModuleType) -> None:
    assert plots(variants.baseline_best()) == []
    assert plots(words.clean(variants.nulls())) == []


def test_candidates_far_below_the_edge_alone_make_no_plot(result: dict[str, Any]) -> None:
    result["family"] = []
    for one in result["candidates"]:
        one["validation"] = {"accuracy": 0.1, "intervals": {}}
    assert plots(result) == []


def mark(kind: str, y: float) -> Mark:
    return Mark(kind, kind, "", 1.0, y, y - 0.01, y + 0.01)


def test_the_edge_lies_below_family_and_best_baseline() -> None:
    marks = [mark("member", 0.93), mark("baseline", 0.89), mark("baseline", 0.02), mark("candidate", 0.3)]
    assert 0.8 < floor(marks) < 0.88
    assert floor([mark("candidate", 0.3), mark("candidate", 0.5)]) < 0.29
    assert floor([mark("baseline", 0.01)]) == 0.0


@given(st.lists(positive, min_size=1, max_size=6), st.data())
def test_every_value_lies_inside_its_scale(values: list[float], data: st.DataObject) -> None:
    found = scale(values, data.draw(st.lists(st.sampled_from(values), min_size=1)))
    for value in values:
        pixel = found.pixel(value)
        assert 0 <= pixel <= WIDTH
        assert math.isclose(found.value(pixel), value, rel_tol=1e-6, abs_tol=1e-6 * found.high)


@given(positive, st.floats(6.1, 1e9))
def test_a_logarithmic_axis_has_few_round_ticks(low: float, ratio: float) -> None:
    axis = Scale(low, low * ratio, True)
    found = ticks(axis)
    assert len(found) <= 6
    assert all(axis.low <= tick <= axis.high for tick in found)
    assert all(f"{tick:e}"[0] in "1235" for tick in found)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_labels_of_points_in_one_place_do_not_overlap(count: int) -> None:
    points = [(WIDTH / 2, HEIGHT / 2 + 3 * place, "A") for place in range(count)]
    found = place_labels(points)
    for place, (x, y) in enumerate(found):
        assert all(abs(x - other[0]) > 6 or abs(y - other[1]) > 10 for other in found[:place])


def test_labels_at_the_edge_turn_inwards() -> None:
    ((x, _),) = place_labels([(WIDTH - 2, 50, "TF-IDF")])
    assert x < WIDTH - 20
