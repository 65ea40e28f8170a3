"""`regraft resize`: sizes, limits, JSON, the dry run, and bad input in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import regraft
from regraft.cli.app import app, run
from regraft.cli.resize import sizes_of
from regraft.errors import ResizeError
from regraft.resize.certificate import checks, speed
from regraft.resize.certificate.fresh import Loaded
from regraft.resize.dial.speed import Weigher

TEXTS = ["the cat and the dog", "rain again today", "a nice old song", "we heard the drum"]


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of its own and no model of the class for every certificate."""
    monkeypatch.setattr(checks, "load_afresh", lambda folder, kind, size: Loaded(kind=kind))
    monkeypatch.setattr(checks, "check_anatomy", lambda _: [])
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(checks, "SLOWER", float("inf"))  # a busy machine is no fault


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS))
    return path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["resize", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that gives what the command says on standard error, with status 1 and no traceback."""

    def say(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["regraft", "resize", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run()
        said = capsys.readouterr().err
        assert stopped.value.code == 1 and "error: " in said and "Traceback" not in said
        return said

    return say


def test_sizes_texts_and_a_format(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(tiny_bert, "--size", "layer=2", "--size", "ffn=32", "--texts", corpus, "--trim-vocabulary", "--store",
                  "fp16", "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("Vocabulary: ", "Cut: layer 4 to 2, ffn 64 to 32, by", "Numbers stored as fp16", f"Written to {out}"):
        assert words in result.stdout
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    verified = CliRunner().invoke(app, ["verify", str(out), "--json"], catch_exceptions=False)
    assert verified.exit_code == 0
    assert {one["outcome"] for one in json.loads(verified.stdout)} == {"pass"}
    tensors = load_file(out / "model.safetensors")
    tensors["pooler.dense.bias"][0] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    assert CliRunner().invoke(app, ["verify", str(out)]).exit_code == 2


def test_growth_as_json(tiny_bert: Path, tmp_path: Path) -> None:
    found = json.loads(
        call(tiny_bert, "--size", "ffn=96", "--method", "net2net", "--out", tmp_path / "o", "--json").stdout
    )
    assert found["steps"][0]["method"] == "net2net"
    assert found["certificate"]["claims"] == found["certificate"]["passed"]
    assert {"path", "parameters", "bytes", "original", "latency", "notes", "limit"} <= found.keys()


def test_a_limit_without_a_task(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    result = call(tiny_bert, "--to", "params=20k", "--texts", corpus, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sum(one.numel() for one in load_file(tmp_path / "out" / "model.safetensors").values()) <= 20_000


def test_the_dry_run_writes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    found = json.loads(call(tiny_bert, "--to", "params=20k", "--dry-run", "--json").stdout)
    assert all(one["parameters"] <= 20_000 for one in found["shapes"])
    assert "shapes under params=20k" in call(tiny_bert, "--to", "params=20k", "--dry-run").stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [
    ["--task", "builtin:pydoc", "--out", "x"],
    ["--to", "params=1M", "--task", "builtin:pydoc", "--size", "layer=2", "--out", "x"],
    ["--size", "layer=2"],
    ["--size", "layer=2", "--out", "x", "--metric", "macro_f1"],
    ["--dry-run"],
])  # fmt: skip
def test_options_that_do_not_go_together(given: list[str], tiny_bert: Path) -> None:
    assert CliRunner().invoke(app, ["resize", str(tiny_bert), *given]).exit_code == 2


def test_bad_sizes_and_limits_are_words(
    tiny_bert: Path, tmp_path: Path, corpus: Path, refused: Callable[..., str]
) -> None:
    out = ("--out", tmp_path / "out")
    texts = ("--texts", corpus)
    assert "layer has two sizes" in refused(tiny_bert, "--size", "layer=2", "--size", "layer=3", *out)
    assert "hidden can be" in refused(tiny_bert, "--size", "hidden=30", *texts, *out)
    assert "heads" in refused(tiny_bert, "--size", "heads=1", *texts, *out)
    said = refused(tiny_bert, "--to", "params=10", *texts, *out)
    assert "No shape" in said and "Give at least " in said
    said = refused(tiny_bert, "--to", "bytes=1kB", *texts, "--store", "bf16", *out)
    assert "Give at least " in said
    assert "no such file" in refused(tiny_bert, "--size", "layer=2", "--texts", tmp_path / "none.csv", *out)
    assert not (tmp_path / "out").exists()


def test_limits_that_no_shape_keeps_to_name_the_nearest_that_one_does(
    tiny_bert: Path, toy_task_files: Path, corpus: Path, tmp_path: Path, refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The nearest is a limit: asked for that, a shape is found."""
    texts, out = ("--texts", corpus), ("--out", tmp_path / "out")
    for kind in ("params", "bytes"):
        said = refused(tiny_bert, "--to", f"{kind}=10", *texts, *out)
        nearest = said.split("Give at least ")[1].split(",")[0]
        assert f"keeps to {kind}=10: the smallest takes" in said and nearest.startswith(f"{kind}=")
        found = json.loads(call(tiny_bert, "--to", nearest, "--dry-run", "--json").stdout)
        assert found["shapes"]
        assert f"keeps to {kind}=10" in refused(tiny_bert, "--to", f"{kind}=10", "--dry-run")
    monkeypatch.setattr(Weigher, "time", lambda self, counts: 1.0 + counts.get("layer", 4))
    said = refused(tiny_bert, "--to", "latency=0.5ms", *texts, *out)
    assert "keeps to latency=0.5ms" in said and "Give" in said and "latency=2" in said
    said = refused(tiny_bert, "--to", "params=10", "--task", toy_task_files, "--budget", "20s", *out)
    assert "keeps to params=10: the smallest takes" in said and "Give at least params=" in said
    assert not (tmp_path / "out").exists()


def test_a_task_asks_no_less_of_a_checkpoint(
    tiny_bert: Path, toy_task_files: Path, copy_of: Any, tuned: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    task = ("--to", "params=20k", "--task", toy_task_files, "--budget", "20s", "--out", tmp_path / "out")
    lying = copy_of(tiny_bert, "lying")
    config = json.loads((lying / "config.json").read_text())
    (lying / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    said = refused(lying, *task)
    assert "intermediate.dense" in said and "ffn = 48" in said
    strange = tuned(tiny_bert, "strange", change=lambda tensors: tensors.update({"layer.gate": torch.zeros(3)}))
    assert "layer.gate" in refused(strange, *task)
    assert not (tmp_path / "out").exists()


def test_tied_weights_that_were_cut_on_one_side(
    written: Callable[..., Path], llama: Callable[..., Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """The vocabulary of the embeddings, and that of the head that is tied to them."""
    tensors = llama(0)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:48]
    config = {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
    folder = written("llama", tensors, config)
    for wish in (("--size", "ffn=48", "--criterion", "magnitude"), ("--to", "params=20k"), ("--store", "bf16")):
        said = refused(folder, *wish, "--out", tmp_path / "out")
        assert "lm_head.weight" in said and "vocab" in said and "48" in said
    assert not (tmp_path / "out").exists()


def test_widths_that_groups_do_not_divide(
    written: Callable[..., Path], llama: Callable[..., Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = written("llama", llama(0), {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16})
    for size, more in ((31, ("--criterion", "magnitude")), (33, ())):  # a cut, and growth
        said = refused(folder, "--size", f"hidden={size}", *more, "--out", tmp_path / "out")
        assert "hidden" in said and "kv" in said and str(size) in said
    assert not (tmp_path / "out").exists()


def test_groups_are_named(written: Callable[..., Path], llama: Callable[..., Any], refused: Callable[..., str],
                          tmp_path: Path) -> None:  # fmt: skip
    folder = written("llama", llama(0), {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16})
    said = refused(folder, "--size", "heads=1", "--criterion", "magnitude", "--out", tmp_path / "out")
    assert "kv (groups that share key and value)" in said


def test_tied_weights_stay_tied(written: Callable[..., Path], llama: Callable[..., Any], tmp_path: Path) -> None:
    tensors = {name: value for name, value in llama(0).items() if name != "lm_head.weight"}
    config = {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
    folder = written("llama", tensors, config)
    found = call(folder, "--size", "ffn=48", "--criterion", "magnitude", "--out", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads(found.stdout)["certificate"]["not_checked"] == {}


def test_checkpoints_that_do_not_fit_name_axis_and_tensor(
    tiny_bert: Path, copy_of: Any, tuned: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = ("--size", "layer=2", "--out", tmp_path / "out")
    lying = copy_of(tiny_bert, "lying")
    config = json.loads((lying / "config.json").read_text())
    (lying / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    said = refused(lying, *out)
    assert "intermediate.dense" in said and "ffn = 48" in said
    strange = tuned(tiny_bert, "strange", change=lambda tensors: tensors.update({"layer.gate": torch.zeros(3)}))
    assert "layer.gate" in refused(strange, *out)


def test_sizes_are_read() -> None:
    assert sizes_of(["layer=3", " ffn = 768"]) == {"layer": 3, "ffn": 768}
    assert sizes_of(None) is None
    for text in ("layer", "=3", "layer=-1", "layer=two", "layer=", "layer=1.5"):
        with pytest.raises(ResizeError, match="Write the axis and its units"):
            sizes_of([text])


def test_the_package_gives_its_functions() -> None:
    for name in regraft.resize.__all__:
        assert callable(getattr(regraft.resize, name)), name
    assert not hasattr(regraft.resize, "shrink")
