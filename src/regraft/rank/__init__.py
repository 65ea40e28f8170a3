"""Rank checkpoints for a task without training them."""

from regraft.rank.knn import knn
from regraft.rank.logme import logme
from regraft.rank.probe import left_out_correct, linear_probe
from regraft.rank.rank import FeatureView, Ranking, rank

__all__ = ["FeatureView", "Ranking", "knn", "left_out_correct", "linear_probe", "logme", "rank"]
