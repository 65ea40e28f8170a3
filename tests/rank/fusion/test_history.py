"""The history: what is added is there, whatever happens in between."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from regraft.errors import StoreError
from regraft.rank.fusion.history import Result, add_results, history_file, in_words_passed, latest, read_history

ONE = Result("a", "t", 0.5, 100, 1, "bert", {"size": 7.0}, {"logme": -1.5}, {"probe": 0.4})


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    assert read_history(path) == []
    add_results([ONE], path)
    add_results([], path)
    add_results([Result("b", "t", 1.0), ONE], path)
    assert read_history(path) == [ONE, Result("b", "t", 1.0), ONE]


def test_the_latest_counts_and_what_was_adapted_stands(tmp_path: Path) -> None:
    better, surveyed, other = Result("a", "t", 0.7, seed=1), Result("a", "t", None, seed=1), Result("b", "t", None)
    path = tmp_path / "history.jsonl"
    add_results([ONE, other, better, surveyed], path)
    assert latest(read_history(path)) == [other, better]


def test_half_a_line_is_passed_over_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    add_results([ONE], path)
    with path.open("a") as file:
        file.write('{"checkpoint": "b", "task"')
    assert read_history(path) == [ONE]
    add_results([ONE], path)
    assert read_history(path) == [ONE, ONE]


@pytest.mark.parametrize(
    "line",
    ["", "[]", "nonsense", "7", '{"checkpoint": "a", "task": "t"}', '{"checkpoint": "a", "task": "t", "accuracy": 7}',
     '{"checkpoint": "a", "task": "t", "accuracy": NaN}', '{"checkpoint": "a", "task": "t", "accuracy": 0.5, "facts": 3}',
     '{"checkpoint": "a", "task": "t", "accuracy": 0.5, "rows": Infinity}', "[" * 100_000,
     '{"checkpoint": "a", "task": "t", "accuracy": 0.5, "rows": 1' + "0" * 400 + "}",
     '{"checkpoint": "a", "task": "t", "accuracy": 1' + "0" * 400 + "}", "\xff"],
)  # fmt: skip
def test_what_is_no_result_is_passed_over(line: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(line.encode("latin-1") + b"\n")
    add_results([ONE], path)
    assert read_history(path) == [ONE]


def test_several_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    threads = [threading.Thread(target=add_results, args=([ONE] * 5, path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_history(path) == [ONE] * 40


def test_a_history_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    for act in (lambda: read_history(tmp_path), lambda: add_results([ONE], tmp_path)):
        with pytest.raises(StoreError, match=tmp_path.name):
            act()


def test_it_lies_in_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_STORE", str(tmp_path))
    assert history_file() == tmp_path / "history.jsonl"


def test_lines_that_were_passed_over_are_told(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\0\0\0\n\n[7]\n")
    add_results([ONE], path)
    passed: list[int] = []
    assert read_history(path, passed) == [ONE]
    assert passed == [1, 3]
    assert in_words_passed(passed, path).startswith(f"2 lines of {path} are no results")
    assert in_words_passed([3], path) == f"Line 3 of {path} is no result, and was passed over."


def test_a_history_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "history.jsonl")
    with pytest.raises(StoreError, match="it is a pipe"):
        read_history(tmp_path / "history.jsonl")
