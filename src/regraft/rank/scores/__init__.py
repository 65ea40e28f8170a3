"""The published transferability scores, a file each: features (or source outputs) and labels in, one number out.

Higher is better, always. Every score takes features [N, D] and labels [N], or features that were prepared with their labels:
`prepare(features, labels)` computes once what several of them need. LEEP and NCE take a source head's probabilities [N, Z]
instead of features, `logme_regression` real-valued targets instead of labels.
"""

from regraft.rank.scores.gbc import gbc
from regraft.rank.scores.h_score import h_score, h_score_shrunk
from regraft.rank.scores.knn import knn
from regraft.rank.scores.leep import leep
from regraft.rank.scores.lfc import lfc
from regraft.rank.scores.logme import logme, logme_regression
from regraft.rank.scores.nce import nce
from regraft.rank.scores.nleep import nleep
from regraft.rank.scores.parc import parc
from regraft.rank.scores.ped import ped
from regraft.rank.scores.prepared import Prepared, checked, prepare, spectrum
from regraft.rank.scores.probe import left_out_correct, linear_probe
from regraft.rank.scores.sfda import sfda
from regraft.rank.scores.tmi import tmi
from regraft.rank.scores.transrate import transrate

__all__ = [
    "Prepared",
    "checked",
    "gbc",
    "h_score",
    "h_score_shrunk",
    "knn",
    "leep",
    "left_out_correct",
    "lfc",
    "linear_probe",
    "logme",
    "logme_regression",
    "nce",
    "nleep",
    "parc",
    "ped",
    "prepare",
    "sfda",
    "spectrum",
    "tmi",
    "transrate",
]
