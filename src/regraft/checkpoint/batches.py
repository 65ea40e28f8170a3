"""Batches of texts as token tensors, sorted by length so that little of the work is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# On a CPU the throughput of small encoders is flat between 16 and 128 rows; memory is not.
ROWS = 64
TOKENS = 16_384
# Given to a tokenizer at once.
TEXTS = 2_000


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: int32 ids of each text, special tokens included, cut at the model's length."""

    ids: Sequence[Sequence[int] | np.ndarray]
    pad_id: int
    side: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [N]."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))

    def batch(self, rows: Sequence[int] | np.ndarray, device: str = "cpu") -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, int64 [rows, longest of them]."""
        chosen = [self.ids[row] for row in rows]
        longest = max(len(row) for row in chosen)
        ids = torch.full((len(chosen), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(chosen), longest), dtype=torch.long)
        for at, row in enumerate(chosen):
            span = slice(0, len(row)) if self.side == "right" else slice(longest - len(row), longest)
            ids[at, span] = torch.as_tensor(row)
            mask[at, span] = 1
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """Tokenise without padding; texts longer than `max_length` tokens are cut."""
    if not texts:
        return Tokens([], 0, "right")
    pad = tokenizer.pad_token_id
    # A tokenizer that adds no special tokens gives [] for a text of unknown characters; a model needs one token.
    filler = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else pad
    ids: list[np.ndarray] = []
    for start in range(
        0, len(texts), TEXTS
    ):  # what a tokenizer says of a text beside its ids takes 100 times their bytes
        encoded = tokenizer(
            list(texts[start : start + TEXTS]), truncation=True, max_length=max_length, padding=False,
            return_attention_mask=False,
        )  # fmt: skip
        ids += [np.array(row or [filler], dtype=np.int32) for row in encoded["input_ids"]]
    return Tokens(ids, pad, tokenizer.padding_side)


def sorted_batches(lengths: np.ndarray, rows: int = ROWS, tokens: int = TOKENS) -> Iterator[np.ndarray]:
    """Indices in batches of at most `rows` texts and `tokens` padded tokens, the longest first.

    The longest come first so that a lack of memory shows at once, and predicted times only get better.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end = min(len(order), start + max(1, min(rows, tokens // max(1, longest))))
        yield order[start:end]
        start = end
