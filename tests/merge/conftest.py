"""Checkpoints to merge: written from arrays, or fine-tuned by adding noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "vocab_size": 96,
         "num_hidden_layers": 3, "num_attention_heads": 2, "tie_word_embeddings": False}  # fmt: skip


def llama_tensors(seed: int, layers: int = 3, hidden: int = 32, vocabulary: int = 96) -> dict[str, np.ndarray]:
    """Random weights in the shapes of a small Llama."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (draw.standard_normal((rows, columns)) * 0.02).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(vocabulary, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{name}_proj.weight": matrix(hidden, hidden) for name in "qkvo"}
        found |= {f"{at}.mlp.{name}_proj.weight": matrix(3 * hidden, hidden) for name in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = matrix(hidden, 3 * hidden)
        found[f"{at}.input_layernorm.weight"] = np.ones(hidden, np.float32)
        found[f"{at}.post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
    found["model.norm.weight"] = np.ones(hidden, np.float32)
    found["lm_head.weight"] = matrix(vocabulary, hidden)
    return found


@pytest.fixture(scope="session")
def llama() -> Callable[..., dict[str, np.ndarray]]:
    """The function `llama_tensors`."""
    return llama_tensors


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a checkpoint from arrays: `written(name, tensors, config={}, dtype=torch.float32)`."""

    def write(
        name: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] = {}, dtype: torch.dtype | None = None
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
        made = {key: value.to(dtype) if dtype and value.is_floating_point() else value for key, value in made.items()}
        save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
        return folder

    return write


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a fine-tune of a checkpoint's folder: noise on every floating-point weight, or a change."""

    def tune(
        folder: Path, name: str, seed: int = 0, noise: float = 1e-3,
        change: Callable[[dict[str, torch.Tensor]], None] | None = None, dtype: torch.dtype | None = None,
    ) -> Path:  # fmt: skip
        target = Path(shutil.copytree(folder, tmp_path / name))
        tensors = load_file(target / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        for key in sorted(tensors):
            if tensors[key].is_floating_point() and noise:
                tensors[key] = tensors[key] + noise * torch.randn(tensors[key].shape, generator=generator)
            if tensors[key].is_floating_point() and dtype is not None:
                tensors[key] = tensors[key].to(dtype)
        if change is not None:
            change(tensors)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target

    return tune


@pytest.fixture
def edited() -> Callable[..., Path]:
    """A function that changes entries of a JSON file of a checkpoint; None removes one."""

    def edit(folder: Path, file: str = "config.json", **entries: Any) -> Path:
        path = folder / file
        content = json.loads(path.read_text()) | entries
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return folder

    return edit


@pytest.fixture
def three(tiny_bert: Path, tuned: Callable[..., Path]) -> tuple[Path, Path, Path]:
    """A base and two fine-tunes of it."""
    return tiny_bert, tuned(tiny_bert, "a", 1), tuned(tiny_bert, "b", 2)
