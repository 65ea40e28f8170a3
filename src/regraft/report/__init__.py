"""What people read: the HTML report of a run, its table for the terminal, and numbers in words."""

from __future__ import annotations

from regraft.report.page import render, write_report
from regraft.report.terminal import table

__all__ = ["render", "table", "write_report"]
