"""Certificates: written, read, refused when damaged, and checked claim by claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regraft import certificate
from regraft.certificate import FILE, Claim, Context, Outcome, checks, read, verify, write
from regraft.errors import CheckpointError, VerificationError

CLAIM = Claim("colour", "it is green", "exact", "folder", True, {"colour": "green", "shades": [1, 2.5]})


@pytest.fixture(autouse=True)
def own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_checks", {})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    claims = [CLAIM, Claim("test", "accuracy", "measured", "task", False, {})]
    write(tmp_path, claims)
    assert read(tmp_path) == claims
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_without_certificate(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(VerificationError, match=r"has no certificate\.json.*Only what Regraft wrote"):
            read(folder)


GOOD = {"check": "a", "statement": "b", "known": "exact", "needs": "folder", "passed": True, "values": {}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read"),
        ('{"regraft_certificate": 1, "cl', "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"regraft_certificate": 1}', "cannot be read"),
        ('{"regraft_certificate": 1, "claims": 3}', "cannot be read"),
        ('{"regraft_certificate": 1, "claims": [3]}', "cannot be read"),
        ('{"regraft_certificate": 1, "claims": [{"check": "a"}]}', "cannot be read"),
        (json.dumps({"regraft_certificate": 1, "claims": [{**GOOD, "more": 1}]}), "cannot be read"),
        ('{"regraft_certificate": 1, "claims": []}', "holds no claim"),
        ('{"regraft_certificate": 2, "claims": []}', "is of version 2, expected 1.*Update Regraft"),
    ],
)
def test_a_damaged_certificate_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(VerificationError, match=words):
        verify(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VerificationError, match="cannot be read"):
        read(tmp_path)


def test_each_claim_gets_its_verdict(tmp_path: Path) -> None:
    @checks("colour")
    def colour(folder: Path, claim: Claim, context: Context) -> tuple[Outcome, str]:
        good = folder == tmp_path and context.task == "the task" and claim.values["colour"] == "green"
        return ("pass" if good else "fail"), "looked at it"

    write(tmp_path, [CLAIM, replace(CLAIM, values={"colour": "red"}), replace(CLAIM, check="smell")])
    verdicts = verify(tmp_path, Context(task="the task"))
    assert [verdict.outcome for verdict in verdicts] == ["pass", "fail", "cannot check"]
    assert verdicts[0].claim == CLAIM
    assert verdicts[0].reason == "looked at it"
    assert "'smell'" in verdicts[2].reason
    assert verify(tmp_path)[0].outcome == "fail"  # the context without a task reaches the check


@pytest.mark.parametrize("fault", [CheckpointError("weights are gone.", "Restore."), KeyError("sha256"), OSError("no")])
def test_a_check_that_raises_fails_the_claim(fault: Exception, tmp_path: Path) -> None:
    @checks("colour")
    def colour(folder: Path, claim: Claim, context: Context) -> Any:
        raise fault

    write(tmp_path, [CLAIM])
    (verdict,) = verify(tmp_path)
    assert verdict.outcome == "fail"
    assert str(fault) in verdict.reason
