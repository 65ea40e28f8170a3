"""How text becomes keys and words: the same for every database, so that both answer alike.

A *key* is what is compared: case folded, without NUL and lone surrogates (which databases refuse), at most `LONGEST`
characters (PostgreSQL indexes at most 2,704 bytes a value). A *word* is what the search finds: letters and digits between
anything else, without accents.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from pathlib import Path

LONGEST = 500
_BIGGEST = 2**63 - 1
_WORD = re.compile(r"[^\W_]+")
_WRITTEN_OUT = re.compile(r"\\x([89a-f][0-9a-f])|\\udc([89a-f][0-9a-f])")


def plain(text: str) -> str:
    """The text as every database can hold it: NUL goes; what is no Unicode (an undecodable file name) is written out."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode("utf-8")


def key(text: str | None) -> str | None:
    """What is compared of a text; None stays None, and so does a text with nothing in it."""
    if text is None:
        return None
    return plain(text).strip().casefold()[:LONGEST] or None


def metric_key(text: str) -> str:
    """The name of a metric as the filter writes it: `F1 (macro)` is `f1_macro`."""
    return "_".join(_WORD.findall(plain(text).casefold()))[:LONGEST]


def last_part(name: str) -> str:
    """`name` of `org/name`."""
    return name.replace("\\", "/").rstrip("/").split("/")[-1]


def path_key(path: str) -> str:
    """What tells paths apart: the path itself, or its beginning and a hash where it is too long for an index."""
    text = plain(path)
    if len(text) <= LONGEST:
        return text
    return f"{text[:400]}#{hashlib.sha256(text.encode()).hexdigest()}"


def path_of(text: str) -> Path:
    """The path that a catalogue holds as text, with bytes that are no UTF-8 written out (`\\xe9`, `\\udce9`).

    It is taken as it is where there is something, otherwise with those bytes.
    """
    there = _WRITTEN_OUT.sub(lambda found: chr(0xDC00 + int(found[1] or found[2], 16)), text)
    return Path(there) if there != text and not os.path.lexists(text) and os.path.lexists(there) else Path(text)


def whole(value: int | None) -> int | None:
    """A whole number as a database can hold it; what a mad config gives beyond 64 bits is left to the record."""
    return value if value is not None and abs(value) <= _BIGGEST else None


def finite(value: float | None) -> float | None:
    """A number that is one."""
    return value if value is not None and math.isfinite(value) else None


def words_of(text: str) -> list[str]:
    """The words of a text, in order: case folded, accents gone; each letter outside ASCII is written as its number.

    So one tokenizer, of ASCII alone, does for both databases and for any script. A beginning of a word stays a beginning.
    """
    if text.isascii():
        return [word[:LONGEST] for word in _WORD.findall(text.casefold())]
    folded = "".join(
        letter for letter in unicodedata.normalize("NFKD", plain(text)) if not unicodedata.combining(letter)
    ).casefold()
    return [_ascii(word)[:LONGEST] for word in _WORD.findall(folded)]


def _ascii(word: str) -> str:
    return word if word.isascii() else "".join(one if one.isascii() else f"u{ord(one):x}z" for one in word)
