"""The Hub: what it says is repeated plainly, without its text; what is in the cache is found without it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from regraft.budget import Deadline
from regraft.checkpoint import hub, open_checkpoint
from regraft.errors import BadReferenceError, BudgetError, HubError

SECRET = "hf_secret_token"
COMMIT = "0123abcd" * 5


def answer(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={"authorization": SECRET}, request=None, text=SECRET)


FAULTS = {
    "gated": (errors.GatedRepoError(SECRET, response=answer(403)), "is gated", "hf auth login"),
    "absent": (errors.RepositoryNotFoundError(SECRET, response=answer(404)), "does not exist on the Hub", "spelling"),
    "revision": (errors.RevisionNotFoundError(SECRET, response=answer(404)), "has no revision 'v9'", "branches"),
    "server": (errors.HfHubHTTPError(SECRET, response=answer(503)), "answered with status 503", "later"),
    "no network": (ConnectionError(SECRET), "the Hub cannot be reached", "hf-cache:"),
    "timeout": (TimeoutError(SECRET), "the Hub cannot be reached", "hf-cache:"),
    "offline": (errors.OfflineModeIsEnabled(SECRET), "HF_HUB_OFFLINE", "hf-cache:"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_said_without_the_clients_text(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error, words, remedy = FAULTS[fault]
    asked = []

    def refuse(self: object, repository: str, **options: object) -> None:
        asked.append((repository, options["revision"], options["timeout"]))
        raise error

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(HubError) as caught:
        open_checkpoint("hf:org/name@v9")
    assert asked == [("org/name", "v9", hub.ANSWER_TIMEOUT_S)]
    assert "org/name" in caught.value.problem
    assert words in caught.value.problem
    assert remedy in caught.value.remedy
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_fault_during_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> str:
        raise OSError(28, "No space left on device")

    listing = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename="config.json")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repository, **options: listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(HubError, match="could not be downloaded") as caught:
        open_checkpoint("hf:org/name")
    assert "No space left on device" in caught.value.problem
    assert "disk" in caught.value.remedy


def test_only_safe_files_are_downloaded(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> None:
    names = ["config.json", "1_Pooling/config.json", "model.safetensors", "pytorch_model.bin", "modeling.py",
             "onnx/config.json", "model.fp16.safetensors", "README.md", "vocab.txt", "x.pkl"]  # fmt: skip
    fetched = []

    def download(repository: str, name: str, **options: object) -> str:
        assert options["revision"] == COMMIT, "files of one repository would be of different commits"
        fetched.append(name)
        return str(tiny_bert / name)

    listing = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repository, **options: listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.snapshot("org/name") == tiny_bert
    assert fetched == ["1_Pooling/config.json", "README.md", "config.json", "model.safetensors", "vocab.txt"]


def test_a_repository_without_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename="pytorch_model.bin")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repository, **options: listing)
    with pytest.raises(HubError, match="holds none of the files of a checkpoint"):
        hub.snapshot("org/name")


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_what_was_downloaded_is_found_offline_by_its_revision(
    revision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bert: Path
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(tiny_bert, snapshot)
    names = sorted(path.name for path in tiny_bert.iterdir())
    listing = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, **options: str(snapshot / name))
    with monkeypatch.context() as online:
        online.setattr(huggingface_hub.HfApi, "model_info", lambda self, repository, **options: listing)
        assert hub.snapshot(f"org/name{revision}") == snapshot
    assert open_checkpoint(f"hf:org/name{revision}").folder == snapshot  # HF_HUB_OFFLINE is set


def test_a_download_ends_with_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    listing = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename="config.json")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repository, **options: listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, **options: never.wait())
    with pytest.raises(BudgetError, match="hf:org/name was not downloaded within"):
        open_checkpoint("hf:org/name", Deadline(0.05))


def test_what_is_in_the_cache_is_found_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bert: Path
) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_bert, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = open_checkpoint("hf:org/name#layers=2")
    assert found.folder == repository / "snapshots" / ("0" * 40)
    assert found.name == "name-l2"
    with pytest.raises(HubError, match="not whole, in the local cache"):
        open_checkpoint("hf:org/name@other")


def test_a_name_that_the_client_refuses() -> None:
    with pytest.raises(BadReferenceError, match="is no name of a Hub repository"):
        open_checkpoint("hf:-org/--name")
