"""Licences: recognise them by name and by text, and say when a child's licence breaks its parent's terms.

The rules are data: `licences.yaml`, where their meaning is explained. A child is a model made from the parent's weights:
fine-tuned, merged, cut, quantised or an adapter over it. A program that only runs the model is no child; for it weaker rules
hold (the LGPL's, for one), which are not given here. Of what cannot be told (an owner's licence, "other") nothing is said to be
forbidden; that is no permission.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from regraft.zoo.record.card import decoded
from regraft.zoo.record.folder import Folder, clean, texts
from regraft.zoo.record.record import Licence
from regraft.zoo.record.yaml_text import load

TEXT_LIMIT = 2**20  # bytes of a licence file; the longest, of the GPL, has 35 thousand
_HEAD = 1500  # characters
_FILES = re.compile(r"(?:licen[cs]es?|copying|unlicense)(?:[-._].{0,40})?", re.IGNORECASE)
_NOT_TEXT = re.compile(r"\.(?:py|json|safetensors|bin|png|jpe?g|pdf|html?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Terms:
    """One licence's terms for what is made from a model; see `licences.yaml`.

    Args:
        id: SPDX identifier, or the Hub's key.
        derivatives, commercial, relicense: None where it cannot be told.
    """

    id: str
    family: str
    derivatives: bool | None = None
    commercial: bool | None = None
    relicense: str | None = None
    children: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    why: str = ""
    notice: str | None = None
    part_of: str | None = None
    text: Mapping[str, Any] = field(default_factory=dict)


@cache
def all_terms() -> Mapping[str, Terms]:
    """Every licence of `licences.yaml`, by id."""
    return _table()[0]


@lru_cache(maxsize=4096)
def recognised(name: str) -> str | None:
    """The id of a licence by any of its spellings: "Apache License 2.0", "apache-2.0", "gpl-3.0-plus"; None if unknown."""
    return _table()[1].get(_squeezed(name))


def terms_of(name: str) -> Terms | None:
    """The terms of a licence by any of its spellings."""
    found = recognised(name)
    return None if found is None else all_terms()[found]


@lru_cache(maxsize=4096)
def forbids(parent_licence: str | None, child_licence: str | None) -> str | None:
    """Why a child may not be passed on under the licence that it states, in words; None when nothing forbids it.

    Args:
        parent_licence: Of the parent, in any spelling; several joined by ", " or " AND " all hold.
        child_licence: Of the child, likewise. None: it states none, which breaks terms that must be passed on.
    """
    if parent_licence is None:
        return None
    children = [terms for part in _parts(child_licence or "NONE") if (terms := terms_of(part)) is not None]
    for part in _parts(parent_licence):
        parent = terms_of(part)
        if parent is None or not children:
            continue
        reasons = [_reason(parent, child) for child in children]
        # Under several licences at once a child needs one that passes the parent's terms on, but no one may widen them.
        if all(reasons):
            return reasons[0]
    return None


def _reason(parent: Terms, child: Terms) -> str | None:
    if parent.derivatives is False:
        return f"{parent.id} allows no changed version to be passed on."
    same = child.id == parent.id or _loosely(parent, child)
    if same or parent.relicense is None:
        return None
    stated = "The child states no licence" if child.id == "NONE" else f"The child states {child.id}"
    if child.family == "unknown" and child.id != "NONE":
        return None
    if child.id == "NONE":
        return None if parent.relicense == "any" else f"{stated}; {parent.id} must be passed on with it."
    if parent.commercial is False and child.commercial:
        return f"{stated}, which allows commercial use; {parent.id} does not."
    if parent.relicense == "same" and child.id not in parent.children:
        also = f" or {', '.join(sorted(parent.children))}" if parent.children else ""
        return f"{stated}; what is made from a model under {parent.id} must be under {parent.id}{also}."
    if parent.relicense == "restricted" and child.family != "use-restricted":
        return f"{stated}, which has no restrictions of use; those of {parent.id} must be passed on."
    if child.id in parent.forbidden:
        return f"{stated}, which does not go with {parent.id}: {parent.why}."
    return None


def _loosely(one: Terms, other: Terms) -> bool:
    """Whether one is a loose name ("bsd") for a group that the other belongs to."""
    return one.part_of == other.id or other.part_of == one.id


def licence_of(folder: Folder, metadata: Mapping[str, Any], config: Mapping[str, Any]) -> Licence:
    """What card, config and licence file state; a conflict between them, or silence, is a risk."""
    card = _stated(metadata)
    in_config = _known(clean(config.get("license")))
    name, file = _in_file(folder)
    stated = [one for one in (card, file, in_config) if one is not None]
    conflict = any(not _agree(stated[0], other) for other in stated[1:])
    if not conflict:  # of "other" and a text that is known, the text says more
        stated.sort(key=terms_unknown)
    if conflict:
        said = ", ".join(
            f"{where} {one}" for where, one in (("card", card), ("file", file), ("config", in_config)) if one
        )
        folder.risk("licence-conflict", "warning", name or "README.md", f"Different licences are stated: {said}.")
    if not stated or terms_unknown(stated[0]):
        what = (
            f"{stated[0]} says nothing of what is allowed."
            if stated
            else "No licence is stated: all rights may be reserved."
        )
        folder.risk("licence-unknown", "note", name or "README.md", what)
    return Licence(stated[0] if stated else None, card, in_config, file, conflict)


def terms_unknown(licence: str) -> bool:
    """Whether nothing is known of a licence's terms."""
    return all((terms := terms_of(part)) is None or terms.family == "unknown" for part in _parts(licence))


def in_text(text: str) -> str | None:
    """The id of the licence whose text this is; None if it is none that is known."""
    plain = " ".join(re.sub(r"[*#=>\"“”_]+", " ", text).lower().split())
    head = plain[:_HEAD]
    for terms in all_terms().values():
        rule = terms.text
        if (
            rule
            and rule.get("head", "") in head
            and all(phrase in plain for phrase in rule.get("all", ()))
            and not any(phrase in plain for phrase in rule.get("none", ()))
        ):
            return terms.id
    return None


def _in_file(folder: Folder) -> tuple[str | None, str | None]:
    """The first licence file whose text is known, and its licence; else the first licence file."""
    names = [name for name in folder.names() if _FILES.fullmatch(name) and not _NOT_TEXT.search(name)]
    for name in names[:4]:
        data = folder.read(name, TEXT_LIMIT)
        found = None if data is None else _in_bytes(data)
        if found is not None:
            return name, found
    return (names[0] if names else None), None


@lru_cache(maxsize=256)
def _in_bytes(data: bytes) -> str | None:
    """As `in_text`; the same few files lie in most folders."""
    return in_text(decoded(data))


def _stated(metadata: Mapping[str, Any]) -> str | None:
    """`license` of a card; for "other" the owner's name for it."""
    names = texts(metadata.get("license") or metadata.get("licence"))
    own = clean(metadata.get("license_name"))
    if own is not None and (not names or names[0].lower() == "other"):
        names = (own,)
    return ", ".join(dict.fromkeys(str(_known(name)) for name in names)) or None


def _known(name: str | None) -> str | None:
    return None if name is None else recognised(name) or name


def _agree(one: str, other: str) -> bool:
    """Whether two statements can mean the same: equal, a loose name, an owner's own name, or "only" and "or later" (whose texts
    are one)."""
    firsts, seconds = _parts(one), _parts(other)
    for first in firsts:
        for second in seconds:
            a, b = terms_of(first), terms_of(second)
            if (
                a is None
                or b is None
                or "unknown" in (a.family, b.family)
                or a.id == b.id
                or _loosely(a, b)
                or _version(a.id) == _version(b.id)
            ):
                return True
    return False


def _version(licence: str) -> str:
    return licence.removesuffix("-only").removesuffix("-or-later")


def _parts(licence: str) -> list[str]:
    """The licences of a statement; a name that has a comma itself stays whole."""
    if recognised(licence) is not None:
        return [licence]
    return [part.strip() for part in re.split(r",| AND ", licence) if part.strip()]


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9+.]+", "", name.lower())


@cache
def _table() -> tuple[Mapping[str, Terms], Mapping[str, str]]:
    content = load(files("regraft.zoo.record").joinpath("licences.yaml").read_text(encoding="utf-8"))
    terms: dict[str, Terms] = {}
    spellings: dict[str, str] = {}
    for name, own in content["licences"].items():
        rule = {**content["families"][own["family"]], **own}
        forbidden = rule.get("forbidden", {})
        terms[name] = Terms(
            name, rule["family"], rule.get("derivatives"), rule.get("commercial"), rule.get("relicense"),
            frozenset(rule.get("children", ())), frozenset(forbidden.get("licences", ())), forbidden.get("why", ""),
            rule.get("notice"), rule.get("part_of"), rule.get("text", {}),
        )  # fmt: skip
        for spelling in (name, *rule.get("spellings", ())):
            spellings.setdefault(_squeezed(spelling), name)
    return terms, spellings
