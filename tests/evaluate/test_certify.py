"""Members: what is certified holds, and stops holding when the folder, the parent or the task is another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import certificate
from regraft.adapt import classifier_from, probe
from regraft.certificate import Context
from regraft.checkpoint import open_checkpoint
from regraft.checkpoint.classifier import probabilities
from regraft.checkpoint.export import load_classifier
from regraft.errors import CheckpointError
from regraft.evaluate import score
from regraft.evaluate.card import Made
from regraft.evaluate.certify import SAMPLES, files_id, member_size, weights_id, write_certified
from regraft.features import extract
from regraft.task import Task, load_task


@pytest.fixture(scope="module")
def task(toy_task_files: Path) -> Task:
    return load_task(str(toy_task_files))


def certified(folder: Path, parent: Path, task: Task, view: str = "last", rows: int = 30) -> dict[str, Any]:
    """Write a member: the parent as it is when it has a head, else the parent under a probe head."""
    checkpoint = open_checkpoint(str(parent))
    if checkpoint.labels is not None:
        classifier: Any = load_classifier(checkpoint)
    else:
        features = extract(checkpoint, task.train.texts)
        head = probe(features, task.train.labels, 3, view="mean" if view == "mean" else "last")
        classifier = classifier_from(checkpoint, task.label_names, head)
    order = [classifier.labels.index(label) for label in task.label_names]
    found = probabilities(classifier, task.test.texts[:rows])[:, order]
    figures = {"test": score(task.test.labels[:rows], found), "test_rows": rows, "latency_ms": 1.0}
    folder.mkdir()
    return write_certified(classifier, folder, folder.name, checkpoint, task, Made("probe"), figures)


@pytest.fixture
def parent(tiny_bert: Path, copy_of: Any) -> Path:
    """A parent of its own, to be moved away or changed."""
    found: Path = copy_of(tiny_bert, "parent")
    return found


@pytest.fixture
def member(parent: Path, task: Task, tmp_path: Path) -> Path:
    certified(tmp_path / "member", parent, task)
    return tmp_path / "member"


def outcomes(folder: Path, task: Task | None = None) -> dict[str, str]:
    return {verdict.claim.check: verdict.outcome for verdict in certificate.verify(folder, Context(task))}


def test_what_the_stock_library_computes_differently_is_not_published(
    parent: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.evaluate.certify.stock_logits", lambda folder, texts, form: torch.zeros(len(texts), 3))
    with pytest.raises(CheckpointError, match="computes something else from member"):
        certified(tmp_path / "member", parent, task)
    assert not (tmp_path / "member" / "certificate.json").exists()


ALL = ("files", "stock", "parent", "size", "test")


@pytest.mark.parametrize("view", ["last", "mean"])
@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_gpt2"])
def test_a_member_passes(fixture: str, view: str, task: Task, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "member"
    facts = certified(folder, request.getfixturevalue(fixture), task, view)
    assert outcomes(folder, task) == dict.fromkeys(ALL, "pass")
    assert outcomes(folder) == dict.fromkeys(ALL, "pass") | {"test": "cannot check"}
    assert facts["certificate"] == {"claims": 5, "passed": 5}
    assert facts["format"] == "sentence-transformers"


def test_a_stock_classifier_whose_labels_are_in_another_order_passes(
    tiny_classifier: Path, copy_of: Any, task: Task, tmp_path: Path
) -> None:
    folder = copy_of(tiny_classifier)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"].zero_()
    tensors["classifier.bias"] = torch.tensor([0.0, 1.0, 0.0])  # the same answer to everything
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    labels = open_checkpoint(str(folder)).labels or ()
    seen = [task.label_names[label] for label in task.test.labels[:7]]
    assert seen.count(labels[1]) != seen.count(task.label_names[1])  # so that a mix-up would show
    facts = certified(tmp_path / "member", folder, task, rows=7)
    assert facts["format"] == "transformers"
    assert outcomes(tmp_path / "member", task) == dict.fromkeys(ALL, "pass")


def test_the_facts_are_those_of_the_files(member: Path, parent: Path, task: Task, tmp_path: Path) -> None:
    facts = certified(tmp_path / "other", parent, task)
    tensors = [tensor for path in member.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert facts["parameters"] == sum(tensor.numel() for tensor in tensors)
    # Bytes are those of what the stock library loads: without card, provenance and certificate.
    ours = {"README.md", "regraft.json", "certificate.json"}
    files = [path for path in member.rglob("*") if path.is_file() and path.name not in ours]
    assert facts["bytes"] == sum(path.stat().st_size for path in files) == member_size(member)[1]
    assert facts["bytes_bf16"] == 2 * facts["parameters"]
    assert facts["weights_id"] == weights_id(member) == weights_id(tmp_path / "other")


def test_only_the_rows_that_were_measured_count(parent: Path, task: Task, tmp_path: Path) -> None:
    certified(tmp_path / "some", parent, task, rows=7)
    assert outcomes(tmp_path / "some", task)["test"] == "pass"
    (claim,) = [claim for claim in certificate.read(tmp_path / "some") if claim.check == "test"]
    assert claim.values["rows"] == 7


def test_provenance_names_parent_task_and_method(member: Path, parent: Path, task: Task) -> None:
    about = json.loads((member / "regraft.json").read_text())
    assert about["parent"] == {"reference": str(parent), "checkpoint_id": open_checkpoint(str(parent)).checkpoint_id}
    assert about["task"] == {"reference": task.reference, "task_id": task.task_id}
    assert about["made"] == {"method": "probe", "settings": {}, "legs": [], "seed": 0}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "2_Dense/model.safetensors", "tokenizer.json", "config.json", "regraft.json"]
)
def test_one_flipped_byte_fails_the_files(name: str, member: Path) -> None:
    content = bytearray((member / name).read_bytes())
    content[-8] ^= 1
    (member / name).write_bytes(content)
    assert outcomes(member)["files"] == "fail"


@pytest.mark.parametrize("name", ["added.json", "1_Pooling/config.json"])
def test_a_file_more_or_less_fails_the_files(name: str, member: Path) -> None:
    path = member / name
    path.unlink() if path.exists() else path.write_text("{}")
    assert outcomes(member)["files"] == "fail"


def test_another_card_changes_nothing(member: Path) -> None:
    before = files_id(member)
    (member / "README.md").write_text("# Mine")
    assert files_id(member) == before
    assert outcomes(member)["files"] == "pass"


def change_head(member: Path, change: Any) -> None:
    path = member / "2_Dense" / "model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)


def test_another_head_fails_stock_and_test(member: Path, task: Task) -> None:
    change_head(member, lambda tensor: tensor.flip(0).contiguous())
    found = outcomes(member, task)
    assert found["stock"] == found["test"] == found["files"] == "fail"
    assert found["size"] == found["parent"] == "pass"


def test_a_head_that_rounding_changed_still_passes_stock(member: Path) -> None:
    change_head(member, lambda tensor: tensor * (1 + 1e-6))
    assert outcomes(member) == {
        "files": "fail",
        "stock": "pass",
        "parent": "pass",
        "size": "pass",
        "test": "cannot check",
    }


def test_a_head_of_another_shape_fails(member: Path, task: Task) -> None:
    change_head(member, lambda tensor: torch.cat([tensor, tensor]))
    found = outcomes(member, task)
    assert (found["stock"], found["size"], found["test"]) == ("fail", "fail", "fail")


def test_weights_that_cannot_be_read_fail_without_a_traceback(member: Path, task: Task) -> None:
    (member / "model.safetensors").write_bytes(b"nothing of the sort")
    assert outcomes(member, task) == dict.fromkeys(ALL, "fail") | {"parent": "pass"}


def test_a_parent_that_is_gone_cannot_be_checked(member: Path, parent: Path) -> None:
    shutil.rmtree(parent)
    (verdict,) = [verdict for verdict in certificate.verify(member) if verdict.claim.check == "parent"]
    assert verdict.outcome == "cannot check"
    assert str(parent) in verdict.reason


def test_a_parent_that_is_another_fails(member: Path, parent: Path) -> None:
    tensors = load_file(parent / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"] += 1
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    (verdict,) = [verdict for verdict in certificate.verify(member) if verdict.claim.check == "parent"]
    assert verdict.outcome == "fail"
    assert "another checkpoint now" in verdict.reason


def test_another_task_cannot_check(member: Path, task: Task) -> None:
    assert outcomes(member, replace(task, task_id="other"))["test"] == "cannot check"


def test_a_claim_that_was_made_up_fails(member: Path, task: Task) -> None:
    path = member / certificate.FILE
    content = json.loads(path.read_text())
    claims = {claim["check"]: claim for claim in content["claims"]}
    claims["test"]["values"]["value"] = 0.999
    claims["size"]["values"]["parameters"] -= 1
    claims["files"]["values"] = {}
    path.write_text(json.dumps(content))
    found = outcomes(member, task)
    assert (found["test"], found["size"], found["files"]) == ("fail", "fail", "fail")


def test_a_moved_member_still_passes(member: Path, tmp_path: Path, task: Task) -> None:
    moved = member.rename(tmp_path / "elsewhere")
    assert outcomes(moved, task) == dict.fromkeys(ALL, "pass")


def test_the_fixed_texts_fit_every_model() -> None:
    assert len(set(SAMPLES)) == len(SAMPLES) == 8
    assert all(SAMPLES)
