"""Rank checkpoints for a task without training them."""

from regraft.rank.rank import FeatureView, Ranking, rank
from regraft.rank.scores import knn, left_out_correct, linear_probe, logme

__all__ = ["FeatureView", "Ranking", "knn", "left_out_correct", "linear_probe", "logme", "rank"]
