"""Find the checkpoints and adapters that folders and the local Hub cache hold; nothing is opened here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from regraft.errors import CheckpointError, HubError
from regraft.paths import resolved
from regraft.zoo.walk import ADAPTER, Unreadable, looks_like_checkpoint, walk

DEPTH = 3  # folders below the zoo's own; enough for a Hub cache (models--org--name/snapshots/commit)


@dataclass(frozen=True)
class Candidate:
    """A folder that looks like a checkpoint or an adapter, with the names that adapters may call it by."""

    reference: str
    folder: Path
    names: frozenset[str]

    @property
    def is_adapter(self) -> bool:
        # os.path asks no permission: a folder that may only be listed is what opening it says.
        return os.path.isfile(self.folder / ADAPTER) and not os.path.isfile(self.folder / "config.json")  # noqa: PTH113


def in_folder(folder: Path, troubles: list[Unreadable] | None = None) -> list[Candidate]:
    """The checkpoint that a folder is, or those up to three levels below it, sorted by path.

    What trainers saved inside a checkpoint is not looked for: those are states of one training, not other places to start from.
    Folders that cannot be listed are added to `troubles`.
    """
    places = (Path(one) for one in walk([folder], [] if troubles is None else troubles, DEPTH, saved=False))
    return [Candidate(str(found), found, _names(found, _repository(found))) for found in places]


def in_hub_cache() -> list[Candidate]:
    """Every model snapshot in the local Hub cache that holds a model or an adapter; no network.

    Raises:
        HubError: There is no cache.
    """
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):  # absent, or a file in its place
        raise HubError(
            "There is no local Hub cache (hf-cache:).", "Download a model first, or give --zoo hf:org/name or a folder."
        ) from None
    found = []
    for repository in sorted(cache.repos, key=lambda repository: str(repository.repo_id)):
        if repository.repo_type != "model":
            continue
        revisions = sorted(repository.revisions, key=lambda revision: (-revision.last_modified, revision.commit_hash))
        for revision in revisions:
            if looks_like_checkpoint(revision.snapshot_path):
                path = Path(revision.snapshot_path)
                found.append(Candidate(str(path), path, _names(path, repository.repo_id)))
    return found


def _repository(folder: Path) -> str | None:
    """org/name of a snapshot inside a Hub cache."""
    owner = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not owner.startswith("models--"):
        return None
    return owner.removeprefix("models--").replace("--", "/")


def _names(folder: Path, repository: str | None) -> frozenset[str]:
    names = {str(folder), str(resolved(folder))}
    if repository is None:
        names.add(folder.name)
    else:
        names |= {repository, repository.split("/")[-1]}
    return frozenset(names)


def base_of(adapter: Candidate, base_name: str, candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate that an adapter's base_model_name_or_path means: by path, by name, then by the path's last part."""
    bases = [candidate for candidate in candidates if not candidate.is_adapter]
    last = base_name.replace("\\", "/").rstrip("/").split("/")[-1]
    for wanted in ({base_name, *_places(adapter.folder, base_name)}, {last}):
        for candidate in bases:
            if candidate.names & wanted:
                return candidate
    return None


def _places(folder: Path, name: str) -> set[str]:
    """Where a name is, as a path from here and from a folder. What no path can be (`~nobody`, a zero byte, links in a circle) is
    nowhere: an adapter's config is somebody else's."""
    found = set()
    for start in (Path(), folder):
        with suppress(CheckpointError, RuntimeError):
            found.add(str(resolved(start / (Path(name).expanduser() if start == Path() else Path(name)))))
    return found
