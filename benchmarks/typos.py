"""Texts with typing mistakes: the corruption that robustness is measured under."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.randomness import generator

SHARE = 0.4
SHORTEST = 4
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def with_typos(texts: Sequence[str], seed: int, share: float = SHARE) -> list[str]:
    """Each word of at least four letters gets one mistake with probability `share`; the same text gets the same ones.

    A mistake is one of four, evenly: two neighbouring letters change places, a letter is left out, doubled, or replaced by its
    neighbour on the keyboard. First letters stay.
    """
    return [_mistyped(text, generator(seed, "typos", text), share) for text in texts]


def _mistyped(text: str, random: np.random.Generator, share: float) -> str:
    words = text.split(" ")
    for number, word in enumerate(words):
        if len(word) >= SHORTEST and random.random() < share:
            at = int(random.integers(1, len(word) - 1))
            words[number] = _mistake(word, at, int(random.integers(4)))
    return " ".join(words)


def _mistake(word: str, at: int, kind: int) -> str:
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    return word[:at] + (word[at] * 2 if kind == 2 else _neighbour(word[at])) + word[at + 1 :]


def _neighbour(letter: str) -> str:
    """The key to the right of a letter, or to the left at the end of a row; other characters stay."""
    for row in _ROWS:
        at = row.find(letter.lower())
        if at >= 0:
            return row[at + 1] if at + 1 < len(row) else row[at - 1]
    return letter
