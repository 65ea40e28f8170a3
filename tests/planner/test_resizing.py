"""Resizing from end to end on the tiny checkpoints: with a task, with texts, with sizes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

from regraft import certificate
from regraft.anatomy import Settings, open_bound
from regraft.anatomy.tiny import random_checkpoint
from regraft.checkpoint import open_checkpoint
from regraft.errors import BudgetError, NonFiniteError, RegraftError, ResizeError
from regraft.planner import stock
from regraft.planner.recovery import Recovery
from regraft.planner.resizing import resize_one, shapes_of
from regraft.planner.single import verify_folder
from regraft.planner.stock import resize_stock
from regraft.planner.wishes import Corpus
from regraft.resize.certificate import checks, speed
from regraft.resize.certificate.fresh import Loaded, load_afresh
from regraft.resize.dial import search

TEXTS = ["the cat and the dog", "rain again today", "a nice old song", "we heard the drum", "snow by the house"]


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates without a process of its own for each: one test makes one with it."""
    monkeypatch.setattr(checks, "load_afresh", lambda folder, kind, size: Loaded(kind=kind))
    monkeypatch.setattr(checks, "check_anatomy", lambda _: [])
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(checks, "SLOWER", float("inf"))  # a busy machine is no fault


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Nothing half-made lies beside the outputs, hidden names included."""
    yield
    assert {one.name for one in tmp_path.iterdir()} <= {"out", "again", "copy", "corpus.txt"}


def sizes(folder: Path) -> dict[str, int]:
    return dict(open_bound(str(folder)).binding.sizes)


def test_a_limit_and_a_task(tiny_bert: Path, toy_task_files: Path, tmp_path: Path, nothing_left: None) -> None:
    whole = open_checkpoint(str(tiny_bert)).parameters
    limit = int(0.7 * whole)
    found = resize_one(str(tiny_bert), f"params={limit}", str(toy_task_files), tmp_path / "out", budget="8s")
    assert found["parameters"] <= limit
    assert found["cut"] and found["steps"][-1]["what"].startswith("recover")
    assert found["original"]["parameters"] == whole
    verdicts = verify_folder(tmp_path / "out", str(toy_task_files))
    assert {one.outcome for one in verdicts} == {"pass"}
    assert open_checkpoint(str(tmp_path / "out")).labels is not None


def test_what_is_reported_of_a_shape_is_its_score_on_validation_texts(
    tiny_classifier: Path, toy_task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint with a head for these labels, which teaches. What scores and trains is given here."""
    scores: dict[int, float] = {}

    def score(_: Recovery, folder: Path) -> float:
        weights = open_checkpoint(str(folder)).parameters
        return scores.setdefault(weights, 0.25 + 0.5 / (1 + len(scores)))

    monkeypatch.setattr(Recovery, "score", score)
    limit = int(0.8 * open_checkpoint(str(tiny_classifier)).parameters)
    found = resize_one(str(tiny_classifier), f"params={limit}", str(toy_task_files), tmp_path / "out", budget="6s")
    assert {one["score"] for one in found["tried"]} == set(scores.values())
    step = next(one for one in found["steps"] if one["what"].startswith("cut"))
    assert step["measure"] == "probe of training texts, on validation texts" and step["score"] in scores.values()
    assert all(one["measure"] == "validation accuracy" for one in found["steps"] if one["what"].startswith("recover"))
    assert found["taught"]


def test_units_are_chosen_by_other_texts_than_shapes_are_scored_by(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    class Compared(stock.Agreement):
        def __init__(self, opened: Any, texts: Any) -> None:
            compared.extend(texts)
            super().__init__(opened, texts)

    monkeypatch.setattr(stock, "Agreement", Compared)
    chosen: list[str] = []
    measure = search.scores
    monkeypatch.setattr(search, "scores", lambda *given, texts, **more: chosen.extend(texts) or
                        measure(*given, texts=texts, **more))  # fmt: skip
    resize_stock(str(tiny_bert), tmp_path / "out", to="params=20k", texts=TEXTS)
    assert sorted([*chosen, *compared]) == sorted(TEXTS) and chosen and compared


VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 8, "patch_size": 4, "hidden_size": 24,
       "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 40}  # fmt: skip


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random ViT in float32."""
    folder = tmp_path_factory.mktemp("images") / "vit"
    random_checkpoint(Settings(VIT), folder)
    tensors = {name: one.float() for name, one in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["params", "bytes", "latency"])
def test_a_model_of_images_is_resized_by_its_weights(kind: str, vit: Path, tmp_path: Path, nothing_left: None) -> None:
    tensors = load_file(vit / "model.safetensors")
    count, size = sum(one.numel() for one in tensors.values()), sum(one.nbytes for one in tensors.values())
    limit = {"params": int(0.7 * count), "bytes": int(0.7 * size) + 20_000, "latency": 1000}[kind]
    found = resize_stock(
        str(vit), tmp_path / "out", to=f"{kind}={limit}{'ms' if kind == 'latency' else ''}", budget="4s"
    )
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 2)
    assert any(note.startswith("No texts: units stay by magnitude") for note in found["notes"])
    if kind == "latency":
        assert found["latency"]["resized"]["median_ms"] <= limit
        return
    assert found["parameters"] < count and set(found["steps"][0]["by"].values()) == {"magnitude"}
    assert found[{"params": "parameters", "bytes": "bytes"}[kind]] <= limit
    claims = {one.check: one.passed for one in certificate.read(tmp_path / "out")}
    assert claims["resize computes"] and claims["resize latency"]
    assert {one.outcome for one in verify_folder(tmp_path / "out")} == {"pass"}


def test_what_a_model_of_images_has_no_use_for_is_refused(
    vit: Path, toy_task_files: Path, tmp_path: Path, nothing_left: None
) -> None:
    for wishes, words in (
        ({"texts": TEXTS}, "is of vit, which reads no texts, and texts are given"),
        (
            {"criterion": "activation"},
            "the criterion activation runs the model over texts. Choose among first, magnitude, random, or",
        ),
    ):
        with pytest.raises(ResizeError) as raised:
            resize_stock(str(vit), tmp_path / "out", to="params=10k", **wishes)
        assert words in str(raised.value)
    with pytest.raises(ResizeError, match="of vit, which reads no texts, and a task has nothing else"):
        resize_one(str(vit), "params=10k", str(toy_task_files), tmp_path / "out")
    with pytest.raises(ResizeError, match="of vit, which reads no texts"):
        resize_stock(str(vit), tmp_path / "out", vocabulary=True, texts=TEXTS)


def test_sizes_are_cut(tiny_bert: Path, tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "load_afresh", load_afresh)
    found = resize_stock(str(tiny_bert), tmp_path / "out", sizes={"layer": 2, "ffn": 48}, texts=TEXTS)
    assert {name: sizes(tmp_path / "out")[name] for name in ("layer", "ffn")} == {"layer": 2, "ffn": 48}
    assert found["certificate"]["passed"] == found["certificate"]["claims"]
    assert found["steps"][0]["by"] == {"layer": "similarity", "ffn": "activation"}
    assert {one.outcome for one in verify_folder(tmp_path / "out")} == {"pass"}


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_bert"])  # norms before the blocks, and after them
def test_growth_computes_the_same_in_the_stock_class(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, nothing_left: None
) -> None:
    folder = request.getfixturevalue(name)
    found = resize_stock(str(folder), tmp_path / "out", sizes={"layer": 5, "ffn": 160})
    assert found["parameters"] > found["original"]["parameters"]
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        before, after = (AutoModel.from_pretrained(one)(ids).last_hidden_state for one in (folder, tmp_path / "out"))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    claims = {one.check: one.passed for one in certificate.read(tmp_path / "out")}
    assert claims["resize computes"]


def test_growth_that_changes_the_outputs_says_so(tiny_bert: Path, tmp_path: Path, nothing_left: None) -> None:
    resize_stock(str(tiny_bert), tmp_path / "out", sizes={"layer": 8}, method="stack")
    assert "resize computes" not in {one.check for one in certificate.read(tmp_path / "out")}
    assert "What it computes is not promised: Not lossless" in (tmp_path / "out" / "README.md").read_text()


def test_vocabulary_cut_and_format_in_one_go(tiny_bert: Path, tmp_path: Path, nothing_left: None) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS))
    found = resize_stock(
        str(tiny_bert), tmp_path / "out", sizes={"layer": 3}, vocabulary=True, store="bf16",
        texts=Corpus(TEXTS, str(corpus)),
    )  # fmt: skip
    assert [one["step"] for one in found["steps"]] == ["vocabulary", "cut", "store"]
    assert {one.dtype for one in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert sizes(tmp_path / "out")["vocab"] < sizes(tiny_bert)["vocab"]
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["parent"]["reference"] == str(tiny_bert)
    assert not any(text in (tmp_path / "out" / "regraft.json").read_text() for text in TEXTS)
    outcomes = {one.claim.check: one.outcome for one in verify_folder(tmp_path / "out")}
    assert {"resize texts", "resize format", "resize computes"} <= outcomes.keys()
    assert set(outcomes.values()) == {"pass"}


def test_a_limit_without_a_task(tiny_bert: Path, tmp_path: Path, nothing_left: None) -> None:
    limit = int(0.6 * open_checkpoint(str(tiny_bert)).parameters)
    found = resize_stock(str(tiny_bert), tmp_path / "out", to=f"params={limit}", texts=TEXTS, store="bf16")
    assert found["parameters"] <= limit
    scores = [one["score"] for one in found["tried"]]
    assert scores == sorted(scores, reverse=True) and all(0.0 <= one <= 1.0 for one in scores)
    with pytest.raises(ResizeError, match=r"keeps to params=100: the smallest takes .* Give at least params="):
        resize_stock(str(tiny_bert), tmp_path / "again", to="params=100", texts=TEXTS, vocabulary=True)


def test_a_limit_that_holds_already(tiny_bert: Path, tmp_path: Path, nothing_left: None) -> None:
    found = resize_stock(str(tiny_bert), tmp_path / "out", to="params=1G", texts=TEXTS)
    assert found["parameters"] == found["original"]["parameters"]
    assert any("params=1G holds" in one for one in found["notes"])


@pytest.mark.parametrize(("wishes", "words"), [
    ({}, "nothing to do"),
    ({"sizes": {"layer": 2}, "to": "params=1M"}, "a limit chooses the sizes"),
    ({"sizes": {"layer": 2, "ffn": 128}}, "Cut and grow in two commands"),
    ({"sizes": {"layer": 4}}, "Nothing changes"),
    ({"sizes": {"hidden": 30}}, "hidden can be"),
    ({"sizes": {"heads": 1}}, "heads"),
    ({"sizes": {"heads": 4}}, "hidden"),
    ({"sizes": {"layers": 2}}, "Did you mean layer"),
    ({"sizes": {"hidden": 50}}, "multiple of 16"),
    ({"sizes": {"layer": 6}, "method": "stack"}, "layer cannot become 6 by stacking"),
    ({"sizes": {"layer": 2}, "method": "lemon"}, "sizes are smaller"),
    ({"sizes": {"layer": 8}, "criterion": "magnitude"}, "is of cuts"),
    ({"sizes": {"layer": 8}, "method": "magic"}, "no growth method"),
    ({"sizes": {"layer": 2}, "criterion": "magic"}, "magic"),
    ({"store": "int3"}, "bf16, fp16, int8-rounded"),
    ({"vocabulary": True}, "--texts FILE"),
    ({"to": "size=4"}, "params=10M"),
])  # fmt: skip
def test_wishes_that_cannot_be(
    wishes: dict[str, Any], words: str, tiny_bert: Path, tmp_path: Path, nothing_left: None
) -> None:
    with pytest.raises(RegraftError) as raised:
        resize_stock(str(tiny_bert), tmp_path / "out", **{"texts": [] if "vocabulary" in wishes else TEXTS, **wishes})
    assert words in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_places_that_are_refused(
    tiny_bert: Path, toy_task_files: Path, tmp_path: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(tiny_bert)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "copy"))
    before = sorted(path.name for path in copy.iterdir())
    for out in (copy, copy / "out", tmp_path, tmp_path / "copy" / "config.json"):
        with pytest.raises(ResizeError, match=r"out|folder"):
            resize_stock(str(copy), out, store="bf16")
        with pytest.raises(ResizeError, match=r"out|folder"):
            resize_one(str(copy), "params=1k", str(toy_task_files), out)
    assert sorted(path.name for path in copy.iterdir()) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ResizeError, match="is not an empty folder"):
        resize_stock(str(copy), tmp_path / "full", store="bf16")
    with pytest.raises(BudgetError, match="does not limit"):
        resize_stock(str(copy), tmp_path / "new", to="params=1M", budget="3trials", texts=TEXTS)
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_damaged_checkpoints_are_refused_by_name(tiny_bert: Path, tmp_path: Path, tuned: Any) -> None:
    nan = tuned(tiny_bert, "nan", change=lambda tensors: tensors["pooler.dense.bias"].fill_(float("nan")))
    with pytest.raises(NonFiniteError, match=r"pooler\.dense\.bias"):
        resize_stock(str(nan), tmp_path / "out", sizes={"layer": 2}, texts=TEXTS)


def test_shapes_under_a_limit(tiny_bert: Path) -> None:
    found = shapes_of(str(tiny_bert), "params=20k")
    assert all(one["parameters"] <= 20_000 for one in found["shapes"]) and found["shapes"]
