"""Write what a run found: `family/recipe.yaml` and `result.json`."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from regraft import faults
from regraft.planner.compare import compared
from regraft.planner.job import Candidate, Job
from regraft.store import write_whole
from regraft.version import __version__

RECIPE = 1


def write_recipe(job: Job, arguments: dict[str, Any], family: list[Candidate], members: list[dict[str, Any]]) -> Path:
    """The recipe of the members: named steps whose inputs are references or other steps."""
    from io import StringIO

    from ruamel.yaml import YAML

    made = {member["name"]: member for member in members}
    task = {key: arguments[key] for key in ("text_column", "label_column", "metric", "max_rows", "seed")}
    steps: dict[str, dict[str, Any]] = {}
    for candidate in family:
        if candidate.name not in made:
            continue
        steps |= _steps(job, candidate, made[candidate.name])
    recipe = {
        "regraft": RECIPE,
        "version": __version__,
        "task": {"reference": job.task.reference, **task, "task_id": job.task.task_id},
        "threads": torch.get_num_threads(),
        "dtype": arguments["dtype"],
        "steps": steps,
    }
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 110
    yaml.dump(recipe, text)
    path = job.run.family / "recipe.yaml"
    write_whole(path, text.getvalue())
    faults.point("recipe written")
    return path


def _steps(job: Job, candidate: Candidate, member: dict[str, Any]) -> dict[str, dict[str, Any]]:
    name = candidate.name
    steps, model = _model_steps(job, candidate)
    steps[f"{name}.evaluate"] = {"op": "evaluate", "model": model, "split": "test", "rows": member["test_rows"]}
    steps[name] = {"op": "export", "model": model, "weights_id": member["weights_id"]}
    return steps


def _model_steps(job: Job, candidate: Candidate) -> tuple[dict[str, dict[str, Any]], str]:
    """The steps that make a candidate, and the name of the last."""
    name = candidate.name
    if candidate.cut is not None:
        steps, whole = _model_steps(job, job.candidates[candidate.cut.name])
        steps[f"{name}.resize"] = _resize_step(job, candidate, whole)
        return steps, f"{name}.resize"
    steps = {}
    for part in [job.candidates[one] for one in candidate.parts] or [candidate]:
        steps |= _adapt_steps(job, part)
    if candidate.parts:
        models = [f"{one}.adapt" for one in candidate.parts]
        steps[f"{name}.merge"] = {"op": "merge", "method": "linear", "models": models}
        return steps, f"{name}.merge"
    return steps, f"{name}.adapt"


def _resize_step(job: Job, candidate: Candidate, whole: str) -> dict[str, Any]:
    assert candidate.cut is not None and candidate.plan is not None
    return {
        "op": "resize", "model": whole, "sizes": dict(candidate.cut.sizes), "texts": candidate.cut.step["texts"],
        "method": candidate.plan.method, "settings": dict(candidate.plan.settings), "seed": job.seed,
        "legs": [[leg.steps, leg.decay] for leg in candidate.legs],
    }  # fmt: skip


def _adapt_steps(job: Job, candidate: Candidate) -> dict[str, dict[str, Any]]:
    name, checkpoint = candidate.name, candidate.checkpoint
    source = {"checkpoint": checkpoint.reference, "checkpoint_id": checkpoint.checkpoint_id}
    steps: dict[str, dict[str, Any]] = {}
    if candidate.method == "as-is":
        steps[f"{name}.adapt"] = {"op": "adapt", **source, "method": "as-is"}
    else:
        head = head_entry(job, candidate)
        steps[f"{checkpoint.name}.features"] = {"op": "features", **source}
        plan = candidate.plan
        steps[f"{name}.adapt"] = {
            "op": "adapt",
            "features": f"{checkpoint.name}.features",
            **source,
            "method": candidate.method,
            "head": head,
            "settings": {} if plan is None else dict(plan.settings),
            "options": {} if plan is None else dict(plan.options),
            "seed": job.seed,
            "legs": [[leg.steps, leg.decay] for leg in candidate.legs],
        }
    return steps


def head_entry(job: Job, candidate: Candidate) -> dict[str, Any]:
    """How the probe head of a candidate was fitted: view, rows, and what the solver chose."""
    assert candidate.head is not None
    suffix = "" if candidate.head.view == "last" else f"-{candidate.head.view}"
    _, entry = job.run.ledger.look(f"head/{candidate.checkpoint.name}-probe{suffix}")
    rest = entry["rows"] - len(job.rank_rows)
    found = {"view": candidate.head.view, "rank_rows": len(job.rank_rows), "rest_rows": rest,
             "l2": entry["l2"], "iterations": entry["iterations"]}  # fmt: skip
    if 0 < rest < job.rest_planned:  # a pass that was cut: the first of the rows that were planned
        found |= {"rest_rows": job.rest_planned, "rest_made": rest}
    if job.validation_rows is not None:
        found["validation_rows"] = job.validation_rows
    return found


def machine(job: Job) -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        pass
    if job.device.startswith("cuda"):
        processor = f"{processor}, {torch.cuda.get_device_name(job.device)}"
    return {
        "platform": platform.platform(), "processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": str(torch.__version__), "device": job.device,
    }  # fmt: skip


def write_result(job: Job, members: list[dict[str, Any]], baselines: list[dict[str, Any]]) -> dict[str, Any]:
    """`result.json`: everything that the report and `--json` show."""
    task, metric = job.task, job.task.metric
    best_member = max(members, key=lambda one: one["validation"][metric], default=None)
    best_baseline = max(job.baselines, key=lambda one: one["validation"][metric])
    take = best_member or best_baseline
    # A model that is no better than a baseline is not worth its size.
    if best_member is not None and best_baseline["validation"][metric] >= best_member["validation"][metric]:
        take = best_baseline
    result = {
        "regraft": __version__,
        "task": {
            "reference": task.reference, "name": task.name, "task_id": task.task_id, "metric": metric,
            "labels": list(task.label_names), "sizes": {name: len(split) for name, split in task.splits().items()},
            "notes": list(task.notes),
        },
        "zoo": {"reference": job.zoo.reference, "checkpoints": [
            {"name": one.name, "reference": one.reference, "model_type": one.model_type,
             # Hashing what was never opened, for lack of time, would take time that is not there.
             "checkpoint_id": one.checkpoint_id if one.name in job.features else None,
             "parameters": one.parameters, "encoder_parameters": one.encoder_parameters, "bytes": one.bytes,
             "layers": one.num_layers, "hidden_size": one.hidden_size, "licence": one.licence}
            for one in job.zoo.checkpoints
        ]},
        "budget": {"text": job.budget.text, "seconds": job.budget.seconds, "trials": job.budget.trials},
        "seed": job.seed,
        "machine": machine(job),
        "best": take["name"],
        "family": compared(job, members, take["name"]),
        "baselines": compared(job, baselines, take["name"]),
        "ranking": job.ranking,
        "candidates": [
            _candidate(one, members) for one in sorted(job.candidates.values(), key=lambda one: -one.quality(metric))
        ],
        "decisions": _decisions(job),
        "left_out": job.left_out,
        "recipe": str(job.run.family / "recipe.yaml"),
        "report": str(job.run.folder / "report.html"),
        "spent_s": round(job.deadline.spent(), 2),
    }  # fmt: skip
    job.run.ledger.beat()
    write_whole(job.run.folder / "result.json", json.dumps(result, indent=2) + "\n")
    faults.point("result written")
    return result


def _candidate(one: Candidate, members: list[dict[str, Any]]) -> dict[str, Any]:
    # What was written is known, what was not is reckoned.
    made = next((member for member in members if member["name"] == one.name), None)
    parameters = made["parameters"] if made else one.parameters()
    return {
        "name": one.name, "checkpoint": one.checkpoint.name, "method": one.method,
        "cut_from": None if one.cut is None else one.cut.name,
        "settings": {} if one.plan is None else {**one.plan.settings, **one.plan.options},
        "encoder_parameters": one.checkpoint.encoder_parameters, "bytes_bf16": 2 * parameters,
        "throughput": one.throughput,
        "status": one.status, "reason": one.reason, "parameters": parameters,
        "bytes": made["bytes"] if made else one.bytes(),
        "latency_ms": one.latency_ms, "seconds": one.seconds, "validation": one.validation, "curve": one.curve,
    }  # fmt: skip


def _decisions(job: Job) -> list[dict[str, Any]]:
    """Every logged decision and measurement in order; the cost is the time until the next entry."""
    entries = job.run.ledger.entries()
    ends = [at for _, at, _ in entries[1:]] + [job.deadline.spent()]
    found = []
    for (key, at, value), end in zip(entries, ends, strict=True):
        if key.startswith("decision/"):
            shown = value["value"]
            text = value["what"] if shown is None or isinstance(shown, dict) else f"{value['what']}: {_words(shown)}"
            found.append({"at_s": at, "what": text, "reason": value["reason"], "cost_s": max(0.0, end - at)})
    return found


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
