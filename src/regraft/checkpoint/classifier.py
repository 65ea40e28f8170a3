"""A text classifier: an encoder, a pooling and a linear head; what `adapt` trains and a family member holds.

    logits = W @ pool(sum_l w_l h_l) + b

`h_l` [B, T, D] are the encoder's hidden states, `w` the layer weights (none: the last layer alone), `pool` the mean over
the tokens, or the first token beside that mean.
This is what sentence-transformers expresses as Transformer, WeightedLayerPooling, Pooling and Dense, so a
classifier is saved in that form and loads there without Regraft. Stock sequence classifiers are wrapped as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from regraft.checkpoint.batches import ROWS, Tokens, sorted_batches, tokenize
from regraft.errors import CheckpointError, NonFiniteError


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over real tokens: [B, T, D], [B, T] -> [B, D]."""
    share = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm(share.unsqueeze(1).to(hidden.dtype), hidden).squeeze(1)


def first_of(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first real token, whichever side is padded: [B, T, D], [B, T] -> [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.argmax(1)]


class TextClassifier(nn.Module):
    """Encoder, pooling and linear head.

    Args:
        encoder: A stock `AutoModel`.
        tokenizer: Its tokenizer.
        labels: Names of the classes, in the order of the logits.
        max_length: Tokens after which a text is cut.
        layer_weights: One weight for each of the L+1 hidden states (embeddings first), or None for the last alone.
        first_token: Whether the first token stands beside the mean; the head then reads [first, mean], 2 D wide.
    """

    format = "sentence-transformers"

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        labels: Sequence[str],
        max_length: int,
        layer_weights: Sequence[float] | None = None,
        first_token: bool = False,
    ) -> None:
        super().__init__()
        self.first_token = first_token
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.max_length = max_length
        weights = None if layer_weights is None else torch.tensor(layer_weights, dtype=torch.float32)
        self.layer_weights: torch.Tensor | None
        self.register_buffer("layer_weights", weights)
        self.head = nn.Linear((1 + first_token) * int(encoder.config.hidden_size), len(self.labels))

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The pooled representation [B, D], or [B, 2 D] with the first token."""
        weights = self.layer_weights
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=weights is not None)
        hidden = out.last_hidden_state
        if weights is not None:
            hidden = (
                sum(weight * state for weight, state in zip(weights, out.hidden_states, strict=True)) / weights.sum()
            )
        mean = mean_pool(hidden, attention_mask)
        return torch.cat([first_of(hidden, attention_mask), mean], dim=1) if self.first_token else mean

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        logits: torch.Tensor = self.head(self.pooled(input_ids, attention_mask))
        return logits


@contextmanager
def model_calls(reference: str) -> Iterator[None]:
    """Turn what stock code raises over a checkpoint of somebody else's into a CheckpointError that names it."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError) as fault:
        words = str(fault).strip().splitlines()
        raise CheckpointError(
            f"{reference} cannot be computed here ({type(fault).__name__}: {words[0][:200] if words else 'no words'}).",
            "Leave it out, or try another --device or --dtype.",
        ) from fault


class StockClassifier(nn.Module):
    """A stock `AutoModelForSequenceClassification`, as it is."""

    format = "transformers"

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str], max_length: int) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.max_length = max_length

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


Classifier = TextClassifier | StockClassifier


def logits_of(
    classifier: Classifier,
    texts: Sequence[str] | Tokens,
    *,
    rows: int = ROWS,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Logits of all texts, fp32 [N, C], in the order given; computed over length-sorted batches.

    Raises:
        NonFiniteError: The model computes NaN or infinite values.
    """
    tokens = texts if isinstance(texts, Tokens) else tokenize(classifier.tokenizer, texts, classifier.max_length)
    out = np.empty((len(tokens), len(classifier.labels)), dtype=np.float32)
    device = str(next(classifier.parameters()).device)
    was_training = classifier.training
    classifier.eval()
    try:
        with torch.inference_mode():
            for batch in sorted_batches(tokens.lengths, rows=rows):
                out[batch] = classifier(**tokens.batch(batch, device)).float().cpu().numpy()
                if advance is not None:
                    advance(len(batch))
    finally:
        classifier.train(was_training)
    if not np.isfinite(out).all():
        row = int(np.flatnonzero(~np.isfinite(out).all(axis=1))[0])
        raise NonFiniteError(
            f"The classifier computes NaN or infinite logits (first for text {row}).",
            "Its weights are damaged or its learning rate was too high; leave it out.",
        )
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities from logits, fp64 [N, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def probabilities(classifier: Classifier, texts: Sequence[str] | Tokens, **options: Any) -> np.ndarray:
    """Class probabilities of all texts, fp64 [N, C]."""
    return softmax(logits_of(classifier, texts, **options))
