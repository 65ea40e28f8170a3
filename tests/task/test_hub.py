"""Datasets of the Hub, with the Hub played by the test: what the user reads when it says no."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft.budget import Deadline
from regraft.errors import BadReferenceError, BudgetError, HubError, RegraftError, TaskError
from regraft.task import load_task
from regraft.task.arrow import parse_hub


class NamedLikeTheirs(FileNotFoundError):
    """Stands for `datasets.exceptions.DatasetNotFoundError`, which is told by its name."""


NamedLikeTheirs.__name__ = "DatasetNotFoundError"


def refusal(kind: str) -> Exception:
    """An error of huggingface_hub, made without a response."""
    import huggingface_hub.errors as errors

    found: type[Exception] = getattr(errors, kind)
    error = found.__new__(found)
    error.args = (f"401 Client Error for {kind}\nmore lines",)
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """Decide what asking and loading do: an exception to raise, or what loading returns; returns the calls made."""
    import datasets
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def decide(asked: Exception | None = None, loaded: Any = None) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def ask(self: object, name: str, *, revision: str | None, timeout: float) -> None:
            assert timeout <= 30
            if asked is not None:
                raise asked

        def load(*args: Any, **options: Any) -> Any:
            calls.append((*args, options))
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return decide


def test_a_dataset_with_revision_and_configuration(hub: Callable[..., list[tuple[Any, ...]]]) -> None:
    import datasets

    rows = {"sentence": [f"word {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    calls = hub(loaded=datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}))
    task = load_task("hf:org/name@v1:small")
    assert calls == [("org/name", "small", {"revision": "v1"})]  # and no trust_remote_code
    assert task.name == "name"
    assert sum(map(len, task.splits().values())) == 40


def test_a_single_split_of_another_name(hub: Callable[..., list[tuple[Any, ...]]]) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"text": [f"w {i}" for i in range(40)], "label": [i % 2 for i in range(40)]})
    hub(loaded=datasets.DatasetDict({"all": data}))
    assert "The only split, 'all', is split further." in load_task("hf:org/name").notes
    hub(loaded=datasets.DatasetDict({"all": data, "some": data}))
    with pytest.raises(TaskError, match="has no train split; it has all, some"):
        load_task("hf:org/name")


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ("GatedRepoError", HubError, "is gated: its owner decides.*Ask for access at"),
        ("RepositoryNotFoundError", HubError, "org/name at revision v1 does not exist on the Hub, or is private"),
        ("RevisionNotFoundError", HubError, "org/name at revision v1 does not exist"),
        ("HfHubHTTPError", HubError, "the Hub refuses .401 Client Error"),
        (ConnectionError("no route to host"), HubError, r"cannot be reached \(no route to host.\) Check the network"),
        (TimeoutError(), HubError, r"cannot be reached \(TimeoutError.\)"),
    ],
)
def test_asking_fails(
    hub: Callable[..., list[tuple[Any, ...]]], asked: str | Exception, kind: type[RegraftError], words: str
) -> None:
    calls = hub(asked=refusal(asked) if isinstance(asked, str) else asked)
    with pytest.raises(kind, match=words):
        load_task("hf:org/name@v1")
    assert calls == []


@pytest.mark.parametrize(
    ("loaded", "kind", "words"),
    [
        (NamedLikeTheirs("Dataset 'org/name' is a gated dataset on the Hub."), HubError, "is gated"),
        (NamedLikeTheirs("Dataset 'org/name' doesn't exist"), HubError, "does not exist"),
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            TaskError,
            "code from a repository is",
        ),
        (ValueError("Config name is missing."), TaskError, "Config name is missing. Name its configuration"),
        (ValueError("damaged\ndetails"), TaskError, "cannot be loaded: damaged. Give the data as a file"),
        (ConnectionResetError("reset by peer"), HubError, "cannot be reached"),
    ],
)
def test_loading_fails(
    hub: Callable[..., list[tuple[Any, ...]]], loaded: Exception, kind: type[RegraftError], words: str
) -> None:
    hub(loaded=loaded)
    with pytest.raises(kind, match=words):
        load_task("hf:org/name")


def test_without_a_network_the_cache_is_used(hub: Callable[..., list[tuple[Any, ...]]], tmp_path: Path) -> None:
    import datasets

    rows = {"text": [f"w {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    hub(asked=ConnectionError("down"), loaded=datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}))
    with pytest.raises(HubError, match="cannot be reached"):
        load_task("hf:org/name")
    (tmp_path / "cache" / "org___name").mkdir(parents=True)
    assert len(load_task("hf:org/name").label_names) == 2


def test_a_download_ends_with_its_deadline(
    hub: Callable[..., list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    hub()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: threading.Event().wait())
    with pytest.raises(BudgetError, match="hf:org/name was not downloaded within"):
        load_task("hf:org/name", deadline=Deadline(0.05))


def test_a_local_folder_is_not_taken_for_the_hub(hub: Callable[..., list[tuple[Any, ...]]], tmp_path: Path) -> None:
    hub()
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(BadReferenceError, match=r"the current folder holds 'org/name'.* Write ./org/name"):
        load_task("hf:org/name")


@pytest.mark.parametrize("rest", ["", "a/b/c", "a b", "a/b@", "a/b:", "../x/y"])
def test_references_that_cannot_be_read(rest: str) -> None:
    with pytest.raises(BadReferenceError, match="Write it as hf:org/name"):
        load_task(f"hf:{rest}")


def test_parts_of_a_reference() -> None:
    assert parse_hub("imdb") == ("imdb", None, None)
    assert parse_hub("a/b@refs/convert/parquet") == ("a/b", "refs/convert/parquet", None)
    assert parse_hub("a/b@1.0:en") == ("a/b", "1.0", "en")
    assert parse_hub("a/b:en-US") == ("a/b", None, "en-US")
