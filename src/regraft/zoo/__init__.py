"""Zoos: the checkpoints that a reference means, and what was left out of them and why."""

from __future__ import annotations

from regraft.zoo.zoo import LeftOut, Zoo, open_zoo

__all__ = ["LeftOut", "Zoo", "open_zoo"]
