"""Small files of a checkpoint: read with a size limit, never trusted, and faults said in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from regraft.errors import CheckpointError, UnreadableFileError
from regraft.paths import open_regular

CONFIG_LIMIT = 16 * 2**20  # bytes; the largest configs in use (label lists, layer lists) stay far under one MiB
TOKENIZER_LIMIT = 256 * 2**20  # bytes; vocabularies of 256k tokens with merges take about 40 MiB


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a small file.

    Raises:
        CheckpointError: It is missing, or is larger than `limit` bytes.
        UnreadableFileError: It cannot be read, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            # Room is set aside for as much as is asked for.
            data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing.", "Give a folder in Hugging Face layout, as save_pretrained writes it."
        ) from None
    except OSError as error:
        raise UnreadableFileError(
            f"{path} cannot be read ({error.strerror}).", "Check the file and its permissions."
        ) from error
    if len(data) > limit:
        raise CheckpointError(
            f"{path} is larger than {limit // 2**20} MiB, more than a file of its kind can need.",
            "Download or save the checkpoint again.",
        )
    return data


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: See `read_bytes`; or the content is no JSON in UTF-8.
    """
    data = read_bytes(path, limit)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(
            f"{path} is not JSON ({_first_line(error)}).", "Download or save the checkpoint again."
        ) from error


def read_json_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: See `read_json`; or the value is not an object.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(value).__name__}, expected an object.", "Download or save the checkpoint again."
        )
    return value


def optional_json_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """As `read_json_object`; empty when the file does not exist."""
    return read_json_object(path, limit) if path.exists() else {}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
