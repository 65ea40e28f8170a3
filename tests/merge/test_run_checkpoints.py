"""The engine on checkpoints of every kind: adapted, tied, with heads, with modules; stock classes load what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import certificate
from regraft.checkpoint.quiet import quiet
from regraft.checkpoint.weights import raw_values
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, spec_of
from regraft.merge.run import merge


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
    method: str, tiny_bert: Path, tuned: Any, adapter_maker: Any, copy_of: Any, tmp_path: Path, raw_of: Any
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


def test_tied_heads(written: Any, llama: Any, tmp_path: Path, raw_of: Any, on_a_grid: Any) -> None:
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


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dare_linear", {"density": 0.3}),
        ("della", {}),
        ("task_arithmetic", {"weight": [[0.2, 0.8], 0.5]}),
        ("task_arithmetic", {"scale": [{"filter": "embed", "value": 0.1}, {"value": 0.9}]}),
        ("ties", {"trim": "global", "density": 0.3}),
        ("pcb", {}),
        ("opcm", {}),
        ("wudi", {"steps": 5}),
        ("iso_c", {"embeddings": "vector"}),
        ("rws", {}),
        ("linear", {"weight": [[0.1, 0.9], [0.9, 0.1]]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_tied_head_is_one_parameter_however_often_it_is_stored(
    method: str, options: dict[str, Any], written: Any, llama: Any, tmp_path: Path, raw_of: Any, on_a_grid: Any
) -> None:
    """Stored twice in all, the merge is that of the checkpoints that store it once, and the copy is still one."""
    every, config = [on_a_grid(llama(0), seed) for seed in range(3)], {"tie_word_embeddings": True}
    made = {}
    for case in ("once", "twice"):
        for tensors in every:
            tensors.pop("lm_head.weight", None)
            if case == "twice":
                tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        base, a, b = (written(f"{case}{at}", tensors, config) for at, tensors in enumerate(every))
        spec = spec_of(method, [a, b], None if method == "linear" else base, **options)
        result = merge(spec, tmp_path / case, workers=2)
        made[case] = raw_of(tmp_path / case)
        assert result.merged == len(every[0]) == len(made[case])
    assert made["twice"].pop("lm_head.weight") == made["twice"]["model.embed_tokens.weight"]
    table = "model.embed_tokens.weight"
    # The order of the inputs is their own, by all that they store: it may be another, and last bits of long sums show it.
    compared = [table] if method == "wudi" else [*made["once"]]
    assert [made["twice"][name] for name in compared] == [made["once"][name] for name in compared]
    assert made["twice"].keys() == made["once"].keys()
    assert {one.outcome for one in certificate.verify(tmp_path / "twice")} == {"pass"}
    about = json.loads((tmp_path / "twice" / "regraft.json").read_text())
    assert any("copy in every checkpoint: lm_head.weight of model.embed" in one["problem"] for one in about["findings"])


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
