"""Certificates of merged checkpoints: they hold, and stop holding when the folder or the parents are others."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from regraft import certificate
from regraft.checkpoint import open_checkpoint
from regraft.checkpoint.weights import open_weights
from regraft.errors import CheckpointError, VerificationError
from regraft.merge.align import align
from regraft.merge.certificate.certify import certify
from regraft.merge.certificate.record import sample_id, spec_of_record, weights_id
from regraft.merge.certificate.remake import same_as_stored
from regraft.merge.checks.preflight import preflight_of
from regraft.merge.inputs import open_inputs
from regraft.merge.lora.whole import write_lora
from regraft.merge.recipe.file import read_merge
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge

ALL = ("merge tensors", "merge files", "merge weights", "merge elements", "merge inputs", "merge recipe")


def outcomes(folder: Path) -> dict[str, str]:
    return {verdict.claim.check: verdict.outcome for verdict in certificate.verify(folder)}


def reason(folder: Path, check: str) -> str:
    return next(verdict.reason for verdict in certificate.verify(folder) if verdict.claim.check == check)


@pytest.fixture
def parents(tiny_bert: Path, copy_of: Any, tuned: Any) -> tuple[Path, Path, Path]:
    """A base of its own, to be moved or changed, and two fine-tunes of it."""
    base = copy_of(tiny_bert, "base")
    (base / "generation_config.json").write_text('{"do_sample": false}')
    (base / "LICENSE").write_text("MIT")
    return base, tuned(base, "a", 1), tuned(base, "b", 2)


@pytest.fixture
def merged(parents: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    base, a, b = parents
    merge(spec_of("ties", [a, b], base, density=0.4), tmp_path / "merged", workers=2)
    return tmp_path / "merged"


SPECS: dict[str, tuple[dict[str, Any], bool]] = {
    "linear": ({"weight": [0.25, 0.75]}, False),
    "task_arithmetic": ({"scale": [0.1, 0.9]}, True),
    "ties": ({"density": 0.3, "trim": "global"}, True),
}


@pytest.mark.parametrize("method", SPECS)
def test_a_merge_passes(method: str, parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = parents
    options, with_base = SPECS[method]
    spec = spec_of(method, [a, b], base if with_base else None, seed=3, **options)
    merge(spec, tmp_path / "out", workers=2)
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")
    claims = {claim.check: claim for claim in certificate.read(tmp_path / "out")}
    assert claims["merge elements"].values["elements"] > 0
    assert claims["merge elements"].needs == claims["merge inputs"].needs == "parents"
    assert claims["merge weights"].values["weights_id"] == open_checkpoint(str(tmp_path / "out")).weights_id


def test_small_files_survive(merged: Path, parents: tuple[Path, Path, Path]) -> None:
    base, *_ = parents
    for name in ("config.json", "generation_config.json", "LICENSE", "tokenizer.json", "tokenizer_config.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()


def test_another_number_format_is_all_that_changes(parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = parents
    merge(spec_of("ties", [a, b], base, output=Output(dtype="bfloat16")), tmp_path / "half")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "half")]
    assert configs[0] | {"dtype": "bfloat16"} == configs[1]
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert outcomes(tmp_path / "half") == dict.fromkeys(ALL, "pass")


def test_shards(parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    base, a, b = parents
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    (base / "model.safetensors").unlink()
    shutil.copytree(tmp_path / "shards", base, dirs_exist_ok=True)
    merge(spec_of("ties", [a, b], base), tmp_path / "out")
    index = "model.safetensors.index.json"
    maps = [json.loads((folder / index).read_text())["weight_map"] for folder in (base, tmp_path / "out")]
    assert maps[0] == maps[1]
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")


def test_a_tied_head_is_merged(llama: Any, written: Any, tmp_path: Path) -> None:
    """The base stores its head, a copy of the embeddings; an input shares the two: both come out the same."""
    tied = {"tie_word_embeddings": True}
    folders = []
    for name, stored in (("base", True), ("a", False), ("b", True)):
        tensors = {key: value + 0.001 * len(folders) for key, value in llama(0).items() if key != "lm_head.weight"}
        copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()} if stored else {}
        folders.append(written(name, {**tensors, **copy}, tied))
    merge(spec_of("ties", folders[1:], folders[0], density=0.5), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")


def test_heads_that_differ_come_from_the_template(llama: Any, written: Any, tmp_path: Path) -> None:
    folders = []
    for name, labels in (("a", ["bad", "good"]), ("b", ["cat", "dog"])):
        head = {"score.weight": np.full((2, 32), len(folders), np.float32)}
        config = {"id2label": dict(enumerate(labels))}
        folders.append(written(name, {**llama(0), **head}, config))
    merge(spec_of("linear", folders), tmp_path / "out", allow=["heads"])
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["copied"] == {"score.weight": "not the same in all"}
    first = about["merge"]["inputs"][0]["checkpoint"]
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["score.weight"],
        load_file(Path(first) / "model.safetensors")["score.weight"],
    )


def test_the_tokenizer_of_another(parents: tuple[Path, Path, Path], tmp_path: Path, edited: Any) -> None:
    base, a, b = parents
    edited(b, "tokenizer_config.json", model_max_length=33)
    merge(spec_of("ties", [a, b], base, output=Output(tokenizer=str(b))), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (b / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")


def test_a_sentence_transformer(parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Modules, and the labels that our own members note, are the template's."""
    base, a, b = parents
    types = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(types)
    ]
    for seed, folder in enumerate((base, a, b)):
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "regraft.json").write_text(json.dumps({"labels": ["x", "y"], "format": "sentence-transformers"}))
        for name in ("1_Pooling", "2_Dense"):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text('{"pooling_mode": "mean"}')
        head = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)) + 0.01 * seed
        save_file({"linear.weight": head}, folder / "2_Dense" / "model.safetensors")
    merge(spec_of("linear", [a, b]), tmp_path / "out")
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["labels"] == ["x", "y"]
    assert "from sentence_transformers" in (tmp_path / "out" / "README.md").read_text()
    assert open_checkpoint(str(tmp_path / "out")).labels == ("x", "y")


def test_the_record_is_the_recipe(merged: Path, parents: tuple[Path, Path, Path]) -> None:
    base, a, b = parents
    about = json.loads((merged / "regraft.json").read_text())
    assert about["merge"]["merge"] == "ties"
    assert {one["checkpoint"] for one in about["merge"]["inputs"]} == {str(a), str(b)}
    assert about["allowed"] == []
    assert {"python", "numpy"} <= about["versions"].keys()
    spec = spec_of_record(about)
    assert isinstance(spec, Spec)
    assert (spec.base, spec.options) == (str(base), {"density": 0.4})


def test_what_was_let_pass_is_on_record(parents: tuple[Path, Path, Path], tmp_path: Path, edited: Any) -> None:
    base, a, b = parents
    edited(b, hidden_act="relu")
    merge(spec_of("ties", [a, b], base), tmp_path / "out", allow=["config", "heads"])
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["allowed"] == ["config"]
    assert "Let pass by its maker: config." in (tmp_path / "out" / "README.md").read_text()


def test_a_flipped_weight_fails(merged: Path) -> None:
    name = next(
        iter(claim.values["tensors"][0] for claim in certificate.read(merged) if claim.check == "merge elements")
    )
    tensors = load_file(merged / "model.safetensors")
    tensors[name].view(-1)[5] += 1e-3
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    found = outcomes(merged)
    assert found["merge weights"] == found["merge elements"] == "fail"
    assert found["merge tensors"] == found["merge files"] == "pass"
    assert f"1 of {tensors[name].numel():,} weights of '{name}' are others" in reason(merged, "merge elements")


def test_another_shape_fails(merged: Path) -> None:
    tensors = load_file(merged / "model.safetensors")
    tensors["pooler.dense.bias"] = tensors["pooler.dense.bias"][:-1].clone()
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    assert outcomes(merged)["merge tensors"] == "fail"


@pytest.mark.parametrize(("file", "check"), [
    ("config.json", "merge files"), ("tokenizer.json", "merge files"), ("regraft.json", "merge recipe"),
])  # fmt: skip
def test_a_changed_file_fails(file: str, check: str, merged: Path) -> None:
    content = json.loads((merged / file).read_text())
    (merged / file).write_text(json.dumps(content | {"more": 1}))
    assert outcomes(merged)[check] == "fail"
    (merged / file).unlink()
    assert outcomes(merged)[check] == "fail"


def test_parents_that_are_gone_cannot_be_checked(merged: Path, parents: tuple[Path, Path, Path]) -> None:
    shutil.rmtree(parents[1])
    found = outcomes(merged)
    assert found["merge elements"] == found["merge inputs"] == "cannot check"
    assert str(parents[1]) in reason(merged, "merge inputs")
    assert found["merge tensors"] == found["merge weights"] == found["merge files"] == "pass"


def test_parents_that_have_changed_fail(merged: Path, parents: tuple[Path, Path, Path], tuned: Any) -> None:
    other = tuned(parents[0], "other", 9)
    shutil.copyfile(other / "model.safetensors", parents[2] / "model.safetensors")
    found = outcomes(merged)
    assert (found["merge inputs"], found["merge elements"]) == ("fail", "cannot check")


def test_a_moved_merge_still_passes(merged: Path, tmp_path: Path) -> None:
    assert outcomes(merged.rename(tmp_path / "elsewhere")) == dict.fromkeys(ALL, "pass")


def test_a_merge_of_merges_knows_its_parents_weights(
    merged: Path, parents: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, a, _ = parents
    merge(spec_of("ties", [merged, a], base), tmp_path / "second")
    about = json.loads((tmp_path / "second" / "regraft.json").read_text())
    known = {one["reference"]: one["weights_id"] for one in about["parents"]}
    assert known == {str(base): None, str(a): None, str(merged): open_checkpoint(str(merged)).weights_id}
    assert outcomes(tmp_path / "second") == dict.fromkeys(ALL, "pass")


def test_adapters_are_parents_too(parents: tuple[Path, Path, Path], adapter_maker: Any, tmp_path: Path) -> None:
    base, a, _ = parents
    adapter = adapter_maker(base, tmp_path / "lora")
    merge(spec_of("ties", [f"{base}+{adapter}", a], base), tmp_path / "out")
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    assert outcomes(tmp_path / "out")["merge inputs"] == "fail"


def test_an_adapter_with_another_scale_is_another_parent(
    parents: tuple[Path, Path, Path], adapter_maker: Any, edited: Any, tmp_path: Path
) -> None:
    base, a, _ = parents
    adapter = adapter_maker(base, tmp_path / "lora", lora_alpha=4)
    merge(spec_of("ties", [f"{base}+{adapter}", a], base), tmp_path / "out")
    edited(adapter, "adapter_config.json", inference_mode=False)  # of no consequence
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")
    edited(adapter, "adapter_config.json", lora_alpha=8)
    found = outcomes(tmp_path / "out")
    assert (found["merge inputs"], found["merge elements"]) == ("fail", "cannot check")


def test_what_is_known_of_all_tensors_is_not_found_out_twice(
    parents: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate takes it from the merge; `verify`, which trusts nothing, makes it anew."""
    from regraft.merge import tensors

    base, a, b = parents
    calls, real = [], tensors.prepared_for

    def counted(*given: Any) -> Any:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(tensors, "prepared_for", counted)
    merge(spec_of("ties", [a, b], base, trim="global"), tmp_path / "out")
    assert len(calls) == 1
    assert outcomes(tmp_path / "out") == dict.fromkeys(ALL, "pass")
    assert len(calls) == 2


def test_a_wrong_tensor_is_never_certified(
    parents: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, a, b = parents
    monkeypatch.setattr("regraft.merge.certificate.certify.same_as_stored", lambda *_: "3 weights are others")
    with pytest.raises(VerificationError, match="made again from the parents"):
        merge(spec_of("ties", [a, b], base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_identities(merged: Path, tiny_bert: Path, copy_of: Any) -> None:
    for folder in (merged, tiny_bert):
        assert weights_id(open_weights(str(folder)).tensors) == open_checkpoint(str(folder)).weights_id
    assert sample_id(open_weights(str(tiny_bert))) == sample_id(open_weights(str(copy_of(tiny_bert))))
    assert sample_id(open_weights(str(tiny_bert))) != sample_id(open_weights(str(merged)))


def test_the_card(merged: Path, parents: tuple[Path, Path, Path]) -> None:
    text = (merged / "README.md").read_text()
    data = ModelCard(text).data
    assert data.base_model == ["someone/parent"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.license == "mit"
    assert data.library_name == "transformers"
    assert data.tags == ["regraft", "merge"]
    for words in ("# merged\n", "2 checkpoints merged with ties (Yadav et al. (2023)", "mit, as all of its parents",
                  f"| base | `{parents[0]}` |", "BertModel.from_pretrained"):  # fmt: skip
        assert words in text, words


def test_the_cards_recipe_is_yaml_that_makes_it_again(
    parents: tuple[Path, Path, Path], tmp_path: Path, copy_of: Any, raw_of: Any
) -> None:
    """Block by block, with names of every kind; read back it is the recipe, and gives the same bytes."""
    base, a, b = parents
    strange = copy_of(b, "größe: 'b' # 7")
    density: Any = [[{"filter": "query", "value": [0.1, 0.9]}, {"value": 0.3}], 0.25]
    merge(spec_of("ties", [a, strange], base, density=density, weight=[1.0, -0.5], seed=4), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    recipe = text.split("```yaml\n")[1].split("\n```")[0]
    assert recipe.startswith("merge: ties\n") and "{" not in recipe.split("options")[0]
    (tmp_path / "again.yaml").write_text(recipe)
    spec = read_merge(tmp_path / "again.yaml")
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert spec.as_dict() == about["merge"] and spec.inputs[0].options["weight"] in (1.0, -0.5)
    merge(spec, tmp_path / "again")
    assert raw_of(tmp_path / "again") == raw_of(tmp_path / "out")


def test_tensors_are_made_again_in_blocks(written: Any, tmp_path: Path) -> None:
    """A certificate takes no more memory than the merge."""
    draw = np.random.default_rng(0)
    base = draw.standard_normal((2048, 2048)).astype(np.float32)
    folders = [
        written(name, {"h.0.w": base + np.float32(step)}) for step, name in ((0, "base"), (0.1, "a"), (0.2, "b"))
    ]
    spec, opened = open_inputs(spec_of("task_arithmetic", folders[1:], folders[0]))
    merge(spec, tmp_path / "out", workers=1)
    aligned, stored = align(opened), open_weights(str(tmp_path / "out")).tensors
    assert same_as_stored(spec, aligned, stored, ["h.0.w"]) is None
    tracemalloc.start()
    assert same_as_stored(spec, aligned, stored, ["h.0.w"]) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # of a tensor of 16 MiB


def written_lora(spec: Spec, folder: Path, allow: tuple[str, ...] = ()) -> Path:
    """A LoRA as the engine writes it."""
    spec, opened = open_inputs(spec)
    found = preflight_of(spec, opened, max_memory=2**29, allow=allow)
    found.refuse()
    folder.mkdir()
    certify(folder, spec, opened, found, write_lora(folder, spec, found.aligned, allow_lost="lora-loss" in allow))
    return folder


def test_a_lora(parents: tuple[Path, Path, Path], adapter_maker: Any, tmp_path: Path) -> None:
    base, *_ = parents
    adapters = [f"{base}+{adapter_maker(base, tmp_path / name)}" for name in ("one", "two")]
    spec = spec_of("task_arithmetic", adapters, base, output=Output(format="lora", rank=2))
    folder = written_lora(spec, tmp_path / "out")
    checks = ("merge weights", "merge inputs", "merge recipe", "merge lora")
    assert outcomes(folder) == dict.fromkeys(checks, "pass")
    (claim,) = (one for one in certificate.read(folder) if one.check == "merge lora")
    assert 0 < claim.values["relative"] < 1
    assert len(claim.values["tensors"]) == 4
    assert f"lacks {claim.values['relative']:.2%} of the change" in claim.statement
    text = (folder / "README.md").read_text()
    assert "PeftModel.from_pretrained" in text
    assert ModelCard(text).data.base_model == ["someone/parent"]
    path = folder / "adapter_model.safetensors"
    save_file({name: 1.1 * value for name, value in load_file(path).items()}, path)
    assert outcomes(folder)["merge lora"] == "fail"


def test_what_a_lora_cannot_hold(parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, _ = parents
    spec = spec_of("task_arithmetic", [a], base, output=Output(format="lora", rank=2))
    with pytest.raises(CheckpointError, match=r"cannot hold the changes of .*no matrix.*--allow lora-loss"):
        written_lora(spec, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    folder = written_lora(spec, tmp_path / "lossy", ("lora-loss",))
    assert json.loads((folder / "regraft.json").read_text())["allowed"] == ["lora-loss"]
    (claim,) = (one for one in certificate.read(folder) if one.check == "merge lora")
    assert "pooler.dense.bias" in claim.values["lost"]
    assert outcomes(folder)["merge lora"] == "pass"


def test_a_record_names_nothing_to_download(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.loads((merged / "regraft.json").read_text())
    about["parents"][0]["path"] = "hf:someone/else"
    (merged / "regraft.json").write_text(json.dumps(about))
    asked: list[str] = []
    monkeypatch.setattr("regraft.checkpoint.hub.snapshot", asked.append)
    assert outcomes(merged)["merge elements"] == "cannot check"
    assert asked == []


def test_licences_that_differ_are_not_claimed(parents: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = parents
    (b / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: [one/a, two/b]\n---\n")
    merge(spec_of("ties", [a, b], base), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(text).data.license is None
    assert "its parents' differ" in text
    assert "| apache-2.0 |" in text


def test_stock_transformers_loads_it(merged: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    assert torch.isfinite(model(**tokenizer("the cat saw rain", return_tensors="pt")).last_hidden_state).all()
