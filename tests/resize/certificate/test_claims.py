"""Claims of a resized checkpoint: they hold when it is made, and fail when the folder, its parent or the record is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from regraft import certificate
from regraft.anatomy import Claim as Anatomical
from regraft.anatomy import open_bound
from regraft.checkpoint import open_checkpoint
from regraft.resize.certificate import NotCertified, certify, checks, cut_step, other_step, store_step, trim_step
from regraft.resize.certificate.fresh import Loaded, load_afresh
from regraft.resize.cuts import cut
from regraft.resize.formats.half import to_half
from regraft.resize.formats.int8 import int8_rounded
from regraft.resize.vocabulary import trim

Checked = Callable[..., dict[str, tuple[str, str]]]
CUT = {"resize tensors", "resize weights", "resize files", "size", "resize loads", "resize permutations", "resize parent",
       "resize computes", "resize latency"}  # fmt: skip
TEXTS = ["the cat and the dog", "rain again today", "a nice old song", "we heard the drum"]


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Write other tensors into a folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.layer.1.output.dense.weight"][0, 0] += 0.5


def test_a_cut_passes(small: Path, checked: Checked) -> None:
    found = checked(small)
    assert found.keys() == CUT
    assert {outcome for outcome, _ in found.values()} == {"pass"}
    claims = {claim.check: claim for claim in certificate.read(small)}
    assert all(claim.passed for claim in claims.values())
    assert {name: claim.known for name, claim in claims.items()}["resize computes"] == "sampled"
    assert claims["resize weights"].values["weights_id"] == open_checkpoint(str(small)).weights_id


def test_provenance_and_card(made: tuple[Path, Path], small: Path) -> None:
    parent = made[0]
    about = json.loads((small / "regraft.json").read_text())
    assert about["parent"]["reference"] == str(parent)
    assert about["parent"]["checkpoint_id"] == open_checkpoint(str(parent)).checkpoint_id
    (step,) = about["steps"]
    assert (step["before"], step["after"]) == ({"layer": 4, "ffn": 64}, {"layer": 2, "ffn": 40})
    assert len(step["kept"]["ffn"]) == 2  # of each layer that stayed
    card = ModelCard.load(small / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "mit"
    assert card.data.base_model == ["someone/parent"]
    assert "layer 4 to 2, ffn 64 to 40, by magnitude" in card.text
    assert "with the units that were cut masked: outputs of both in float64" in card.text


@pytest.mark.parametrize(("edit", "fails"), [
    (flip, {"resize weights", "resize computes"}),
    (lambda tensors: tensors.update(extra=torch.zeros(3)), {"resize tensors", "size"}),
    (lambda tensors: tensors.pop("encoder.layer.0.output.dense.bias"), {"resize tensors"}),
    (lambda tensors: tensors.update({"pooler.dense.bias": tensors["pooler.dense.bias"].half()}),
     {"resize tensors", "resize weights", "size"}),
])  # fmt: skip
def test_other_weights_fail(edit: Any, fails: set[str], small: Path, checked: Checked) -> None:
    change(small, edit)
    found = checked(small, *fails)
    assert {name for name, (outcome, _) in found.items() if outcome == "fail"} == fails


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "regraft.json"])
def test_changed_files_fail(name: str, small: Path, checked: Checked) -> None:
    content = json.loads((small / name).read_text())
    (small / name).write_text(json.dumps(content | {"more": 1}))
    outcome, reason = checked(small, "resize files")["resize files"]
    assert outcome == "fail" and name in reason
    (small / name).unlink()
    assert checked(small, "resize files")["resize files"][0] == "fail"


def test_a_file_more_fails(small: Path, checked: Checked) -> None:
    (small / "added_tokens.json").write_text("{}")
    assert "added_tokens.json" in checked(small, "resize files")["resize files"][1]


def test_a_config_of_other_sizes_fails_by_name(small: Path, checked: Checked) -> None:
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    found = checked(small, "resize tensors", "resize loads", "resize permutations", "resize files")
    assert {outcome for outcome, _ in found.values()} == {"fail"}
    assert "ffn = 48" in found["resize tensors"][1]


def test_the_units_on_record_are_those_that_stayed(small: Path, checked: Checked) -> None:
    """The comparison would see a cut of other units: masks of other ones compute something else."""
    about = json.loads((small / "regraft.json").read_text())
    kept = about["steps"][0]["kept"]
    for other in ({**kept, "layer": [{"at": {}, "units": "0-1" if kept["layer"][0]["units"] != "0-1" else "2-3"}]},
                  {**kept, "ffn": [{**one, "units": "24-63"} for one in kept["ffn"]]}):  # fmt: skip
        about["steps"][0]["kept"] = other
        (small / "regraft.json").write_text(json.dumps(about))
        assert checked(small, "resize computes")["resize computes"][0] == "fail"


def test_a_parent_that_has_changed(made: tuple[Path, Path], small: Path, checked: Checked, tmp_path: Path) -> None:
    parent, names = made[0], ("resize parent", "resize computes")
    whole = (parent / "model.safetensors").read_bytes()
    try:
        change(parent, lambda tensors: tensors["pooler.dense.bias"].add_(1.0))
        found = checked(small, *names)
    finally:
        (parent / "model.safetensors").write_bytes(whole)
    assert [found[name][0] for name in names] == ["fail", "cannot check"]
    moved = parent.rename(parent.parent / "moved")
    try:
        found = checked(small, *names, "resize latency")
    finally:
        moved.rename(parent)
    assert {outcome for outcome, _ in found.values()} == {"cannot check"}


def test_a_symmetry_that_does_not_hold_fails(small: Path, checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Anatomical("ffn", "fail", "sampled", "a random permutation changes the outputs", 1.0)
    monkeypatch.setattr(checks, "check_anatomy", lambda _: [wrong])
    assert checked(small, "resize permutations")["resize permutations"] == ("fail", f"ffn: {wrong.detail}")


def test_a_slower_one_fails(small: Path, checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = next(one for one in certificate.read(small) if one.check == "resize latency").values["ratio"]
    for times, outcome in ((1.9, "pass"), (2.1, "fail")):
        monkeypatch.setattr(checks, "compare", lambda *_, times=times: {"ratio": times * ratio})
        assert checked(small, "resize latency")["resize latency"][0] == outcome


def test_stock_code_alone_says_what_is_wrong(small: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["more"] = tensors.pop("encoder.layer.0.output.dense.bias")

    change(small, edit)
    found = load_afresh(small, "BertModel", 0)
    assert (found.missing, found.unexpected) == (["encoder.layer.0.output.dense.bias"], ["more"])
    assert (found.mismatched, found.kind, found.fault) == ([], "BertModel", "")


@pytest.mark.parametrize(("seen", "outcome", "words"), [
    (Loaded(missing=["x.weight"], kind="BertModel"), "fail", "missing keys: x.weight"),
    (Loaded(unexpected=["x"], kind="BertModel"), "fail", "unexpected keys: x"),
    (Loaded(mismatched=["x"], kind="BertModel"), "fail", "mismatched keys: x"),
    (Loaded(fault="ValueError: no"), "fail", "ValueError: no"),
    (Loaded(fault="not loaded within 180 s", late=True), "cannot check", "180 s"),
])  # fmt: skip
def test_what_the_other_process_saw(
    seen: Loaded, outcome: str, words: str, small: Path, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "load_afresh", lambda *_: seen)
    found = checked(small, "resize loads")["resize loads"]
    assert found[0] == outcome and words in found[1]


def test_large_models_are_not_loaded_and_it_is_said(
    made: tuple[Path, Path], small: Path, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LARGEST", 1000)
    found = checked(small, "resize loads", "resize computes", "resize latency")
    assert {outcome for outcome, _ in found.values()} == {"cannot check"}
    assert all("cannot check here: it has" in reason for _, reason in found.values())
    steps = json.loads((small / "regraft.json").read_text())["steps"]
    claims = {one.check: one for one in certify(small, open_bound(str(made[0])), steps)}
    assert not claims["resize computes"].passed and "not_checked" in claims["resize computes"].values
    assert "cannot check here" in claims["resize latency"].values["not_checked"]
    assert checked(small, "resize latency")["resize latency"][0] == "cannot check"
    assert "this was not checked" in (small / "README.md").read_text()


def test_what_does_not_hold_is_not_certified(tiny_bert: Path, tmp_path: Path) -> None:
    done = cut(str(tiny_bert), {"ffn": 40}, tmp_path / "small", criterion="magnitude")
    opened = open_bound(str(tiny_bert))
    step = cut_step(opened, done.kept, done.plan, {})
    step["kept"]["ffn"][0]["units"] = "0-39"
    with pytest.raises(NotCertified, match="with the units masked that were cut"):
        certify(tmp_path / "small", opened, [step])
    assert not (tmp_path / "small" / "certificate.json").exists()


def test_a_trimmed_vocabulary(tiny_bert: Path, tmp_path: Path, checked: Checked) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS))
    done = trim(str(tiny_bert), TEXTS, tmp_path / "narrow")
    opened = open_bound(str(tiny_bert))
    certify(tmp_path / "narrow", opened, [trim_step(done, TEXTS, str(corpus))], texts=TEXTS)
    names = ("resize texts", "resize computes")
    assert {outcome for outcome, _ in checked(tmp_path / "narrow", *names).values()} == {"pass"}
    content = json.loads((tmp_path / "narrow" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (tmp_path / "narrow" / "tokenizer.json").write_text(json.dumps(content))
    assert checked(tmp_path / "narrow", *names)["resize texts"] == ("fail", "text 0 has other tokens")
    corpus.write_text("other texts")
    assert checked(tmp_path / "narrow", *names)["resize texts"][0] == "cannot check"


def test_computed_numbers_in_sixteen_bits_are_held_to_what_was_computed(
    folders: Callable[[str], Path], tmp_path: Path, checked: Checked
) -> None:
    """Gains that a cut of hidden scales: off by 1 %, they move outputs by less than rounding does, and are seen all the same."""
    tensors = {name: value.bfloat16() for name, value in load_file(folders("llama") / "model.safetensors").items()}
    parent = Path(shutil.copytree(folders("llama"), tmp_path / "parent"))
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    opened = open_bound(str(parent))
    done = cut(str(parent), {"hidden": 16}, tmp_path / "small", criterion="magnitude")
    certify(tmp_path / "small", opened, [cut_step(opened, done.kept, done.plan, {})])
    outcome, reason = checked(tmp_path / "small", "resize computes")["resize computes"]
    assert outcome == "pass" and "allowed 1e-10" in reason and "rounded to BF16 they differ by" in reason
    assert reason in (tmp_path / "small" / "README.md").read_text()
    claims = {one.check: one.statement for one in certificate.read(tmp_path / "small")}
    assert claims["resize computes"].endswith("with the units masked that were cut, before its numbers are rounded")
    change(tmp_path / "small", lambda tensors: tensors["model.norm.weight"][:1].mul_(1.01))
    outcome, reason = checked(tmp_path / "small", "resize computes")["resize computes"]
    assert outcome == "fail" and "'model.norm.weight' was not stored as what was computed" in reason


@pytest.mark.parametrize("name", ["bf16", "int8-rounded"])
def test_number_formats(name: str, tiny_bert: Path, tmp_path: Path, checked: Checked) -> None:
    opened, out = open_bound(str(tiny_bert)), tmp_path / "out"
    done = to_half(opened, name, out) if name == "bf16" else int8_rounded(opened, out)
    certify(out, opened, [store_step(name, done)])
    found = checked(out)
    assert found["resize format"][0] == "pass"
    assert ("resize computes" in found) is (name == "bf16")
    statements = [one.statement for one in certificate.read(out)]
    assert ("it computes what the original does, rounded to bf16 as well" in statements) is (name == "bf16")

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        key = "encoder.layer.1.output.dense.weight"
        tensors[key] = tensors[key].float() + 0.004

    change(out, edit)
    assert checked(out, "resize format")["resize format"][0] == "fail"


def test_what_is_not_promised_is_said(tiny_bert: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_bert, tmp_path / "out"))
    found = certify(out, open_bound(str(tiny_bert)), [other_step("sparsity", method="wanda")])
    assert "resize computes" not in {one.check for one in found}
    assert "not promised: What sparsity does" in (out / "README.md").read_text()
    assert json.loads((out / "regraft.json").read_text())["steps"][0]["method"] == "wanda"
    assert np.isfinite(next(one for one in found if one.check == "resize latency").values["ratio"])
