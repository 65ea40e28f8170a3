"""What a cut checkpoint is worth on a task, and training it again: what `resize` is given to search with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from regraft.adapt import Adaptation, Head, Plan, head_of, probe
from regraft.budget import Deadline
from regraft.checkpoint import Checkpoint, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import tokenize
from regraft.checkpoint.classifier import TextClassifier, logits_of, softmax
from regraft.checkpoint.export import load_classifier, write_classifier
from regraft.errors import CheckpointError
from regraft.evaluate.metrics import metrics
from regraft.features import FeatureRows, extract
from regraft.progress import SILENT, Progress
from regraft.store import Store
from regraft.task import Task
from regraft.task.rows import spread_rows
from regraft.train.loop import Data, Leg, seconds_a_step

# A cut checkpoint is scored by a linear probe of so many training texts at most, on so many validation texts.
FITTED, SCORED = 1200, 800
# Of the time of a recovery: features for the head that training starts from, and measuring on validation data at the end.
HEAD_SHARE, END_SHARE = 0.25, 0.2
# Of the former, features of validation texts, where there is a trained head to compare a new one with.
JUDGE_SHARE = 0.2
# Of the loss, what a teacher's share is, and of all time, what its pass over the training texts may take.
DISTILL, TEACH_SHARE = 0.5, 0.1
# Texts that the pace of a teacher is taken from.
PACED = 64
# What a step is predicted to take does not hold to the last per cent.
SAFE_SHARE = 0.95
# The fewest texts of a head, and of a measurement, however short the time.
FEWEST = 100
MOST_EPOCHS = 6.0


@dataclass
class Recovery:
    """Scores and trains checkpoint folders on one task.

    Shapes are scored, rivals compared and the last training judged on the validation texts; test texts play no part.

    Args:
        task: Trained on its training texts.
        scratch: A folder for features and states, which the caller removes.
        head: The trained head of what is cut, for these labels: it goes on where its hidden units all stayed.
        teacher: Logits of a teacher over all training texts, fp32 [N, C] (`teacher_of`): a share of the loss is to agree with it.

    Attributes:
        legs: (steps, decay) of all training of each folder that was written, that of the folder it was made from included.
    """

    task: Task
    scratch: Path
    seed: int = 0
    device: str = "cpu"
    progress: Progress = SILENT
    head: Head | None = None
    teacher: np.ndarray | None = None
    legs: dict[Path, list[tuple[int, int]]] = field(default_factory=dict)
    _pace_s: float = 0.0

    def score(self, folder: Path) -> float:
        """The task's metric, on at most `SCORED` validation texts, of a linear probe on the last layer's mean that was fitted on
        at most `FITTED` training texts.

        A trained model is judged so, too. What texts of one source have in common is of no use where the splits are by source; it
        would be to a probe of validation texts that is judged on others of them.

        Cost: a pass over `FITTED` + `SCORED` texts, and the fit: 1,200 x 384 numbers of 77 classes take 1 to 2 s on one core.
        """
        task = self.task
        seen = spread_rows(task.train.labels, min(FITTED, len(task.train)))
        unseen = spread_rows(task.validation.labels, min(SCORED, len(task.validation)))
        texts = [task.train.texts[row] for row in seen] + [task.validation.texts[row] for row in unseen]
        with TemporaryDirectory(dir=self.scratch) as place:  # nobody will see this checkpoint again
            checkpoint, store = open_checkpoint(str(folder)), Store(place)
            if not self._pace_s:  # the first model of a process waits for imports
                extract(checkpoint, texts[:2], store=store, device=self.device)
            started = time.monotonic()
            features = extract(checkpoint, texts, store=store, device=self.device)
            self._pace_s = max(self._pace_s, (time.monotonic() - started) / len(texts))
            fitted, judged = (features.rows(rows) for rows in np.split(np.arange(len(texts)), [len(seen)]))
            head = probe(fitted, task.train.labels[seen], len(task.label_names), seed=self.seed)
            return self._worth(head, judged, unseen)

    def _worth(self, head: Head, features: FeatureRows, rows: np.ndarray) -> float:
        """The task's metric of a head on some validation texts."""
        found = metrics(self.task.validation.labels[rows], softmax(head.logits(features)))
        return float(found[self.task.metric])

    def recover(self, folder: Path, seconds: float, target: Path) -> float:
        """Fit a head or keep the trained one, fine-tune all weights under it for what is left of `seconds`, write the classifier
        into `target`.

        Returns:
            The task's metric on its validation texts, or on as many as there is time for.
        """
        deadline = Deadline(seconds)
        checkpoint, task = open_checkpoint(str(folder)), self.task
        head = self._start(checkpoint, HEAD_SHARE * seconds, deadline)
        measured = spread_rows(task.validation.labels, self.room(END_SHARE * seconds, len(task.validation)))
        states = self.scratch / "states"
        try:
            plan = Plan("full", {} if self.teacher is None else {"distill": DISTILL}, {}, self.seed)
            adaptation = Adaptation(checkpoint, task.label_names, head, plan, states, device=self.device)
            tokenizer, length = load_tokenizer(checkpoint), max_length(checkpoint)
            data = Data(tokenize(tokenizer, task.train.texts, length), task.train.labels, self.teacher)
            trained = self._train(adaptation, data, deadline, self._pace_s * len(measured))
            self.legs[target] = [*self.legs.get(folder, []), *trained]
            tokens = tokenize(tokenizer, [task.validation.texts[row] for row in measured], length)
            found = metrics(task.validation.labels[measured], adaptation.probabilities(tokens))
            write_classifier(adaptation.finished(), target, {})
        finally:
            shutil.rmtree(states, ignore_errors=True)
        return float(found[task.metric])

    def _start(self, checkpoint: Checkpoint, seconds: float, deadline: Deadline) -> Head:
        """A probe of the training texts, or the trained head where that is as good on validation texts."""
        task, own = self.task, trained_head(checkpoint, self.task.label_names) or self.head
        if own is not None and own.hidden != checkpoint.hidden_size:
            own = None  # hidden was cut
        seen = spread_rows(task.train.labels, self.room(seconds, len(task.train)))
        most = 0 if own is None else min(SCORED, len(task.validation))
        unseen = spread_rows(task.validation.labels, self.room(JUDGE_SHARE * seconds, most))
        texts = [task.train.texts[row] for row in seen] + [task.validation.texts[row] for row in unseen]
        with TemporaryDirectory(dir=self.scratch) as place:
            features = extract(checkpoint, texts, store=Store(place), device=self.device)
            fitted, judged = (features.rows(rows) for rows in np.split(np.arange(len(texts)), [len(seen)]))
            part = deadline.part(0.5 * seconds)
            head = probe(fitted, task.train.labels[seen], len(task.label_names), seed=self.seed, deadline=part)
            if own is None:
                return head
            return own if self._worth(own, judged, unseen) >= self._worth(head, judged, unseen) else head

    def room(self, seconds: float, most: int) -> int:
        """How many texts can be computed in some seconds, at the pace of the slowest shape so far."""
        return most if not self._pace_s else int(min(most, max(min(most, FEWEST), seconds / self._pace_s)))

    def _train(self, adaptation: Adaptation, data: Data, deadline: Deadline, end_s: float) -> list[tuple[int, int]]:
        """One leg over the time that is left, the learning rate falling to zero."""
        per_epoch = data.steps_per_epoch(adaptation.settings.batch)
        step_s = seconds_a_step(adaptation.classifier, data, adaptation.settings, stop=lambda: deadline.left() < end_s)
        steps = int(min(SAFE_SHARE * (deadline.left() - end_s) / step_s, MOST_EPOCHS * per_epoch))
        if steps < 1:
            return []
        with self.progress.bar("training", steps):
            done = adaptation.train(
                data, Leg(steps, decay=steps), stop=lambda: deadline.left() < end_s, progress=self.progress
            )
        return [(done, steps)]


def trained_head(checkpoint: Checkpoint, labels: Sequence[str]) -> Head | None:
    """The head of a checkpoint, its classes in the order of `labels`, where training can go on from it.

    Returns:
        None: no head, one for other labels, of a stock class (more than a linear map of pooled states), or of layers that it
        weighs unequally.
    """
    if not checkpoint.modules or checkpoint.labels is None or sorted(checkpoint.labels) != sorted(labels):
        return None
    try:
        classifier = load_classifier(checkpoint)
    except CheckpointError:  # modules that compute something else
        return None
    if not isinstance(classifier, TextClassifier):
        return None
    weights = classifier.layer_weights
    if weights is not None and (classifier.first_token or not bool((weights == weights[0]).all())):
        return None
    head, order = head_of(classifier), [classifier.labels.index(label) for label in labels]
    return Head(head.view, head.weight[order], head.bias[order])


def teacher_of(checkpoint: Checkpoint, task: Task, seconds: float, device: str = "cpu") -> np.ndarray | None:
    """Logits of a checkpoint's own head over the training texts, fp32 [N, C], classes in the task's order: a teacher.

    Args:
        seconds: What that may take; the pace is taken from a few texts.

    Returns:
        None: it has no head for these labels, or there is not that much time.
    """
    if checkpoint.labels is None or sorted(checkpoint.labels) != sorted(task.label_names):
        return None
    try:
        classifier = load_classifier(checkpoint, device)
        tokens = tokenize(classifier.tokenizer, task.train.texts, classifier.max_length)
        few = spread_rows(task.train.labels, PACED)
        some = [task.train.texts[row] for row in few]
        logits_of(classifier, some[:2])  # the first pass waits for what others do not
        started = time.monotonic()
        logits_of(classifier, some)
        if (time.monotonic() - started) / len(few) * len(task.train) > seconds:
            return None
        order = [classifier.labels.index(label) for label in task.label_names]
        return np.ascontiguousarray(logits_of(classifier, tokens)[:, order])
    except CheckpointError:
        return None
