"""The engine: from checkpoints to a checkpoint, the same bytes whatever the machine, and nothing lost on the way."""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import certificate
from regraft.checkpoint.headers import read_tensors
from regraft.checkpoint.quiet import quiet
from regraft.checkpoint.weights import NUMPY, let_go, open_weights, raw_values, read_values
from regraft.checkpoint.writer import Slot, Writer
from regraft.errors import BudgetError, NonFiniteError, RunError, StoreError
from regraft.merge import run
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge
from regraft.merge.stack import Stack
from regraft.merge.tensors import merged_tensor, stack_of

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
Raw = dict[str, tuple[str, tuple[int, ...], bytes]]


def raw_of(folder: Path) -> Raw:
    """Formats, shapes and bytes of all tensors, wherever they lie."""
    tensors = open_weights(str(folder)).tensors
    found = {name: (info.dtype, info.shape, raw_values(info).tobytes()) for name, info in sorted(tensors.items())}
    let_go()
    return found


def opened() -> int:
    gc.collect()  # what an error that was caught still holds
    return len([*Path("/dev/fd").iterdir()])


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in [*sys.modules.items()]:
            if name.startswith("regraft.merge.") and hasattr(module, "GRAIN"):
                patch.setattr(module, "GRAIN", size)
        yield


def on_a_grid(tensors: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Changed by a few different magnitudes: thresholds are met by many elements, and sums depend on their order."""
    draw = np.random.default_rng(seed)
    return {
        name: (values + np.float32(0.1) * draw.integers(-3, 4, values.shape) / np.float32(32)).astype(np.float32)
        for name, values in tensors.items()
    }


@pytest.fixture
def family(written: Any, llama: Any) -> Callable[..., list[Path]]:
    """A function that writes a base and three fine-tunes of it: `family(dtype=...)`."""

    def make(prefix: str = "", dtype: torch.dtype = torch.bfloat16, config: Mapping[str, Any] = {}) -> list[Path]:
        base = llama(0)
        every = [base, *(on_a_grid(base, seed) for seed in (1, 2, 3))]
        return [
            written(f"{prefix}{name}", tensors, config, dtype)
            for name, tensors in zip(("base", *"abc"), every, strict=True)
        ]

    return make


def sharded(folder: Path, shards: int) -> Path:
    """The same checkpoint in several files, its tensors dealt out in turn."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    where = {name: files[at % shards] for at, name in enumerate(sorted(tensors, reverse=True))}
    for file in files:
        save_file(
            {name: tensors[name] for name in where if where[name] == file}, folder / file, metadata={"format": "pt"}
        )
    size = sum(values.nbytes for values in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": where})
    )
    return folder


METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.2, 0.5, 0.31]},
    "task_arithmetic": {"weight": [0.2, 0.5, -0.31], "scale": 0.7},
    "ties": {"density": [0.1, 0.2, 0.55], "weight": [1.0, 0.4, 0.3]},
    "ties global": {
        "density": 0.2,
        "trim": "global",
        "elect": "weighted",
        "divide": "weight",
        "weight": [1.0, 0.4, 0.3],
    },
}


def spec_for(
    method: str, folders: list[Path], order: tuple[int, ...] = (0, 1, 2), output: Output | None = None
) -> Spec:
    """The merge of a base and three inputs in some order, each with its own settings."""
    base, *inputs = folders
    options = {
        key: [value[at] for at in order] if isinstance(value, list) else value for key, value in METHODS[method].items()
    }
    name = method.split()[0]
    return spec_of(name, [inputs[at] for at in order], None if name == "linear" else base, output=output, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_for_threads_blocks_orders_and_files(
    method: str, family: Callable[..., list[Path]], tmp_path: Path
) -> None:
    folders = family()
    with blocks_of(2**16):
        merge(spec_for(method, folders), tmp_path / "plain", workers=1)
    plain = raw_of(tmp_path / "plain")
    for number, (workers, grain, order) in enumerate(
        [(2, 512, (0, 1, 2)), (3, 97, (2, 0, 1)), (1, 1000, (1, 2, 0)), (2, 2**16, (2, 1, 0))]
    ):
        with blocks_of(grain):
            merge(spec_for(method, folders, order), tmp_path / str(number), workers=workers)
        assert raw_of(tmp_path / str(number)) == plain, (workers, grain, order)
    for which in (1, 0, 2):  # inputs, then the base, too
        sharded(folders[which], 3)
        merge(spec_for(method, folders), tmp_path / f"sharded{which}", workers=2)
        assert raw_of(tmp_path / f"sharded{which}") == plain


def by_formula(method: str, values: list[np.ndarray]) -> np.ndarray:
    """In float64; what TIES keeps by sorting."""
    base, *inputs = [one.astype(np.float64) for one in values]
    options = METHODS[method]
    weights = options["weight"]
    if method == "linear":
        return np.asarray(sum(w * x for w, x in zip(weights, inputs, strict=True)) / sum(weights))
    deltas = np.stack([(x.astype(np.float32) - base.astype(np.float32)).astype(np.float64) for x in inputs])
    if method == "ties":
        for delta, density in zip(deltas.reshape(3, -1), options["density"], strict=True):
            order = np.lexsort((np.arange(delta.size), -np.abs(delta)))
            delta[order[max(1, int(density * delta.size)) :]] = 0.0
        positive = deltas.sum(axis=0) >= 0
        agrees = np.where(positive, deltas > 0, deltas < 0)
        change = np.einsum("i,i...->...", weights, deltas * agrees) / np.maximum(agrees.sum(axis=0), 1)
        return np.asarray(base + change)
    return np.asarray(base + options["scale"] * np.einsum("i,i...->...", weights, deltas))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@pytest.mark.parametrize("stored", FLOATS)
def test_every_number_format_in(method: str, stored: str, family: Callable[..., list[Path]], tmp_path: Path) -> None:
    """What is written is the float32 result, which is the float64 one to its last places."""
    folders = family(dtype=FLOATS[stored])
    result = merge(spec_for(method, folders, output=Output(dtype="float32")), tmp_path / "out")
    assert result.merged == len(result.preflight.aligned.merged) == 30 and result.copied == 0
    parts = [
        {name: read_values(info).reshape(info.shape) for name, info in read_tensors(one).items()} for one in folders
    ]
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        assert values.dtype == torch.float32
        expected = by_formula(method, [part[name] for part in parts])
        np.testing.assert_allclose(values.numpy(), expected, rtol=3e-7, atol=3e-8, err_msg=name)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("written_as", [None, "float32", "bfloat16", "float16"])
def test_every_number_format_out(
    stored: str, written_as: str | None, family: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """Rounded to nearest from the float32 result, as torch rounds it."""
    folders = family(dtype=FLOATS[stored])
    spec = spec_for("task_arithmetic", folders, output=Output(dtype=written_as))
    merge(spec, tmp_path / "out")
    ordered, found = open_inputs(spec)
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        exact = merged_tensor(ordered, found, stack_of(ordered, found, name), None)
        assert exact is not None
        expected = torch.from_numpy(exact).to(FLOATS[written_as or stored])
        assert values.dtype == expected.dtype and torch.equal(values, expected), name
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stated == json.loads((folders[0] / "config.json").read_text())  # which states no format


def test_formats_may_differ_from_tensor_to_tensor(written: Any, llama: Any, tmp_path: Path) -> None:
    """Norms in float32 beside matrices in bfloat16 stay so."""
    folders = []
    for seed, name in enumerate(("base", "a")):
        folder = written(name, on_a_grid(llama(0), seed))
        tensors = {
            key: value if "norm" in key else value.to(torch.bfloat16)
            for key, value in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    merge(spec_of("ties", folders[1:], folders[0]), tmp_path / "out")
    kinds = {name: info.dtype for name, info in read_tensors(tmp_path / "out").items()}
    assert kinds == {name: "F32" if "norm" in name else "BF16" for name in llama(0)}


def assemble(folder: Path, slots: list[tuple[str, str, tuple[int, ...], list[Any]]], config: Path) -> Path:
    """A checkpoint with its tensors in the very order given."""
    folder.mkdir()
    file = PurePosixPath("model.safetensors")
    with Writer(folder, [Slot(file, name, dtype, shape) for name, dtype, shape, _ in slots]) as writer:
        for name, dtype, _, values in slots:
            array = np.array(values, np.float32 if dtype == "BF16" else NUMPY[dtype])
            writer.write(name, (array.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else array, 0)
    (folder / "config.json").write_bytes((config / "config.json").read_bytes())
    return folder


def test_tensors_of_every_kind(written: Any, llama: Any, tmp_path: Path) -> None:
    """Numbers, empty and one-element tensors; buffers; an odd number of bytes before others."""
    pattern = written("pattern", llama(0))
    draw = np.random.default_rng(0)
    matrix = draw.integers(-40, 40, 600).astype(np.float32)

    def make(name: str, step: float, count: int) -> Path:
        return assemble(tmp_path / name, [
            ("mask", "BOOL", (3,), [True, False, True]), ("matrix", "BF16", (20, 30), list(matrix + 4 * step)),
            ("bytes", "U8", (5,), [1, 2, 3, 4, 255]), ("half", "F16", (2,), [1.0 + step, 2.0]),
            ("number", "F32", (), [3.0 + step]), ("one", "F64", (1, 1), [5.0 - step]), ("count", "I64", (), [count]),
            ("empty", "F32", (0, 4), []), ("empty count", "I32", (0,), []),
            ("last", "BOOL", (1,), [True]), ("odd", "F32", (7,), [step] * 7),
        ], pattern)  # fmt: skip

    base, a, b = make("base", 0.0, 2**40 + 1), make("a", 1.0, 2**40 + 1), make("b", 3.0, 7)
    kinds = {name: info.dtype for name, info in read_tensors(base).items()}
    for name, dtype in (("kept", None), ("single", "float32")):
        result = merge(spec_of("task_arithmetic", [a, b], base, output=Output(dtype=dtype)), tmp_path / name, workers=2)
        assert (result.merged, result.copied) == (6, 5)
        found = read_tensors(tmp_path / name)
        floats = ("F64", "F32", "F16", "BF16")
        assert {key: info.dtype for key, info in found.items()} == {
            key: "F32" if dtype and kind in floats else kind for key, kind in kinds.items()
        }
        assert read_values(found["matrix"]).tolist() == list(matrix + 16)
        assert read_values(found["half"]).tolist() == [5.0, 2.0]
        assert (found["number"].shape, read_values(found["number"]).tolist()) == ((), [7.0])
        assert (found["one"].shape, read_values(found["one"]).tolist()) == ((1, 1), [1.0])
        assert found["empty"].shape == (0, 4)
        assert read_values(found["odd"]).tolist() == [4.0] * 7
        assert raw_values(found["count"]).tolist() == [2**40 + 1]  # the base's, to the last digit
        assert raw_values(found["mask"]).tolist() == [True, False, True]
        assert raw_values(found["bytes"]).tolist() == [1, 2, 3, 4, 255]
    about = json.loads((tmp_path / "kept" / "regraft.json").read_text())
    assert about["copied"] == dict.fromkeys(("mask", "bytes", "count", "empty count", "last"), "not floating point")
    assert any("count: other values in" in found.problem for found in result.preflight.findings)


@pytest.mark.parametrize("method", ["iso_c", "wudi", "model_stock", "dare_ties", "knots"])
def test_methods_of_whole_matrices_take_any_tensor_too(method: str, written: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shapes = {"h.0.matrix": (6, 5), "h.0.empty": (0, 3), "h.0.number": (), "h.0.one": (1, 1), "h.0.cube": (2, 3, 2)}
    base = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    buffers = {"count": np.array([3, 2**50]), "mask": np.array([True])}
    folders = [
        written(name, {**{key: value + np.float32(0.01 * step) for key, value in base.items()}, **buffers})
        for step, name in enumerate(("base", "a", "b"))
    ]
    merge(spec_of(method, folders[1:], folders[0]), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tuple(found[name].shape) for name in shapes} == shapes
    assert all(torch.isfinite(found[name]).all() for name in shapes)
    assert found["count"].tolist() == [3, 2**50] and found["mask"].tolist() == [True]


def test_buffers_of_an_adapted_template_keep_their_bytes(
    tiny_bert: Path, copy_of: Any, adapter_maker: Any, tmp_path: Path
) -> None:
    folder = copy_of(tiny_bert)
    tensors = load_file(folder / "model.safetensors")
    buffers = {
        "embeddings.position_ids": torch.arange(2**60, 2**60 + 64)[None],
        "mask": torch.tensor([True, False, True]),
    }
    save_file(tensors | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    adapters = [f"{folder}+{adapter_maker(folder, tmp_path / name)}" for name in ("x", "y")]
    merge(spec_of("linear", adapters), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], values) for name, values in buffers.items())


def test_a_head_that_is_kept_is_the_adapters(tiny_classifier: Path, tuned: Any, edited: Any, tmp_path: Path) -> None:
    """Heads that differ come whole from the first input, as its adapter has them."""
    import peft
    from transformers import AutoModelForSequenceClassification

    model = peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(tiny_classifier),
        peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.fill_(0.25)
    model.save_pretrained(tmp_path / "lora")
    labels = {"0": "x", "1": "y", "2": "z"}
    other = edited(
        tuned(tiny_classifier, "other", 1), id2label=labels, label2id={text: at for at, text in labels.items()}
    )
    spec = spec_of("slerp", [f"{tiny_classifier}+{tmp_path / 'lora'}", str(other)])
    result = merge(spec, tmp_path / "out", allow=["heads"])
    assert result.copied == 2
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found["classifier.weight"].reshape(-1).tolist()) == {0.25}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_an_adapter_is_its_merged_checkpoint(
    method: str, tiny_bert: Path, tuned: Any, adapter_maker: Any, copy_of: Any, tmp_path: Path
) -> None:
    """Added in float64, rounded to float32 once: the very bytes of a merge of the full checkpoints."""
    other = tuned(tiny_bert, "other", 1)
    adapter = adapter_maker(tiny_bert, tmp_path / "lora", r=3)
    _, found = open_inputs(spec_of("linear", [f"{tiny_bert}+{adapter}"]))
    one = found.inputs[0]
    full = copy_of(tiny_bert, "full")
    tensors = load_file(full / "model.safetensors")
    for name, change in found.changes[one.reference].factors.items():
        down, up = (raw_values(info).astype(np.float64).reshape(info.shape) for info in (change.A, change.B))
        product = sum(up[:, k, None] * down[k] for k in range(change.rank))
        tensors[name] = torch.from_numpy((tensors[name].numpy() + change.scale * product).astype(np.float32))
    save_file(tensors, full / "model.safetensors", metadata={"format": "pt"})
    made = []
    for name, first in (("adapted", f"{tiny_bert}+{adapter}"), ("whole", str(full))):
        # The settings go with the checkpoint; the order is that of their contents, which is not the same here.
        spec = spec_of(method, [first, str(other)], None if method == "linear" else tiny_bert, weight=[0.5, 0.25])
        merge(spec, tmp_path / name)
        made.append(raw_of(tmp_path / name))
    assert made[0] == made[1]


def test_an_adapted_base(tiny_bert: Path, tuned: Any, adapter_maker: Any, tmp_path: Path) -> None:
    """The difference is taken to the base with its adapter."""
    adapter = adapter_maker(tiny_bert, tmp_path / "lora")
    base, other = f"{tiny_bert}+{adapter}", tuned(tiny_bert, "other", 1)
    merge(spec_of("task_arithmetic", [base, str(other)], base, weight=[3.0, 1.0]), tmp_path / "out")
    found, plain = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", other))
    assert all(torch.allclose(values, plain[name], atol=1e-6) for name, values in found.items())


def test_tied_heads(written: Any, llama: Any, tmp_path: Path) -> None:
    """Stored or shared, in the base or in an input: the shared tensors get the same bytes, and so does a stored head."""
    every = [on_a_grid(llama(0), seed) for seed in range(3)]
    for tensors in every:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    shared = [{name: values for name, values in tensors.items() if name != "lm_head.weight"} for tensors in every]
    config, made = {"tie_word_embeddings": True}, {}
    for case in ("sss", "ccc", "scs", "csc"):
        base, a, b = (
            written(f"{case}{at}", (every if kind == "c" else shared)[at], config) for at, kind in enumerate(case)
        )
        merge(spec_of("ties", [a, b], base, density=0.3), tmp_path / case)
        made[case] = raw_of(tmp_path / case)
        assert ("lm_head.weight" in made[case]) == (case[0] == "c")  # as in the base
        assert json.loads((tmp_path / case / "config.json").read_text())["tie_word_embeddings"] is True
    embeddings = {case: found["model.embed_tokens.weight"] for case, found in made.items()}
    assert len({raw for _, _, raw in embeddings.values()}) == 1
    assert all(made[case]["lm_head.weight"] == embeddings[case] for case in ("ccc", "csc"))


@pytest.fixture
def language_models(make_tokenizer: Any, tmp_path: Path) -> list[Path]:
    """A tied bfloat16 Llama with tokenizer and generation config, and two fine-tunes."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer("gpt2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, bos_token_id=2, eos_token_id=3, max_length=20
    )
    folders = []
    for name in ("base", "a", "b"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape).to(torch.bfloat16))
    return folders


def test_the_stock_class_loads_it(language_models: list[Path], tmp_path: Path) -> None:
    """Config, tokenizer, generation config, format and tied weights as they were."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, a, b = language_models
    merge(spec_of("task_arithmetic", [a, b], base, scale=0.5), tmp_path / "out")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.generation_config.temperature == 0.7
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], values) for name, values in stored.items())
    batch = tokenizer("the cat saw rain", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    assert len(model.generate(**batch, do_sample=False, pad_token_id=0)[0]) == 20


def test_a_sentence_transformer_with_a_head(tiny_bert: Path, tmp_path: Path) -> None:
    """Encoder and Dense head are merged, and the library loads the result."""
    from sentence_transformers import SentenceTransformer

    from regraft.checkpoint import load_encoder, load_tokenizer, open_checkpoint
    from regraft.checkpoint.classifier import TextClassifier
    from regraft.checkpoint.export import write_classifier

    checkpoint = open_checkpoint(str(tiny_bert))
    torch.manual_seed(3)
    model = TextClassifier(load_encoder(checkpoint), load_tokenizer(checkpoint), ("x", "y", "z"), 40, [1.0] * 5).eval()
    folders = []
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        write_classifier(model, tmp_path / name, {})
        folders.append(tmp_path / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape))
    base, a, b = folders
    result = merge(spec_of("linear", [a, b]), tmp_path / "out")
    assert result.copied == 0
    dense = next(folder.name for folder in base.glob("*_Dense"))
    for place in ("", dense):
        parts = [load_file(folder / place / "model.safetensors") for folder in (tmp_path / "out", a, b)]
        assert parts[0].keys() == parts[1].keys()
        assert all(torch.allclose(parts[0][key], (parts[1][key] + parts[2][key]) / 2, atol=1e-6) for key in parts[0])
    with quiet():
        found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(
            ["the cat saw rain"], show_progress_bar=False
        )
    assert found.shape == (1, 3) and np.isfinite(found).all()


def test_an_encoder_in_a_folder_below(tiny_bert: Path, tuned: Any, tmp_path: Path) -> None:
    folders = []
    for seed, name in enumerate(("base", "a")):
        root = tmp_path / f"sbert-{name}"
        root.mkdir()
        tuned(tiny_bert, name, seed).rename(root / "0_Transformer")
        (root / "1_Pooling").mkdir()
        (root / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean", "embedding_dimension": 32}))
        (root / "modules.json").write_text(json.dumps([
            {"idx": at, "name": str(at), "path": f"{at}_{kind}", "type": f"sentence_transformers.models.{kind}"}
            for at, kind in enumerate(("Transformer", "Pooling"))
        ]))  # fmt: skip
        folders.append(root)
    merge(spec_of("task_arithmetic", folders[1:], folders[0]), tmp_path / "out")
    file = "0_Transformer/model.safetensors"
    found, expected = load_file(tmp_path / "out" / file), load_file(folders[1] / file)
    assert all(torch.allclose(found[name], values, atol=1e-7) for name, values in expected.items())
    for name in ("modules.json", "1_Pooling/config.json", "0_Transformer/config.json", "0_Transformer/tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folders[0] / name).read_bytes()


def refused(spec: Spec, out: Path) -> str:
    """The problem with the numbers of a merge."""
    with pytest.raises(NonFiniteError) as caught:
        merge(spec, out, workers=2)
    return caught.value.problem


def hidden(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[1] for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("method", ["linear", "ties", "ties global"])
def test_nan_that_the_sample_missed(method: str, family: Callable[..., list[Path]], tmp_path: Path) -> None:
    """Named with tensor and file; nothing gets the output's name, no file stays open; mended, the merge goes through."""
    folders = family(dtype=torch.float32)
    name, file = "model.embed_tokens.weight", folders[2] / "model.safetensors"
    tensors = load_file(file)
    good = {key: value.clone() for key, value in tensors.items()}
    merge(spec_for(method, folders), tmp_path / "warm")
    before = opened()
    problems = []
    for place in (5, -5):  # the sample is one run of elements: it holds at most one of them
        tensors[name].view(-1)[place] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        problems.append(refused(spec_for(method, folders), tmp_path / "out"))
        tensors[name].view(-1)[place] = 0.0
    assert f"{file}: tensor {name!r} holds NaN or infinite values." in problems
    assert all(name in problem and str(file) in problem for problem in problems)
    assert not (tmp_path / "out").exists()
    assert opened() == before
    save_file(good, file, metadata={"format": "pt"})
    merge(spec_for(method, folders), tmp_path / "out")
    assert raw_of(tmp_path / "out") == raw_of(tmp_path / "warm")
    assert hidden(tmp_path) == []


def test_what_float16_cannot_hold(written: Any, tmp_path: Path) -> None:
    base = {"h.0.w": np.full((4, 4), 60000.0, np.float32), "h.1.w": np.ones((4, 4), np.float32)}
    other = {name: values + np.float32(4000) for name, values in base.items()}
    folders = [written(name, tensors, dtype=torch.float16) for name, tensors in (("base", base), ("a", other))]
    with pytest.raises(NonFiniteError, match=r"in tensor 'h\.0\.w' that float16 cannot hold"):
        merge(spec_of("task_arithmetic", folders[1:], folders[0], scale=2.0), tmp_path / "out", allow=["ancestry"])
    assert not (tmp_path / "out").exists()
    merge(
        spec_of("task_arithmetic", folders[1:], folders[0], scale=2.0, output=Output(dtype="float32")), tmp_path / "out",
        allow=["ancestry"],
    )  # fmt: skip
    assert load_file(tmp_path / "out" / "model.safetensors")["h.0.w"][0, 0] == 68000.0


@pytest.mark.parametrize("after", [0, 1, 5, 40])
def test_a_full_disk(
    after: int, family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, spec_out, calls, real = family(), tmp_path / "out", [0], os.pwrite
    spec = spec_for("ties", folders)
    merge(spec, tmp_path / "whole")
    before = opened()

    def full(file: int, data: Any, at: int) -> int:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with (
        blocks_of(500),
        pytest.raises(StoreError, match=rf"The disk is full: {spec_out} was not written\. Free some space"),
    ):
        merge(spec, spec_out, workers=2)
    assert not spec_out.exists()
    assert opened() == before
    monkeypatch.setattr(os, "pwrite", real)
    merge(spec, spec_out)
    assert raw_of(spec_out) == raw_of(tmp_path / "whole")


def test_no_file_stays_open(
    family: Callable[..., list[Path]], tiny_bert: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    folders = family()
    merge(spec_for("ties", folders), tmp_path / "first")
    before = opened()
    for number in range(3):
        merge(spec_for("ties", folders), tmp_path / str(number))
        merge(spec_of("linear", [tiny_bert, f"{tiny_bert}+{tiny_adapter}"]), tmp_path / f"lora{number}")
        assert opened() == before


def test_memory_that_a_method_lacks_is_said_before_a_byte_is_written(
    tiny_bert: Path, tuned: Any, tmp_path: Path
) -> None:
    a, b = tuned(tiny_bert, "a", 1), tuned(tiny_bert, "b", 2)
    spec = spec_of("iso_c", [a, b], tiny_bert)
    with pytest.raises(
        BudgetError, match=r"needs .* of memory, .* of it for the whole tensor '.*'; the limit is 100\.0 KiB"
    ):
        merge(spec, tmp_path / "out", max_memory=100 * 2**10)
    with pytest.raises(BudgetError, match=r"for its buffers; the limit is 100\.0 KiB"):
        merge(spec_of("ties", [a, b], tiny_bert), tmp_path / "out", max_memory=100 * 2**10)
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == []
    merge(spec, tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_memory_does_not_grow_with_the_tensors(
    method: str, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of 16 MiB go through buffers of what the preflight says, less than one of them."""
    draw = np.random.default_rng(0)
    base = draw.standard_normal((2048, 2048)).astype(np.float32)
    folders = [
        written(name, {"h.0.w": base + np.float32(step), "h.1.w": base})
        for step, name in ((0.0, "base"), (0.1, "a"), (0.2, "b"))
    ]
    spec = spec_of(method, folders[1:], None if method == "linear" else folders[0])
    merge(spec, tmp_path / "warm", workers=2)
    del base
    peaks, stream = [], run._stream

    def traced(*args: Any) -> None:
        tracemalloc.start()
        stream(*args)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(run, "_stream", traced)
    result = merge(spec, tmp_path / "out", workers=2)
    assert peaks[0] < result.preflight.memory["predicted"] < 12 * 2**20


def test_what_is_said_of_a_merge(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    result = merge(spec_for("ties", family()), tmp_path / "out", workers=1)
    assert (result.out, result.method, result.merged, result.copied) == (tmp_path / "out", "ties", 30, 0)
    assert result.bytes == sum(info.nbytes for info in read_tensors(tmp_path / "out").values())
    assert set(result.seconds) == {"preflight", "merge", "finish"}
    content = json.loads(json.dumps(result.to_json()))
    assert content["out"] == str(tmp_path / "out") and content["preflight"]["method"] == "ties"
    assert [claim.check for claim in certificate.read(tmp_path / "out")]


def test_progress_counts_every_tensor(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    from regraft.progress import Progress

    class Count(Progress):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def start(self, what: str, total: float) -> None:
            self.seen.append((what, total))

        def advance(self, units: float = 1.0) -> None:
            self.seen.append(units)

        def stop(self) -> None:
            self.seen.append("stop")

    count = Count()
    merge(spec_for("ties", family()), tmp_path / "out", progress=count)
    assert count.seen == [("merging with ties", 30), *[1.0] * 30, "stop"]


def test_waiting_for_the_disk(
    family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("regraft.checkpoint.writer.os.fsync", synced.append)
    merge(spec_for("linear", family()), tmp_path / "out", sync=True)
    assert synced


def test_an_output_that_is_there_is_not_touched(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    folders = family()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        merge(spec_for("linear", folders), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    merge(spec_for("linear", folders), tmp_path / "out", allow=["out"])
    assert not (tmp_path / "out" / "mine").exists()


def test_a_lora_out_says_what_it_lacks(tiny_bert: Path, adapter_maker: Any, tmp_path: Path) -> None:
    """Written by the engine as by hand: peft loads it, and the certificate has its error."""
    import peft
    from transformers import AutoModel

    adapters = [adapter_maker(tiny_bert, tmp_path / name, r=2) for name in ("x", "y")]
    with torch.no_grad():
        tensors = load_file(adapters[1] / "adapter_model.safetensors")
        generator = torch.Generator().manual_seed(9)
        moved = {name: value + 0.2 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
        save_file(moved, adapters[1] / "adapter_model.safetensors", metadata={"format": "pt"})
    inputs = [f"{tiny_bert}+{one}" for one in adapters]
    merge(spec_of("task_arithmetic", inputs, tiny_bert), tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for rank in (2, 4):
        out = tmp_path / f"rank{rank}"
        merge(spec_of("task_arithmetic", inputs, tiny_bert, output=Output(format="lora", rank=rank)), out)
        (claim,) = (one for one in certificate.read(out) if one.check == "merge lora")
        with quiet():
            model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), out).merge_and_unload()
        found, plain = model.state_dict(), load_file(tiny_bert / "model.safetensors")
        missing = sum(float(torch.sum((found[name] - whole[name]) ** 2)) for name in whole) ** 0.5
        change = sum(float(torch.sum((plain[name] - whole[name]) ** 2)) for name in whole) ** 0.5
        assert missing / change == pytest.approx(claim.values["relative"], rel=1e-3, abs=1e-6)
        assert (claim.values["relative"] < 1e-6) == (rank == 4)


@pytest.mark.parametrize("own", [False, True], ids=["a copy of the base", "another base"])
def test_adapters_over_another_base_are_not_just_put_together(
    own: bool, tiny_bert: Path, tuned: Any, adapter_maker: Any, tmp_path: Path
) -> None:
    """What an input's own base has changed is part of its change; a copy of the base has changed nothing."""

    def move(tensors: dict[str, torch.Tensor]) -> None:
        if own:
            tensors["encoder.layer.0.attention.self.query.weight"] += 0.01

    other = tuned(tiny_bert, "other", noise=0.0, change=move)
    inputs = [
        f"{folder}+{adapter_maker(folder, tmp_path / name, r=2)}" for folder, name in ((other, "x"), (tiny_bert, "y"))
    ]
    merge(spec_of("lora_cat", inputs, tiny_bert), tmp_path / "whole", allow=["adapter"])
    merge(spec_of("lora_cat", inputs, tiny_bert, output=Output(format="lora")), tmp_path / "out", allow=["adapter"])
    whole, name = load_file(tmp_path / "whole" / "model.safetensors"), "encoder.layer.0.attention.self.query.weight"
    _, found = open_inputs(spec_of("linear", [f"{tiny_bert}+{tmp_path / 'out'}"]))
    out = np.empty(1024, np.float32)
    found.source(found.inputs[0], name).read(out, 0)
    np.testing.assert_allclose(out, whole[name].numpy().reshape(-1), atol=1e-5)
    ranks = {one.rank for one in found.changes[found.inputs[0].reference].factors.values()}
    assert (ranks == {4}) == (not own)


def test_in_memory_and_on_disk_are_one(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    """A method over arrays gives what the engine writes."""
    from regraft.merge.methods.ties import ties

    folders = family(dtype=torch.float32)
    spec = spec_for("ties", folders)
    merge(spec, tmp_path / "out")
    ordered, found = open_inputs(spec)
    base = load_file(folders[0] / "model.safetensors")
    inputs = [load_file(Path(one.reference) / "model.safetensors") for one in found.inputs]
    weights = [float(one.options["weight"]) for one in ordered.inputs]  # type: ignore[arg-type]
    density = np.array([one.options["density"] for one in ordered.inputs])
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        arrays = [one[name].numpy() for one in inputs]
        assert np.array_equal(values.numpy(), ties(Stack.of(arrays, base[name].numpy(), weights), density=density)), (
            name
        )
