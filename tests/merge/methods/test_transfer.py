"""Fine-tuning transfer: the old fine-tune's changes on the new base."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.merge.methods.transfer import transfer
from regraft.merge.stack import Stack
from regraft.randomness import generator


def three(size: int = 300) -> list[np.ndarray]:
    draw = generator(0, "transfer")
    old = draw.standard_normal(size)
    return [values.astype(np.float32) for values in (old + 0.1 * draw.standard_normal(size), old * 1.1 + 0.02, old)]


@pytest.mark.parametrize("scale", [1.0, 0.4, -1.0])
def test_the_difference_of_the_old_pair_is_added_to_the_new_base(scale: float) -> None:
    tuned, new, old = three()
    exact = [one.astype(np.longdouble) for one in (new, tuned, old)]
    expected = (exact[0] + scale * (exact[1] - exact[2])).astype(np.float32)
    assert np.array_equal(transfer(Stack.of([tuned, new], base=old), scale=scale), expected)


def test_onto_the_old_base_it_is_the_fine_tune_again() -> None:
    tuned, _, old = three()
    assert np.array_equal(transfer(Stack.of([tuned, old], base=old)), tuned)


def test_scale_zero_is_the_new_base() -> None:
    tuned, new, old = three()
    assert np.array_equal(transfer(Stack.of([tuned, new], base=old), scale=0.0), new)


def test_the_order_says_which_is_the_new_base() -> None:
    tuned, new, old = three()
    assert not np.array_equal(
        transfer(Stack.of([tuned, new], base=old), scale=0.5), transfer(Stack.of([new, tuned], base=old), scale=0.5)
    )
