"""A device that is not there is refused before a weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.checkpoint import load_encoder, open_checkpoint
from regraft.checkpoint.device import check_device
from regraft.checkpoint.load import load_sequence_classifier
from regraft.errors import RegraftError


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps:7", "", "cpu:1"])
def test_a_device_that_is_not_there(device: str, tiny_bert: Path, tiny_classifier: Path) -> None:
    with pytest.raises(RegraftError, match=r"There is no device .* here. Choose one of cpu"):
        load_encoder(open_checkpoint(str(tiny_bert)), device)
    with pytest.raises(RegraftError, match="There is no device"):
        load_sequence_classifier(open_checkpoint(str(tiny_classifier)), device)


def test_the_first_accelerator_needs_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(device)
    with pytest.raises(RegraftError, match="Choose one of cpu, cuda:0, cuda:1"):
        check_device("cuda:2")
