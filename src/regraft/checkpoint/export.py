"""Write a classifier as a stock folder: sentence-transformers (encoder, pooling, Dense) or transformers.

The files are written here and not by sentence-transformers, so that they hold nothing but what we mean them to; that the
stock class loads them, and computes the same, is then checked with the stock class (certificate).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.classifier import Classifier, StockClassifier, TextClassifier
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.opening import open_checkpoint
from regraft.checkpoint.quiet import quiet
from regraft.errors import CheckpointError

ABOUT = "regraft.json"
# The names under which every release since 2.0 finds its modules.
_MODULES = "sentence_transformers.models"
IDENTITY = "torch.nn.modules.linear.Identity"


def write_classifier(classifier: Classifier, folder: Path, about: Mapping[str, Any]) -> None:
    """Write weights, config, tokenizer and labels into an empty folder.

    Args:
        about: Goes into `regraft.json` (provenance); `labels` and `format` are added.
    """
    # What stock code is to cut texts at; many checkpoints name no length and fail on a long text.
    classifier.tokenizer.model_max_length = classifier.max_length
    with quiet():
        if isinstance(classifier, StockClassifier):
            classifier.model.save_pretrained(folder)
        else:
            _write_modules(classifier, folder)
        classifier.tokenizer.save_pretrained(folder)
    content = {**about, "format": classifier.format, "labels": list(classifier.labels)}
    (folder / ABOUT).write_text(json.dumps(content, indent=2) + "\n")


def write_encoder(classifier: TextClassifier, folder: Path) -> None:
    """Write encoder and tokenizer alone into an empty folder, as stock transformers does; the head stays behind."""
    classifier.tokenizer.model_max_length = classifier.max_length
    with quiet():
        classifier.encoder.save_pretrained(folder)
        classifier.tokenizer.save_pretrained(folder)


def _write_modules(classifier: TextClassifier, folder: Path) -> None:
    encoder = classifier.encoder
    encoder.config.id2label = dict(enumerate(classifier.labels))
    encoder.config.label2id = {label: index for index, label in enumerate(classifier.labels)}
    # WeightedLayerPooling reads all hidden states, which the stock Transformer module passes on under this key alone.
    encoder.config.output_hidden_states = classifier.layer_weights is not None
    encoder.save_pretrained(folder)
    width, classes = int(encoder.config.hidden_size), len(classifier.labels)
    modules: list[tuple[str, str]] = [("", "Transformer")]
    _json(folder / "sentence_bert_config.json", {"max_seq_length": classifier.max_length, "do_lower_case": False})
    if classifier.layer_weights is not None:
        at = folder / f"{len(modules)}_WeightedLayerPooling"
        weights = classifier.layer_weights.float()
        _json(at / "config.json",
              {"word_embedding_dimension": width, "layer_start": 0, "num_hidden_layers": len(weights) - 1})  # fmt: skip
        save_file({"layer_weights": weights}, at / "model.safetensors")
        modules.append((at.name, "WeightedLayerPooling"))
    at = folder / f"{len(modules)}_Pooling"
    _json(at / "config.json", _pooling(width, classifier.first_token))
    modules.append((at.name, "Pooling"))
    at = folder / f"{len(modules)}_Dense"
    _json(at / "config.json", {
        "in_features": int(classifier.head.in_features), "out_features": classes, "bias": True,
        "activation_function": IDENTITY,
    })  # fmt: skip
    head = {f"linear.{name}": value.detach().float().contiguous() for name, value in classifier.head.named_parameters()}
    save_file(head, at / "model.safetensors")
    modules.append((at.name, "Dense"))
    _json(folder / "modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ])  # fmt: skip
    _json(folder / "config_sentence_transformers.json",
          {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})  # fmt: skip


def _pooling(width: int, first_token: bool) -> dict[str, Any]:
    # Stock Pooling puts the modes side by side in this order.
    return {
        "word_embedding_dimension": width, "pooling_mode_cls_token": first_token, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    }  # fmt: skip


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def stock_logits(folder: Path, texts: list[str], form: str) -> torch.Tensor:
    """Logits [N, C] as the stock library computes them, with none of our code in between."""
    with quiet():
        return _stock_logits(folder, texts, form)


def _stock_logits(folder: Path, texts: list[str], form: str) -> torch.Tensor:
    if form == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
        encoded: torch.Tensor = model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return encoded.float().cpu()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    stock = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        logits: torch.Tensor = stock(**batch).logits.float()
    return logits


def load_member(folder: Path, device: str = "cpu") -> Classifier:
    """Open a member folder, of either form, as a classifier."""
    return load_classifier(open_checkpoint(str(folder)), device)


def load_classifier(checkpoint: Checkpoint, device: str = "cpu") -> Classifier:
    """A checkpoint that has a classification head, as it is.

    Raises:
        CheckpointError: It has no head.
    """
    from regraft.checkpoint.load import load_encoder, load_sequence_classifier, load_tokenizer, max_length

    if checkpoint.labels is None:
        raise CheckpointError(
            f"{checkpoint.reference} has no classification head.", "Give it one with `regraft adapt`."
        )
    tokenizer, length = load_tokenizer(checkpoint), max_length(checkpoint)
    if not checkpoint.modules:
        model = load_sequence_classifier(checkpoint, device=device)
        return StockClassifier(model, tokenizer, checkpoint.labels, length).to(device).eval()
    at = _module_folders(checkpoint)
    encoder = load_encoder(checkpoint, device=device)
    try:
        layer_weights = None
        if "WeightedLayerPooling" in at:
            layer_weights = load_file(at["WeightedLayerPooling"] / "model.safetensors")["layer_weights"].tolist()
        first_token = bool(read_json_object(at["Pooling"] / "config.json").get("pooling_mode_cls_token"))
        classifier = TextClassifier(encoder, tokenizer, checkpoint.labels, length, layer_weights, first_token)
        head = load_file(at["Dense"] / "model.safetensors")
        classifier.head.load_state_dict({name.removeprefix("linear."): value for name, value in head.items()})
    except (OSError, KeyError, RuntimeError, SafetensorError) as fault:
        raise CheckpointError(
            f"The head in {checkpoint.folder} does not fit its {len(checkpoint.labels)} labels and its encoder "
            f"({' '.join(str(fault).split())[:300]}).",
            "Restore the folder, or make it again.",
        ) from fault
    return classifier.to(device).eval()


def _module_folders(checkpoint: Checkpoint) -> dict[str, Path]:
    """The folder of each module by kind, when together they compute what `TextClassifier` does."""
    kinds, where = [kind for kind, _ in checkpoint.modules], checkpoint.folder / "modules.json"
    again = "Start from its encoder with `regraft adapt`."
    if [kind for kind in kinds if kind != "WeightedLayerPooling"] != ["Transformer", "Pooling", "Dense"] or (
        len(kinds) == 4 and kinds[1] != "WeightedLayerPooling"
    ):
        raise CheckpointError(
            f"{where} holds {', '.join(kinds)}; a classifier is Transformer, Pooling and Dense.", again
        )
    at = {kind: checkpoint.folder / path for kind, path in checkpoint.modules}
    activation = read_json_object(at["Dense"] / "config.json").get("activation_function")
    pooling = read_json_object(at["Pooling"] / "config.json")
    known = [_pooling(int(checkpoint.hidden_size), first_token) for first_token in (False, True)]
    if activation != IDENTITY or pooling not in known:
        raise CheckpointError(
            f"{checkpoint.folder}: a classifier pools by the mean (and first token) and has no activation after Dense; "
            f"this one is something else ({activation}).",
            again,
        )
    return at
