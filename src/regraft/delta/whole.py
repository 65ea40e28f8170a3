"""Files that are no safetensors: one zstd frame each, which any zstd reads."""

from __future__ import annotations

from pathlib import Path

import zstandard

from regraft.delta.files import Target
from regraft.errors import CheckpointError

LEVEL = 3
STEP = 2**20
WINDOW_LIMIT = 2**23  # what a reader will hold; level 3 asks for 2 MiB


def squeeze_file(source: Path, out: Path) -> tuple[int, int, str]:
    """Write the frame of a file: bytes before, bytes after, SHA-256 before.

    Raises:
        CheckpointError: The file cannot be read.
        OSError: `out` cannot be written.
    """
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
    with Target(None) as original, Target(out, hashed=False) as packed:
        try:
            with source.open("rb", buffering=0) as file:
                while data := file.read(STEP):
                    original.write(data)
                    packed.write(compressor.compress(data))
        except OSError as fault:
            if fault.filename is None:  # of the target
                raise
            raise CheckpointError(f"{source} cannot be read ({fault.strerror}).", "Check its permissions.") from fault
        packed.write(compressor.flush())
    return original.written, packed.written, original.sha256


def unsqueeze_file(path: Path, out: Path | None, size: int) -> str:
    """Write the file of a frame to `out` (None: only check it), `size` bytes at most; its SHA-256.

    Raises:
        CheckpointError: The frame is damaged, or holds more than it may.
        OSError: `out` cannot be written.
    """
    reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT)
    try:
        with path.open("rb") as file, Target(out) as target, reader.stream_reader(file) as stream:
            while data := stream.read(min(STEP, size + 1 - target.written)):
                if target.written + len(data) > size:
                    raise CheckpointError(f"{path} unpacks to more than the {size} bytes that the pack claims.")
                target.write(data)
    except zstandard.ZstdError as fault:
        raise CheckpointError(f"{path} is damaged ({fault}).", "Use an intact copy of the pack.") from fault
    return target.sha256
