"""The table for the terminal."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

from rich.console import Console

from regraft.report import table, words


def printed(result: dict[str, Any], width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table(result))
    return stream.getvalue().replace(words.SPACE, " ")


def test_family_then_baselines_with_the_answer_marked(result: dict[str, Any]) -> None:
    lines = [line.split() for line in printed(result).splitlines()]
    assert ["->", "A", "minilm-l6-full", "93.4", "(92.6\u201394.3)", "22.6M", "10.6M", "90", "MB", "4.1", "ms"] in lines
    assert ["B", "minilm-l6-probe", "93.3", "(92.4\u201394.2)", "22.6M", "10.6M", "90", "MB", "4.1", "ms"] in lines
    assert sum("->" in line for line in lines) == 2  # the answer, and the caption that explains the arrow


def test_a_baseline_can_be_the_answer(variants: ModuleType) -> None:
    lines = [line.split() for line in printed(variants.baseline_best()).splitlines()]
    assert ["->", "TF-IDF", "+", "logistic", "regression"] in [line[:5] for line in lines]


def test_it_fits_eighty_columns_whole(result: dict[str, Any]) -> None:
    text = printed(result, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    assert "4.1 ms" in text


def test_every_result_can_be_printed(any_result: dict[str, Any]) -> None:
    text = printed(any_result, 100)
    assert "nan" not in text
    assert "None" not in text
    assert "\x1b" not in text


def test_names_are_not_markup(result: dict[str, Any]) -> None:
    result["family"][1]["name"] = "[red]not[/red]"
    assert "[red]not[/red]" in printed(result)
