"""The inputs' classifiers around one encoder that merges are loaded into, one after another, and measured.

    several tasks   the merged encoder under each input's own head; the encoder's memory is shared by all of them
    one task        a soup: encoder and head are merged

Nothing is written: tensors come from the engine's own methods, rounded to the format that they would be written in, and go
straight into the models. Classifiers are loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from regraft.checkpoint import open_checkpoint
from regraft.checkpoint.batches import Tokens, sorted_batches, tokenize
from regraft.checkpoint.classifier import Classifier, TextClassifier, logits_of, mean_pool, softmax
from regraft.checkpoint.export import load_classifier
from regraft.checkpoint.weights import FLOATS, open_weights, read_values
from regraft.errors import CheckpointError, NonFiniteError, TaskError
from regraft.merge.algebra import by_tensor, one_thread_each
from regraft.merge.align import align
from regraft.merge.checks.findings import names as some
from regraft.merge.checks.room import threads_that_fit
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import DTYPES, Spec
from regraft.merge.tensors import Prepared, merged_tensor, stack_of
from regraft.merge.turns import in_turn
from regraft.task import Task

Values = Iterable[tuple[str, np.ndarray]]
Tick = Callable[[int], None]
# What transformers draws anew where a file lacks it; it goes with the head.
_MAY_LACK = "pooler."
# For merging, where the number of threads is ours to choose.
_MEMORY = 512 * 2**20
_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}


def merged_values(spec: Spec, workers: int | None = None, tick: Tick | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor that a merge merges, as the engine would write it, float32; `tick(0)` is called before each.

    Raises:
        RegraftError: What the method raises, or a checkpoint that cannot be read.
    """
    ordered, opened = open_inputs(spec)
    aligned = align(opened)
    found, wanted = aligned.opened, DTYPES.get(spec.output.dtype or "")
    threads = workers or threads_that_fit(ordered, found, aligned.merged, _MEMORY)
    prepared = Prepared(ordered, found, aligned.merged, threads).value

    def merge(name: str, pool: ThreadPoolExecutor | None = None) -> np.ndarray:
        stack = stack_of(ordered, found, name, pool=pool, workers=threads)
        merged = np.asarray(merged_tensor(ordered, found, stack, prepared), np.float32)
        narrow = _NARROW.get(wanted or found.template.tensors[name].dtype)
        if narrow is not None:
            merged = torch.from_numpy(np.ascontiguousarray(merged)).to(narrow).float().numpy()
        return merged

    names, several = aligned.merged, by_tensor(ordered)
    with (
        one_thread_each(ordered),
        ThreadPoolExecutor(threads) as pool,
        closing(in_turn(merge, names, threads) if several else (merge(name, pool) for name in names)) as every,
    ):
        for name in names:
            if tick is not None:
                tick(0)
            yield name, next(every)


def stored_values(reference: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a checkpoint as it is stored, float32."""
    for name, info in open_weights(reference).tensors.items():
        if info.dtype in FLOATS:
            yield name, read_values(info).reshape(info.shape)


@dataclass
class Member:
    """An input's classifier, and its parameters by the names that they have in the file.

    Args:
        reference: The input.
        classifier: Its encoder and its head.
        trunk: The parameters of the encoder.
        head: All others.
    """

    reference: str
    classifier: Classifier
    trunk: dict[str, torch.nn.Parameter]
    head: dict[str, torch.nn.Parameter]

    @property
    def encoder(self) -> Any:
        """The encoder as a stock model."""
        return _encoder_of(self.classifier)


def load_member(reference: str, task: Task, device: str = "cpu") -> Member:
    """Load an input that has a head for a task.

    Raises:
        CheckpointError: It has no head, one without the task's labels, or tensors that are not loaded as they are stored.
    """
    opened = open_checkpoint(reference)
    classifier = load_classifier(opened, device)
    missing = [label for label in task.label_names if label not in classifier.labels]
    if missing:
        raise CheckpointError(
            f"The head of {reference} has {len(classifier.labels)} labels, but not {some(missing)} of the task "
            f"{task.reference}.",
            "Name the tasks in the order of the inputs.",
        )
    tensors = open_weights(reference).tensors
    inner = _encoder_of(classifier)
    whole = dict(inner.named_parameters())
    if isinstance(classifier, TextClassifier):
        dense = next(where for kind, where in opened.modules if kind == "Dense")
        head = {f"{dense}.linear.{name}": value for name, value in classifier.head.named_parameters()}
    else:
        inside = {id(value) for value in whole.values()}
        head = {name: value for name, value in classifier.model.named_parameters() if id(value) not in inside}
    trunk = {}
    for name, value in whole.items():
        stored = next((one for one in (name, f"{inner.base_model_prefix}.{name}") if one in tensors), None)
        if stored is not None:
            trunk[stored] = value
        elif _MAY_LACK not in name:
            raise _unlike(reference, name)
    for name, value in {**trunk, **head}.items():
        as_stored = torch.from_numpy(read_values(tensors[name])) if name in tensors else None
        if as_stored is None or not torch.equal(value.detach().cpu().reshape(-1), as_stored):
            raise _unlike(reference, name)
    return Member(reference, classifier, trunk, head)


def _encoder_of(classifier: Classifier) -> Any:
    return classifier.encoder if isinstance(classifier, TextClassifier) else classifier.model.base_model


def _unlike(reference: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{reference}: the installed transformers loads {name} otherwise than it is stored, so that merged tensors cannot be "
        "put in its place.",
        "Load the checkpoint with transformers and save it again.",
    )


@dataclass
class Bench:
    """What merges are loaded into and measured with.

    Args:
        members: One a task.
        soup: Whether heads are merged, too (then there is one member).
    """

    members: list[Member]
    soup: bool
    _targets: dict[str, list[torch.nn.Parameter]] = field(init=False, default_factory=dict)
    _own: dict[str, list[torch.Tensor]] = field(init=False)
    # By member and list of texts, which is kept, so that its id stays its own.
    _tokens: dict[tuple[int, int], tuple[Sequence[str], Tokens]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        first = self.members[0]
        if self.soup:
            self._targets = {name: [value] for name, value in {**first.trunk, **first.head}.items()}
        else:
            self._share()
        self._own = {
            name: [value.detach().clone() for value in found]
            for name, found in self._targets.items()
            if name not in self.needed
        }

    def _share(self) -> None:
        """Let the encoders of all members be the same memory; what may be an input's own (poolers) stays apart."""
        for member in self.members:
            for name, value in member.trunk.items():
                found = self._targets.setdefault(name, [])
                if _MAY_LACK in name or not found:
                    found.append(value)
                elif found[0].shape != value.shape:
                    raise CheckpointError(
                        f"{name!r} is {list(value.shape)} in {member.reference} and {list(found[0].shape)} in "
                        f"{self.members[0].reference}.",
                        "Search among checkpoints of one vocabulary and size.",
                    )
                else:
                    value.data = found[0].data

    @property
    def needed(self) -> frozenset[str]:
        """The tensors that a merge must have, for its score to be its own."""
        used = self.soup and not isinstance(self.members[0].classifier, TextClassifier)  # stock heads sit on the pooler
        return frozenset(name for name in self._targets if used or _MAY_LACK not in name)

    def check(self, merged: Iterable[str], what: str) -> None:
        """Refuse a merge that leaves out something that scores depend on.

        Raises:
            CheckpointError: It does; with what to do about a head that the base lacks.
        """
        lacking = sorted(self.needed - set(merged))
        heads = [name for name in lacking if name in self.members[0].head]
        if heads:
            raise CheckpointError(
                f"{what} has no {some(heads)}, the head that the inputs share: a merge with it would have none.",
                "Give a base with a head (`regraft adapt BASE TASK --method probe`), or a recipe without a base.",
            )
        if lacking:
            raise CheckpointError(f"{what} leaves out {some(lacking)}.", "Search among checkpoints of one kind.")

    def load(self, values: Values) -> None:
        """Put merged tensors into the models; poolers that were not merged are the inputs' own again."""
        seen = set()
        with torch.no_grad():
            for name, array in values:
                for target in self._targets.get(name, ()):
                    target.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(target.shape))
                seen.add(name)
            for name, own in self._own.items():
                if name not in seen:
                    for target, value in zip(self._targets[name], own, strict=True):
                        target.copy_(value)
        self.check(seen, "The merge")

    def probabilities(self, number: int, task: Task, texts: Sequence[str], tick: Tick | None = None) -> np.ndarray:
        """Class probabilities of the member that has a task, fp64 [N, C]: the task's labels first, then others of the head."""
        classifier = self.members[number].classifier
        found = softmax(logits_of(classifier, self._tokenized(number, texts), advance=tick))
        order = [classifier.labels.index(label) for label in task.label_names]
        # A label that the task does not have is a wrong answer: such labels keep columns of their own.
        return found[:, order + [index for index in range(found.shape[1]) if index not in set(order)]]

    def features(self, texts: Sequence[str], tick: Tick | None = None) -> np.ndarray:
        """The mean over the tokens of the encoder's last layer, fp32 [N, D] (`regraft.features.Features.last`)."""
        encoder, tokens = self.members[0].encoder, self._tokenized(0, texts)
        device = str(next(encoder.parameters()).device)
        out = np.empty((len(tokens), int(encoder.config.hidden_size)), np.float32)
        with torch.inference_mode():
            for rows in sorted_batches(tokens.lengths):
                batch = tokens.batch(rows, device)
                hidden = encoder(**batch).last_hidden_state
                out[rows] = mean_pool(hidden, batch["attention_mask"]).float().cpu().numpy()
                if tick is not None:
                    tick(len(rows))
        if not np.isfinite(out).all():
            raise NonFiniteError("The merge computes NaN or infinite features.", "Leave it out.")
        return out

    def _tokenized(self, number: int, texts: Sequence[str]) -> Tokens:
        """Tokens by the member's own tokenizer, made once for every list of texts."""
        key = (number, id(texts))
        if key not in self._tokens:
            member = self.members[number].classifier
            self._tokens[key] = texts, tokenize(member.tokenizer, texts, member.max_length)
        return self._tokens[key][1]


def open_bench(references: Sequence[str], tasks: Sequence[Task], device: str = "cpu") -> Bench:
    """Load what merges are measured with: one task for each input, or one for all.

    Raises:
        TaskError: Another number of tasks.
        CheckpointError: An input has no head, or one that does not fit its task or the other heads of a soup.
    """
    soup = len(tasks) == 1
    if not soup and len(tasks) != len(references):
        raise TaskError(
            f"There are {len(tasks)} tasks for {len(references)} inputs.",
            "Name one for each input, in the order of the inputs, or one for all of them.",
        )
    if soup:
        member = load_member(references[0], tasks[0], device)
        for other in references[1:]:
            labels = open_checkpoint(other).labels
            if labels != member.classifier.labels:
                raise CheckpointError(
                    f"{other} has {'no head' if labels is None else 'a head for other labels'} than {references[0]}: "
                    "one task was named for all inputs.",
                    "Name a task for each input, or merge checkpoints of one task.",
                )
        return Bench([member], True)
    return Bench([load_member(one, task, device) for one, task in zip(references, tasks, strict=True)], False)
