"""The training loop, held to a plain loop over torch's own AdamW and to what its legs promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.checkpoint.batches import Tokens
from regraft.errors import NonFiniteError
from regraft.train import loop
from regraft.train.loop import (
    Data,
    Leg,
    Settings,
    State,
    begin,
    epoch_batches,
    load_weights,
    seconds_a_step,
    train_leg,
)

SETTINGS = Settings(learning_rate=1e-2, head_learning_rate=3e-2, batch=4, warmup=3, average=5, seed=1)


class Toy(nn.Module):
    """Embeddings, a layer, a head; a part that is frozen and one that no gradient reaches."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.embed.requires_grad_(False)
        self.layer = nn.Linear(6, 6)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        mean = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)
        logits: torch.Tensor = self.head(self.dropout(torch.tanh(self.layer(mean))))
        return logits


def toy(dropout: float = 0.0) -> Toy:
    torch.manual_seed(0)
    return Toy(dropout)


@pytest.fixture
def data() -> Data:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 22)
    ids = [[int(word) + 6 * int(label) for word in random.integers(0, 6, random.integers(1, 6))] for label in labels]
    return Data(Tokens(ids, 0, "right"), labels.astype(np.int64))


Weights = dict[str, torch.Tensor]


def run(data: Data, legs: list[Leg], how: Settings = SETTINGS, dropout: float = 0.0, disk: Path | None = None) -> State:
    """Train legs; with `disk` each starts from a fresh model and the state as it was saved."""
    model = toy(dropout)
    state = begin(model)
    for leg in legs:
        state = train_leg(model, data, how, state, leg)
        if disk is not None:
            state.save(disk)
            state, model = State.load(disk), toy(dropout)
    return state


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same(one: State, other: State) -> bool:
    """Everything that decides how training goes on."""
    pairs = ((one.model, other.model), (one.averaged, other.averaged), (one.moments, other.moments))
    return one.step == other.step and all(equal(*pair) for pair in pairs)


def plain(data: Data, rates: list[float], how: Settings = SETTINGS) -> tuple[Weights, Weights]:
    """The last and the averaged weights of an ordinary loop; `rates` are the shares of the learning rate."""
    model = toy()
    matrices = {"params": [model.layer.weight], "lr": how.learning_rate, "weight_decay": how.weight_decay}
    vectors = {"params": [model.layer.bias], "lr": how.learning_rate, "weight_decay": 0.0}
    head = {"params": [model.head.weight], "lr": how.head_learning_rate, "weight_decay": how.weight_decay}
    head_bias = {"params": [model.head.bias], "lr": how.head_learning_rate, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors, head, head_bias])
    base = [group["lr"] for group in optimizer.param_groups]
    history = [{name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}]
    batches = [rows for epoch in range(9) for rows in epoch_batches(data.tokens.lengths, how.batch, how.seed, epoch)]
    for share, rows in zip(rates, batches, strict=False):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * share
        logits = model(**data.tokens.batch(rows))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[rows]), label_smoothing=how.smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
        history.append({name: value.detach().clone() for name, value in model.named_parameters() if name in history[0]})
    averaged = dict(history[0])
    for count, weights in enumerate(history[1:], start=1):
        decay = 1.0 - 1.0 / min(how.average, count + 1)
        averaged = {name: decay * averaged[name] + (1 - decay) * weights[name] for name in weights}
    return history[-1], averaged


def close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-6)


def warm(steps: int, how: Settings = SETTINGS) -> list[float]:
    return [min(1.0, (step + 1) / how.warmup) for step in range(steps)]


@pytest.mark.parametrize("how", [SETTINGS, replace(SETTINGS, smoothing=0.2, clip=0.05, average=3, batch=7)])
def test_legs_over_the_disk_are_a_plain_loop_over_adamw(how: Settings, data: Data, tmp_path: Path) -> None:
    legs = [Leg(4), Leg(7), Leg(6, decay=6)]
    state = run(data, legs, how, disk=tmp_path)
    last, averaged = plain(data, warm(11, how) + [1 - done / 6 for done in range(6)], how)
    close(state.model, last)
    close(state.averaged, averaged)
    assert (state.step, state.legs) == (17, 3)


@pytest.mark.parametrize("most", [1, 6, 11])
def test_a_batch_of_many_tokens_goes_through_in_parts_to_the_same_end(
    most: int, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = replace(SETTINGS, smoothing=0.2, batch=7)
    monkeypatch.setattr(loop, "MOST_TOKENS", most)
    seen: list[int] = []
    forward = Toy.forward
    monkeypatch.setattr(
        Toy, "forward", lambda self, **given: seen.append(given["input_ids"].numel()) or forward(self, **given)
    )
    state = run(data, [Leg(6)], how)
    assert max(seen) <= max(most + 6, 5)  # parts are of equal numbers of texts, and a text is never split
    monkeypatch.setattr(Toy, "forward", forward)
    last, averaged = plain(data, warm(6, how), how)
    close(state.model, last)
    close(state.averaged, averaged)


def test_the_loss_beside_a_teacher_is_that_of_the_paper() -> None:
    """Written out in float64: the softened cross-entropy times T^2, and the label's."""
    random = np.random.default_rng(4)
    z, t, labels = random.normal(size=(5, 3)), 3.0 * random.normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])

    def logs(values: np.ndarray) -> np.ndarray:
        return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))

    hard = -logs(z)[np.arange(5), labels].mean()
    soft = -(np.exp(logs(t / 3.0)) * logs(z / 3.0)).sum(axis=1).mean()
    given = [torch.from_numpy(one) for one in (z, labels, t)]
    for share in (0.0, 0.3, 1.0):
        found = loop.loss_of(*given, replace(SETTINGS, distill=share, temperature=3.0))
        assert float(found) == pytest.approx((1 - share) * hard + share * 9.0 * soft, abs=1e-12)
    assert float(loop.loss_of(*given[:2], None, replace(SETTINGS, distill=0.5))) == pytest.approx(hard, abs=1e-12)


def test_a_model_learns_what_its_teacher_says(data: Data) -> None:
    """The teacher says the opposite of the labels; without a share in the loss it changes nothing."""
    opposite = np.where(np.eye(2)[data.labels] == 1.0, -4.0, 4.0).astype(np.float32)
    taught = replace(data, teacher=opposite)
    assert same(run(taught, [Leg(5)]), run(data, [Leg(5)]))
    model, how = toy(), replace(SETTINGS, learning_rate=0.05, head_learning_rate=0.05, distill=1.0)
    train_leg(model, taught, how, begin(model), Leg(60))
    with torch.no_grad():
        found = model(**data.tokens.batch(np.arange(len(data.labels)))).argmax(dim=1).numpy()
    assert (found == 1 - data.labels).mean() > 0.9


def test_two_legs_are_one_longer_leg(data: Data, tmp_path: Path) -> None:
    whole = run(data, [Leg(13)])
    assert same(run(data, [Leg(5), Leg(8)]), whole)
    assert same(run(data, [Leg(5), Leg(8)], disk=tmp_path), whole)
    assert same(run(data, [Leg(5), Leg(0), Leg(8)]), whole)


def test_a_state_on_disk_goes_on_as_the_one_in_memory_under_dropout_and_decay(data: Data, tmp_path: Path) -> None:
    legs = [Leg(5), Leg(4), Leg(6, decay=6)]
    assert same(run(data, legs, dropout=0.3), run(data, legs, dropout=0.3, disk=tmp_path))


@pytest.mark.parametrize("made", [0, 1, 4])
def test_a_leg_cut_short_is_replayed_from_its_steps(made: int, data: Data) -> None:
    model = toy(0.3)
    state = train_leg(model, data, SETTINGS, begin(model), Leg(5))
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > made

    cut = train_leg(model, data, SETTINGS, state, Leg(10, decay=10), stop=stop)
    assert cut.step == 5 + made
    assert same(cut, run(data, [Leg(5), Leg(made, decay=10)], dropout=0.3))


def test_the_rate_never_falls_below_zero(data: Data) -> None:
    over, exact = run(data, [Leg(8, decay=5)]), run(data, [Leg(5, decay=5)])
    assert over.step == 8
    assert equal(over.model, exact.model)


def test_seeds_decide_everything(data: Data) -> None:
    legs = [Leg(6), Leg(3, decay=3)]
    first = run(data, legs, dropout=0.3)
    torch.manual_seed(123)  # the state of the process's generator does not matter
    assert same(run(data, legs, dropout=0.3), first)
    other = run(data, legs, replace(SETTINGS, seed=2), dropout=0.3)
    assert not torch.equal(other.model["head.weight"], first.model["head.weight"])


def test_dropout_is_drawn_anew_in_each_leg(data: Data) -> None:
    torch.manual_seed(5)
    one = run(data, [Leg(1), Leg(1)], dropout=0.5)
    assert not torch.equal(one.model["head.weight"], run(data, [Leg(2)], dropout=0.5).model["head.weight"])


def loss_of(model: Toy, data: Data) -> float:
    with torch.no_grad():
        logits = model.eval()(**data.tokens.batch(range(len(data.labels))))
        return float(nn.functional.cross_entropy(logits, torch.from_numpy(data.labels)))


def test_training_learns_and_the_model_holds_the_average(data: Data) -> None:
    model = toy()
    before = loss_of(model, data)
    state = train_leg(model, data, SETTINGS, begin(model), Leg(60))
    assert loss_of(model, data) < 0.5 * before
    assert not model.training
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in state.averaged.items())
    load_weights(model, state.model)
    assert torch.equal(model.head.weight, state.model["head.weight"])
    assert not torch.equal(state.model["head.weight"], state.averaged["head.weight"])


def test_only_what_requires_a_gradient_changes(data: Data) -> None:
    model, untouched = toy(), toy()
    state = train_leg(model, data, SETTINGS, begin(model), Leg(5))
    assert set(state.model) == {
        "layer.weight",
        "layer.bias",
        "unused.weight",
        "unused.bias",
        "head.weight",
        "head.bias",
    }
    for name, value in model.named_parameters():
        if name.startswith(("embed", "unused")):
            assert torch.equal(value, untouched.get_parameter(name)), name
        else:
            assert not torch.equal(value, untouched.get_parameter(name)), name
        assert value.grad is None
    assert {name.split("/")[0] for name in state.moments} == {
        "layer.weight", "layer.bias", "head.weight", "head.bias"
    }  # fmt: skip


def test_a_state_survives_the_disk(data: Data, tmp_path: Path) -> None:
    state = run(data, [Leg(3), Leg(2)])
    state.save(tmp_path)
    again = State.load(tmp_path)
    assert same(again, state)
    assert again.legs == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_loss_that_is_not_finite_stops(data: Data) -> None:
    model = toy()
    with pytest.raises(NonFiniteError, match=r"loss of .* at step .*Lower the learning rate"):
        train_leg(model, data, replace(SETTINGS, learning_rate=1e38, clip=1e38), begin(model), Leg(50))
    with torch.no_grad():
        model.embed.weight[:] = float("nan")
    with pytest.raises(NonFiniteError, match="loss of nan at step 0"):
        train_leg(model, data, SETTINGS, begin(toy()), Leg(5))


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=400), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_is_a_permutation_in_batches(lengths: list[int], batch: int, seed: int) -> None:
    array = np.array(lengths)
    batches = epoch_batches(array, batch, seed, epoch=0)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert all(1 <= len(rows) <= batch for rows in batches)
    assert len(batches) == -(-len(lengths) // batch) == Data(Tokens([], 0, "right"), array).steps_per_epoch(batch)
    again = epoch_batches(array, batch, seed, epoch=0)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_epochs_differ_and_batches_are_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 600)
    first, second = (epoch_batches(lengths, 10, 0, epoch) for epoch in (0, 1))
    assert any(set(one) != set(other) for one, other in zip(first, second, strict=True))
    spread = np.mean([np.ptp(lengths[rows]) for rows in first])
    assert spread < 10  # a random batch of ten spreads over about 80
    assert not np.array_equal([lengths[rows].mean() for rows in first], sorted(lengths[rows].mean() for rows in first))


def test_batches_go_on_over_the_end_of_an_epoch(data: Data) -> None:
    per_epoch = data.steps_per_epoch(SETTINGS.batch)
    assert per_epoch == 6
    stream = data.batches(SETTINGS, 4)
    seen = [next(stream) for _ in range(5)]
    epochs = [
        rows for epoch in (0, 1) for rows in epoch_batches(data.tokens.lengths, SETTINGS.batch, SETTINGS.seed, epoch)
    ]
    assert all(np.array_equal(one, other) for one, other in zip(seen, epochs[4:9], strict=True))


def test_timing_a_step_looks_at_the_clock_between_steps(data: Data) -> None:
    model, calls = toy(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.register_forward_hook(lambda *_: calls.append(1))
    assert seconds_a_step(model, data, SETTINGS, steps=5) > 0
    assert len(calls) == 6
    calls.clear()
    assert seconds_a_step(model, data, SETTINGS, steps=5, stop=lambda: len(calls) >= 3) > 0
    assert len(calls) == 3
    calls.clear()
    assert seconds_a_step(model, data, SETTINGS, steps=5, stop=lambda: True) > 0
    assert len(calls) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
