"""A plain fine-tune with transformers' Trainer: `AutoModelForSequenceClassification` on MiniLM, as many epochs as fit.

Batches of 32, AdamW, linear decay to zero after 10 % warm-up, dynamic padding, 128 tokens. The seconds of a step are
measured first on a copy of the model; then the whole schedule is planned so that training *and* the test pass end
within the budget, and a callback stops it if the plan was too hopeful. More than ten epochs are never used.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import minilm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from peers.peer import Job, main

BATCH = 32
EVAL_BATCH = 64
LENGTH = 128
LEARNING_RATE = 3e-4
MOST_EPOCHS = 10
TIMED_STEPS = 6


class TimeLimit(TrainerCallback):
    """Stops training when only the reserve is left."""

    def __init__(self, job: Job, reserve_s: float) -> None:
        self.job, self.reserve_s = job, reserve_s

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Called by the Trainer after every optimizer step."""
        if self.job.left(self.reserve_s) <= 0:
            control.should_training_stop = True
        return control


def learn(job: Job) -> tuple[Sequence[str], dict[str, Any]]:
    """Time a few steps, plan the schedule, train, predict."""
    set_seed(job.seed)
    names = sorted(set(job.train.labels))
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(names))
    ids = [names.index(label) for label in job.train.labels]
    train = _items(tokenizer, job.train.texts, ids)
    test = _items(tokenizer, job.test.texts, None)
    collate = DataCollatorWithPadding(tokenizer)

    step_s, row_s = _times(model, train, collate)
    reserve_s = 1.15 * row_s * len(test) + 2.0
    fit = int(0.97 * job.left(reserve_s) / step_s)
    steps = max(1, min(fit, MOST_EPOCHS * (len(train) // BATCH)))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=BATCH, per_device_eval_batch_size=EVAL_BATCH,
        learning_rate=LEARNING_RATE, lr_scheduler_type="linear", warmup_steps=steps // 10, weight_decay=0.01,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, seed=job.seed, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, collate, train, callbacks=[TimeLimit(job, reserve_s)])
    done = trainer.train().global_step
    predicted = _predict(trainer.model, test, collate)
    settings = {
        "learning_rate": LEARNING_RATE, "batch": BATCH, "planned_steps": steps, "steps": done,
        "epochs": round(done * BATCH / len(train), 2),
    }  # fmt: skip
    return [names[at] for at in predicted], settings


def _items(tokenizer: Any, texts: Sequence[str], labels: Sequence[int] | None) -> list[dict[str, Any]]:
    encoded = tokenizer(list(texts), truncation=True, max_length=LENGTH)
    rows = [
        {"input_ids": a, "attention_mask": b} for a, b in zip(encoded.input_ids, encoded.attention_mask, strict=True)
    ]
    return rows if labels is None else [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def _times(model: Any, train: list[dict[str, Any]], collate: Any) -> tuple[float, float]:
    """Seconds of a training step, and of predicting one row, on a copy that is thrown away."""
    trial = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(trial.parameters(), lr=1e-6)
    batches = [collate(train[at * BATCH : (at + 1) * BATCH]) for at in range(TIMED_STEPS)]
    seconds = []
    for batch in batches:
        started = time.monotonic()
        trial(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - started)
    trial.eval()
    started = time.monotonic()
    with torch.inference_mode():
        trial(**batches[0])
    return statistics.median(seconds[1:]), (time.monotonic() - started) / BATCH


def _predict(model: Any, rows: list[dict[str, Any]], collate: Any) -> list[int]:
    """The most likely class of each row; batches over rows of like length."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]["input_ids"]))
    found = [0] * len(rows)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), EVAL_BATCH):
            chosen = order[start : start + EVAL_BATCH]
            classes = model(**collate([rows[at] for at in chosen])).logits.argmax(1).tolist()
            for at, value in zip(chosen, classes, strict=True):
                found[at] = value
    return found


if __name__ == "__main__":
    main(learn)
