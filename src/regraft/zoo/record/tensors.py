"""What the headers of a folder's weights say: how many parameters, in which formats, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regraft.checkpoint import blocks
from regraft.checkpoint.adapter import WEIGHTS as ADAPTER_WEIGHTS
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.headers import HEADER_LIMIT, INDEX, SINGLE, TensorInfo, is_shard, read_header, read_tensors
from regraft.errors import CheckpointError, UnreadableFileError, UnsafeCheckpointError
from regraft.paths import open_regular
from regraft.zoo.record.folder import Folder, too_many_values
from regraft.zoo.record.listing import printable

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
        if name == INDEX and any(
            link.startswith(at) and link.endswith(".safetensors") for link in folder.listing.links_out
        ):
            _shard_risks(folder, at, missing=False)  # a shard is not followed; the link is a risk of its own
            return {}
        found = read_header(place / name) if name != INDEX else read_tensors(place)
        if not found:
            folder.risk("header", "danger", f"{at}{name}", f"{at}{name} holds no tensor.")
        return found
    except CheckpointError as error:
        if name == INDEX and _shard_risks(folder, at):
            return {}
        problem = error.problem.replace(f"{folder.path}/", "")
        if isinstance(error, UnreadableFileError):
            folder.risk("unreadable-file", "danger", f"{at}{name}", problem)
        elif isinstance(error, UnsafeCheckpointError):
            folder.risk("path-out", "danger", f"{at}{name}", problem)
        elif "quantised format" in problem:
            folder.risk("quantised", "warning", f"{at}{name}", problem)
        else:
            folder.risk("header", "danger", f"{at}{name}", problem)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        folder.risk("unreadable-file", "danger", f"{at}{name}", f"{at}{name} cannot be read ({reason}).")
    return {}


def _bomb(folder: Folder, at: str, name: str) -> str | None:
    """The first file whose header holds more values than any model's; None where all can be read."""
    names = [f"{at}{name}"]
    if name == INDEX:
        names += [one for one in folder.names(at.rstrip("/")) if one.endswith(".safetensors")]
    for one in names:
        if folder.listing.files[one].bytes < 2**20:
            continue
        with open_regular(folder.path / one) as file:
            first = b"" if one.endswith(".json") else file.read(8)
            length = int.from_bytes(first, "little") if first else HEADER_LIMIT
            # A header that is too long is refused where it is read.
            if 2**20 < length <= HEADER_LIMIT and too_many_values(file.read(length)):
                return one
    return None


def _shard_risks(folder: Folder, at: str, *, missing: bool = True) -> bool:
    """Note what an index names outside of its folder, and the shards that are not beside it; neither hides the other.

    Whether there was either.
    """
    place, index = folder.path / at, f"{at}{INDEX}"
    try:
        weight_map: Any = read_json_object(place / INDEX, HEADER_LIMIT).get("weight_map")
        shards = sorted({shard for shard in weight_map.values() if isinstance(shard, str)})
        outside = [shard for shard in shards if not is_shard(shard)]
        absent = [shard for shard in shards if missing and is_shard(shard) and not (place / shard).exists()]
    except (CheckpointError, OSError, ValueError, AttributeError):
        return False
    if outside:
        folder.risk(
            "path-out", "danger", index,
            f"{index} names {_first(outside)}, which {'are' if len(outside) > 1 else 'is'} no .safetensors file of this folder.",
        )  # fmt: skip
    if absent:
        problem = f"{_first(absent)} of {index} {'are' if len(absent) > 1 else 'is'} missing."
        folder.risk("missing-file", "danger", f"{at}{absent[0]}", problem)
    return bool(outside or absent)


def _first(names: list[str]) -> str:
    return printable(names[0][:80]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
