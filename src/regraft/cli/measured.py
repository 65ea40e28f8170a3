"""What `regraft evaluate` keeps in the catalogue: the result, with the outcome of each example, of a checkpoint that is in it."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.cli.zoo_names import existing
from regraft.errors import CatalogueError, RegraftError


@dataclass
class Recording:
    """A measurement that is going on.

    Args:
        catalogue: As `--catalogue`.
        folder: The checkpoint's, as the catalogue knows it; None where nothing is to be recorded.
        file_id: Of its files before they were measured.
        seen: What `evaluate_one` hands over: the checkpoint, the task, the labels and the probabilities.
    """

    catalogue: str | None
    folder: str | None = None
    file_id: str = ""
    begun: float = field(default_factory=time.monotonic)
    seen: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, checkpoint: str, catalogue: str | None) -> Recording:
        """Look a reference up; a part of a checkpoint, or one with an adapter over it, is another one than is recorded."""
        from regraft.checkpoint.reference import locate, parse

        made = cls(catalogue)
        try:
            opened = existing(catalogue)
            if opened is None:
                return made
            with opened:
                parsed = parse(checkpoint)
                if parsed.layers is not None or parsed.random is not None or parsed.adapter is not None:
                    return made
                folder = locate(parsed.base)
                names = (str(folder.absolute()), str(folder.resolve()))
                made.folder = next((opened.get(name).record.path for name in names if opened.has(name)), None)
        except CatalogueError as fault:
            _say(fault)
        except RegraftError:  # the measuring itself says what is wrong with a reference
            return made
        if made.folder is not None:
            from regraft.zoo.record import file_id_of

            made.file_id = file_id_of(Path(made.folder))
        return made

    def see(self, *seen: Any) -> None:
        """Take what was measured."""
        self.seen = seen

    def keep(self, split: str, score: dict[str, Any], device: str) -> str | None:
        """Record it; the catalogue, or None where nothing was recorded."""
        if self.folder is None or self.seen is None:
            return None
        from regraft.zoo.catalogue import Measurement, open_catalogue
        from regraft.zoo.record import file_id_of

        if file_id_of(Path(self.folder)) != self.file_id:
            sys.stderr.write(f"not recorded: the files of {self.folder} changed while they were measured\n")
            return None
        opened, task, labels, probabilities = self.seen
        spent = time.monotonic() - self.begun
        common: dict[str, Any] = {
            "task_id": task.task_id, "task": task.name, "protocol": f"{split} split, as it is", "n": len(labels),
            "measured_at": time.time(), "machine": _machine(device), "seconds": spent, "identity": opened.checkpoint_id,
        }  # fmt: skip
        try:
            with open_catalogue(self.catalogue, create=False) as catalogue:
                outcomes = _outcomes(labels, probabilities)
                for metric in ("accuracy", "macro_f1", "calibration_error"):
                    low, high = score["intervals"].get(metric, (None, None))
                    found = Measurement(metric=metric, value=score[metric], low=low, high=high, **common)
                    catalogue.record_measurement(
                        self.folder, found, outcomes if metric == "accuracy" else None, file_id=self.file_id
                    )
                return catalogue.where
        except RegraftError as fault:  # what was measured is printed all the same
            _say(fault)
            return None


def _outcomes(labels: Any, probabilities: Any) -> Any:
    import numpy as np

    from regraft.zoo.catalogue import Outcomes

    predicted = probabilities.argmax(axis=1)
    given = probabilities[np.arange(len(predicted)), predicted]
    return Outcomes.of(predicted == np.asarray(labels), predicted, np.clip(given, 0.0, 1.0))


def _machine(device: str) -> dict[str, Any]:
    return {
        "platform": platform.platform(), "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "device": device,
    }  # fmt: skip


def _say(fault: RegraftError) -> None:
    sys.stderr.write(f"not recorded: {fault.problem}\n")
