"""Averages of classifiers in weight space: parameter by parameter, from files.

One classifier is in memory, whatever the number of those that are averaged; of the others, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.checkpoint.classifier import Classifier, TextClassifier
from regraft.store import whole_folder
from regraft.train.loop import AVERAGED, STATE

WEIGHTS = "weights.safetensors"
# The merged tensor of a name and of the values, fp32 of one shape, that it has in each classifier.
Merge = Callable[[str, Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Kept:
    """Parameters of a classifier in a safetensors file, each under `prefix` + its name; one that is not there never moved."""

    path: Path
    prefix: str = ""


def keep_weights(classifier: Classifier, folder: Path) -> Kept:
    """Write all parameters of a classifier into a folder of its own."""
    from safetensors.torch import save_file

    with whole_folder(folder) as aside:
        values = {name: value.detach().cpu().contiguous() for name, value in classifier.named_parameters()}
        save_file(values, aside / WEIGHTS)
    return kept_weights(folder)


def kept_weights(folder: Path) -> Kept:
    """What `keep_weights` wrote into a folder."""
    return Kept(folder / WEIGHTS)


def kept_state(folder: Path) -> Kept:
    """The weights that a leg of training was measured by, in its state; only where they are the model's own parameters
    (a LoRA's are factors: `keep_weights` of the merged classifier)."""
    return Kept(folder / STATE, f"{AVERAGED}/")


def combine(classifier: TextClassifier, parts: Sequence[Kept | None], merge: Merge) -> None:
    """Replace the parameters of a classifier, in place, by what `merge` makes of the parts'; None: the classifier itself."""
    from safetensors import safe_open

    with ExitStack() as opened, torch.no_grad():
        files: list[tuple[Any, str, frozenset[str]]] = []
        for part in parts:
            if part is None:
                files.append((None, "", frozenset()))
            else:
                file = opened.enter_context(safe_open(part.path, "np"))
                files.append((file, part.prefix, frozenset(file.keys())))
        for name, parameter in classifier.named_parameters():
            if not any(prefix + name in names for _, prefix, names in files):
                continue
            own = parameter.detach().cpu().numpy()
            values = [file.get_tensor(prefix + name) if prefix + name in names else own
                      for file, prefix, names in files]  # fmt: skip
            parameter.copy_(torch.from_numpy(merge(name, values)))
