"""The exception tree in the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from regraft import errors
from regraft.errors import RegraftError

CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == errors.__name__]


def drawn() -> dict[str, str]:
    """Class -> parent, as the docstring's tree draws them (four columns a level)."""
    above: list[str] = ["Exception"]
    parents = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:\|   |    )*(?:\|-- |`-- )?)(\w+)\s+\S", line)
        if match and match[2][0].isupper():
            depth = len(match[1]) // 4
            parents[match[2]] = above[depth]
            above[depth + 1 :] = [match[2]]
    return parents


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    assert drawn() == {found.__name__: found.__base__.__name__ for found in CLASSES}


def test_one_root_catches_them_all() -> None:
    assert [found.__name__ for found in CLASSES if found.__base__ is Exception] == ["RegraftError"]


@pytest.mark.parametrize("error", CLASSES, ids=lambda found: found.__name__)
def test_every_error_carries_problem_and_remedy(error: type[RegraftError]) -> None:
    raised = error("The weights are gone.", "Download them again.")
    assert (raised.problem, raised.remedy) == ("The weights are gone.", "Download them again.")
    assert str(raised) == "The weights are gone. Download them again."
    assert str(error("The weights are gone.")) == "The weights are gone."
    assert error.__doc__
    assert error.exit_code == 1


@pytest.mark.parametrize("error", CLASSES, ids=lambda found: found.__name__)
def test_an_error_crosses_a_process_border(error: type[RegraftError]) -> None:
    back = pickle.loads(pickle.dumps(error("Here.", "There.")))
    assert type(back) is error
    assert (back.problem, back.remedy) == ("Here.", "There.")
