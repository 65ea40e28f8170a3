"""Ways to train an encoder: which parameters move. Each is prepared before the first leg and merged after the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from regraft.checkpoint.classifier import TextClassifier
from regraft.checkpoint.quiet import quiet
from regraft.methods import Source, method
from regraft.randomness import seed_of
from regraft.train.loop import Settings

# Learning rates: of 2.5e-5 to 4e-4 (full) and 5e-4 to 4e-3 (LoRA), what measured best on validation data of banking77 and of
# hwu64 after an epoch of a rate that falls to zero (docs/diary.md).


@dataclass(frozen=True)
class Tuning:
    """What a training method does to a classifier, the settings that it starts from, and the options that it takes."""

    name: str
    settings: Settings
    adapter: bool = False
    options: tuple[str, ...] = ()

    def prepare(self, classifier: TextClassifier, options: dict[str, Any]) -> None:
        """Choose what is trained, in place; idempotent for the same seed."""
        for parameter in classifier.parameters():
            parameter.requires_grad_(False)
        classifier.head.requires_grad_(True)
        if self.adapter:
            _insert_lora(classifier, **options)
            return
        words = {id(parameter) for parameter in classifier.encoder.get_input_embeddings().parameters()}
        for name, parameter in classifier.encoder.named_parameters():
            # Word embeddings stay: they are half of a small encoder's parameters, few rows of them are ever seen, and
            # moving them cost a third of a step on a CPU without a measurable gain (docs/diary.md).
            parameter.requires_grad_(id(parameter) not in words and "pooler" not in name)

    def merged(self, classifier: TextClassifier) -> TextClassifier:
        """The classifier with adapters folded into the weights: a stock encoder again."""
        if self.adapter:
            classifier.encoder = classifier.encoder.merge_and_unload()
        return classifier


def _insert_lora(classifier: TextClassifier, rank: int = 16, alpha: int = 32, seed: int = 0) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed_of(seed, "lora") % 2**63)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", exclude_modules=".*pooler.*"
    )
    with quiet():  # peft remarks on the transposed layers of GPT-2, and does the right thing
        classifier.encoder = get_peft_model(classifier.encoder, config)


@method(
    "adapt",
    "full",
    source=Source(
        "Kumar et al.",
        2022,
        "2202.10054",
        "Fine-tuning can distort pretrained features and underperform out-of-distribution",
    ),
    claim="fine-tuning from a fitted linear probe beats fine-tuning from a random head",
    needs=("training", "labels"),
)
def full() -> Tuning:
    """Train the whole encoder but its word embeddings, and the head, which starts from the probe."""
    return Tuning("full", Settings(learning_rate=2e-4, head_learning_rate=1e-3))


@method(
    "adapt",
    "lora",
    source=Source("Hu et al.", 2021, "2106.09685", "LoRA: low-rank adaptation of large language models"),
    claim="on par with full fine-tuning while training under 1 % of the parameters",
    needs=("training", "labels"),
)
def lora() -> Tuning:
    """Train low-rank updates W + (alpha / r) B A of every linear layer of the encoder (peft), and the head."""
    return Tuning(
        "lora", Settings(learning_rate=2e-3, head_learning_rate=1e-3), adapter=True, options=("rank", "alpha")
    )
