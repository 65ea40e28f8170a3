"""Batches: every text once, little padding, and the tokens that the tokenizer itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.checkpoint import batches, load_tokenizer, open_checkpoint
from regraft.checkpoint.batches import Tokens, sorted_batches, tokenize

TEXTS = ["the cat saw a dog", "rain", "we heard a very old violin again and again"]


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_gpt2"])
def test_a_batch_is_what_the_tokenizer_pads_itself(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(open_checkpoint(str(request.getfixturevalue(fixture))))
    for side in ("right", "left"):
        tokenizer.padding_side = side
        tokens = tokenize(tokenizer, TEXTS, 64)
        expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
        batch = tokens.batch(range(3))
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        assert tokens.lengths.tolist() == expected["attention_mask"].sum(1).tolist()
        some = tokens.batch(np.array([2, 1]))
        assert torch.equal(some["input_ids"], expected["input_ids"][[2, 1]])  # the longest is among them


def test_long_texts_are_cut_with_their_special_tokens(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(str(tiny_bert)))
    tokens = tokenize(tokenizer, ["cat " * 100, "cat"], 10)
    assert tokens.lengths.tolist() == [10, 3]
    assert tokens.ids[0][0] == tokenizer.cls_token_id
    assert tokens.ids[0][-1] == tokenizer.sep_token_id


def test_a_text_without_tokens_gets_one(tiny_gpt2: Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(str(tiny_gpt2)))
    assert tokenizer("")["input_ids"] == []
    assert tokenize(tokenizer, ["", "cat"], 10).ids[0].tolist() == [tokenizer.unk_token_id]


def test_many_texts_are_given_to_the_tokenizer_in_parts(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(open_checkpoint(str(tiny_bert)))
    whole = tokenize(tokenizer, TEXTS, 64)
    monkeypatch.setattr(batches, "TEXTS", 2)
    parts = tokenize(tokenizer, TEXTS, 64)
    assert [row.tolist() for row in parts.ids] == [row.tolist() for row in whole.ids]


def test_no_texts(tiny_bert: Path) -> None:
    tokens = tokenize(load_tokenizer(open_checkpoint(str(tiny_bert))), [], 10)
    assert len(tokens) == 0
    assert list(sorted_batches(tokens.lengths)) == []


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 8), st.integers(1, 200))
def test_batches_hold_every_text_once_within_the_limits(lengths: list[int], rows: int, tokens: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = list(sorted_batches(array, rows=rows, tokens=tokens))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    flat: list[Any] = [array[row] for batch in batches for row in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or len(batch) * array[batch].max() <= tokens


def test_equal_lengths_keep_their_order() -> None:
    (batch,) = sorted_batches(np.array([2, 3, 2, 3]))
    assert batch.tolist() == [1, 3, 0, 2]


def test_padding_uses_the_padding_token() -> None:
    batch = Tokens([[5, 6, 7], [8]], 9, "right").batch([0, 1])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
