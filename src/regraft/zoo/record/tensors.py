"""What the headers of a folder's weights say: how many parameters, in which formats, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.checkpoint import blocks
from regraft.checkpoint.adapter import WEIGHTS as ADAPTER_WEIGHTS
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.headers import HEADER_LIMIT, INDEX, SINGLE, TensorInfo, read_header, read_tensors
from regraft.errors import CheckpointError, UnsafeCheckpointError
from regraft.zoo.record.folder import Folder, too_many_values

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class Totals:
    """See `Record`; None without tensors that can be read."""

    parameters: int | None = None
    encoder_parameters: int | None = None
    weight_bytes: int | None = None
    dtypes: Mapping[str, int] = field(default_factory=dict)
    tensors: int | None = None


def totals_of(tensors: Mapping[str, TensorInfo]) -> Totals:
    """Sums over the headers of tensors; masks and tables are no parameters."""
    if not tensors:
        return Totals()
    parameters = inside = 0
    dtypes: dict[str, int] = {}
    for name, tensor in tensors.items():
        size = tensor.end - tensor.start
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + size
        if tensor.dtype in FLOATS and not blocks.is_buffer(name):
            elements = tensor.elements
            parameters += elements
            inside += elements if blocks.in_blocks(name) else 0
    return Totals(parameters, inside, sum(dtypes.values()), dict(sorted(dtypes.items())), len(tensors))


def tensors_of(folder: Folder, encoder: str, modules: list[tuple[str, str]]) -> dict[str, TensorInfo]:
    """The encoder's tensors and those of the sentence-transformers modules after it, or an adapter's; by name.

    Empty where there are none, or where a header is wrong or a shard missing, which is then a risk.
    """
    at = f"{encoder}/" if encoder else ""
    for name in (SINGLE, INDEX, ADAPTER_WEIGHTS):
        if f"{at}{name}" in folder:
            tensors = _read(folder, at, name)
            break
    else:
        others = [name for name in folder.names(encoder) if name.endswith(".safetensors")]
        tensors = _read(folder, at, others[0][len(at) :]) if len(others) == 1 else {}
    for _, where in modules:
        if where and where != encoder and f"{where}/{SINGLE}" in folder:
            own = _read(folder, f"{where}/", SINGLE)
            tensors |= {f"{where}.{name}": tensor for name, tensor in own.items()}
    return tensors


def _read(folder: Folder, at: str, name: str) -> dict[str, TensorInfo]:
    place = folder.path / at
    try:
        if (huge := _bomb(folder, at, name)) is not None:
            folder.risk("too-large", "warning", huge, "Its header would take gigabytes of memory, and was not read.")
            return {}
        if name != INDEX:
            return read_header(place / name)
        if any(link.startswith(at) and link.endswith(".safetensors") for link in folder.listing.links_out):
            return {}  # a shard that is not followed; the link is a risk of its own
        return read_tensors(place)
    except CheckpointError as error:
        if name == INDEX and (missing := _missing_shards(place)):
            folder.risk("missing-file", "danger", f"{at}{missing[0]}", _missing(missing, at + INDEX))
            return {}
        problem = error.problem.replace(f"{folder.path}/", "")
        if "quantised format" in problem:
            folder.risk("quantised", "warning", f"{at}{name}", problem)
        elif isinstance(error, UnsafeCheckpointError):
            folder.risk("path-out", "danger", f"{at}{name}", problem)
        else:
            folder.risk("header", "danger", f"{at}{name}", problem)
    except (OSError, ValueError) as error:
        folder.risk("unreadable-file", "danger", f"{at}{name}", str(error))
    return {}


def _bomb(folder: Folder, at: str, name: str) -> str | None:
    """The first file whose header holds more values than any model's; None where all can be read."""
    names = [f"{at}{name}"]
    if name == INDEX:
        names += [one for one in folder.names(at.rstrip("/")) if one.endswith(".safetensors")]
    for one in names:
        if folder.listing.files[one].bytes < 2**20:
            continue
        with (folder.path / one).open("rb") as file:
            first = b"" if one.endswith(".json") else file.read(8)
            length = int.from_bytes(first, "little") if first else HEADER_LIMIT
            # A header that is too long is refused where it is read.
            if 2**20 < length <= HEADER_LIMIT and too_many_values(file.read(length)):
                return one
    return None


def _missing_shards(place: Path) -> list[str]:
    """The shards that an index names and that are not beside it."""
    try:
        weight_map: Any = read_json_object(place / INDEX, HEADER_LIMIT).get("weight_map")
        shards = sorted({shard for shard in weight_map.values() if isinstance(shard, str) and "/" not in shard})
        return [shard for shard in shards if not (place / shard).exists()]
    except (CheckpointError, OSError, ValueError, AttributeError):
        return []


def _missing(names: list[str], index: str) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} of {index} {'are' if more else 'is'} missing."
