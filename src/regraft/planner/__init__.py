"""The main job, `regraft.reuse`: from a task, a zoo and a budget to a family of checked models."""

from regraft.planner.family import Family, Member

__all__ = ["Family", "Member"]
