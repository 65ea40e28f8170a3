"""Paths: circles of links are words, and what is no file is never waited for."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from regraft.errors import CatalogueError, CheckpointError
from regraft.paths import open_regular, resolved


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """What would wait for ever ends the test."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_it_is_the_real_path_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("gone")
    for name in ("file", "link", "nowhere", "gone", "a/../file"):
        assert str(resolved(tmp_path / name)) == os.path.realpath(tmp_path / name)


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b/x", "b": "a"}])
def test_links_in_a_circle_are_an_error_of_ours(links: dict[str, str], tmp_path: Path) -> None:
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    for kind in (CheckpointError, CatalogueError):
        with pytest.raises(kind, match=r"a leads nowhere: links lead in a circle") as caught:
            resolved(tmp_path / "a", kind)
        assert caught.value.remedy
    with pytest.raises(CheckpointError, match="null"):
        resolved(tmp_path / "a\0b")


def test_a_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def open_files() -> int:
    """How many this process has open, where the system says so."""
    place = Path("/proc/self/fd")
    return len(list(place.iterdir())) if place.exists() else 0


def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may be short only
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for path in (Path("pipe"), Path("socket"), Path("/dev/null"), Path("/dev/zero")):
            before = open_files()
            with pytest.raises(OSError) as caught:
                open_regular(path)
            assert caught.value.strerror
            assert open_files() == before
