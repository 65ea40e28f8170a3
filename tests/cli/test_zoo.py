"""`regraft zoo`: every command over a small zoo, its JSON, its words, its exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from regraft.cli.app import app, run
from regraft.errors import CatalogueError
from regraft.zoo import open_zoo
from regraft.zoo.catalogue import Measurement, open_catalogue

COMMANDS = ["add", "ls", "show", "tree", "search", "check", "rm"]
CARD = """---
license: cc-by-nc-4.0
base_model: tiny-bert
tags: [sorting, mail]
model-index:
- name: x
  results:
  - task: {type: text-classification}
    dataset: {name: mail, type: org/mail}
    metrics: [{type: accuracy, value: 91.0}]
---
# A fine-tune
"""


def call(*arguments: object, status: int = 0) -> Any:
    """The JSON that a command prints on standard output."""
    result = CliRunner().invoke(app, ["zoo", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def said(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["zoo", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.stdout


@pytest.fixture
def zoo(tmp_path: Path, tiny_bert: Path, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints and a catalogue of them, where the commands look by default."""
    monkeypatch.setenv("REGRAFT_CATALOGUE", str(tmp_path / "catalogue.sqlite"))
    for folder, name in ((tiny_bert, "tiny-bert"), (tiny_gpt2, "gpt"), (tiny_bert, "child")):
        shutil.copytree(folder, tmp_path / "zoo" / name)
    (tmp_path / "zoo" / "child" / "README.md").write_text(CARD)
    found = call("add", tmp_path / "zoo")
    assert (found["added"], found["unreadable"], found["edges"]) == (3, [], None)
    return tmp_path / "zoo"


@pytest.mark.parametrize("command", ["diff", "pack", "restore"])
def test_help_of_the_others_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, ["zoo", command, "--help"], catch_exceptions=False)
    assert "Example: regraft zoo " + command in result.output and "--json" in result.output


def test_pack_and_restore_give_the_same_bytes(zoo: Path) -> None:
    packed = call("pack", zoo / "child", "--parent", zoo / "tiny-bert", "-o", zoo.parent / "packed")
    assert packed["packed_bytes"] < packed["bytes"]
    call("restore", zoo.parent / "packed", "-o", zoo.parent / "again")
    for file in (zoo / "child").iterdir():
        assert (zoo.parent / "again" / file.name).read_bytes() == file.read_bytes()


def test_diff_says_what_changed(zoo: Path) -> None:
    found = call("diff", "tiny-bert", zoo / "child")
    assert "licence" in json.dumps(found).lower()
    assert said("diff", "tiny-bert", "child").strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, ["zoo", command, "--help"], catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("Example: regraft zoo " + command, "--json", "--catalogue"):
        assert words in result.output


def test_help_imports_no_database() -> None:
    heavy = ("torch", "transformers", "numpy", "sqlalchemy", "alembic", "pyarrow")
    code = f"import sys; import regraft.cli.app; print([name for name in {heavy!r} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_add_again_says_what_changed(zoo: Path) -> None:
    (zoo / "child" / "README.md").write_text(CARD + "More.\n")
    shutil.rmtree(zoo / "gpt")
    text = said("add", zoo)
    assert "0 added, 1 changed, 1 as they were, 1 gone, 0 unreadable" in text and "catalogue.sqlite" in text


def test_ls_filters_and_pages(zoo: Path) -> None:
    assert [one["name"] for one in call("ls")["checkpoints"]] == ["child", "gpt", "tiny-bert"]
    assert [one["name"] for one in call("ls", "architecture=bert", "layers<=4", "licence=mit")["checkpoints"]] == [
        "tiny-bert"
    ]
    first = call("ls", "--limit", 2)
    rest = call("ls", "--limit", 2, "--after", first["next"])
    assert [one["name"] for one in (*first["checkpoints"], *rest["checkpoints"])] == ["child", "gpt", "tiny-bert"]
    assert rest["next"] is None
    assert f"More: --after {first['next']}" in said("ls", "--limit", 2)


def test_ls_of_a_zoo_is_as_ever(zoo: Path, tiny_bert: Path) -> None:
    assert [one["name"] for one in call("ls", tiny_bert)["checkpoints"]] == ["tiny-bert", "tiny-bert-random"]
    assert [one["layers"] for one in call("ls", f"{tiny_bert}#layers=2")["checkpoints"]] == [2, 2]
    assert len(call("ls", "builtin:minilm")["checkpoints"]) == 7
    assert [one["name"] for one in call("ls", "zoo:licence=cc-by-nc-4.0,gpl")["checkpoints"]] == [
        "child",
        "child-random",
    ]


def test_show_has_claims_beside_measurements(zoo: Path) -> None:
    with open_catalogue() as opened:
        opened.record_measurement("child", Measurement("id", "org/mail", "test split", "accuracy", 0.8, 100, 0.7, 0.85))
    found = call("show", "child")
    assert found["record"]["tags"] == ["sorting", "mail"] and found["licence"].lower() == "cc-by-nc-4.0"
    (line,) = found["results"]
    assert (line["claimed"], line["measured"], line["verdict"]) == (91.0, 0.8, "below the claim")
    assert line["difference"] == pytest.approx(-0.11)
    text = said("show", zoo / "child")
    assert "Claimed and measured" in text and "below the claim" in text
    assert [one["name"] for one in call("ls", "measured:accuracy>=0.8")["checkpoints"]] == ["child"]


def test_show_of_a_reference_is_as_ever(zoo: Path, tiny_classifier: Path) -> None:
    assert call("show", f"{tiny_classifier}#layers=2")["layers"] == 2
    assert set(call("show", tiny_classifier)) >= {"weights_id", "checkpoint_id", "parameters"}


def test_tree(zoo: Path) -> None:
    found = call("tree", "tiny-bert")
    assert [(one["name"], one["generation"]) for one in found["nodes"]] == [
        ("someone/parent", -1), ("tiny-bert", 0), ("child", 1),
    ]  # fmt: skip
    lines = said("tree", "tiny-bert").splitlines()
    assert lines[0] == "someone/parent [not in the catalogue]" and lines[1].endswith("<--")
    assert lines[2].startswith("    child: ") and "of tiny-bert (stated)" in lines[2]


def test_search(zoo: Path) -> None:
    assert [one["name"] for one in call("search", "mail", "chi*")["checkpoints"]] == ["child"]
    assert call("search", "nothing")["checkpoints"] == []


def test_check_ends_with_1_when_there_is_danger(zoo: Path, tiny_gpt2: Path) -> None:
    assert {one["severity"] for one in call("check", "gpt")["risks"]} <= {"note", "warning"}
    (zoo / "gpt" / "evil.py").write_text("import os")
    (zoo / "gpt" / "training_args.bin").write_bytes(b"\x80\x04N.")
    config = json.loads((zoo / "gpt" / "config.json").read_text())
    (zoo / "gpt" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    call("add", zoo)
    found = call("check", status=1)["risks"]
    assert found[0]["severity"] == "danger" and "code" in {one["code"] for one in found}
    assert "danger" in said("check", "gpt", status=1)
    assert call("check", zoo / "gpt", "--catalogue", zoo.parent / "catalogue.sqlite", status=1)["risks"]


def test_check_finds_licences_that_a_parent_forbids(zoo: Path) -> None:
    parent = zoo / "tiny-bert" / "README.md"
    parent.write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (zoo / "child" / "README.md").write_text(CARD.replace("cc-by-nc-4.0", "apache-2.0"))
    call("add", zoo)
    found = [one for one in call("check", "child", status=1)["risks"] if one["code"] == "licence-forbidden"]
    assert len(found) == 1 and "tiny-bert is under cc-by-nc-4.0" in found[0]["problem"]


def test_rm_forgets_and_leaves_the_files(zoo: Path) -> None:
    assert call("rm", "gpt")["removed"] == 1
    assert (zoo / "gpt" / "config.json").exists() and len(call("ls")["checkpoints"]) == 2
    assert call("add", zoo)["added"] == 1


def test_rm_refuses_a_name_that_several_have(zoo: Path) -> None:
    shutil.copytree(zoo / "gpt", zoo / "more" / "gpt")
    call("add", zoo)
    with pytest.raises(CatalogueError, match=r"2 checkpoints are called 'gpt': .*more/gpt"):
        call("rm", "gpt")
    assert call("rm", "gpt", "--all")["removed"] == 2 and len(call("ls")["checkpoints"]) == 2


def test_deep_finds_lineage_from_weights(zoo: Path) -> None:
    assert call("add", zoo, "--deep")["edges"] == 1
    found = call("tree", "child")
    assert {(one["relation"], one["source"]) for one in found["edges"]} >= {("identical", "weights")}


def test_weights_that_were_read_once_are_read_again_when_they_change(zoo: Path) -> None:
    assert call("add", zoo, "--deep")["weights_read"] == 3
    (zoo / "child" / "README.md").write_text(CARD + "A slip mended.\n")
    found = call("add", zoo)
    assert (found["changed"], found["weights_read"], found["edges"]) == (1, 0, None)
    shutil.copy(zoo / "gpt" / "model.safetensors", zoo / "child" / "model.safetensors")
    found = call("add", zoo)
    assert (found["weights_read"], found["edges"]) == (1, 1)
    found = call("tree", "child")
    told = [edge for edge in found["edges"] if edge["source"] == "weights"]  # of equal ones either may be the parent
    assert {found["nodes"][edge[end]]["name"] for edge in told for end in ("child", "parent")} == {"child", "gpt"}


def test_check_deep_finds_protection_against_merging(zoo: Path) -> None:
    tensors = load_file(zoo / "child" / "model.safetensors")
    for name in [name for name in tensors if name.endswith("intermediate.dense.weight")]:
        order = torch.randperm(len(tensors[name]), generator=torch.Generator().manual_seed(len(name)))
        down = name.replace("intermediate", "output")
        bias = name.replace(".weight", ".bias")
        tensors |= {name: tensors[name][order], bias: tensors[bias][order], down: tensors[down][:, order].contiguous()}
    save_file(tensors, zoo / "child" / "model.safetensors", {"format": "pt"})
    call("add", zoo)
    assert "merge-protected" not in {one["code"] for one in call("check", "child")["risks"]}
    assert "merge-protected" in {one["code"] for one in call("check", "child", "--deep")["risks"]}
    (zoo / "child" / "README.md").write_text(CARD + "A slip mended.\n")
    call("add", zoo)
    assert [one["name"] for one in call("ls", "risk=merge-protected", "deep=yes")["checkpoints"]] == ["child"]
    assert "merge-protected" in {one["code"] for one in call("check", "--deep")["risks"]} and "merge-protected" in said(
        "show", "child"
    )
    shutil.copy(zoo / "tiny-bert" / "model.safetensors", zoo / "child" / "model.safetensors")
    assert "merge-protected" not in {one["code"] for one in call("check", "child", "--deep")["risks"]}


def test_a_folder_without_checkpoints_is_an_error_and_makes_no_catalogue(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "catalogue.sqlite", tmp_path / "new.sqlite"):
        with pytest.raises(CatalogueError, match="Nothing that looks like a checkpoint was found in"):
            said("add", tmp_path / "empty", "--catalogue", place)
    assert not (tmp_path / "new.sqlite").exists()
    with pytest.raises(CatalogueError, match="is not there"):
        said("add", tmp_path / "none", "--catalogue", tmp_path / "new.sqlite")


def test_add_says_what_is_gone_and_points_to_dangers(zoo: Path) -> None:
    (zoo / "gpt" / "training_args.bin").write_bytes(b"\x80\x04N.")
    (zoo / "gpt" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (zoo / "gpt" / "model.safetensors").write_bytes(b"\xff" * 16)
    assert "1 in the catalogue with a danger: see `regraft zoo check`" in said("add", zoo)
    shutil.rmtree(zoo / "gpt")
    assert "1 gone" in said("add", zoo / "gpt")
    assert "1 that were recorded there before are still gone" in said("add", zoo / "gpt")


def test_check_says_what_is_gone_and_was_not_looked_at(zoo: Path) -> None:
    shutil.rmtree(zoo / "gpt")
    for more in ([], ["--deep"], ["gpt"], ["gpt", "--deep"]):
        assert call("check", *more, status=1)["gone"] == [str(zoo / "gpt")]
        assert f"{zoo / 'gpt'} is gone and was not looked at." in said("check", *more, status=1)
    for name in ("child", "tiny-bert"):
        shutil.rmtree(zoo / name)
    call("add", zoo)
    assert "No risk was found" not in said("check", status=1) and len(call("check", status=1)["gone"]) == 3
    call("rm", "child", "tiny-bert", "gpt")
    assert "nothing was looked at" in said("check")


def test_check_deep_reads_weights_that_it_knows(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("add", zoo, "--deep")
    file = zoo / "child" / "model.safetensors"
    before = file.stat()
    tensors = {name: torch.full_like(one, torch.nan) for name, one in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert "nan" not in {one["code"] for one in call("check", "child")["risks"]}
    with monkeypatch.context() as closed:  # a catalogue that can only be read: it is shown, and not recorded
        closed.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        for more in (["child"], []):
            assert "nan" in {one["code"] for one in call("check", *more, "--deep", status=1)["risks"]}
    assert "nan" not in {one["code"] for one in call("check", "child")["risks"]}
    assert "nan" in {one["code"] for one in call("check", "child", "--deep", status=1)["risks"]}
    assert "nan" in {one["code"] for one in call("check", "child", status=1)["risks"]}


def test_rm_looks_all_names_up_first(zoo: Path) -> None:
    for names in (["gpt", "nobody"], ["nobody", "gpt"]):
        with pytest.raises(CatalogueError, match="'nobody' is not in the catalogue"):
            call("rm", *names)
    assert len(call("ls")["checkpoints"]) == 3


def test_a_table_that_is_piped_has_a_line_for_a_row(zoo: Path) -> None:
    for width in ("40", "80"):
        result = CliRunner().invoke(app, ["zoo", "ls"], catch_exceptions=False, env={"COLUMNS": width})
        lines = result.stdout.splitlines()
        assert [line.split()[-1] for line in lines[1:]] == [str(zoo / name) for name in ("child", "gpt", "tiny-bert")]
        assert all(line == line.rstrip() for line in lines)


def test_references_to_the_catalogue_mean_the_one_that_is_named(zoo: Path, tiny_gpt2: Path) -> None:
    other = ["--catalogue", zoo.parent / "other.sqlite"]
    shutil.copytree(tiny_gpt2, zoo.parent / "more" / "elsewhere")
    call("add", zoo.parent / "more", *other)
    found = call("ls", "zoo:kind=checkpoint", *other)["checkpoints"]
    assert [one["name"] for one in found] == ["elsewhere", "elsewhere-random"]
    assert call("show", "zoo:elsewhere", *other)["name"] == "elsewhere"
    assert call("check", "zoo:elsewhere", *other)["gone"] == []
    assert call("diff", "zoo:elsewhere", "zoo:elsewhere", *other)["bump"] == "none"
    assert len(call("ls", "zoo:kind=checkpoint")["checkpoints"]) == 4, "and again the usual one"


def test_ls_of_a_zoo_takes_a_limit_and_no_page(zoo: Path) -> None:
    assert len(call("ls", "zoo:kind=checkpoint", "--limit", 2)["checkpoints"]) == 2
    assert "Only the first 2 of 4 are shown." in said("ls", "zoo:kind=checkpoint", "--limit", 2)
    with pytest.raises(CatalogueError, match="--after goes on with a filter"):
        call("ls", "zoo:kind=checkpoint", "--after", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--after", "9" * 23],
        ["ls", "--after", "-5"],
        ["ls", "--limit", "9" * 23],
        ["tree", "gpt", "--limit", "9" * 23],
    ],
)
def test_numbers_out_of_range_are_refused_in_words(zoo: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["zoo", *arguments], catch_exceptions=False)
    assert result.exit_code == 2 and f"Invalid value for '{arguments[-2]}'" in result.output


def test_tree_says_that_several_may_be_meant(zoo: Path) -> None:
    shutil.copytree(zoo / "tiny-bert", zoo / "more" / "tiny-bert")
    call("add", zoo)
    assert said("tree", "child").splitlines()[0] == "tiny-bert [2 of the catalogue may be meant]"


def test_zoo_references(zoo: Path) -> None:
    from regraft.checkpoint import open_checkpoint

    assert open_checkpoint("zoo:tiny-bert").folder == zoo / "tiny-bert"
    assert open_checkpoint("zoo:tiny-bert#layers=2").num_layers == 2
    opened = open_zoo("zoo:architecture=bert layers<=6")
    assert [one.name for one in opened.checkpoints] == ["child", "tiny-bert", "child-random"]
    assert [one.name for one in open_zoo("zoo:gpt,zoo:child").checkpoints][:2] == ["gpt", "child"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "layer<=6"], "Did you mean layers"),
        (["ls", "bert"], "is no condition"),
        (["tree", "nobody"], "is not in the catalogue"),
        (["rm", "nobody"], "is not in the catalogue"),
        (["show", "nowhere"], "nowhere"),
        (["check", "nowhere"], "nowhere"),
        (["add", "nowhere"], "is not there"),
        (["add", ""], "'' is no folder"),
        (["ls", "--catalogue", ""], "'' is no place of a catalogue"),
        (["pack", "", "-o", "p"], "'' is no folder"),
        (["pack", "zoo/gpt", "-o", "p", "--parent", ""], "'' is no folder"),
        (["restore", "p", "-o", "q", "--parent", ""], "'' is no folder"),
        (["restore", "p", "-o", ""], "'' is no folder"),
        (["search", "-"], "no word to search for"),
        (["ls", "--catalogue", "none.sqlite"], "There is no catalogue none.sqlite"),
        (["show", "x", "--catalogue", "none.sqlite"], "There is no catalogue none.sqlite"),
        (["ls", "--catalogue", "postgresql://a:secret@localhost:1/x"], "a:***@localhost"),
        (["ls", "zoo:nobody"], "is not in the catalogue"),
    ],
)
def test_errors_are_words_and_status_1(
    zoo: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(zoo.parent)
    monkeypatch.setattr(sys, "argv", ["regraft", "zoo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run()
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert words in captured.err and "Traceback" not in captured.err and "secret" not in captured.err
