"""Adapt a checkpoint to a task: a probe head, LoRA, or a full fine-tune that starts from the probe."""

from regraft.adapt.adaptation import Adaptation, Plan, classifier_from
from regraft.adapt.average import Kept, combine, keep_weights, kept_state, kept_weights
from regraft.adapt.heads import VIEWS, Head, View, head_of, load_head, probe, save_head
from regraft.adapt.tuning import Tuning, full, lora

__all__ = [
    "VIEWS",
    "Adaptation",
    "Head",
    "Kept",
    "Plan",
    "Tuning",
    "View",
    "classifier_from",
    "combine",
    "full",
    "head_of",
    "keep_weights",
    "kept_state",
    "kept_weights",
    "load_head",
    "lora",
    "probe",
    "save_head",
]
