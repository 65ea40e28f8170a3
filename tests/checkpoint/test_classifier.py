"""Classifiers: logits held to stock transformers and a head applied by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from regraft.checkpoint import load_encoder, load_sequence_classifier, load_tokenizer, open_checkpoint
from regraft.checkpoint.batches import tokenize
from regraft.checkpoint.classifier import (
    StockClassifier,
    TextClassifier,
    logits_of,
    mean_pool,
    probabilities,
    softmax,
)
from regraft.errors import NonFiniteError

TEXTS = ["the cat saw a dog", "rain", "we heard a very old violin again and again", "snow and wind", "cow"]
LABELS = ("animals", "music", "weather")


def classifier(folder: Path, weights: list[float] | None = None) -> TextClassifier:
    checkpoint = open_checkpoint(str(folder))
    torch.manual_seed(3)
    return TextClassifier(load_encoder(checkpoint), load_tokenizer(checkpoint), LABELS, 64, weights).eval()


def by_hand(folder: Path, text: str, weights: list[float] | None, head: torch.nn.Linear) -> np.ndarray:
    """One text, no padding, no batch: the formula of the module's docstring."""
    tokenizer = load_tokenizer(open_checkpoint(str(folder)))
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(
            **tokenizer(text, return_tensors="pt"), output_hidden_states=True
        )
        layers = torch.stack(states.hidden_states)
        mix = states.last_hidden_state if weights is None else torch.tensordot(torch.tensor(weights), layers, 1)
        pooled = mix.mean(1) / (1 if weights is None else sum(weights))
        return (pooled @ head.weight.T + head.bias)[0].numpy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_gpt2"])
def test_logits_follow_the_formula(fixture: str, weighted: bool, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    layers = open_checkpoint(str(folder)).num_layers
    weights = [float(number) for number in range(1, layers + 2)] if weighted else None
    model = classifier(folder, weights)
    expected = np.stack([by_hand(folder, text, weights, model.head) for text in TEXTS])
    np.testing.assert_allclose(logits_of(model, TEXTS), expected, atol=1e-5)


def test_logits_do_not_depend_on_the_batches_or_the_order(tiny_bert: Path) -> None:
    model = classifier(tiny_bert)
    seen: list[int] = []
    together = logits_of(model, TEXTS, advance=seen.append)
    assert sum(seen) == len(TEXTS)
    np.testing.assert_allclose(logits_of(model, TEXTS, rows=1), together, atol=1e-5)
    np.testing.assert_allclose(logits_of(model, TEXTS[::-1])[::-1], together, atol=1e-5)
    tokens = tokenize(model.tokenizer, TEXTS, model.max_length)
    assert np.array_equal(logits_of(model, tokens), together)


def test_a_stock_classifier_is_the_stock_class(tiny_classifier: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_classifier))
    tokenizer = load_tokenizer(checkpoint)
    model = StockClassifier(load_sequence_classifier(checkpoint), tokenizer, checkpoint.labels or (), 64).eval()
    stock = AutoModelForSequenceClassification.from_pretrained(tiny_classifier).eval()
    with torch.no_grad():
        expected = stock(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(logits_of(model, TEXTS), expected, atol=1e-5)


def test_measuring_leaves_the_model_as_it_was(tiny_bert: Path) -> None:
    model = classifier(tiny_bert).train()
    first = logits_of(model, TEXTS)
    assert model.training
    assert model.encoder.training
    assert np.array_equal(first, logits_of(model, TEXTS))  # without dropout, whatever mode the model is in
    assert all(parameter.grad is None for parameter in model.parameters())


def test_probabilities_are_the_softmax_of_the_logits(tiny_bert: Path) -> None:
    model = classifier(tiny_bert)
    logits = logits_of(model, TEXTS).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities(model, TEXTS), expected, rtol=1e-12)
    assert softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32)).tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_no_texts_give_no_logits(tiny_bert: Path) -> None:
    model = classifier(tiny_bert)
    assert logits_of(model, []).shape == (0, 3)
    assert probabilities(model, []).shape == (0, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_names_the_text(value: float, tiny_bert: Path) -> None:
    model = classifier(tiny_bert)
    violin = model.tokenizer.convert_tokens_to_ids("violin")
    with torch.no_grad():
        model.encoder.get_input_embeddings().weight[violin] = value
    with pytest.raises(NonFiniteError, match="first for text 2"):
        logits_of(model, TEXTS)


def test_pooling_counts_real_tokens_only() -> None:
    hidden = torch.tensor([[[1.0, 10.0], [3.0, 20.0], [100.0, 100.0]], [[7.0, 8.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert mean_pool(hidden, mask).tolist() == [[2.0, 15.0], [7.0, 8.0]]
    nothing: Any = mean_pool(hidden, torch.zeros(2, 3, dtype=torch.long))
    assert nothing.tolist() == [[0.0, 0.0], [0.0, 0.0]]
