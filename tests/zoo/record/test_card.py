"""Cards: what huggingface_hub reads of a card is what the record says, in any encoding; hostile YAML does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from regraft.zoo.record import Claim, Parent, Record, read_record
from regraft.zoo.record.yaml_text import YamlFault, load

CARD = """---
license: mit
language: [en, 'no']
datasets:
- glue
- someone/café
base_model: org/parent
base_model_relation: finetune
pipeline_tag: text-classification
library_name: transformers
tags: [a, b]
co2_eq_emissions:
  emissions: 1250.5
  energy_consumed: 3.5
  hours_used: 2.25
  hardware_used: 1 x NVIDIA A100
---
# A café's model
"""


def record_of(folder: Path, card: str | bytes) -> Record:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    return read_record(folder)


def codes(record: Record) -> set[str]:
    return {risk.code for risk in record.risks}


def test_metadata_under_one_name_each(tmp_path: Path) -> None:
    record = record_of(tmp_path, CARD)
    assert record.licence.stated == record.licence.card == "MIT"
    assert (record.languages, record.datasets, record.tags) == (("en", "no"), ("glue", "someone/café"), ("a", "b"))
    assert (record.task, record.library) == ("text-classification", "transformers")
    assert record.parents == (Parent("org/parent", "finetune"),)
    assert (record.hardware, record.hours, record.energy_kwh) == ("1 x NVIDIA A100", 2.25, 3.5)
    assert record.emissions_kg == pytest.approx(1.2505)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_any_encoding(tmp_path: Path, encoding: str) -> None:
    record = record_of(tmp_path, CARD.encode(encoding))
    assert record.datasets == ("glue", "someone/café")
    assert record.licence.stated == "MIT"


def test_windows_line_ends(tmp_path: Path) -> None:
    assert record_of(tmp_path, CARD.replace("\n", "\r\n")).datasets == ("glue", "someone/café")


def test_results_are_those_of_the_hubs_own_library(tmp_path: Path) -> None:
    results = [
        EvalResult("text-classification", "banking77", "Banking 77", "accuracy", 0.91, dataset_split="test"),
        EvalResult("text-classification", "banking77", "Banking 77", "f1", 90, dataset_split="test"),
        EvalResult("fill-mask", "wiki", "Wiki", "perplexity", 7.25),
    ]
    data = ModelCardData(model_name="m", eval_results=results, license="apache-2.0")
    record = record_of(tmp_path, f"---\n{data.to_yaml()}\n---\n# m\n")
    stated = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert stated is not None
    assert set(record.claims) == {
        Claim(one.task_type, one.dataset_type, one.dataset_split, one.metric_type, float(one.metric_value))
        for one in stated
    }
    assert len(record.claims) == 3


WORDS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)


@given(
    tags=st.lists(WORDS, min_size=1, max_size=5, unique=True),
    datasets=st.lists(WORDS, min_size=1, max_size=5, unique=True),
    base=st.lists(WORDS, min_size=1, max_size=3, unique=True),
    task=WORDS,
)
def test_lists_and_names_as_the_hubs_own_library_reads_them(
    tmp_path_factory: pytest.TempPathFactory, tags: list[str], datasets: list[str], base: list[str], task: str
) -> None:
    folder = tmp_path_factory.mktemp("card")
    data = ModelCardData(tags=tags, datasets=datasets, base_model=base, pipeline_tag=task)
    record = record_of(folder, f"---\n{data.to_yaml()}\n---\n")
    read = ModelCard.load(folder / "README.md").data
    assert list(record.tags) == read.tags
    assert list(record.datasets) == read.datasets
    assert [parent.name for parent in record.parents] == read.base_model
    assert record.task == read.pipeline_tag


def test_percentages_stay_as_they_are_written_and_other_values_are_left_out(tmp_path: Path) -> None:
    card = """---
model-index:
- name: m
  results:
  - task: {type: t}
    dataset: {type: d}
    metrics:
    - {type: a, value: 91.5}
    - {type: b, value: '88.1%'}
    - {type: c, value: {nested: 1}}
    - {type: d, value: true}
    - {type: e, value: .nan}
    - {type: f, value: 1e999}
    - {value: 3}
  - metrics: [{type: g, value: 1}]
---
"""
    record = record_of(tmp_path, card)
    assert record.claims == (
        Claim("t", "d", None, "a", 91.5), Claim("t", "d", None, "b", 88.1), Claim(None, None, None, "g", 1.0),
    )  # fmt: skip
    assert "claim-without-dataset" in codes(record)


def test_norwegian_is_no_false(tmp_path: Path) -> None:
    assert record_of(tmp_path, "---\nlanguage: no\n---\n").languages == ("no",)


def test_the_template_of_the_hub_states_nothing(tmp_path: Path) -> None:
    card = ModelCard.from_template(ModelCardData(license="mit"))
    record = record_of(tmp_path, str(card))
    assert record.sections == ()
    assert record.completeness == pytest.approx(1 / 13)
    assert record.hardware is None
    assert record.hours is None


def test_sections_count_by_what_stands_below_their_heading(tmp_path: Path) -> None:
    card = """---
license: mit
datasets: [glue]
---
# My model
## Intended uses & limitations
### How to use
```python
# Training is not a heading here
from transformers import pipeline
pipe = pipeline("fill-mask", "me/my-model")
```
## Training data
It was trained on two million sentences of newspapers.
**Citation**
See our paper on the subject of cats and dogs.
## Evaluation
[More Information Needed]
## Environmental Impact
<!-- much text that no reader of the card will ever see -->
"""
    record = record_of(tmp_path, card)
    assert record.sections == ("uses", "how-to-start", "training", "limitations", "citation")
    assert record.completeness == pytest.approx((5 + 2) / 13)


def test_hours_and_hardware_in_the_text(tmp_path: Path) -> None:
    text = "- **Hardware Type:** TPU v3\n- **Hours used:** about 1,200 h\n- **Carbon Emitted:** 2.5 kg CO2eq\n"
    record = record_of(tmp_path, f"# m\n{text}")
    assert (record.hardware, record.hours, record.emissions_kg) == ("TPU v3", 1200.0, 2.5)
    bare = record_of(tmp_path, "# m\n- **Carbon Emitted:** 2.5\n")
    assert bare.emissions_kg is None


def test_a_bomb_of_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 30)]
    record = record_of(
        tmp_path, "---\n" + "\n".join([*lines, "tags: *a29"]) + "\n---\n## Usage\none two three four five\n"
    )
    assert "broken-card" in codes(record)
    assert record.tags == ()
    assert record.sections == ("how-to-start",)


@pytest.mark.parametrize(
    "metadata",
    ["a: [1, 2", "a: b: c", "\tx: 1", "- 1\n- 2", "!!python/object/apply:os.system ['true']", "[" * 50_000, "? " * 50_000,
     "- " * 50_000, "{a: " * 50_000, "".join(" " * k + "-\r" for k in range(1000)),
     "".join(" " * k + "-\u2028" for k in range(1000)), "- ? " * 9000, "x: !!timestamp 2024-99-99", "x: !!int abc", "%YAML 9.9"],
)  # fmt: skip
def test_broken_metadata_is_a_risk(tmp_path: Path, metadata: str) -> None:
    record = record_of(tmp_path, f"---\n{metadata}\n---\n## Usage\none two three four five\n")
    assert "broken-card" in codes(record)
    assert record.sections == ("how-to-start",)


def test_text_with_stars_and_ampersands_is_no_alias() -> None:
    assert load("a: R&D\nb: |\n  *bold* and *more*\n") == {"a": "R&D", "b": "*bold* and *more*\n"}
    with pytest.raises(YamlFault):
        load("a: &x 1\nb: *x\n")


def test_a_card_above_its_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "README.md").open("wb") as file:
        file.truncate(2**30)
    record = read_record(tmp_path)
    assert "too-large" in codes(record)


def test_parents_of_every_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "mergekit_config.yml").write_text(
        "merge_method: slerp\nbase_model: {model: {path: org/base}}\n"
        "slices:\n- sources:\n  - {model: org/one+org/adapter, layer_range: [0, 8]}\n  - {model: org/two, layer_range: [0, 8]}\n"
    )
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "org/adapted", "peft_type": "LORA", "r": 8}'
    )
    (tmp_path / "regraft.json").write_text(
        '{"parents": [{"role": "input", "reference": "hf:org/three@main#layers=2"}]}'
    )
    record = record_of(tmp_path, "---\nbase_model: org/one\n---\n")
    assert {parent.name: parent.relation for parent in record.parents} == {
        "org/one": "merge", "org/adapted": "adapter", "org/base": "merge", "org/two": "merge", "org/three": "merge",
    }  # fmt: skip
