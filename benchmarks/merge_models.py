"""Checkpoints to merge: a base and its fine-tunes in the shape of Llama, made from fixed seeds, in bfloat16.

They are written as a stream with numpy alone, a block of a tensor at a time: no model is ever in memory. The weights are
normal numbers (std 0.02; norms are ones); a fine-tune is the base plus normal noise (std 5e-4, about four steps of
bfloat16 at that size, so many differences have equal magnitudes, as those of real fine-tunes do), rounded to bfloat16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.randomness import generator

BLOCK = 2**22  # elements drawn at a time
WEIGHT_STD = 0.02
NOISE_STD = 5e-4


@dataclass(frozen=True)
class Shape:
    """A Llama shape; heads are 64 wide, word embeddings and the language model's head are not tied."""

    hidden: int
    layers: int
    inner: int
    key_heads: int
    vocabulary: int = 32000

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order of the file."""
        keys = 64 * self.key_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.k_proj.weight", (keys, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (keys, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{at}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.inner)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(int(np.prod(shape)) for _, shape in self.tensors())


SHAPES = {
    "1M": Shape(128, 2, 352, 2, 3000),  # to try the scripts with
    "70M": Shape(512, 12, 1376, 8),
    "287M": Shape(896, 24, 2368, 14),
    "1100M": Shape(2048, 22, 5632, 4),
}


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits, uint16, of float32 rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def make(size: str, inputs: int, folder: Path) -> tuple[Path, list[Path]]:
    """The base and `inputs` fine-tunes of a size in `folder`; what is there already is not made again."""
    base = folder / size / "base"
    tuned = [folder / size / f"tuned-{number}" for number in range(1, inputs + 1)]
    for number, at in enumerate([base, *tuned]):
        if not (at / "config.json").exists():
            _write(SHAPES[size], at, base / "model.safetensors" if number else None, number)
    return base, tuned


def _write(shape: Shape, folder: Path, base: Path | None, number: int) -> None:
    """One checkpoint; config.json comes last, so that a folder with one is complete."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, sizes in shape.tensors():
        end = start + 2 * int(np.prod(sizes))
        header[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    origin = None if base is None else base.open("rb")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if origin is not None:
            origin.seek(8 + len(text))  # the same header, so the same places
        for name, sizes in shape.tensors():
            random = generator(0, "benchmark checkpoint", number, name)
            left = int(np.prod(sizes))
            while left:
                count = min(BLOCK, left)
                left -= count
                drawn = random.standard_normal(count, dtype=np.float32)
                if origin is not None:
                    values = from_bfloat16(np.frombuffer(origin.read(2 * count), np.uint16))
                    values += drawn * np.float32(NOISE_STD)
                else:
                    values = drawn * np.float32(WEIGHT_STD) if len(sizes) > 1 else np.ones(count, np.float32)
                file.write(to_bfloat16(values).tobytes())
    if origin is not None:
        origin.close()
    _write_small_files(shape, folder)


def _write_small_files(shape: Shape, folder: Path) -> None:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{at}": at + 3 for at in range(29)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "</s>", "model_max_length": 2048,
    }  # fmt: skip
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers, "num_attention_heads": shape.hidden // 64,
        "num_key_value_heads": shape.key_heads, "vocab_size": shape.vocabulary, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    contents = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "config.json": config,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tensor_bits(folder: Path, name: str) -> np.ndarray:
    """The bits of a bfloat16 tensor, uint16 flat, in whichever shard of a folder it lies."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length)).get(name)
            if found is not None and found["dtype"] == "BF16":
                start, end = found["data_offsets"]
                file.seek(8 + length + start)
                return np.frombuffer(file.read(end - start), np.uint16)
    raise SystemExit(f"{folder} holds no bfloat16 tensor {name!r}.")
