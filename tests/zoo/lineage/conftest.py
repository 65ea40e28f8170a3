"""Tiny models and what is made from them by other means than Regraft's: plain torch, peft. How each was made is the oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def matrices(tensors: Tensors) -> list[str]:
    """Names of matrices inside the blocks."""
    return [
        name for name, value in tensors.items()
        if value.dim() == 2 and any(f".{part}." in f".{name}" for part in ("layer", "h", "layers"))
    ]  # fmt: skip


class Workshop:
    """Makes models below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def base(self, kind: str, name: str, seed: int, layers: int = 4) -> Path:
        """A randomly initialised model, its vectors redrawn so that none is constant."""
        from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        if kind == "bert":
            model = BertModel(BertConfig(
                vocab_size=64, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
                max_position_embeddings=32,
            ))  # fmt: skip
        elif kind == "gpt2":
            model = GPT2Model(GPT2Config(
                vocab_size=64, n_embd=32, n_layer=layers, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3
            ))  # fmt: skip
        else:
            model = LlamaForCausalLM(LlamaConfig(
                vocab_size=64, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
                num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
            ))  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        model.save_pretrained(self.root / name)
        return self.root / name

    def tuned(self, folder: Path, name: str, seed: int, steps: int = 6, rate: float = 1e-3, decay: float = 0.0) -> Path:
        """A few steps of Adam on random texts with random labels; every seed is a task of its own."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder)
        model.train()
        draw = torch.Generator().manual_seed(seed)
        head = torch.randn(32, 4, generator=draw)
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        for _ in range(steps):
            ids = torch.randint(4, 64, (8, 12), generator=draw)
            labels = torch.randint(0, 4, (8,), generator=draw)
            loss = torch.nn.functional.cross_entropy(model(input_ids=ids).last_hidden_state.mean(1) @ head, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        made = {key: value.detach() for key, value in model.state_dict().items()}
        names = load_file(folder / "model.safetensors")
        prefix = "model." if any(key.startswith("model.layers") for key in names) else ""
        return self.written(
            folder, name,
            lambda tensors: {key: made.get(key.removeprefix(prefix), value) for key, value in tensors.items()},
        )  # fmt: skip

    def written(self, folder: Path, name: str, change: Callable[[Tensors], Tensors], **config: object) -> Path:
        """A copy with other tensors, and other entries in its config."""
        target = Path(shutil.copytree(folder, self.root / name))
        tensors = change(load_file(target / "model.safetensors"))
        save_file({key: value.contiguous().clone() for key, value in tensors.items()},
                  target / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
        content = json.loads((target / "config.json").read_text()) | config
        (target / "config.json").write_text(json.dumps(content))
        return target

    def cut(self, folder: Path, name: str, kept: list[int]) -> Path:
        """Only some of the layers, numbered anew."""

        def change(tensors: Tensors) -> Tensors:
            found = {}
            for key, value in tensors.items():
                parts = key.split(".")
                at = next((i for i, part in enumerate(parts) if part in ("layer", "h", "layers")), None)
                if at is not None:
                    if int(parts[at + 1]) not in kept:
                        continue
                    parts[at + 1] = str(kept.index(int(parts[at + 1])))
                found[".".join(parts)] = value
            return found

        key = "n_layer" if "n_layer" in json.loads((folder / "config.json").read_text()) else "num_hidden_layers"
        return self.written(folder, name, change, **{key: len(kept)})

    def pruned(self, folder: Path, name: str, share: float) -> Path:
        """Each matrix's smallest weights set to zero."""

        def change(tensors: Tensors) -> Tensors:
            for key in matrices(tensors):
                size = tensors[key].abs().flatten()
                limit = size.kthvalue(int(share * len(size))).values
                tensors[key] = torch.where(tensors[key].abs() <= limit, 0.0, tensors[key])
            return tensors

        return self.written(folder, name, change)

    def masked(self, folder: Path, name: str, seed: int) -> Path:
        """Trained further, with the zeros kept."""
        before = load_file(folder / "model.safetensors")
        tuned = self.tuned(folder, f"{name}-unmasked", seed)
        made = self.written(
            tuned, name, lambda now: {key: torch.where(before[key] == 0, 0.0, value) for key, value in now.items()}
        )
        shutil.rmtree(tuned)
        return made

    def rounded(self, folder: Path, name: str, bits: int = 8) -> Path:
        """Each row of each matrix on a grid symmetric about zero, stored as float32."""

        def change(tensors: Tensors) -> Tensors:
            for key in matrices(tensors):
                step = tensors[key].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                tensors[key] = torch.round(tensors[key] / step) * step
            return tensors

        return self.written(folder, name, change)

    def as_format(self, folder: Path, name: str, dtype: torch.dtype, stored: torch.dtype | None = None) -> Path:
        """All weights in another number format."""
        return self.written(
            folder, name, lambda tensors: {key: one.to(dtype).to(stored or dtype) for key, one in tensors.items()}
        )

    def lora(self, folder: Path, name: str, targets: list[str], seed: int = 0, rank: int = 3) -> Path:
        """A random LoRA, merged by peft."""
        import peft
        from transformers import AutoModel

        torch.manual_seed(seed)
        conv = any(target.startswith("c_") for target in targets)
        settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, fan_in_fan_out=conv)
        model = peft.get_peft_model(AutoModel.from_pretrained(folder), settings)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.05 * torch.randn(parameter.shape))
        model.merge_and_unload().save_pretrained(self.root / name)
        return self.root / name

    def averaged(self, folders: list[Path], name: str) -> Path:
        """The plain mean, in torch."""
        found = [load_file(folder / "model.safetensors") for folder in folders]
        return self.written(
            folders[0], name, lambda one: {key: torch.stack([t[key] for t in found]).mean(0) for key in one}
        )

    def card(self, folder: Path, text: str) -> Path:
        """Give a folder a card."""
        (folder / "README.md").write_text(text)
        return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop over a folder of the module's own."""
    return Workshop(tmp_path_factory.mktemp("lineage"))
