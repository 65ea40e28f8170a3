"""The identity of a tokenizer: a hash of what decides how text becomes ids, and of nothing else.

    tokenizer.json     model (vocabulary, merges, options), normalizer, pre_tokenizer, post_processor, added tokens
    vocabulary files   their content by kind (a word list, a JSON vocabulary, merges, a SentencePiece model), and those settings
                       of tokenizer_config.json and special_tokens_map.json that change tokens

Spacing and order of JSON, names of files, line ends, padding, truncation, decoders and chat templates do not count. Merges as
"a b" and as ["a", "b"] are the same. A tokenizer.json and the vocabulary files that it was made from have different ids, and so
may files of different library versions that spell defaults out or leave them out: equal ids mean equal tokenizers, unequal ones
need not mean different ones. Source of the format: huggingface/tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from regraft.checkpoint.files import TOKENIZER_LIMIT
from regraft.checkpoint.identity import canonical, function_of_tokenizer_config, sha256
from regraft.checkpoint.safety import TOKENIZER_FILES
from regraft.zoo.record.folder import Folder, clean, too_many_values

WHOLE = "tokenizer.json"
KINDS = {
    "vocab.txt": "words", "vocab.json": "vocabulary", "merges.txt": "merges", "bpe.codes": "merges",
    "spiece.model": "sentencepiece", "sentencepiece.bpe.model": "sentencepiece",
    "tokenizer.model": "sentencepiece", "spm.model": "sentencepiece",
    "source.spm": "sentencepiece", "added_tokens.json": "added",
}  # fmt: skip
CLASSES = {"words": "WordPiece", "merges": "BPE", "sentencepiece": "SentencePiece"}
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")
_TOKEN = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
# Of tokenizer_config.json: notes of the library, and what says nothing of how text is cut.
_NOT_TOKENS = frozenset({
    "tokenizer_class", "processor_class", "auto_map", "clean_up_tokenization_spaces", "padding_side", "truncation_side",
    "pad_token_type_id", "max_seq_length", "return_token_type_ids", "model_input_names",
})  # fmt: skip
# Ids of contents that were read before, by the hash of their bytes: the same few tokenizers lie in most folders.
_KNOWN: OrderedDict[bytes, tuple[str | None, str | None]] = OrderedDict()
_MOST_KNOWN = 4096


def tokenizer_of(folder: Folder, encoder: str, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(tokenizer_id, kind) of the tokenizer beside the encoder, or else in the root; (None, None) without one.

    Args:
        encoder: The encoder's folder below the root, "" for the root itself.
        config: The content of tokenizer_config.json.
    """
    for place in dict.fromkeys((f"{encoder}/" if encoder else "", "")):
        if f"{place}{WHOLE}" in folder:
            data = folder.read(f"{place}{WHOLE}", TOKENIZER_LIMIT)
            found = (None, None) if data is None else _of_whole(folder, f"{place}{WHOLE}", data)
            if found[0] is not None:
                return found
        names = [name for name in (*TOKENIZER_FILES, "merges.txt", "added_tokens.json") if f"{place}{name}" in folder]
        if any(KINDS.get(name, "added") != "added" for name in names):
            return _of_files(folder, place, names, config)
    return None, None


def _of_whole(folder: Folder, name: str, data: bytes) -> tuple[str | None, str | None]:
    digest = hashlib.sha256(data).digest()
    if digest in _KNOWN:
        _KNOWN.move_to_end(digest)
        return _KNOWN[digest]
    content = folder.parse(name, data)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        if content is not None:
            folder.risk("broken-file", "danger", name, "It describes no tokenizer: it has no model.")
        return None, None
    model = content["model"]
    found = sha256("tokenizer", *_whole_parts(content)), clean(model.get("type")) or _guess(model)
    _KNOWN[digest] = found
    if len(_KNOWN) > _MOST_KNOWN:
        _KNOWN.popitem(last=False)
    return found


def _whole_parts(content: Mapping[str, Any]) -> list[str]:
    model = dict(content["model"])
    merges = model.pop("merges", None)
    if isinstance(merges, list):
        merges = [one.split(" ") if isinstance(one, str) else one for one in merges]
    model["type"] = model.get("type") or _guess(model)
    # Absent, null and false are the same to the library for every option of a model.
    options = {
        key: value for key, value in model.items() if value is not None and value is not False and key != "vocab"
    }
    tokens = content.get("added_tokens") or []
    added = [{key: one.get(key) or False for key in _TOKEN} if isinstance(one, dict) else one for one in tokens]
    return [
        canonical(options), canonical(model.get("vocab")), canonical(merges),
        *(canonical(content.get(part)) for part in _PARTS),
        canonical(sorted(added, key=canonical)) if isinstance(tokens, list) else "[]",
    ]  # fmt: skip


def _guess(model: Mapping[str, Any]) -> str | None:
    """The kind of a model in files of before its kind was written."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else None


def _of_files(folder: Folder, place: str, names: list[str], config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    parts = []
    for name in names:
        data = folder.read(f"{place}{name}", TOKENIZER_LIMIT)
        if data is not None:
            parts.append([KINDS[name], _content(KINDS[name], data)])
    if not parts:
        return None, None
    settings = {**folder.json_object(f"{place}special_tokens_map.json"), **config}
    kept = {
        key: _text_of(value) for key, value in function_of_tokenizer_config(settings).items() if key not in _NOT_TOKENS
    }
    kinds = {kind for kind, _ in parts}
    stated = (clean(config.get("tokenizer_class")) or "").removesuffix("Fast")
    told = next((CLASSES[kind] for kind in ("sentencepiece", "merges", "words") if kind in kinds), stated or None)
    return sha256("tokenizer files", stated, canonical(sorted(parts)), canonical(kept)), told


def _content(kind: str, data: bytes) -> str:
    """A hash of a vocabulary file's content: lines without their ends, JSON without its spacing, other files as bytes."""
    if kind in ("words", "merges"):
        lines = data.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
        if kind == "merges":
            lines = [line for line in lines if not line.startswith(b"#version")]
        data = b"\n".join(lines)
    elif kind in ("vocabulary", "added") and not too_many_values(data):
        with suppress(ValueError, RecursionError):  # as bytes, then
            data = canonical(json.loads(data)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()


def _text_of(token: Any) -> Any:
    """A special token as text: files hold it as text or as an object with its flags."""
    return token.get("content", token) if isinstance(token, dict) else token
