"""The parent's tensors: which one a tensor of a fine-tune came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.errors import CheckpointError


class Parents:
    """The tensors of every safetensors file below a folder; headers only.

    A tensor's counterpart has its dtype and shape and lies in a folder of the same name below the checkpoint's: in the file
    of the same name if there is one like it, else in any (checkpoints are sharded differently). It has the same name, or one
    that differs by the word in front (`bert.encoder.layer.0 ...` of a classifier, `encoder.layer.0 ...` of its encoder).

    Raises:
        CheckpointError: The folder does not exist, or holds no safetensors file that can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[tuple[str, str], TensorInfo] = {}
        self._like: dict[tuple[str, str], list[tuple[str, str]]] = {}
        if not folder.is_dir():
            raise CheckpointError(
                f"The parent {folder} is missing.", "Give the folder of the parent as it was when the pack was made."
            )
        faults = []
        for path in sorted(folder.rglob("*.safetensors")):
            try:
                for info in read_header(path).values():
                    self._add(path.relative_to(folder).as_posix(), info)
            except CheckpointError as fault:  # such as quantised weights: no parent for anything
                faults.append(fault)
        if not self.tensors:
            why = f": {faults[0].problem}" if faults else "."
            raise CheckpointError(
                f"The parent {folder} holds no safetensors weights{why}",
                "Give the folder of a checkpoint; restore it first if it is a pack.",
            )

    def _add(self, file: str, info: TensorInfo) -> None:
        self.tensors[file, info.name] = info
        where = PurePosixPath(file).parent.as_posix()
        for name in _names(info.name):
            self._like.setdefault((where, name), []).append((file, info.name))

    def find(self, file: str, tensor: TensorInfo) -> tuple[tuple[str, str], TensorInfo] | None:
        """The counterpart of a tensor of `file` (below the checkpoint's folder): (file, name), and what its header says."""
        where = PurePosixPath(file).parent.as_posix()
        for name in _names(tensor.name):
            places = self._like.get((where, name), [])
            for place in sorted(places, key=lambda place: (place[1] != tensor.name, place[0] != file, place)):
                found = self.tensors[place]
                if (found.dtype, found.shape) == (tensor.dtype, tensor.shape):
                    return place, found
        return None

    def at(self, place: tuple[str, str]) -> TensorInfo | None:
        """The tensor at (file, name), or the one of that name in another file of the folder, should it be sharded anew."""
        if place in self.tensors:
            return self.tensors[place]
        where = PurePosixPath(place[0]).parent.as_posix()
        others = [other for other in self._like.get((where, place[1]), []) if other[1] == place[1]]
        return self.tensors[others[0]] if others else None


def _names(name: str) -> Iterator[str]:
    """The name, and the name without the word in front."""
    yield name
    if "." in name:
        yield name.split(".", 1)[1]
