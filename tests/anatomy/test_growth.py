"""Growth by repetition is lossless: copies share what the unit contributed. The oracle is the stock class, ungrown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.anatomy import Shares, compute, plan_change
from regraft.anatomy.tiny import outputs
from regraft.errors import AnatomyError

HEAD_DIM = (
    "vit",
    "deit",
    "llama",
    "llama-plain",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "t5",
    "t5-gated",
)


def test_ffn_units_are_repeated_unevenly(name, stock, apart, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = stock(name)

    def chosen(units: dict[str, int]) -> np.ndarray:
        draw = np.random.default_rng(list(units.values()))
        return draw.permutation(np.concatenate([np.arange(20), [3, 3, 3], draw.integers(0, 20, 6)]))

    changed = model.changed({"ffn": chosen}, tmp_path / "out")
    assert apart(model.outputs(), outputs(changed)) <= 1e-10


def test_hidden_is_doubled(name, stock, apart, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With heads doubled where the class derives the size of a head from hidden; ties that would break are broken."""
    model = stock(name)
    binding = model.opened.binding
    twice = np.random.default_rng(1).permutation(np.repeat(np.arange(binding.sizes["hidden"]), 2))
    choices: dict[str, Any] = {"hidden": twice}
    if name not in HEAD_DIM:
        choices["heads"] = np.repeat(np.arange(4), 2)
    if "pool" in binding.carried:
        choices["pool"] = np.tile(np.arange(24), 2)
    changed = model.changed(choices, tmp_path / "out")
    before = model.outputs()
    for key, axis in (("last_hidden_state", "hidden"), ("pooler_output", "pool")):
        if key in before:
            before[key] = before[key][..., choices[axis].tolist()]
    assert apart(before, outputs(changed)) <= 1e-10


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "opt", "vit", "t5"])
def test_head_channels_are_repeated(kind: str, stock, apart, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Query and key share a factor 1/c, and the scale of attention changes: both are made up for."""
    model = stock(kind)
    twice = np.repeat(np.arange(6), 2)
    choices: dict[str, Any] = {"qk": twice, "v": twice}
    if kind not in HEAD_DIM:
        choices["hidden"] = np.tile(np.arange(24), 2)
    changed = model.changed(choices, tmp_path / "out")
    assert apart(model.outputs(), outputs(changed)) <= 1e-10


@pytest.mark.parametrize("kind", ["llama", "qwen3", "t5", "vit"])
def test_heads_are_repeated(kind: str, stock, apart, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = stock(kind)
    more = [0, 1, 2, 3, 1, 2, 2, 0]
    choices: dict[str, Any] = (
        {"enc_heads": more, "dec_heads": more, "cross_heads": more} if kind == "t5" else {"heads": more}
    )
    if kind in ("llama", "qwen3"):
        choices = {"kv": [0, 1, 1, 0], "group": [1, 0]}
    changed = model.changed(choices, tmp_path / "out")
    assert apart(model.outputs(), outputs(changed)) <= 1e-10


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5-gated"])
def test_unequal_shares_are_lossless_too(kind: str, stock, apart, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = stock(kind)
    choices: dict[str, Any] = {
        "ffn": Shares([*range(20), 3, 3], [1.0 if unit != 3 else 0.7 for unit in range(20)] + [0.5, -0.2])
    }
    twice, shares = np.tile(np.arange(24), 2), np.repeat([0.7, 0.3], 24)
    choices["hidden"] = Shares(twice, shares)
    if kind in ("bert", "gpt2"):
        choices |= dict.fromkeys(("qk", "v"), Shares([*range(6), *range(6)], np.repeat([0.4, 0.6], 6)))
    changed = model.changed(choices, tmp_path / "out")
    assert apart(model.outputs(), outputs(changed)) <= 1e-10
    with pytest.raises(AnatomyError, match="shares of the axis ffn"):
        model.changed({"ffn": Shares([0, 0], [0.5, 0.6])}, tmp_path / "wrong")
    with pytest.raises(AnatomyError, match="shares of the axis vocab"):
        model.changed({"vocab": Shares(range(51), np.ones(51))}, tmp_path / "wrong")


def test_growth_without_division_would_show(stock, apart, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The control: the same copies with nothing divided change the outputs."""
    import torch

    model = stock("llama")
    grown = np.concatenate([np.arange(20), np.arange(20)])
    changed = model.changed({"ffn": grown}, tmp_path / "out")
    with torch.no_grad():
        for key, parameter in changed.named_parameters():
            if "down_proj" in key:
                parameter.mul_(2.0)
    assert apart(model.outputs(), outputs(changed)) > 0.05


def test_ties_are_kept_by_cuts_and_broken_by_growth(stock, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = stock("gpt2")
    cut = plan_change(model.opened.binding, {"vocab": list(range(40)), "hidden": np.arange(24)[::-1]})
    assert cut.settings.get("tie_word_embeddings") is True
    assert "lm_head.weight" not in {one.name for one in cut.outputs}
    twice = {"hidden": np.repeat(np.arange(24), 2), "heads": np.repeat(np.arange(4), 2)}
    grown = plan_change(model.opened.binding, twice)
    assert grown.settings.raw["tie_word_embeddings"] is False
    (head,) = (one for one in grown.outputs if one.name == "lm_head.weight")
    table = np.random.default_rng(0).standard_normal((51, 24))
    assert np.array_equal(compute(head, table), np.repeat(table, 2, axis=1) / 2)
    assert grown.notes


def test_bert_breaks_both_ties_together(stock) -> None:  # type: ignore[no-untyped-def]
    """One flag ties the decoder's weight and its bias."""
    binding = stock("bert").opened.binding
    grown = plan_change(binding, {"hidden": np.repeat(np.arange(24), 2), "heads": np.repeat(np.arange(4), 2)})
    names = {one.name for one in grown.outputs}
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias"} <= names
