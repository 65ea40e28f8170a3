"""The search: words that all occur, by going through every record; the order; accents and scripts."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import Catalogue
from regraft.zoo.record.record import Record


def words(text: str) -> list[str]:
    bare = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return re.findall(r"[^\W_]+", bare.casefold())


def found_in(asked: str, texts: list[str]) -> bool:
    own = [word for text in texts for word in words(text)]
    parts = [(word, part.endswith("*") and word == words(part)[-1]) for part in asked.split() for word in words(part)]
    return all(any(one.startswith(word) if begun else one == word for one in own) for word, begun in parts)


@settings(max_examples=80)
@given(
    st.lists(st.sampled_from(["bert", "mini", "min*", "BASE", "etude", "模型", "模*", "l6*", "en", "naive", "v2-l6", "b*"]),
             min_size=1, max_size=3).map(" ".join)
)  # fmt: skip
def test_all_words_occur(filled: tuple[Catalogue, list[Record]], asked: str) -> None:
    catalogue, records = filled
    expected = {
        one.path for one in records
        if found_in(asked, [one.name, *one.tags, *one.datasets, *one.languages, one.task or "", one.model_type or ""])
    }  # fmt: skip
    found = catalogue.search(asked, limit=1000)
    assert {entry.record.path for entry in found} == expected and len(found) == len(expected)
    pages = [
        entry.id for start in range(0, len(found), 60) for entry in catalogue.search(asked, offset=start, limit=60)
    ]
    assert pages == [entry.id for entry in found]


def test_names_come_before_tags_and_short_names_first(catalogue: Catalogue, record_maker: Any) -> None:
    base = replace(record_maker(0), tags=(), datasets=(), languages=(), task=None, model_type=None)
    names = ["org/other", "org/minilm-large-uncased", "minilm"]
    catalogue.put(
        replace(base, path=f"/{number}", name=name, tags=("minilm",) if name == "org/other" else ())
        for number, name in enumerate(names)
    )
    assert [entry.record.name for entry in catalogue.search("minilm")] == [
        "minilm",
        "org/minilm-large-uncased",
        "org/other",
    ]


def test_what_changes_or_goes_is_no_longer_found(catalogue: Catalogue, record_maker: Any) -> None:
    one = replace(record_maker(0), name="first", tags=(), path="/one")
    catalogue.put([one])
    catalogue.put([replace(one, name="second")])
    assert not catalogue.search("first") and len(catalogue.search("second")) == 1
    catalogue.remove("/one")
    assert not catalogue.search("second")


@pytest.mark.parametrize("text", ["", "  ", "-*-", '"', "*"])
def test_nothing_to_search_for(catalogue: Catalogue, text: str) -> None:
    with pytest.raises(CatalogueError, match="no word to search for"):
        catalogue.search(text)


@given(st.text(max_size=20))
def test_any_text_is_searched_or_refused(filled: tuple[Catalogue, list[Record]], text: str) -> None:
    catalogue, _ = filled
    try:
        catalogue.search(text, limit=3)
    except CatalogueError as fault:
        assert "no word" in fault.problem
