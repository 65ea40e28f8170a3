"""The page: everything of a result is in it, in order, escaped, and nothing is loaded from anywhere."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from regraft.errors import StoreError
from regraft.report import render, words, write_report

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Elements, text, table rows and headings of a page; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        text = data.replace(words.SPACE, " ").replace("\u00ad", "")
        self.text.append(text)
        if "tr" in self._open:
            self.rows[-1] += text
        if self.headings and re.fullmatch("h[1-6]", self._open[-1]):
            level, before = self.headings[-1]
            self.headings[-1] = (level, before + text)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


def test_the_sections_come_in_order(result: dict[str, Any]) -> None:
    page = Page(render(result))
    assert page.headings[0] == (1, "Take minilm-l6-full")
    assert [text for level, text in page.headings if level == 2] == [
        "On test data, with 95 % intervals",
        "Use it, with sentence-transformers alone",
        "Or take",
        "The family",
        "Quality against size, latency and time",
        "Baselines",
        "Which checkpoints are worth starting from",
        "Every decision, its reason and its cost",
        "All candidates",
        "What was left out",
        "Task, zoo, machine, budget",
    ]


def test_the_first_screen_says_what_why_how_and_what_else(result: dict[str, Any]) -> None:
    text = " ".join(Page(render(result)).text)
    first = text[: text.index("models on the front of quality")]
    for part in (
        "It is right on 93.4 % of 3,080 test examples (95 % interval 92.6\u201394.3)",
        "4.0 points above the best baseline, TF-IDF + logistic regression (89.4 %)",
        "22.6M",
        "10.6M in the encoder",
        "90 MB",
        "4.1 ms",
        "SentenceTransformer('runs/banking77-10m/family/minilm-l6-full')",
        "50 % of the encoder, 17.3M parameters in all, 2.2 ms, 1.9\u00d7 as fast; costs 1.8 points",
        "too close to call",
    ):
        assert part in first


def test_every_entry_of_the_result_is_in_the_page(any_result: dict[str, Any]) -> None:
    page = Page(render(any_result))
    text, tidy = "\n".join(page.text), words.clean(any_result)
    for member in tidy["family"]:
        assert member["path"] in text
        assert any(
            member["name"] in row and f"{member['certificate']['passed']}/{member['certificate']['claims']}" in row
            for row in page.rows
        )
    for one in tidy["candidates"]:
        assert any(one["name"] in row and one["reason"] in row and one["status"] in row for row in page.rows)
    for one in tidy["baselines"]:
        assert any(words.baseline_name(one["name"]) in row for row in page.rows)
    for one in tidy["ranking"]:
        assert any(one["checkpoint"] in row for row in page.rows)
    for one in tidy["zoo"]["checkpoints"]:
        assert any(one["name"] in row and one["reference"] in row for row in page.rows)
    for one in tidy["decisions"]:
        assert one["what"] in text
        assert one["reason"] in text
    for one in tidy["left_out"]:
        assert {one["reference"], one["problem"], one["remedy"]} <= {part.strip() for part in page.text}
    for note in tidy["task"]["notes"]:
        assert note in text


def test_predictions_are_in_the_table_when_there_are_any(result: dict[str, Any], variants: ModuleType) -> None:
    assert not any("Predicted" in row for row in Page(render(result)).rows)
    page = Page(render(variants.predicted()))
    first = variants.predicted()["ranking"][0]["checkpoint"]
    assert any(first in row and words.format_percent(0.93).replace(words.SPACE, " ") in row for row in page.rows)
    assert any("Predicted" in row and "Chance to be best" in row for row in page.rows)


def test_how_to_replay_it_is_said_when_there_is_a_family(result: dict[str, Any], variants: ModuleType) -> None:
    assert "regraft run runs/banking77-10m/family/recipe.yaml" in render(result)
    assert "regraft run" not in render(variants.baseline_best())


def test_nothing_is_loaded_and_nothing_runs(any_result: dict[str, Any]) -> None:
    text = render(any_result)
    page = Page(text)
    names = {name for _, attrs in page.elements for name in attrs}
    assert not [name for name in names if name.startswith("on")]
    assert not {"src", "srcset", "data", "poster", "action", "xlink:href"} & names
    assert {target for target in page.attributes("href") if not target.startswith("#")} == {"data:,"}
    tags = {tag for tag, _ in page.elements}
    assert not {"script", "iframe", "object", "embed", "img", "image", "use", "base", "form"} & tags
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|expression", style)
    assert "default-src 'none'" in text


def test_untrusted_text_stays_text(variants: ModuleType) -> None:
    made = variants.hostile()
    text = render(made)
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("</style>") == 1
    assert "{{ 7*7 }}" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff\u202a-\u202e]", text)
    assert variants.SCRIPT in " ".join(Page(text).text)


def test_tables_and_images_can_be_heard(any_result: dict[str, Any]) -> None:
    page = Page(render(any_result))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        if tag == "th":
            assert attrs.get("scope") in {"col", "row", "rowgroup"}
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or attrs.get("role") == "img"
        if attrs.get("role") == "region":
            assert attrs.get("aria-label") or attrs.get("aria-labelledby") in ids
            assert attrs.get("tabindex") == "0"
    for names in page.attributes("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in page.elements


def test_a_failed_check_is_visible(result: dict[str, Any]) -> None:
    result["family"][1]["certificate"] = {"claims": 9, "passed": 8}
    assert any("8/9not all" in row for row in Page(render(result)).rows)


def test_no_number_is_printed_raw(variants: ModuleType) -> None:
    text = " ".join(Page(render(variants.nulls())).text)
    assert not re.search(r"\b(None|nan|inf|NaN|Undefined)\b", text.replace("the loss became NaN", ""))


def test_the_page_is_a_function_of_the_result(result: dict[str, Any]) -> None:
    before = copy.deepcopy(result)
    assert render(result) == render(json.loads(json.dumps(result)))
    assert result == before


def test_it_is_small(any_result: dict[str, Any]) -> None:
    assert len(render(any_result).encode()) < 300_000


def test_writing_replaces_an_earlier_report(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    assert write_report(result, path) == path
    result["task"]["name"] = "another"
    write_report(result, path)
    assert "another" in path.read_text(encoding="utf-8")
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(result, tmp_path / "report.html")
    before = path.read_text(encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        write_report(result | {"seed": 1}, path)
    assert path.read_text(encoding="utf-8") == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
