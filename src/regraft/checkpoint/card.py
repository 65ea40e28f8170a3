"""What a checkpoint's card (README.md) says about it: licence and parents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.checkpoint.files import read_bytes
from regraft.errors import CheckpointError

CARD_LIMIT = 4 * 2**20  # bytes


def read_card(folder: Path) -> dict[str, Any]:
    """The metadata at the head of README.md; empty when there is none or when it cannot be read: a card is a courtesy."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = read_bytes(folder / "README.md", CARD_LIMIT).decode("utf-8", "replace")
    except CheckpointError:
        return {}
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return {}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        content = YAML(typ="safe", pure=True).load("\n".join(lines[1:end]))
    except (YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def licence_of(card: Mapping[str, Any]) -> str | None:
    """`license`, or the name given for a licence of the owner's own."""
    licence = card.get("license")
    if licence == "other" and isinstance(card.get("license_name"), str):
        licence = card["license_name"]
    if isinstance(licence, list):
        return ", ".join(one for one in licence if isinstance(one, str)) or None
    return licence if isinstance(licence, str) and licence else None


def parents_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """`base_model`: one name or several."""
    parents = card.get("base_model")
    if isinstance(parents, str):
        return (parents,)
    # Of lists in lists, four lines of YAML with aliases make text of any length.
    return tuple(parent for parent in parents if isinstance(parent, str)) if isinstance(parents, list) else ()
