"""SetFit on MiniLM: contrastive fine-tuning of the body on pairs, then logistic regression on its embeddings.

SetFit is made for few examples: its pairs come from up to 32 rows a class (all pairs of ten thousand rows would not fit
in memory), and their number is chosen so that the contrastive training, embedding *all* training rows for the head,
fitting the head and embedding the test rows end within the budget. When time is too short for the head on all rows, it
gets as many as fit. Everything else is SetFit's default (cosine loss, oversampling, batches of 16, 2e-5).
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import Rows, minilm
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from transformers import TrainerCallback, set_seed

from peers.peer import Job, main

SHOTS = 32
BATCH = 16
TIMED_ROWS = 256
HEAD_CHUNK = 512
# Seconds that logistic regression takes for ten thousand rows of 384 dimensions and 77 classes, measured generously.
HEAD_S_PER_ROW = 8e-4


class TimeLimit(TrainerCallback):
    """Stops the contrastive training when only the reserve is left."""

    def __init__(self, job: Job, reserve_s: float) -> None:
        self.job, self.reserve_s = job, reserve_s

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Called by the Trainer after every optimizer step."""
        if self.job.left(self.reserve_s) <= 0:
            control.should_training_stop = True
        return control


def learn(job: Job) -> tuple[Sequence[str], dict[str, Any]]:
    """Time embedding and a contrastive step, plan both, train, predict."""
    set_seed(job.seed)
    model = SetFitModel.from_pretrained(str(minilm()), labels=sorted(set(job.train.labels)))
    body = model.model_body
    body.encode(job.train.texts[:32], show_progress_bar=False)  # the first pass is slower than all that follow
    row_s = _seconds(lambda: body.encode(job.train.texts[:TIMED_ROWS], show_progress_bar=False)) / TIMED_ROWS
    step_s = _step_s(body, job.train.texts)

    after_s = 1.1 * row_s * len(job.test.texts) + 3.0
    rows = max(0, min(len(job.train.texts), int(job.left(after_s) / (1.1 * row_s + HEAD_S_PER_ROW))))
    reserve_s = after_s + rows * (1.1 * row_s + HEAD_S_PER_ROW)
    steps = int(0.9 * job.left(reserve_s) / step_s)
    order = random.Random(job.seed).sample(range(len(job.train.texts)), len(job.train.texts))
    done = 0
    if steps >= 1:
        few = _few(job.train, order)
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), batch_size=BATCH, max_steps=steps, seed=job.seed, report_to="none",
            save_strategy="no", logging_strategy="no", show_progress_bar=False,
        )  # fmt: skip
        pairs = Dataset.from_dict({"text": few.texts, "label": few.labels})
        trainer = Trainer(model, arguments, pairs, callbacks=[TimeLimit(job, reserve_s)])
        trainer.train_embeddings(few.texts, few.labels, args=arguments)
        done = trainer.st_trainer.state.global_step
    head = _fit_head(job, model, order, after_s)
    predicted = model.predict(job.test.texts, show_progress_bar=False)
    settings = {"shots": SHOTS, "batch": BATCH, "planned_steps": steps, "steps": done, "head_rows": head}
    return [str(label) for label in predicted], settings


def _fit_head(job: Job, model: Any, order: Sequence[int], after_s: float) -> int:
    """What `SetFitModel.fit` does, on all rows or as many as there is time to embed; returns how many."""
    embeddings: list[np.ndarray] = []
    rows = 0
    while rows < len(order) and (not rows or job.left(after_s + HEAD_S_PER_ROW * rows) > 0):
        texts = [job.train.texts[at] for at in order[rows : rows + HEAD_CHUNK]]
        embeddings.append(model.model_body.encode(texts, normalize_embeddings=model.normalize_embeddings))
        rows += len(texts)
    model.model_head.fit(np.concatenate(embeddings), [job.train.labels[at] for at in order[:rows]])
    return rows


def _few(train: Rows, order: Sequence[int]) -> Rows:
    """Up to `SHOTS` rows of each class, in random order."""
    taken: dict[str, int] = {}
    chosen = []
    for at in order:
        label = train.labels[at]
        if taken.setdefault(label, 0) < SHOTS:
            taken[label] += 1
            chosen.append(at)
    return Rows([train.texts[at] for at in chosen], [train.labels[at] for at in chosen])


def _seconds(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _step_s(body: Any, texts: Sequence[str]) -> float:
    """Seconds of one contrastive step (two passes of `BATCH` texts, forwards and backwards) and its optimizer."""

    def step(at: int) -> None:
        for side in (0, 1):
            chosen = list(texts[(2 * at + side) * BATCH : (2 * at + side + 1) * BATCH])
            body(body.preprocess(chosen))["sentence_embedding"].square().sum().backward()
        torch._foreach_mul_([weight.grad for weight in body.parameters() if weight.grad is not None], 0.0)

    body.train()
    seconds = [_seconds(lambda at=at: step(at)) for at in range(4)]
    body.zero_grad()
    return 1.3 * statistics.median(seconds[1:])


if __name__ == "__main__":
    main(learn)
