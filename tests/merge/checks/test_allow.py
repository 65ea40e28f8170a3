"""Every refusal that can be let pass: refused without its flag, merged with it, on record, and in the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft import certificate
from regraft.errors import RegraftError
from regraft.merge.checks.findings import ALLOW
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge

DOCS = Path(__file__).parents[3] / "docs" / "merge.md"


@pytest.fixture
def cases(
    written: Any, llama: Any, tuned: Any, edited: Any, tiny_bert: Path, tiny_adapter: Path, three: Any, tmp_path: Path
) -> dict[str, Callable[[], Spec]]:
    """For each code a merge that is refused for it alone."""
    base, a, b = three

    def pair(first: dict[str, np.ndarray], second: dict[str, np.ndarray], *configs: dict[str, Any]) -> Spec:
        one, two = configs or ({}, {})
        return spec_of("slerp", [written("first", first, one), written("second", second, two)])

    def wider() -> dict[str, np.ndarray]:
        tables = ("model.embed_tokens.weight", "lm_head.weight")
        return llama(0) | {name: np.concatenate([llama(0)[name], np.zeros((4, 32), np.float32)]) for name in tables}

    def swapped() -> Spec:
        content = json.loads((b / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
        (b / "tokenizer.json").write_text(json.dumps(content))
        return spec_of("ties", [a, b], base)

    def out() -> Spec:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("old")
        return spec_of("ties", [a, b], base)

    tied = {"tie_word_embeddings": True}
    shared = {name: value for name, value in llama(0).items() if name != "lm_head.weight"}
    return {
        "architecture": lambda: pair(llama(0), llama(0), {}, {"model_type": "mistral"}),
        "config": lambda: spec_of("ties", [a, edited(b, hidden_act="relu")], base),
        "tokenizer": swapped,
        "vocabulary": lambda: pair(llama(0), wider(), {}, {"vocab_size": 100}),
        "heads": lambda: pair(llama(0), {**llama(0), "score.weight": np.ones((3, 32), np.float32)}),
        "tied": lambda: pair(llama(0), shared, tied, tied),
        "ancestry": lambda: pair(llama(0), llama(1)),
        "adapter": lambda: spec_of("ties", [f"{a}+{tiny_adapter}", b], base),
        "lora-loss": lambda: spec_of("ties", [a, b], base, output=Output(format="lora", rank=2)),
        "filter": lambda: spec_of("ties", [a, b], base, scale=[{"filter": "nowhere", "value": 0.5}, {"value": 1.0}]),
        "out": out,
    }  # fmt: skip


@pytest.mark.parametrize("code", ALLOW)
def test_each_flag_lets_its_own_refusal_pass_and_is_on_record(code: str, cases: Any, tmp_path: Path) -> None:
    spec, out = cases[code](), tmp_path / "out"
    others = [other for other in ALLOW if other != code]
    with pytest.raises(RegraftError, match=rf"--allow {code}: {re.escape(ALLOW[code])}") as caught:
        merge(spec, out, allow=others)
    assert len(re.findall(r"--allow", str(caught.value))) == 1  # refused for this reason alone
    assert code == "out" or not out.exists()
    result = merge(spec, out, allow=[code])
    assert result.preflight.allowed == (code,)
    assert json.loads((out / "regraft.json").read_text())["allowed"] == [code]
    (claim,) = (one for one in certificate.read(out) if one.check == "merge recipe")
    assert claim.values["allowed"] == [code] and f"({code})" in claim.statement
    assert f"Let pass by its maker: {code}." in (out / "README.md").read_text()
    # What was not needed is not on record.
    assert {verdict.outcome for verdict in certificate.verify(out)} == {"pass"}


def test_what_is_not_needed_is_not_on_record(three: Any, tmp_path: Path) -> None:
    base, a, b = three
    merge(spec_of("ties", [a, b], base), tmp_path / "out", allow=list(ALLOW))
    assert json.loads((tmp_path / "out" / "regraft.json").read_text())["allowed"] == []


def test_all_of_them_are_documented_and_no_others() -> None:
    table = DOCS.read_text().split("| flag | what then happens |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `--allow ([a-z-]+)` \| (.+?) \|$", table, re.MULTILINE)
    assert dict(named) == dict(ALLOW)
