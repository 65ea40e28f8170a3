"""Read a folder into a `Record`: one listing, headers, and small files that are opened once each; nothing of it is run.

transformers and torch are not imported: a record takes a few milliseconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from regraft.checkpoint import blocks
from regraft.checkpoint.adapter import CONFIG as ADAPTER
from regraft.checkpoint.headers import INDEX, TensorInfo
from regraft.checkpoint.safety import STOCK_MODULES
from regraft.zoo.record import risks
from regraft.zoo.record.card import Card, claims_of, read_card, training_of
from regraft.zoo.record.folder import Folder, clean, texts
from regraft.zoo.record.licences import licence_of
from regraft.zoo.record.parents import ABOUT, all_parents
from regraft.zoo.record.record import Licence, Record
from regraft.zoo.record.sections import completeness, sections_of
from regraft.zoo.record.sizes import Sizes, sizes_of
from regraft.zoo.record.tensors import tensors_of, totals_of
from regraft.zoo.record.tokenizer import tokenizer_of

CONFIG, MODULES = "config.json", "modules.json"
MOST_LABELS = 100_000
# The pipeline that a class of transformers is for, by the end of its name.
TASKS = {
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering", "ForMaskedLM": "fill-mask", "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation", "ForConditionalGeneration": "text2text-generation",
    "ForImageClassification": "image-classification", "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation", "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition", "ForMultipleChoice": "multiple-choice",
}  # fmt: skip
_LM = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")
_OUTPUTS = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection|predictions\.decoder|vocab_projector)\.weight$")
_EXTRA = {"transformers_version": "transformers_version", "_name_or_path": "name_or_path"}


def read_record(folder: Path) -> Record:
    """The record of a folder. Never raises: a folder that cannot be read has the kind "unreadable" and a risk that says why.

    Args:
        folder: In any layout of the Hub: transformers, sentence-transformers, peft, a snapshot of the Hub's cache, diffusers;
            with pickles, GGUF or ONNX only, files are listed and small files read.
    """
    path = Path(os.path.abspath(folder))  # noqa: PTH100  links in the path stay as the user wrote them
    opened = Folder(path)
    try:
        return _read(opened)
    except Exception as error:  # one folder must not stop the indexing of all others
        opened.risk(
            "unreadable", "danger", "", f"It could not be recorded ({type(error).__name__}: {str(error)[:200]})."
        )
        return _unreadable(opened)


def _read(folder: Folder) -> Record:
    if not folder.listing.files:
        return _no_checkpoint(folder, folder.listing.fault or "it holds no files")
    modules = modules_of(folder)
    encoder = modules[0][1] if modules else ""
    at = f"{encoder}/" if encoder else ""
    is_adapter = ADAPTER in folder and f"{at}{CONFIG}" not in folder
    if not is_adapter and not _is_checkpoint(folder, f"{at}{CONFIG}"):
        return _no_checkpoint(folder, "it holds no config, weights or adapter")
    config = folder.json_object(f"{at}{CONFIG}")
    adapter = folder.json_object(ADAPTER)
    about = folder.json_object(ABOUT)
    tokenizer_config = _first_object(folder, at, "tokenizer_config.json")
    tensors = tensors_of(folder, encoder, modules[1:])
    sizes = sizes_of(config, folder, f"{at}{CONFIG}")
    card = read_card(folder)
    claims = claims_of(card.metadata)
    licence = licence_of(folder, card.metadata, config)
    training = training_of(card)
    task, library = _task(card, config, modules), _library(folder, card, config, modules, is_adapter)
    datasets = texts(card.metadata.get("datasets"))
    sections = sections_of(card.text)
    if training.emissions_kg is not None and "environment" not in sections:
        sections = (*sections, "environment")
    filled = {"licence": licence.stated, "task": clean(card.metadata.get("pipeline_tag")), "datasets": datasets,
              "results": claims, "library": clean(card.metadata.get("library_name"))}  # fmt: skip
    tokenizer_id, tokenizer = tokenizer_of(folder, encoder, tokenizer_config)
    totals = totals_of(tensors)
    if sizes.layers is None and (counted := blocks.count_blocks(tensors)) and not is_adapter:
        layers: int | None = counted
    else:
        layers = sizes.layers
    _note_risks(folder, f"{at}{CONFIG}", config, adapter, tokenizer_config, sizes, tensors, is_adapter)
    if tokenizer_id is None and sizes.vocabulary_size is not None and tensors:
        folder.risk("missing-file", "note", f"{at}tokenizer.json", "There is no tokenizer that can be read.")
    risks.claim_risks(folder, card.name or "README.md", claims)
    source, revision = _downloaded(folder.path)
    return Record(
        path=path_text(folder.path), name=_name(folder.path), kind="adapter" if is_adapter else "checkpoint",
        file_id=folder.listing.file_id, files=_files(folder), source=source, revision=revision,
        model_type=clean(config.get("model_type")), architectures=texts(config.get("architectures")),
        layers=layers, hidden_size=sizes.hidden_size, heads=sizes.heads, kv_heads=sizes.kv_heads,
        ffn_size=sizes.ffn_size, vocabulary_size=sizes.vocabulary_size,
        max_length=_max_length(folder, at, sizes, tokenizer_config),
        parameters=totals.parameters, encoder_parameters=totals.encoder_parameters, weight_bytes=totals.weight_bytes,
        dtypes=totals.dtypes, tensors=totals.tensors, tied=_tied(config, tensors),
        tokenizer_id=tokenizer_id, tokenizer=tokenizer, labels=_labels(config, about), task=task,
        languages=texts(card.metadata.get("language") or card.metadata.get("languages")),
        tags=texts(card.metadata.get("tags")), datasets=datasets, licence=licence,
        parents=all_parents(folder, card, adapter, about), claims=claims,
        hardware=training.hardware, hours=training.hours, emissions_kg=training.emissions_kg,
        energy_kwh=training.energy_kwh, sections=sections,
        completeness=completeness(sections, [name for name, value in filled.items() if value]),
        library=library, risks=tuple(folder.risks), extra=_extra(config, adapter),
    )  # fmt: skip


def path_text(path: Path) -> str:
    """The folder as text that can be stored: bytes that are no UTF-8 are written out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _no_checkpoint(folder: Folder, why: str) -> Record:
    folder.risk("unreadable", "danger", "", f"No checkpoint: {why}.")
    risks.link_risks(folder)
    return _unreadable(folder)


def _unreadable(folder: Folder) -> Record:
    return Record(
        path=path_text(folder.path), name=_name(folder.path), kind="unreadable", file_id=folder.listing.file_id,
        files=_files(folder), licence=Licence(), risks=tuple(folder.risks),
    )  # fmt: skip


def _files(folder: Folder) -> tuple[Any, ...]:
    return tuple(folder.listing.files[name] for name in sorted(folder.listing.files))


def _name(path: Path) -> str:
    """org/name of a snapshot in a Hub cache, else the folder's own name."""
    source, _ = _downloaded(path)
    return source.removeprefix("hf:") if source else clean(path_text(Path(path.name or "/"))) or "unnamed"


def _downloaded(path: Path) -> tuple[str | None, str | None]:
    """hf:org/name and the commit, of a snapshot in a Hub cache; elsewhere nothing says them."""
    owner = path.parent.parent.name
    if path.parent.name != "snapshots" or not owner.startswith("models--"):
        return None, None
    name = clean(owner.removeprefix("models--").replace("--", "/", 1))
    return (f"hf:{name}" if name else None), clean(path_text(Path(path.name)))


def _is_checkpoint(folder: Folder, config: str) -> bool:
    """Whether any file of a model is there: a config, weights in any format, or a link where one should be."""
    marks = (config, CONFIG, MODULES, "model_index.json", INDEX)
    known = (".safetensors", *risks.OTHER_WEIGHTS)
    return any(mark in folder for mark in marks) or any(
        name.endswith(known) or risks.is_pickle(name) for name in (*folder.listing.files, *folder.listing.links_out)
    )


def _first_object(folder: Folder, at: str, name: str) -> Mapping[str, Any]:
    return folder.json_object(f"{at}{name}" if f"{at}{name}" in folder else name)


def modules_of(folder: Folder) -> list[tuple[str, str]]:
    """(class, folder below the root) of the sentence-transformers modules; those of no stock class are a risk."""
    content = folder.json(MODULES)
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        folder.risk("broken-file", "danger", MODULES, "It is not a list of modules.")
        return []
    found = []
    for entry in content:
        kind, where = str(entry.get("type", "")), entry.get("path", "")
        name = kind.rsplit(".", 1)[-1]
        if not re.fullmatch(r"sentence_transformers(\.[a-z_]+)*\.[A-Za-z]+", kind) or name not in STOCK_MODULES:
            folder.risk(
                "code", "danger", MODULES, f"It names the module {kind[:80]!a}, which is none of the stock modules."
            )
        if not isinstance(where, str) or PurePosixPath(where).is_absolute() or ".." in PurePosixPath(where).parts:
            folder.risk(
                "path-out", "danger", MODULES, f"It names the path {str(where)[:80]!a}, which leaves the folder."
            )
            continue
        found.append((name, "" if where in (".", "./") else where.strip("/")))
    return found


def _note_risks(
    folder: Folder, where: str, config: Mapping[str, Any], adapter: Mapping[str, Any], tokenizer_config: Mapping[str, Any],
    sizes: Sizes, tensors: Mapping[str, TensorInfo], is_adapter: bool,
) -> None:  # fmt: skip
    """Risks of the layout: what is missing, what is dangerous, what does not fit together."""
    names = folder.listing.files
    safetensors = any(name.endswith(".safetensors") for name in names)
    pickles = any(risks.is_pickle(name) for name in names)
    risks.listing_risks(folder, safetensors)
    risks.code_risks(folder, "tokenizer_config.json", tokenizer_config)
    if is_adapter:
        risks.code_risks(folder, ADAPTER, adapter)
    else:
        risks.config_risks(folder, where, config, sizes, tensors)
        if where not in folder and "model_index.json" not in folder:
            folder.risk("missing-file", "warning", where, "There is no config: what these weights are is not stated.")
        if ADAPTER in folder:
            folder.risk("adapter-inside", "warning", ADAPTER, "The folder holds a model and an adapter.")
    others = [name for name in names if name.endswith(risks.OTHER_WEIGHTS)]
    if not safetensors and not pickles and not others and not folder.listing.links_out:
        weights = "adapter_model.safetensors" if is_adapter else "model.safetensors"
        folder.risk("missing-file", "warning", weights, "There are no weights.")
    elif not safetensors and not pickles:
        risks.grouped(folder, "format", "note", others, "{} of weights in a format that is not read here.")


def _task(card: Card, config: Mapping[str, Any], modules: list[tuple[str, str]]) -> str | None:
    stated = clean(card.metadata.get("pipeline_tag"))
    if stated is not None:
        return stated
    if modules:
        return "sentence-similarity"
    kinds = texts(config.get("architectures"))
    return next((task for end, task in TASKS.items() if kinds and kinds[0].endswith(end)), None)


def _library(
    folder: Folder, card: Card, config: Mapping[str, Any], modules: list[tuple[str, str]], is_adapter: bool
) -> str | None:
    stated = clean(card.metadata.get("library_name"))
    if stated is not None:
        return stated
    if is_adapter:
        return "peft"
    if modules:
        return "sentence-transformers"
    if "model_index.json" in folder:
        return "diffusers"
    if config.get("model_type"):
        return "transformers"
    return next(
        (end[1:] for end in (".gguf", ".onnx") if any(name.endswith(end) for name in folder.listing.files)), None
    )


def _max_length(folder: Folder, at: str, sizes: Sizes, tokenizer_config: Mapping[str, Any]) -> int | None:
    """The fewest tokens that positions, tokenizer and sentence-transformers allow; None where none of them says."""
    own = _first_object(folder, at, "sentence_bert_config.json")
    limits = [sizes.max_length, tokenizer_config.get("model_max_length"), own.get("max_seq_length")]
    # Tokenizers write 10**30 for "no limit".
    return min(
        (int(one) for one in limits if isinstance(one, int | float) and not isinstance(one, bool) and 1 < one < 10**9),
        default=None,
    )


def _tied(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool | None:
    """As the config states; else True for a language model whose output embeddings are not stored."""
    stated = config.get("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    kinds = texts(config.get("architectures"))
    if not kinds or not kinds[0].endswith(_LM) or not tensors:
        return None
    return True if not any(_OUTPUTS.search(name) for name in tensors) else None


def _labels(config: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[str, ...] | None:
    """id2label of a classifier, in the order of its numbers; or what Regraft wrote down of a classifier of modules."""
    own = about.get("labels")
    if isinstance(own, list) and own and all(isinstance(one, str) for one in own[:MOST_LABELS]):
        return tuple(clean(one) or "" for one in own[:MOST_LABELS])
    kinds, names = texts(config.get("architectures")), config.get("id2label")
    if not kinds or not kinds[0].endswith("Classification") or not isinstance(names, dict):
        return None
    if not 0 < len(names) <= MOST_LABELS:
        return None
    try:
        return tuple(clean(names[str(number)]) or "" for number in range(len(names)))
    except KeyError:  # numbers with gaps name no logits
        return None


def _extra(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, str | float]:
    found: dict[str, str | float] = {}
    for key, name in _EXTRA.items():
        if (text := clean(config.get(key))) is not None:
            found[name] = text
    if (kind := clean(adapter.get("peft_type"))) is not None:
        found["peft_type"] = kind
    rank = adapter.get("r")
    if isinstance(rank, int) and not isinstance(rank, bool) and 0 < rank < 2**20:
        found["rank"] = float(rank)
    return found
