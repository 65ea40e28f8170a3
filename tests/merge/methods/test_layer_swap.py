"""Layer swapping: which layer is whose."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.errors import MethodError
from regraft.merge.methods.layer_swap import layer_swap
from regraft.merge.stack import Stack


def shares(layers: int, **options: object) -> list[float]:
    """How much of the second input every layer has."""

    def share(layer: int) -> float:
        stack = Stack.of([np.zeros(3), np.ones(3)], name=f"model.layers.{layer}.mlp.weight")
        found = layer_swap(stack, num_layers=layers, **options)  # type: ignore[arg-type]
        assert len(set(found.tolist())) == 1
        return float(found[0])

    return [share(layer) for layer in range(layers)]


def test_outer_layers_are_the_seconds_and_one_between_is_half() -> None:
    assert shares(10, bottom=3, top=2, transition=1) == [1, 1, 1, 0.5, 0, 0, 0, 0.5, 1, 1]


def test_without_transition_the_change_is_sharp() -> None:
    assert shares(6, bottom=2, top=1, transition=0) == [1, 1, 0, 0, 0, 1]


def test_a_longer_transition_falls_evenly() -> None:
    assert shares(9, bottom=1, top=1, transition=3) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1])


def test_one_side_alone() -> None:
    assert shares(5, bottom=2, top=0, transition=1) == [1, 1, 0.5, 0, 0]
    assert shares(5, bottom=0, top=1, transition=1) == [0, 0, 0, 0.5, 1]
    assert shares(4, bottom=0, top=0, transition=0) == [0, 0, 0, 0]


def test_the_defaults_are_the_authors_of_32_and_in_proportion_of_others() -> None:
    assert shares(32) == [1] * 5 + [0.5] + [0] * 23 + [0.5] + [1] * 2
    assert shares(16) == [1, 1, 0.5] + [0] * 11 + [0.5, 1]
    assert shares(6) == [1, 0.5, 0, 0, 0.5, 1]
    assert shares(3) == [1, 0, 1]


@pytest.mark.parametrize(("outside", "share"), [("first", 0.0), ("second", 1.0), ("average", 0.5)])
def test_tensors_outside_the_layers_are_of_the_input_that_is_named(outside: str, share: float) -> None:
    stack = Stack.of([np.zeros(2), np.ones(2)], name="model.embed_tokens.weight")
    assert layer_swap(stack, outside=outside, num_layers=12).tolist() == [share] * 2


def test_what_is_taken_whole_keeps_its_bits() -> None:
    first, second = np.array([0.1, -0.3], np.float32), np.array([7.7, 1e-30], np.float32)

    def layer(number: int) -> np.ndarray:
        stack = Stack.of([first, second], name=f"layers.{number}.weight")
        return layer_swap(stack, bottom=1, top=0, transition=0, num_layers=2)

    assert np.array_equal(layer(0), second)
    assert np.array_equal(layer(1), first)


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(MethodError, match="more than the 6 layers"):
        shares(6, bottom=3, top=2, transition=1)
    with pytest.raises(MethodError, match="more than the 1 layers"):
        shares(1)


def test_the_number_of_layers_must_be_known() -> None:
    with pytest.raises(MethodError, match="of how many is not given"):
        layer_swap(Stack.of([np.zeros(2)] * 2, name="layers.0.weight"))
