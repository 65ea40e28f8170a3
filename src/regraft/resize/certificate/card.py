"""The model card of a resized checkpoint: what it was made of and how, what was checked, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.anatomy import Opened
from regraft.certificate import Claim
from regraft.checkpoint.card import hub_name, loading_code, metadata_yaml, parents_of, read_card
from regraft.resize.certificate.steps import Step, said

_PROMISES = {
    "mask": "It computes what the original does with the units that were cut masked",
    "same": "It computes what the original does",
}


def card(
    name: str, parent: Opened, about: Mapping[str, Any], claims: Sequence[Claim], sizes: Mapping[str, tuple[int, int]],
    architecture: str,
) -> str:  # fmt: skip
    """README.md: metadata that the Hub reads, then the facts in words.

    Args:
        about: What is on record (`record.record_of`).
        claims: Of the certificate.
        sizes: (original, result) by what is measured: parameters, bytes.
        architecture: The class.
    """
    metadata = read_card(parent.weights.folder)
    library = str(about["library"])
    base = hub_name(parent.weights.reference, parents_of(metadata))
    head: dict[str, Any] = {"library_name": library, "tags": ["regraft", "resize"]}
    if base is not None:
        head["base_model"] = [base]
    head |= {key: metadata[key] for key in ("license", "license_name", "license_link") if key in metadata}
    if isinstance(metadata.get("pipeline_tag"), str):
        head["pipeline_tag"] = metadata["pipeline_tag"]
    steps: Sequence[Step] = about["steps"]
    rows = [f"| {what} | {before:,} | {after:,} |" for what, (before, after) in sizes.items()]
    rows += _latency(claims)
    notes = "".join(f"\n- {one}" for one in about["notes"])
    return f"""---
{metadata_yaml(head)}
---
# {name}

Made from `{parent.weights.reference}`, step after step:

{chr(10).join(f"{number}. {said(one)}" for number, one in enumerate(steps, 1))}

| | original | this |
|---|---|---|
{chr(10).join(rows)}

{_promise(about["computes"], claims)}{f"{chr(10)}{notes}{chr(10)}" if notes else ""}

Licence: {about["parent"]["licence"] or "the original names none"}. Check it again with `regraft verify` (certificate.json).

```python
{loading_code(architecture or "AutoModel", library)}
```
"""


def _promise(computes: Mapping[str, Any], claims: Sequence[Claim]) -> str:
    kind = str(computes["kind"])
    if kind not in _PROMISES:
        return f"What it computes is not promised: {computes['why']}"
    found = next((one.values["found"] for one in claims if one.check == "resize computes" and one.passed), None)
    return f"{_PROMISES[kind]}{' by construction; this was not checked' if found is None else f': {found}'}."


def _latency(claims: Sequence[Claim]) -> list[str]:
    found = next((one.values for one in claims if one.check == "resize latency" and one.passed), None)
    if found is None:
        return []
    before, after = (found[name]["median_ms"] for name in ("original", "resized"))
    return [f"| milliseconds of one example where it was made | {before:.3g} | {after:.3g} |"]
