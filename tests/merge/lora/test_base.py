"""What a written LoRA calls its base: what stock peft finds, and what a merge over that base takes for the same."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from regraft.checkpoint.quiet import quiet
from regraft.merge.checks.preflight import preflight_of
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, spec_of
from regraft.merge.run import merge

NAME = "model.layers.1.self_attn.q_proj.weight"
LORA = Output(format="lora", rank=4)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # of peft
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A language model with a head of its own, and one of which a matrix was changed by rank 2."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.state_dict()[NAME].add_(0.1 * torch.randn(16, 2) @ torch.randn(2, 16))
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def test_a_base_of_the_hub(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = models
    monkeypatch.setattr("regraft.checkpoint.hub.snapshot", lambda name, deadline=None: base)
    reference, out = "hf:org/base@v1", tmp_path / "lora"
    merge(spec_of("task_arithmetic", [tuned], reference, output=LORA), out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "v1")
    card = (out / "README.md").read_text()
    assert 'LlamaForCausalLM.from_pretrained("org/base", revision="v1")' in card

    def codes(base: str) -> list[str]:
        found = preflight_of(*open_inputs(spec_of("lora_cat", [f"{base}+{out}"], base)), max_memory=2**29)
        return [one.code for one in found.findings if one.severity == "error"]

    assert codes(reference) == codes("hf:org/base") == []
    assert codes("hf:org/another") == ["adapter"]


def test_the_cards_code_loads_it(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From anywhere, although the base was named from here."""
    base, tuned = models
    monkeypatch.chdir(base.parent)
    out = tmp_path / "lora"
    merge(spec_of("task_arithmetic", [tuned], "base", output=LORA), out)
    monkeypatch.chdir(out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), None)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    with quiet():
        exec(code.replace("path/to/this/folder", str(out)), found)
        merged = found["model"].merge_and_unload().state_dict()
        expected = LlamaForCausalLM.from_pretrained(tuned).state_dict()
    assert all(torch.allclose(merged[name], values, atol=1e-6) for name, values in expected.items())


def test_a_base_with_an_adapter_is_refused(tiny_bert: Path, adapter_maker: Any, tmp_path: Path) -> None:
    one, two = (f"{tiny_bert}+{adapter_maker(tiny_bert, tmp_path / name)}" for name in "xy")
    found = preflight_of(*open_inputs(spec_of("task_arithmetic", [two], one, output=LORA)), max_memory=2**29)
    (error,) = found.errors
    assert error.code == "option" and "is a checkpoint with an adapter" in error.problem
