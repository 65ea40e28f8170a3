"""The Hugging Face Hub: fetch the safe files of a repository, and say plainly when that cannot be done."""

from __future__ import annotations

import re
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from regraft.budget import Deadline, downloaded
from regraft.errors import BadReferenceError, HubError, RegraftError
from regraft.store import write_whole

# No pickles, no code, no copies for other runtimes.
ALLOWED = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md", "LICENSE*"]
IGNORED = ["onnx/*", "openvino/*", "checkpoint-*/*", "runs/*", "*.fp16.safetensors", "*.fp32-*"]
ANSWER_TIMEOUT_S = 10.0  # without a byte; how long a whole download may take is the deadline's to say


def snapshot(name: str, deadline: Deadline | None = None) -> Path:
    """The local folder of `org/name[@revision]`, downloaded if the cache does not have it.

    All of its files are of one commit: the one that the revision means when it is asked for.

    Messages never repeat what the Hub's client says: that text can hold URLs with signatures.

    Raises:
        BadReferenceError: No name of a repository.
        HubError: Gated, absent, unreachable, or not in the cache while offline.
        BudgetError: Not downloaded before the deadline.
    """
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository) or ".." in repository or (name.count("@") and not revision):
        raise BadReferenceError(
            f"hf:{name} is no name of a Hub repository.", "Write hf:org/name or hf:org/name@revision."
        )
    from huggingface_hub import errors

    try:
        return downloaded(f"hf:{name}", lambda: _fetch(repository, revision or None), deadline)
    except RegraftError:
        raise
    except errors.GatedRepoError:
        raise HubError(
            f"hf:{name} is gated: its owner grants access person by person.",
            "Ask for access on its page on the Hub, then log in: hf auth login.",
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"hf:{repository} has no revision {revision!r}.", "Look up its branches and tags.") from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"hf:{name} does not exist on the Hub, or is private.",
            "Check the spelling; for a private one log in: hf auth login.",
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise HubError(
            f"hf:{name} is not, or not whole, in the local cache, and the Hub cannot be reached "
            "(no network, or HF_HUB_OFFLINE is set).",
            "Connect, or give a folder, or --zoo hf-cache: for what is already here.",
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", "no")
        raise HubError(f"hf:{name}: the Hub answered with status {status}.", "Try again later.") from None
    except errors.HFValidationError:
        raise BadReferenceError(f"hf:{name} is no name of a Hub repository.", "Write hf:org/name.") from None
    except Exception as error:  # the HTTP client's own errors, whichever client it is, and a full disk
        why = getattr(error, "strerror", None) or type(error).__name__
        raise HubError(f"hf:{name} could not be downloaded ({why}).", "Check network and free disk space.") from None


def cached(name: str) -> Path | None:
    """The folder of `org/name[@revision]` in the Hub's cache on this machine; None where it is not. Nothing is downloaded."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    with suppress(Exception):  # absent, half there, no name: in any of the ways that the client says it
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=ALLOWED,
                ignore_patterns=IGNORED,
                local_files_only=True,
            )
        )
    return None


def _fetch(repository: str, revision: str | None) -> Path:
    """Every file that is allowed, one by one: unlike `snapshot_download`, no request of this waits without end."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=ANSWER_TIMEOUT_S)
    except (errors.HfHubHTTPError, errors.HFValidationError):
        raise  # the Hub's own answer, or a name that is none
    except Exception:  # offline, in any of the ways that an HTTP client can say it
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=ALLOWED, ignore_patterns=IGNORED, local_files_only=True
            )
        )
    names = [sibling.rfilename for sibling in info.siblings or ()]
    wanted = sorted(name for name in names if _matches(name, ALLOWED) and not _matches(name, IGNORED))
    if not wanted:
        raise HubError(
            f"hf:{repository} holds none of the files of a checkpoint.",
            "Give a repository with config.json and weights.",
        )
    commit = info.sha or revision
    for name in wanted:
        path = huggingface_hub.hf_hub_download(repository, name, revision=commit, etag_timeout=ANSWER_TIMEOUT_S)
    folder = Path(path).parents[len(PurePosixPath(name).parts) - 1]
    _remember(folder, revision or "main")
    return folder


def _remember(snapshot: Path, revision: str) -> None:
    """Note in the cache which commit a revision means, as downloads by the revision's name do, to find it offline.

    Only when all of it is there: until then the cache goes on with the commit that it has whole.
    """
    if snapshot.parent.name != "snapshots" or snapshot.name == revision:
        return
    reference = snapshot.parent.parent / "refs" / revision
    with suppress(OSError, RegraftError):  # a cache that cannot be written is still good to read from
        if not reference.is_file() or reference.read_text() != snapshot.name:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_whole(reference, snapshot.name)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
