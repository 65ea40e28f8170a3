"""Measuring: scores with intervals, baselines, latency, and the certificate of what was measured."""

from regraft.evaluate.latency import measure_latency, measure_throughput
from regraft.evaluate.metrics import (
    Score,
    bootstrap_intervals,
    mean_interval,
    metrics,
    paired_difference,
    proportion_interval,
    score,
    wilson_interval,
)

__all__ = [
    "Score",
    "bootstrap_intervals",
    "mean_interval",
    "measure_latency",
    "measure_throughput",
    "metrics",
    "paired_difference",
    "proportion_interval",
    "score",
    "wilson_interval",
]
