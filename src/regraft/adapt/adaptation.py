"""One adaptation: a checkpoint, a head, a way to train; it goes on leg by leg and its state is kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from regraft import faults, methods
from regraft.adapt.heads import Head
from regraft.adapt.tuning import Tuning
from regraft.checkpoint import Checkpoint, load_encoder, load_tokenizer, max_length
from regraft.checkpoint.batches import Tokens
from regraft.checkpoint.classifier import TextClassifier, probabilities
from regraft.errors import MethodError
from regraft.progress import SILENT, Progress
from regraft.store import whole_folder
from regraft.train.loop import Data, Leg, Settings, State, begin, load_weights, train_leg


@dataclass(frozen=True)
class Plan:
    """What an adaptation is, as data: the part of a recipe that makes it again.

    Args:
        method: `probe`, or a training method of the capability `adapt`.
        settings: Settings of the training loop that differ from the method's own.
        options: Options of the method (LoRA: `rank`, `alpha`).
    """

    method: str
    settings: dict[str, Any]
    options: dict[str, Any]
    seed: int = 0

    def tuning(self) -> Tuning:
        """The training method."""
        found = methods.get("adapt", self.method)
        if "training" not in found.needs:
            raise MethodError(f"adapt's method {self.method!r} trains nothing.", "Use its function as it is.")
        tuning: Tuning = found()
        known = {one.name for one in fields(tuning.settings)} - {"seed"}
        _check_names(f"Training with {self.method!r}", "setting", self.settings, known)
        _check_names(f"The method {self.method!r}", "option", self.options, set(tuning.options))
        for name, value in self.settings.items():
            _check_number(name, value, getattr(tuning.settings, name), least=1 if name in ("batch", "average") else 0)
        for name, value in self.options.items():
            _check_number(name, value, 1, least=1)
        return replace(tuning, settings=replace(tuning.settings, seed=self.seed, **self.settings))


def _check_number(name: str, value: Any, default: bool | int | float, least: int) -> None:
    """Refuse a value of another kind than the default's, or below `least`."""
    kind = bool if isinstance(default, bool) else int if isinstance(default, int) else (int, float)
    if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, kind) or not value >= least:
        words = {bool: "true or false", int: f"a whole number of at least {least}"}.get(
            type(default), "a positive number"
        )
        raise MethodError(f"{name} is {value!r}, expected {words}.", "Correct it.")


def _check_names(who: str, what: str, given: Iterable[str], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise MethodError(f"{who} takes no {what} {unknown[0]!r}.", f"Known: {', '.join(sorted(known)) or 'none'}.")


def classifier_from(
    checkpoint: Checkpoint,
    labels: Sequence[str],
    head: Head,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextClassifier:
    """The checkpoint's encoder under a probe head: the `probe` candidate itself, and where training starts."""
    classifier = TextClassifier(
        load_encoder(checkpoint, device=device, dtype=dtype),
        load_tokenizer(checkpoint),
        labels,
        max_length(checkpoint),
        head.layer_weights(checkpoint.num_layers),
        head.view == "both",
    )
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(head.weight))
        classifier.head.bias.copy_(torch.from_numpy(head.bias))
    return classifier.to(device=device, dtype=dtype).eval()


class Adaptation:
    """A classifier in training.

    The folder holds one sub-folder a finished leg (`leg-1` after the first); each appears whole or not at all.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        labels: Sequence[str],
        head: Head,
        plan: Plan,
        folder: Path,
        *,
        device: str = "cpu",
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.classifier: TextClassifier
        self._state: State
        self.tuning = plan.tuning()
        self.settings: Settings = self.tuning.settings
        self._from = (checkpoint, labels, head, device)
        self.restart()

    def _start(self) -> TextClassifier:
        checkpoint, labels, head, device = self._from
        classifier = classifier_from(checkpoint, labels, head, device=device)
        self.tuning.prepare(classifier, {**self.plan.options, "seed": self.plan.seed} if self.tuning.adapter else {})
        return classifier

    @property
    def steps(self) -> int:
        """Steps trained so far."""
        return self._state.step

    def resume(self, legs: int) -> bool:
        """Go back to the state after that many legs; False when it is not on disk, or damaged there."""
        if legs == self._state.legs:
            return True
        folder = self.folder / f"leg-{legs}"
        if not folder.is_dir():
            return False
        try:
            self._state = State.load(folder)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return False
        load_weights(self.classifier, self._state.averaged)
        return True

    def restart(self) -> None:
        """Back to the start: the probe head on the checkpoint's own encoder."""
        start = self._start()
        self.classifier, self._state = start, begin(start)

    def train(
        self, data: Data, leg: Leg, *, stop: Callable[[], bool] | None = None, progress: Progress = SILENT
    ) -> int:
        """Train one leg and keep the state; returns the steps that were made."""
        before = self._state.step
        try:
            self._state = train_leg(
                self.classifier, data, self.settings, self._state, leg, stop=stop, progress=progress
            )
        except BaseException:
            self._state.legs = -1  # its tensors are used up: `resume` has to read them from disk
            raise
        faults.point("leg trained")
        with whole_folder(self.folder / f"leg-{self._state.legs}") as aside:
            self._state.save(aside)
        faults.point("leg written")
        return self._state.step - before

    def forget_before(self, legs: int) -> None:
        """Remove the states of earlier legs, once the later ones have been measured and logged."""
        import shutil

        for old in self.folder.glob("leg-*"):
            if int(old.name.removeprefix("leg-")) < legs:
                shutil.rmtree(old, ignore_errors=True)

    def probabilities(self, tokens: Tokens) -> np.ndarray:
        """Class probabilities under the averaged weights, fp64 [N, C]."""
        return probabilities(self.classifier, tokens)

    def finished(self) -> TextClassifier:
        """The classifier as a stock encoder and a head; the adaptation is over."""
        classifier = self.tuning.merged(self.classifier)
        for parameter in classifier.parameters():
            parameter.requires_grad_(False)
        return classifier.eval()
