"""The one training loop: trains a model for a leg, and keeps a state from which the next leg goes on.

A run of training is a sequence of *legs*. A leg has a number of steps and says whether the learning rate falls to zero
over it (`decay`). Between legs the rate is constant (warm-up-stable-decay, Hu et al. 2024, arXiv 2404.06395), so that a
trial can be continued at no loss, whatever was decided meanwhile. The weights that are measured and exported are an
exponential moving average (Polyak & Juditsky 1992): without it a constant rate measures badly.

Nothing depends on time: the order of the examples is a function of (seed, epoch), dropout of (seed, leg).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from regraft.checkpoint.batches import Tokens
from regraft.errors import NonFiniteError
from regraft.memory import give_back
from regraft.progress import SILENT, Progress
from regraft.randomness import permutation, seed_of

# Batches are made from pools of this many, sorted by length inside: little padding, nearly random order.
POOL = 40
# Steps after which what the C library holds is given back; that takes some milliseconds, and a step some hundreds.
TRIM_STEPS = 20
# Tokens, padding included, whose activations are held at once: a batch of long texts is several times the usual one.
MOST_TOKENS = 1024
# The file of a state; names in it are `model/...`, `averaged/...` and `moments/...`.
STATE = "state.safetensors"
AVERAGED = "averaged"


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Args:
        learning_rate: Of the encoder's weights (AdamW).
        head_learning_rate: Of the head's.
        batch: Examples a step.
        warmup: Steps over which the rate rises from zero, at the very beginning.
        weight_decay: AdamW's, on matrices only.
        average: Steps the moving average looks back over (its decay is 1 - 1/average).
        smoothing: Label smoothing.
        distill: Share of the loss that is a teacher's, where `Data` has one: see `loss_of`.
        temperature: Of the teacher's and the model's probabilities in that share.
        clip: Largest gradient norm.
        bfloat16: Whether matrix products run in bfloat16 (autocast; weights, their moments and the loss stay in fp32).
        seed: Of order and dropout.
    """

    learning_rate: float = 5e-5
    head_learning_rate: float = 1e-3
    batch: int = 32
    warmup: int = 30
    weight_decay: float = 0.01
    average: int = 50
    smoothing: float = 0.0
    distill: float = 0.0
    temperature: float = 2.0
    clip: float = 1.0
    bfloat16: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Leg:
    """How far to train: `steps` steps; with `decay` > 0 the rate falls linearly to zero over that many.

    `steps` below `decay` is a leg that ended early: replaying it gives the same weights.
    """

    steps: int
    decay: int = 0


@dataclass
class State:
    """Where training stands between two legs."""

    step: int = 0
    legs: int = 0
    model: dict[str, torch.Tensor] = field(default_factory=dict)
    averaged: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the state: one safetensors file, no pickle."""
        tensors = {f"{kind}/{name}": value.contiguous() for kind in ("model", AVERAGED, "moments")
                   for name, value in getattr(self, kind).items()}  # fmt: skip
        save_file(tensors, folder / STATE, metadata={"step": str(self.step), "legs": str(self.legs)})

    @classmethod
    def load(cls, folder: Path) -> State:
        """Read a state that `save` wrote."""
        from safetensors import safe_open

        path = folder / STATE
        with safe_open(path, "pt") as file:
            about = file.metadata()
        state = cls(int(about["step"]), int(about["legs"]))
        for key, value in load_file(path).items():
            kind, name = key.split("/", 1)
            getattr(state, kind)[name] = value
        return state


@dataclass(frozen=True)
class Data:
    """Tokenised training examples and their labels; `teacher` fp32 [N, C] are another model's logits of them."""

    tokens: Tokens
    labels: np.ndarray
    teacher: np.ndarray | None = None

    def steps_per_epoch(self, batch: int) -> int:
        """Steps that see every example once (the last batch may be smaller)."""
        return -(-len(self.labels) // batch)

    def batches(self, settings: Settings, step: int) -> Iterator[np.ndarray]:
        """Rows of the batches from `step` on, for ever."""
        per_epoch = self.steps_per_epoch(settings.batch)
        epoch, start = divmod(step, per_epoch)
        while True:
            yield from epoch_batches(self.tokens.lengths, settings.batch, settings.seed, epoch)[start:]
            epoch, start = epoch + 1, 0


def epoch_batches(lengths: np.ndarray, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch: a permutation, sorted by length inside pools, the batches then shuffled."""
    order = permutation(len(lengths), seed, "order", epoch)
    pools = [order[at : at + POOL * batch] for at in range(0, len(order), POOL * batch)]
    pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[at : at + batch] for pool in pools for at in range(0, len(pool), batch)]
    return [batches[at] for at in permutation(len(batches), seed, "batches", epoch)]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def begin(model: nn.Module) -> State:
    """The state before the first step."""
    start = {name: value.detach().clone() for name, value in trained_parameters(model).items()}
    return State(model=start, averaged={name: value.clone() for name, value in start.items()})


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put the trained parameters of a state into the model."""
    parameters = trained_parameters(model)
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def train_leg(
    model: nn.Module,
    data: Data,
    settings: Settings,
    state: State,
    leg: Leg,
    *,
    stop: Callable[[], bool] | None = None,
    progress: Progress = SILENT,
) -> State:
    """Train for one leg and return the state after it; the model then holds its averaged weights.

    Args:
        model: Logits from `input_ids` and `attention_mask`; only parameters that require a gradient are trained.
        leg: How far to go.
        state: Where training stands; it is used up (its tensors are taken over, to hold them once only).
        stop: Asked before each step; when true the leg ends early (the state counts the steps that were made).

    Raises:
        NonFiniteError: The loss is NaN or infinite.
    """
    load_weights(model, state.model)
    state.model.clear()
    parameters = trained_parameters(model)
    optimizer = _optimizer(parameters, settings, state)
    device = str(next(model.parameters()).device)
    targets = torch.from_numpy(np.ascontiguousarray(data.labels)).to(device)
    averaged = {name: value.to(device) for name, value in state.averaged.items()}
    names, values = list(parameters), [value.detach() for value in parameters.values()]
    averages = [averaged[name] for name in names]
    torch.manual_seed(seed_of(settings.seed, "dropout", state.legs) % 2**63)
    model.train()
    step = state.step
    for done, rows in enumerate(data.batches(settings, state.step)):
        if done == leg.steps or (stop is not None and stop()):
            break
        share = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
        if leg.decay:
            share *= max(0.0, 1.0 - done / leg.decay)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(model, data, rows, targets, settings)
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"Training gave a loss of {loss} at step {step}.", "Lower the learning rate, or use float32."
            )
        nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        optimizer.step()
        step += 1
        # The average starts as a plain mean, so that the first steps do not weigh it down for long.
        torch._foreach_lerp_(averages, values, 1.0 / min(settings.average, step + 1))
        progress.advance()
        if step % TRIM_STEPS == 0:
            give_back()
    model.eval()
    optimizer.zero_grad(set_to_none=True)
    give_back()
    after = State(
        step,
        state.legs + 1,
        {name: value.detach().cpu().clone() for name, value in parameters.items()},
        {name: value.detach().cpu() for name, value in averaged.items()},
        _moments(optimizer, parameters),
    )
    load_weights(model, after.averaged)
    return after


def seconds_a_step(
    model: nn.Module, data: Data, settings: Settings, steps: int = 5, stop: Callable[[], bool] | None = None
) -> float:
    """Seconds of a step as it would be trained, without changing the model: the median of a few, after one to warm up.

    The optimiser's share is left out: it is a few per cent. `stop` is asked before each step but the first; when it is true at
    once, that first one is all there is to go by.
    """
    device = str(next(model.parameters()).device)
    targets = torch.from_numpy(np.ascontiguousarray(data.labels)).to(device)
    model.train()
    taken: list[float] = []
    for rows in islice(data.batches(settings, 0), steps + 1):
        if taken and stop is not None and stop():
            break
        started = time.perf_counter()
        _backward(model, data, rows, targets, settings)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    model.eval()
    return float(np.median(taken[1:] or taken))


def _backward(model: nn.Module, data: Data, rows: np.ndarray, targets: torch.Tensor, settings: Settings) -> float:
    """Add the gradient of a batch's mean loss; the loss. More than `MOST_TOKENS` tokens go through in parts, whose gradients add
    up to the same."""
    device, longest, loss = str(targets.device), max(len(data.tokens.ids[row]) for row in rows), 0.0
    for part in np.array_split(rows, min(len(rows), math.ceil(len(rows) * longest / MOST_TOKENS))):
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=settings.bfloat16):
            logits = model(**data.tokens.batch(part, device))
        teacher = None if data.teacher is None else torch.from_numpy(data.teacher[part]).to(device)
        mine = loss_of(logits.float(), targets[torch.from_numpy(part).to(device)], teacher, settings)
        share = len(part) / len(rows)
        (mine * share).backward()  # type: ignore[no-untyped-call]
        loss += share * mine.item()
    return loss


def loss_of(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None, settings: Settings
) -> torch.Tensor:
    """The mean loss of some examples: cross-entropy CE, and beside a teacher

        (1 - a) CE(y, z) + a T^2 CE(softmax(t / T), z / T),     a = `distill`, T = `temperature`

    with T^2 keeping both gradients of one size (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    Args:
        logits: z, fp32 [B, C].
        labels: y, int64 [B].
        teacher: t, fp32 [B, C].
    """
    hard = nn.functional.cross_entropy(logits, labels, label_smoothing=settings.smoothing)
    if teacher is None or settings.distill == 0.0:
        return hard
    share, t = settings.distill, settings.temperature
    soft = nn.functional.cross_entropy(logits / t, (teacher / t).softmax(dim=1))
    return (1.0 - share) * hard + share * t**2 * soft


def _optimizer(parameters: dict[str, nn.Parameter], settings: Settings, state: State) -> torch.optim.AdamW:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = settings.head_learning_rate if name.startswith("head.") else settings.learning_rate
        groups.setdefault((rate, settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    options: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    optimizer = torch.optim.AdamW(options, fused=True)
    for name, parameter in parameters.items():
        if f"{name}/exp_avg" in state.moments:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state.step), device=parameter.device),  # where the fused kernel wants it
                "exp_avg": state.moments.pop(f"{name}/exp_avg").to(parameter.device),
                "exp_avg_sq": state.moments.pop(f"{name}/exp_avg_sq").to(parameter.device),
            }
    return optimizer


def _moments(optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": optimizer.state[parameter][key].detach().cpu()
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for key in ("exp_avg", "exp_avg_sq")
    }
