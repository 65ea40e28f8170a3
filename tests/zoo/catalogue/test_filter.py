"""Filters: what SQL answers is what going through every record in Python finds; texts are read as they are written."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import Catalogue, filtering, open_catalogue
from regraft.zoo.catalogue.grammar import is_filter, parse
from regraft.zoo.catalogue.schema import checkpoints
from regraft.zoo.record.record import Record

NUMBERS: dict[str, Callable[[Record], Any]] = {
    "layers": lambda one: one.layers,
    "hidden_size": lambda one: one.hidden_size,
    "parameters": lambda one: one.parameters,
    "bytes": lambda one: one.weight_bytes,
    "labels": lambda one: None if one.labels is None else len(one.labels),
    "completeness": lambda one: one.completeness,
    "emissions_kg": lambda one: one.emissions_kg,
}
WORDS: dict[str, Callable[[Record], list[str | None]]] = {
    "licence": lambda one: [one.licence.stated],
    "task": lambda one: [one.task],
    "kind": lambda one: [one.kind],
    "tokenizer": lambda one: [one.tokenizer],
    "model_type": lambda one: [one.model_type],
    "architecture": lambda one: [one.model_type, *one.architectures],
    "tag": lambda one: list(one.tags),
    "language": lambda one: list(one.languages),
    "dataset": lambda one: list(one.datasets),
    "dtype": lambda one: list(one.dtypes),
    "label": lambda one: list(one.labels or ()),
    "risk": lambda one: [risk.code for risk in one.risks],
    "severity": lambda one: [risk.severity for risk in one.risks],
    "name": lambda one: [one.name, one.name.split("/")[-1]],
    "parent": lambda one: [part for parent in one.parents for part in (parent.name, parent.name.split("/")[-1])],
}
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
Condition = tuple[str, str, tuple[Any, ...]]


def holds(record: Record, condition: Condition) -> bool:
    """The condition by its definition, over the record itself."""
    field, sign, values = condition
    if sign == "!=":
        return not holds(record, (field, "=", values))
    if field in NUMBERS:
        found = NUMBERS[field](record)
        if sign == "=":
            return any(found is None if value is None else found == value for value in values)
        return found is not None and COMPARE[sign](found, values[0])
    if field.startswith("claimed:"):
        own = [claim.value for claim in record.claims if plain_metric(claim.metric) == field.removeprefix("claimed:")]
        if sign == "=":
            return any(not own if value is None else value in own for value in values)
        return any(COMPARE[sign](one, values[0]) for one in own)
    texts = [text.casefold() for text in WORDS[field](record) if text is not None]
    return any(
        not texts if value is None
        else any(text.startswith(value[1].casefold()) for text in texts) if isinstance(value, tuple)
        else value.casefold() in texts for value in values
    )  # fmt: skip


def plain_metric(text: str) -> str:
    return "_".join("".join(one if one.isalnum() else " " for one in text.lower()).split())


def written(condition: Condition) -> str:
    """The condition as a user writes it; a beginning is ("", text), a value that would be taken for something else is quoted."""
    field, sign, values = condition

    def one(value: Any) -> str:
        if value is None:
            return "none"
        if isinstance(value, tuple):
            return f"{value[1]}*"
        if isinstance(value, str):
            odd = any(letter in ' ,"\\*' for letter in value) or value.lower() == "none"
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if odd else value
        return repr(value)

    return f"{field}{sign}{','.join(map(one, values))}"


VALUES: dict[str, tuple[str, ...]] = {
    "licence": ("mit", "APACHE-2.0", "gpl-3.0"), "task": ("fill-mask", "other"), "kind": ("adapter", "checkpoint"),
    "tokenizer": ("bpe", "WordPiece"), "model_type": ("bert", "vit"), "architecture": ("bert", "BertModel", "LlamaForCausalLM"),
    "tag": ("pytorch", "naïve", "résumé v2", "none", "a,b", 'quo"te', "bert*", "模型"), "language": ("en", "de", "xx"),
    "dataset": ("glue", "wiki text"), "dtype": ("f32", "BF16"), "label": ("a", "c"), "risk": ("pickle", "code"),
    "severity": ("danger", "warning"), "name": ("bert", "mini", "google/bert"), "parent": ("bert", "google/bert", "absent"),
}  # fmt: skip


@st.composite
def conditions(draw: Any) -> Condition:
    field = draw(st.sampled_from([*NUMBERS, *WORDS, "claimed:accuracy", "claimed:f1_macro"]))
    if field in WORDS:
        text = st.sampled_from(VALUES[field])
        beginnings = st.sampled_from(["b", "g", "m", "apache", "f", "p"]).map(lambda begun: ("", begun))
        one = st.one_of(text, text, beginnings, st.none())
        return field, draw(st.sampled_from(["=", "!="])), tuple(draw(st.lists(one, min_size=1, max_size=3)))
    number = {
        "layers": st.integers(0, 13), "hidden_size": st.sampled_from([32, 64, 384]), "labels": st.integers(0, 4),
        "parameters": st.integers(0, 2 * 10**8), "bytes": st.integers(0, 10**9),
    }.get(field, st.integers(0, 100).map(lambda percent: percent / 100))  # fmt: skip
    sign = draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]))
    if sign in COMPARE:
        return field, sign, (draw(number),)
    return field, sign, tuple(draw(st.lists(st.one_of(number, st.none()), min_size=1, max_size=3)))


@pytest.mark.parametrize("cap", [filtering.CAP, 12, 0], ids=["rarest drives", "few drive", "in order"])
def test_filters_agree_with_going_through_every_record(
    filled: tuple[Catalogue, list[Record]], cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, records = filled
    monkeypatch.setattr(filtering, "CAP", cap)

    @settings(max_examples=120)
    @given(st.lists(conditions(), max_size=4))
    def agree(asked: list[Condition]) -> None:
        text = " ".join(map(written, asked))
        expected = [one.path for one in records if all(holds(one, condition) for condition in asked)]
        page = catalogue.find(text, limit=1000)
        assert [entry.record.path for entry in page.entries] == expected, text
        assert page.next is None and catalogue.count(text) == len(expected)

    agree()


@pytest.mark.parametrize(
    "text", ["", "licence=mit", "layers<=6", "tag!=en", "architecture=bert layers>2 claimed:accuracy>0.2"]
)
@pytest.mark.parametrize("size", [1, 7, 50])
def test_pages_are_the_whole_in_pieces(filled: tuple[Catalogue, list[Record]], text: str, size: int) -> None:
    catalogue, _ = filled
    whole = [entry.id for entry in catalogue.find(text, limit=1000).entries]
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page = catalogue.find(text, after=after, limit=size)
        assert len(page.entries) == size or page.next is None
        found += [entry.id for entry in page.entries]
        after = page.next
    assert found == whole and len(whole) > 1
    assert [entry.id for entry in catalogue.every(text)] == whole


def test_the_record_comes_back_whole(filled: tuple[Catalogue, list[Record]]) -> None:
    catalogue, records = filled
    assert [entry.record for entry in catalogue.every()] == records


@pytest.mark.parametrize(
    ("text", "value"),
    [("parameters<50M", 50e6), ("parameters<1.5b", 1.5e9), ("bytes>=2KiB", 2048), ("bytes=3GB", 3e9), ("layers>1e1", 10),
     ("completeness>50%", 0.5), ("hours<.5", 0.5), ("emissions_kg>=+2", 2), ("claimed:acc>-1", -1)],
)  # fmt: skip
def test_units(text: str, value: float) -> None:
    ((found,),) = [one.values for one in parse(text)]
    assert found == pytest.approx(value)


def test_blanks_around_operators_and_other_names() -> None:
    assert parse("  layers <= 6   license = MIT ") == parse("layers<=6 licence=mit")
    assert parse('claimed:"F1 (macro)">0.5') == parse("claimed:f1_macro>0.5")
    assert parse("") == parse("  ") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer<=6", "Did you mean layers"),
        ("licence=mit colour=red", "no field 'colour'"),
        ("bert", "'bert' is no condition"),
        ("licence=mit bert layers=2", "'bert' is no condition"),
        ("licence=", "'licence=' has no value"),
        ("licence=a,", "has no value that can be read"),
        ('licence="a', "has no value that can be read"),
        ("licence<mit", "licence is no number"),
        ("layers=six", "'six' is no number"),
        ("layers=6Q", "'6Q' is no number"),
        ("layers<1e999", "is no number"),
        ("layers<6,7", "takes one value"),
        ("layers<none", "neither more nor less"),
        ("tied=maybe", "is yes or no"),
        ('licence=""', "empty value"),
        ("claimed:>0.5", "is no condition"),
        ("accuracy>0.5", "Known fields: name, architecture"),
        ("=6", "'=6' is no condition"),
        ("🙂", "'🙂' is no condition"),
    ],
)
def test_faults_name_the_word(text: str, words: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        parse(text)
    assert words in str(caught.value)


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from('layers licence=<>!,"\\ 6none*:claimd.K%\x00é'), max_size=30))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        found = parse(text)
    except CatalogueError as fault:
        assert fault.problem and fault.remedy
    else:
        assert found or not text.strip()


@given(st.lists(conditions(), min_size=1, max_size=3))
def test_what_is_written_is_a_filter(asked: list[Condition]) -> None:
    text = " ".join(map(written, asked))
    assert is_filter(text)
    for (field, sign, _), found in zip(asked, parse(text), strict=True):
        name = f"claimed:{found.metric}" if found.metric else found.field.name
        assert (field, sign) == (name, found.operator)


@pytest.mark.parametrize("text", ["builtin:minilm", "hf:org/name#layers=3", "models/", "minilm", "no=thing", "zoo:x"])
def test_references_are_no_filters(text: str) -> None:
    assert not is_filter(text)


def test_what_is_gone_is_left_out_unless_asked_for(catalogue: Catalogue, record_maker: Any) -> None:
    from regraft.zoo.catalogue import writing

    catalogue.put([record_maker(number) for number in range(3)])
    first = catalogue.find().entries[0]
    with catalogue.database.writing() as connection:
        writing.mark_gone(connection, [first.id])
    assert catalogue.count() == 2 and catalogue.count("gone=yes") == 1 and catalogue.count("gone=yes,no") == 3
    assert [entry.gone for entry in catalogue.find("gone=yes").entries] == [True]


def test_mad_values_are_kept_and_do_not_break_the_rest(catalogue: Catalogue, record_maker: Any) -> None:
    from dataclasses import replace

    from regraft.zoo.record.record import Claim, Parent, Risk

    odd = "nul\0 surrogate\udcff " + unicodedata.lookup("ZERO WIDTH SPACE") + "x" * 5000
    mad = replace(
        record_maker(1), name=odd, path="/zoo/" + "d/" * 2000, layers=10**30, parameters=-(10**40), tags=(odd, "", " "),
        claims=(Claim(None, None, None, "accuracy", float("nan")), Claim(None, None, None, "accuracy", float("inf"))),
        parents=(Parent(odd, odd),), hours=float("nan"), risks=(Risk("x\0", "note", odd, odd),), labels=(odd,) * 3,
    )  # fmt: skip
    catalogue.put([mad, record_maker(2)])
    (entry,) = catalogue.find("layers=none tag=nul*").entries
    assert entry.record.layers == 10**30 and entry.record.name == odd and len(entry.record.claims) == 2
    assert catalogue.count("claimed:accuracy>0 layers=none") == 0 and catalogue.count() == 2
    assert catalogue.get(mad.path).id == entry.id


def test_many_values_are_asked_for_at_once(filled: tuple[Catalogue, list[Record]]) -> None:
    catalogue, records = filled
    wanted = [record.name for record in records[:300]]
    expected = {record.path for record in records if {record.name, record.name.split("/")[-1]} & set(wanted)}
    quoted = ",".join(f'"{name}"' for name in wanted) + ",étu*"
    expected |= {record.path for record in records if record.name.split("/")[-1].casefold().startswith("étu")}
    assert {entry.record.path for entry in catalogue.every(f"name={quoted}")} == expected
    numbers = ",".join(str(number) for number in range(1, 501))
    layered = {record.path for record in records if record.layers is not None}
    for text in (f"layers={numbers}", f"layers=0.5,{numbers.removesuffix(',500')}"):
        assert {entry.record.path for entry in catalogue.every(text)} == layered
    assert catalogue.count(f"layers!={numbers}") == len(records) - len(layered)
    shares = ",".join(str(number / 500) for number in range(500))
    claimed = {
        record.path for record in records for claim in record.claims
        if claim.metric.casefold() == "accuracy" and claim.value in {number / 500 for number in range(500)}
    }  # fmt: skip
    assert {entry.record.path for entry in catalogue.every(f"claimed:accuracy={shares}")} == claimed


def test_too_many_values_are_refused_in_words(catalogue: Catalogue) -> None:
    with pytest.raises(CatalogueError, match="has 501 values, expected at most 500") as caught:
        catalogue.find("name=" + ",".join(f"n{number}" for number in range(501)))
    assert len(caught.value.problem) < 200


def test_sqlite_looks_for_a_result_among_those_of_one_checkpoint(tmp_path: Path) -> None:
    """Not among all results that pass: of a common metric, that is every one of a hub's for each checkpoint that is looked at."""
    (condition,) = parse("claimed:accuracy>0.5")
    asked = select(checkpoints.c.id).where(filtering._compiled(condition).predicate)
    with open_catalogue(tmp_path / "c.sqlite") as catalogue, catalogue.database.reading() as connection:
        words = asked.compile(connection.engine, compile_kwargs={"literal_binds": True})
        plan = " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}"))
    assert "claims_checkpoint (checkpoint_id=?" in plan and "claims_metric" not in plan
