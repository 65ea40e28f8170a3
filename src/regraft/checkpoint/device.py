"""Where models are computed: the processor, or an accelerator that is there."""

from __future__ import annotations

import torch

from regraft.errors import RegraftError


def check_device(device: str) -> None:
    """Refuse a device that is not there, before a weight is read.

    Raises:
        RegraftError: Says which there are.
    """
    here = usable_devices()
    # "cuda" alone is the first one, as everywhere in torch.
    if device not in here and device not in {name.partition(":")[0] for name in here}:
        raise RegraftError(f"There is no device {device!r} here.", f"Choose one of {', '.join(here)}.")


def usable_devices() -> list[str]:
    """The names of this machine's devices: cpu, then cuda:0, cuda:1 ... and mps where they are."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
