"""Preflight: what fits is let through with its facts, what does not is refused with what and where, before a byte is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import regraft.merge
from regraft.checkpoint import sampled
from regraft.checkpoint.headers import read_header
from regraft.checkpoint.weights import open_weights
from regraft.errors import CheckpointError, MethodError, NonFiniteError, RegraftError
from regraft.merge import preflight
from regraft.merge.checks import weights
from regraft.merge.checks.findings import ALLOW
from regraft.merge.checks.preflight import Preflight, preflight_of
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Input, Output, Spec, spec_of
from regraft.merge.run import merge

LIMIT = 512 * 2**20


def looked_at(spec: Spec, out: Path | None = None, allow: tuple[str, ...] = (), limit: int = LIMIT) -> Preflight:
    return preflight_of(*open_inputs(spec), out=out, max_memory=limit, workers=2, allow=allow)


def ties(base: Path, *inputs: Path | str, **options: Any) -> Spec:
    return spec_of("ties", list(inputs), base, **options)


def codes(found: Preflight) -> list[str]:
    return sorted({one.code for one in found.errors})


def notes(found: Preflight) -> list[str]:
    return sorted({one.code for one in found.findings if one.severity == "note"})


def test_fine_tunes_pass(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = three
    found = looked_at(ties(base, a, b), tmp_path / "out")
    found.refuse()
    assert (found.findings, found.allowed) == ((), ())
    assert [one["role"] for one in found.checkpoints] == ["base", "input", "input"]
    size = sum(torch.Size(info.shape).numel() * 4 for info in found.aligned.opened.template.tensors.values())
    assert {one["bytes"] for one in found.checkpoints} == {size}
    assert found.disk["needed"] == size
    assert found.disk["free"] > size
    assert 0 < found.memory["predicted"] < 64 * 2**20
    assert found.memory["working"] is None
    assert found.seconds >= 0
    assert all(one.related and one.correlation > 0.99 for one in found.ancestry.values())
    assert set(found.aligned.merged) == set(found.aligned.opened.template.tensors)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_it_is_data(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    found = looked_at(ties(base, a, b))
    content = json.loads(json.dumps(found.to_json()))
    assert content["merged"] == len(found.aligned.merged)
    assert set(content["ancestry"]) == {str(a), str(b)}
    rows = found.rows()
    assert [word for word, _ in rows] == [
        "base",
        "input",
        "input",
        "tensors",
        "ancestry",
        "ancestry",
        "memory",
        "disk",
        "time",
        "values",
    ]
    assert all(isinstance(text, str) and text for _, text in rows)


def test_without_a_base_the_first_input_is_the_template(three: tuple[Path, Path, Path]) -> None:
    _, a, b = three
    found = looked_at(spec_of("linear", [a, b]))
    found.refuse()
    assert len(found.ancestry) == 1


def test_no_descendant_of_the_base(three: tuple[Path, Path, Path], bert_config: Any, tmp_path: Path) -> None:
    from transformers import BertModel

    base, a, _ = three
    torch.manual_seed(99)
    stranger = tmp_path / "stranger"
    BertModel(bert_config()).save_pretrained(stranger)
    for path in base.glob("*token*"):
        (stranger / path.name).write_bytes(path.read_bytes())
    found = looked_at(ties(base, a, stranger))
    assert codes(found) == ["ancestry"]
    with pytest.raises(CheckpointError, match=r"stranger and .*tiny-bert share no ancestor.*--allow ancestry"):
        found.refuse()
    passed = looked_at(ties(base, a, stranger), allow=("ancestry",))
    passed.refuse()
    assert passed.allowed == ("ancestry",)
    assert ("allowed", passed.findings[0].problem) in passed.rows()


@pytest.mark.parametrize("method", ["transfer", "rws"])
def test_changes_that_are_carried_to_another_family(
    method: str, three: tuple[Path, Path, Path], bert_config: Any, tmp_path: Path
) -> None:
    """Their inputs are of several bases by design: said and recorded, not refused."""
    from transformers import BertModel

    base, a, _ = three
    torch.manual_seed(99)
    stranger = tmp_path / "stranger"
    BertModel(bert_config()).save_pretrained(stranger)
    for path in base.glob("*token*"):
        (stranger / path.name).write_bytes(path.read_bytes())
    inputs = [a, stranger] if method == "transfer" else [stranger, a]
    merge(spec_of(method, inputs, base), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["allowed"] == [] and about["ancestry"][str(stranger)]["related"] is False
    (found,) = (one for one in about["findings"] if one["code"] == "ancestry" and "share no ancestor" in one["problem"])
    assert f"which {method} does not ask for" in found["problem"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, three: tuple[Path, Path, Path], tuned: Any) -> None:
    base, a, _ = three

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["pooler.dense.weight"][:] = value

    found = looked_at(ties(base, a, tuned(base, "bad", change=spoil)), allow=tuple(ALLOW))
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinite values in pooler\.dense\.weight \(.*bad/model\.safetensors\)"
    ):
        found.refuse()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_value_of_small_inputs_is_looked_at(dtype: torch.dtype, written: Any, llama: Any, tmp_path: Path) -> None:
    """One bad value anywhere, of either sign, is named before a byte is written; what is merely large is not."""
    base, name = llama(0), "model.layers.1.mlp.up_proj.weight"
    fine = written("fine", {**base, name: base[name] + np.float32(60000)}, dtype=dtype)
    looked_at(spec_of("linear", [fine, fine])).refuse()
    for number, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        bad = base[name].copy()
        bad.reshape(-1)[[0, 1500, -1][number]] = value
        folder = written(f"bad{number}", {**base, name: bad}, dtype=dtype)
        with pytest.raises(NonFiniteError, match=rf"in {name} \(.*bad{number}/model\.safetensors\)"):
            merge(spec_of("linear", [fine, folder]), tmp_path / "out", allow=[*ALLOW])
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_large_inputs_are_sampled_unless_all_is_asked_for(
    written: Any, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, name = llama(0), "model.layers.1.mlp.up_proj.weight"
    folders = [written("a", base)]
    for number, place in enumerate((0, -1)):  # a sample is one run of 256: it holds at most one of the two
        values = base[name].copy()
        values.reshape(-1)[place] = np.nan
        folders.append(written(f"bad{number}", {**base, name: values}))
    size = sum(values.nbytes for values in base.values())
    monkeypatch.setattr(weights, "WHOLE", 2 * size)
    small = [looked_at(spec_of("linear", [folders[0], bad])) for bad in folders[1:]]
    assert [codes(one) for one in small] == [["non-finite"], ["non-finite"]]
    assert all(one.every_value and one.to_json()["every_value"] for one in small)
    monkeypatch.setattr(weights, "WHOLE", 2 * size - 1)
    large = [looked_at(spec_of("linear", [folders[0], bad])) for bad in folders[1:]]
    assert [] in [codes(one) for one in large] and not any(one.every_value for one in large)
    assert "a sample of each tensor (all with --check-values)" in dict(large[0].rows())["values"]
    for bad in folders[1:]:
        spec = spec_of("linear", [folders[0], bad])
        with pytest.raises(NonFiniteError, match=rf"in {name} "):
            preflight_of(*open_inputs(spec), max_memory=LIMIT, check_values=True).refuse()
        assert codes(preflight(spec, check_values=True)) == ["non-finite"]
    with pytest.raises(NonFiniteError, match=r"bad1 holds NaN or infinite"):
        regraft.merge.linear([folders[0], folders[2]], out=folders[0].parent / "out", check_values=True)


def test_what_is_read_for_nan_stays_below_the_usual_merge() -> None:
    """Four checkpoints of 287 million parameters in bfloat16 are not read twice."""
    assert weights.WHOLE < 4 * 2 * 287_000_000 / 4


def test_what_several_adapters_lie_over_is_read_once(
    tiny_bert: Path, adapter_maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [adapter_maker(tiny_bert, tmp_path / name) for name in "xy"]
    read: list[str] = []
    whole = sampled.finite_throughout
    monkeypatch.setattr(sampled, "finite_throughout", lambda info: read.append(info.name) or whole(info))
    looked_at(spec_of("task_arithmetic", [f"{tiny_bert}+{one}" for one in adapters], tiny_bert)).refuse()
    names = [*open_weights(str(tiny_bert)).tensors]
    names += [name for one in adapters for name in read_header(one / "adapter_model.safetensors")]
    assert sorted(read) == sorted(names)
    file = adapters[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[0]][-1, -1] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"\+.*y holds NaN .*\(.*/y/adapter_model\.safetensors\)"):
        looked_at(spec_of("task_arithmetic", [f"{tiny_bert}+{one}" for one in adapters], tiny_bert)).refuse()


def test_a_missing_shard(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    base, a, _ = three
    AutoModel.from_pretrained(a).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    gone = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        looked_at(ties(base, a, tmp_path / "shards"))


def test_several_errors_are_told_at_once(tiny_bert: Path, tiny_gpt2: Path) -> None:
    with pytest.raises(CheckpointError, match=r"refused for \d reasons:\n.*gpt2 \(model_type\)") as caught:
        looked_at(ties(tiny_bert, tiny_gpt2)).refuse()
    assert "no tensor that could be merged" in str(caught.value)


def test_other_tokens(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    content = json.loads((b / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (b / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"another tokenizer than .*tiny-bert: 2 tokens have other numbers"):
        looked_at(ties(base, a, b)).refuse()
    looked_at(ties(base, a, b), allow=("tokenizer",)).refuse()
    chosen = looked_at(ties(base, a, b, output=Output(tokenizer=str(b))))
    assert codes(chosen) == ["tokenizer"]
    assert sum(one.code == "tokenizer" for one in chosen.findings) == 2  # the base's and a's, against b's


def test_a_vocabulary_of_another_size(llama: Any, written: Any) -> None:
    base, other = llama(0), llama(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        other[name] = np.concatenate([other[name], np.zeros((4, 32), np.float32)])
    spec = ties(written("base", base), written("a", base), written("b", other, {"vocab_size": 100}))
    assert codes(looked_at(spec)) == ["vocabulary"]
    passed = looked_at(spec, allow=("vocabulary",))
    passed.refuse()
    assert set(passed.aligned.copied) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_heads_that_are_let_pass_come_from_the_template(llama: Any, written: Any) -> None:
    head = {"score.weight": np.ones((3, 32), np.float32)}
    base, a, b = written("base", llama(0)), written("a", {**llama(0), **head}), written("b", {**llama(0), **head})
    assert codes(looked_at(ties(base, a, b))) == ["heads"]
    passed = looked_at(ties(base, a, b), allow=("heads",))
    passed.refuse()
    assert passed.aligned.left_out == ("score.weight",)
    assert "score.weight" not in passed.aligned.merged
    both = looked_at(spec_of("linear", [a, b]))
    both.refuse()
    assert "score.weight" in both.aligned.merged


def test_tied_heads_are_read_under_one_name(llama: Any, written: Any) -> None:
    shared = {name: value for name, value in llama(0).items() if name != "lm_head.weight"}
    copy = {**shared, "lm_head.weight": shared["model.embed_tokens.weight"].copy()}
    tied = {"tie_word_embeddings": True}
    found = looked_at(ties(written("base", copy, tied), written("a", shared, tied), written("b", copy, tied)))
    found.refuse()
    assert notes(found) == ["equal-base", "tied"]
    assert "lm_head.weight" in found.aligned.merged
    one = next(one for one in found.aligned.opened.inputs if one.reference.endswith("a"))
    assert one.tensors["lm_head.weight"] == one.tensors["model.embed_tokens.weight"]


def test_number_formats_that_differ_are_a_note(three: tuple[Path, Path, Path], tuned: Any) -> None:
    base, a, _ = three
    half = tuned(base, "half", 3, dtype=torch.bfloat16)
    found = looked_at(ties(base, a, half))
    found.refuse()
    (one,) = found.findings
    assert one.code == "dtype"
    assert "half BF16" in one.problem
    assert looked_at(ties(base, a, half, output=Output(dtype="bfloat16"))).disk["needed"] * 2 == found.disk["needed"]


def test_the_same_input_twice_and_the_base_itself(three: tuple[Path, Path, Path]) -> None:
    base, a, _ = three
    found = looked_at(ties(base, a, a, base))
    found.refuse()
    assert notes(found) == ["equal-base", "same-input"]


def test_an_adapter_over_its_base(three: tuple[Path, Path, Path], tiny_adapter: Path) -> None:
    base, a, _ = three
    found = looked_at(ties(base, f"{base}+{tiny_adapter}", a))
    found.refuse()
    assert found.findings == ()
    assert found.checkpoints[0]["adapter"] is None
    assert {one["adapter"] for one in found.checkpoints} == {None, str(tiny_adapter)}


def test_an_adapter_for_another_base(
    three: tuple[Path, Path, Path], tiny_adapter: Path, tiny_gpt2: Path, copy_of: Any
) -> None:
    base, a, _ = three
    spec = ties(base, f"{a}+{tiny_adapter}", a)
    with pytest.raises(
        CheckpointError,
        match=r"was made for .*tiny-bert \(.*hold other values.*Put it over that checkpoint.*--allow adapter",
    ):
        looked_at(spec).refuse()
    looked_at(spec, allow=("adapter",)).refuse()
    looked_at(ties(base, f"{copy_of(base)}+{tiny_adapter}", a)).refuse()  # a copy of its base is its base
    unfit = looked_at(spec_of("linear", [f"{tiny_gpt2}+{tiny_adapter}", tiny_gpt2]), allow=tuple(ALLOW))
    assert codes(unfit) == ["adapter-shapes"]
    with pytest.raises(CheckpointError, match=r"which the base does not have"):
        unfit.refuse()


def test_what_the_recipe_says_of_layers_and_names(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    spec = spec_of("ties", [a, b], base, density=[[{"filter": "mpl", "value": 0.1}, {"value": 0.3}], 0.2])
    with pytest.raises(MethodError, match=r"No tensor's name holds 'mpl'.*--allow filter"):
        looked_at(spec).refuse()
    looked_at(spec, allow=("filter",)).refuse()
    open_end = spec_of("ties", [a, b], base, density=[[{"filter": "query", "value": 0.1}], 0.2])
    with pytest.raises(MethodError, match=r"No rule of the recipe says what holds for embeddings"):
        looked_at(open_end, allow=("filter",)).refuse()
    layered = Spec("ties", str(base), (Input(str(a)), Input(str(b))), layers=7, notes=("Other random numbers.",))
    assert codes(looked_at(layered)) == ["layers"]
    assert notes(looked_at(layered)) == ["recipe"]


def test_a_lora_needs_a_base(three: tuple[Path, Path, Path]) -> None:
    _, a, b = three
    found = looked_at(spec_of("linear", [a, b], output=Output(format="lora", rank=4)))
    assert codes(found) == ["option"]


def test_a_code_that_does_not_exist(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    with pytest.raises(MethodError, match=r"nothing to allow by the name 'everything'.*ancestry"):
        looked_at(ties(base, a, b), allow=("everything",))


def test_every_code_that_can_be_let_pass_is_explained() -> None:
    assert all(words and not words.endswith(".") for words in ALLOW.values())


def test_torch_is_not_imported(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    code = (
        "import sys\nfrom regraft.merge.inputs import open_inputs\nfrom regraft.merge.checks.preflight import preflight_of\n"
        "from regraft.merge.recipe.spec import spec_of\n"
        f"spec = spec_of('ties', [{str(a)!r}, {str(b)!r}], {str(base)!r})\n"
        "preflight_of(*open_inputs(spec), max_memory=2**29).refuse()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_have_remedies(tiny_bert: Path, tiny_gpt2: Path, tiny_classifier: Path) -> None:
    for other in (tiny_gpt2, tiny_classifier):
        found = looked_at(spec_of("linear", [tiny_bert, other]))
        assert found.errors
        assert all(one.advice and one.problem.endswith(".") for one in found.errors)
        with pytest.raises(RegraftError):
            found.refuse()
