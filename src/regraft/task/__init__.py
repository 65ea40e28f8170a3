"""Tasks: examples with a target, cleaned and split, whatever file or reference they come from."""

from __future__ import annotations

from regraft.task.load import check_metric, load_task
from regraft.task.task import METRICS, Split, Task
from regraft.task.texts import read_texts

__all__ = ["METRICS", "Split", "Task", "check_metric", "load_task", "read_texts"]
