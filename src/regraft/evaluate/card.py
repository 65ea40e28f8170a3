"""The model card of a member: where it comes from, how it was made, what was measured, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.checkpoint import Checkpoint
from regraft.checkpoint.card import hub_name
from regraft.task import Task


@dataclass(frozen=True)
class Made:
    """How a model was made: the method, settings that differ from the method's own, (steps, decay) of each leg, the seed."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    legs: Sequence[tuple[int, int]] = ()
    seed: int = 0

    def sentence(self) -> str:
        """In words."""
        how = {
            "as-is": "The checkpoint as it is; nothing was trained.",
            "probe": "A linear head on the frozen encoder (mean over tokens), fitted by logistic regression.",
            "full": "The head was fitted first, then the encoder was trained together with it.",
            "soup": "The average of the weights of several adaptations of one checkpoint, chosen on validation data.",
            "cut": "A fine-tune of the checkpoint was cut, and trained again; regraft.json says which units stayed.",
            "lora": "The head was fitted first, then low-rank updates were trained and folded into the weights.",
        }.get(self.method, f"Made with the method {self.method}.")
        steps = sum(steps for steps, _ in self.legs)
        return f"{how} {steps:,} steps, seed {self.seed}." if steps else how


_LOAD = {
    "sentence-transformers": """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
logits = model.encode(["some text"])
label = model[0].auto_model.config.id2label[int(logits.argmax(-1)[0])]""",
    "transformers": """from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/folder")
classify("some text")""",
}


def base_model(parent: Checkpoint) -> str | None:
    """The Hub name of the checkpoint that a member was made from; what a local checkpoint's own card names otherwise."""
    return hub_name(parent.reference, parent.parents)


def card(name: str, form: str, parent: Checkpoint, task: Task, made: Made, figures: Mapping[str, Any]) -> str:
    """README.md of a member: metadata that the Hub reads, then the facts in words.

    Args:
        form: The stock library that loads it.
        figures: `test` (a score), `test_rows`, `parameters`, `latency_ms` (or None).
    """
    from huggingface_hub import EvalResult, ModelCardData

    test = figures["test"]
    results = [
        EvalResult(task_type="text-classification", dataset_type=task.reference.removeprefix("hf:"), dataset_name=task.name,
                   dataset_split="test", metric_type=kind, metric_value=round(test[key], 4))
        for kind, key in (("accuracy", "accuracy"), ("f1", "macro_f1"))
    ]  # fmt: skip
    base = base_model(parent)
    about = ModelCardData(
        model_name=name, base_model=base, license=parent.licence, library_name=form,
        pipeline_tag="text-classification", tags=["regraft"], eval_results=results,
    )  # fmt: skip
    low, high = test["intervals"]["accuracy"]
    latency = f"{figures['latency_ms']:.1f} ms" if figures.get("latency_ms") is not None else "not measured"
    return f"""---
{about.to_yaml()}
---
# {name}

{made.sentence()} Made from `{parent.reference}` for the task `{task.reference}` ({len(task.label_names)} classes).

| on {figures["test_rows"]:,} test examples | value |
|---|---|
| accuracy | {test["accuracy"]:.4f} ({low:.4f} to {high:.4f}, 95 % interval) |
| macro F1 | {test["macro_f1"]:.4f} |
| calibration error | {test["calibration_error"]:.4f} |
| parameters | {figures["parameters"]:,} |
| latency of one example here | {latency} |

Licence: {parent.licence or "the parent names none"}. Check it again with `regraft verify` (certificate.json).

```python
{_LOAD[form]}
```
"""
