"""Shared fixtures: tiny real checkpoints and a toy task, made offline once per session."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Before any test module imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["REGRAFT_STORE"] = tempfile.mkdtemp(prefix="regraft-tests-")

import hypothesis
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import faults

torch.set_num_threads(1)
# The same examples in every run: a suite that draws new ones each time fails for the person who changed something else.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")

TOPICS = {
    "animals": ("cat", "dog", "horse", "bird", "fish", "cow"),
    "weather": ("rain", "snow", "wind", "storm", "cloud", "sun"),
    "music": ("song", "piano", "drum", "violin", "choir", "melody"),
}
FILLER = ("the", "a", "we", "saw", "heard", "today", "again", "and", "very", "nice", "old", "new", "by", "house")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def pytest_sessionfinish() -> None:
    """Remove the store of this session."""
    shutil.rmtree(os.environ["REGRAFT_STORE"], ignore_errors=True)


@pytest.fixture(scope="session")
def make_tokenizer():  # type: ignore[no-untyped-def]
    """A function that makes a WordPiece tokenizer of the toy task's words; `style` is bert's or gpt2's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(style: str = "bert") -> PreTrainedTokenizerFast:
        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        words = [*SPECIAL, *FILLER, *(word for topic in TOPICS.values() for word in topic)]
        pieces = dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters)])
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if style == "gpt2":
            return PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]", model_max_length=64
            )
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
            mask_token="[MASK]", model_max_length=64,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def bert_config(make_tokenizer):  # type: ignore[no-untyped-def]
    """A function that makes the config of a BERT with 4 layers, hidden size 32 and 2 heads."""
    from transformers import BertConfig

    size = len(make_tokenizer())

    def make(**changes: object) -> BertConfig:
        settings = {
            "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
            "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
        }  # fmt: skip
        return BertConfig(**(settings | changes))

    return make


def save(model: object, tokenizer: object, folder: Path, card: str = "") -> Path:
    """Save a model and its tokenizer; dull initial biases are redrawn, so that every tensor matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # type: ignore[attr-defined]
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, make_tokenizer, bert_config) -> Path:  # type: ignore[no-untyped-def]
    """The folder of a BertModel with 4 layers."""
    from transformers import BertModel

    torch.manual_seed(0)
    card = "---\nlicense: mit\nbase_model: someone/parent\n---\n# A tiny BERT\n"
    return save(BertModel(bert_config()), make_tokenizer(), tmp_path_factory.mktemp("zoo") / "tiny-bert", card)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory, make_tokenizer) -> Path:  # type: ignore[no-untyped-def]
    """The folder of a GPT2Model with 3 layers; its tokenizer has no padding token."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    tokenizer = make_tokenizer("gpt2")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3
    )
    return save(GPT2Model(config), tokenizer, tmp_path_factory.mktemp("zoo") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory, make_tokenizer, bert_config) -> Path:  # type: ignore[no-untyped-def]
    """The folder of a BertForSequenceClassification over the toy task's labels."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    names = dict(enumerate(TOPICS))
    config = bert_config(id2label=names, label2id={name: number for number, name in names.items()})
    folder = tmp_path_factory.mktemp("zoo") / "tiny-classifier"
    return save(BertForSequenceClassification(config), make_tokenizer(), folder)


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """The folder of a LoRA adapter over tiny_bert, with both factors away from zero."""
    return make_adapter(tiny_bert, tmp_path_factory.mktemp("zoo") / "tiny-lora")


def make_adapter(base: Path, folder: Path, kind: str = "Lora", **changes: object) -> Path:
    """Save a peft adapter of a kind over a base, its weights drawn at random."""
    import peft
    from transformers import AutoModel

    settings = {"Lora": {"r": 4}, "LoHa": {"r": 2}, "LoKr": {"r": 2}, "IA3": {"feedforward_modules": []}}[kind]
    config = getattr(peft, f"{kind}Config")(**(settings | {"target_modules": ["query", "value"]} | changes))
    model = peft.get_peft_model(AutoModel.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_maker():  # type: ignore[no-untyped-def]
    """The function `make_adapter`."""
    return make_adapter


@pytest.fixture(scope="session")
def toy_task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation and test CSVs (60, 30, 30 rows) of three topics told apart by single words."""
    folder = tmp_path_factory.mktemp("toy-task")
    number = 0
    for split, rows in (("train", 60), ("validation", 30), ("test", 30)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for row in range(rows):
                label = list(TOPICS)[row % 3]
                words = TOPICS[label]
                first, second, third = (FILLER[(number * step + step) % len(FILLER)] for step in (1, 3, 5))
                one, other = words[number % 6], words[number // 6 % 6]
                writer.writerow([f"{first} {one} {second} {other} {third} {_letters(number)}", label])
                number += 1
    return folder


def _letters(number: int) -> str:
    """A word of its own for every row, so that no two rows are equal."""
    return chr(ord("a") + number % 26) + chr(ord("a") + number // 26 % 26)


@pytest.fixture
def copy_of(tmp_path: Path) -> Iterator[object]:
    """A function that copies a checkpoint's folder for a test to damage."""

    def copy(folder: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    yield copy


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


@pytest.fixture(scope="session")
def killed_at() -> Callable[..., None]:
    """A function that does something in a child, killed when it passes a fault point for the n-th time: nothing is cleaned up."""

    def kill(point: str, work: Callable[[], object], passes: int = 1) -> None:
        child = os.fork()
        if child == 0:
            left = [passes]

            def hook(name: str) -> None:
                left[0] -= name == point
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            faults.hook = hook
            work()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{point} was not passed {passes} times"

    return kill
