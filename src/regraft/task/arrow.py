"""Parquet files, `save_to_disk` folders and datasets of the Hugging Face Hub: everything that is Arrow underneath.

Rows are read in batches of `BATCH`, so that memory stays small whatever the size. Code that a dataset repository
holds is never run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.budget import Deadline, downloaded
from regraft.errors import BadReferenceError, BudgetError, HubError, TaskError
from regraft.task.table import Table

BATCH = 8192
HUB_TIMEOUT_S = 10.0

_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@]+))?(?::(?P<config>[^:]+))?")


def parquet_table(path: Path) -> Table:
    """A Parquet file; `ClassLabel` columns that `datasets` wrote keep their names.

    Raises:
        TaskError: Not a Parquet file, or a damaged one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise TaskError(f"{path}: not a readable Parquet file: {_first(error)}", "Write the file again.") from error

    def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=list(names)):
                    yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        except (pa.ArrowException, OSError) as error:
            raise TaskError(f"{path}: damaged Parquet file: {_first(error)}", "Write the file again.") from error

    return Table(str(path), tuple(schema.names), rows, _class_names(schema.metadata))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The names of `ClassLabel` columns in the metadata that `datasets` writes into Arrow schemas."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError):
        return {}


def dataset_table(dataset: Any, where: str) -> Table:
    """One split of a `datasets.Dataset`, memory-mapped as it is."""
    import datasets

    names = {
        column: tuple(feature.names)
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }

    def rows(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        chosen = dataset.select_columns(list(columns)).with_format("arrow")
        for batch in chosen.iter(BATCH):
            yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)

    return Table(where, tuple(dataset.column_names), rows, names)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved_tables(folder: Path) -> dict[str, Table]:
    """The splits of a folder that `datasets.save_to_disk` wrote.

    Raises:
        TaskError: The folder cannot be read.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers raise
        raise TaskError(f"{folder}: not a readable `datasets` folder: {_first(error)}", "Save it again.") from error
    return _tables(loaded, str(folder))


def _tables(loaded: Any, where: str) -> dict[str, Table]:
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {str(name): dataset_table(dataset, f"{where}, split {name}") for name, dataset in splits.items()}


def parse_hub(rest: str) -> tuple[str, str | None, str | None]:
    """Name, revision and configuration of `name[@revision][:config]`.

    Raises:
        BadReferenceError: Anything else.
    """
    match = _HUB.fullmatch(rest)
    if match is None:
        raise BadReferenceError(
            f"Cannot read the dataset reference 'hf:{rest}'.", "Write it as hf:org/name, hf:org/name@revision:config."
        )
    return match["name"], match["revision"], match["config"]


def hub_tables(rest: str, deadline: Deadline | None = None) -> dict[str, Table]:
    """The splits of a dataset of the Hub, through its cache.

    Raises:
        BadReferenceError: The reference cannot be read.
        HubError: Gated, absent or unreachable.
        BudgetError: Not downloaded before the deadline.
        TaskError: Present, but not loadable: wrong configuration, a loading script, damaged files.
    """
    name, revision, config = parse_hub(rest)
    if Path(name).exists():
        # datasets.load_dataset prefers a local folder of the same name, which is not what `hf:` says.
        raise BadReferenceError(
            f"hf:{name}: the current folder holds {name!r}, which would be read instead of the Hub's dataset.",
            f"Write ./{name} for the folder, or run from another folder.",
        )
    _ask_hub(name, revision)
    import datasets

    try:
        loaded = downloaded(f"hf:{rest}", lambda: datasets.load_dataset(name, config, revision=revision), deadline)
    except BudgetError:
        raise
    except Exception as error:  # the library raises whatever its readers and its HTTP client raise
        raise _explain(error, name, revision) from error
    return _tables(loaded, f"hf:{rest}")


def _ask_hub(name: str, revision: str | None) -> None:
    """Ask the Hub once whether the dataset is there: `datasets` alone retries for half a minute without a network."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HOME

    try:
        HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of huggingface_hub or of its HTTP client
        # Without a network, what was loaded before still loads from the cache, by the cache's own folder name.
        cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
        if not (_is_network(error) and (cache / name.replace("/", "___")).is_dir()):
            raise _explain(error, name, revision) from error


def _explain(error: Exception, name: str, revision: str | None) -> HubError | TaskError:
    """The library's error in words."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # By name: datasets is not imported for asking the Hub.
    not_found = type(error).__name__ == "DatasetNotFoundError"
    if isinstance(error, GatedRepoError) or (not_found and "gated" in str(error).lower()):
        return HubError(
            f"hf:{name} is gated: its owner decides who may read it.",
            f"Ask for access at https://huggingface.co/datasets/{name} and log in with `hf auth login`.",
        )
    if not_found or isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        at = f" at revision {revision}" if revision else ""
        return HubError(
            f"hf:{name}{at} does not exist on the Hub, or is private.",
            "Check the name, or log in with `hf auth login`.",
        )
    if isinstance(error, HfHubHTTPError):
        return HubError(f"hf:{name}: the Hub refuses ({_first(error)})", "Try again later, or give the data as a file.")
    if _is_network(error):
        return HubError(
            f"hf:{name}: the Hub cannot be reached ({_first(error)})",
            "Check the network and HF_HUB_OFFLINE, or give the data as a file.",
        )
    if "scripts are no longer supported" in str(error):
        return TaskError(
            f"hf:{name} needs a loading script, and code from a repository is never run.",
            f"Try hf:{name}@refs/convert/parquet, or download its files.",
        )
    remedy = f"Name its configuration: hf:{name}:CONFIG." if "onfig" in str(error) else "Give the data as a file."
    return TaskError(f"hf:{name} cannot be loaded: {_first(error)}", remedy)


def _is_network(error: BaseException | None) -> bool:
    """Whether a network fault is anywhere in the chain of causes."""
    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in _HTTP:
            return True
        error = error.__cause__ or error.__context__
    return False


# huggingface_hub has changed its HTTP client twice; the errors of all of them mean the same here.
_HTTP = frozenset({"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2"})


def _first(error: Exception) -> str:
    """The first line of an error's text, ending with a full stop."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line.rstrip(".") + "."
