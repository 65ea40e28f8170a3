"""Every error that Regraft raises on purpose.

    RegraftError                     anything below; its text says what was given, what was expected, what to do
    |-- CheckpointError              a checkpoint cannot be used (file, fault, remedy)
    |   |-- UnsafeCheckpointError    it would have to run code, read a pickle, or leave its folder
    |   |-- UnreadableFileError      a file of it is there and may not, or cannot, be read
    |   `-- NonFiniteError           its weights, or what it computes, are NaN or infinite
    |-- AnatomyError                 an anatomy that cannot be read, or does not fit the checkpoint or the change
    |-- BadReferenceError             a reference cannot be read or found
    |   `-- HubError                 the Hub says no, or cannot be reached
    |-- CatalogueError               a catalogue that cannot be read or written, or a filter that it does not know
    |-- TaskError                    the task's data cannot be read or used
    |-- MethodError                  an unknown method, or parameters that it does not take
    |-- ResizeError                  a size, pattern or rank that a checkpoint cannot take, or statistics that do not fit it
    |-- BudgetError                  a budget that cannot be read, or is too small for anything
    |-- RecipeError                  a recipe that cannot be read or replayed (with its line number)
    |-- RunError                     a run folder that cannot be used
    |   `-- RunLockedError           another process is using it
    |-- StoreError                   the store cannot be read or written (disk full, no permission)
    `-- VerificationError            a certificate cannot be read

Catch `RegraftError` to catch them all. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class RegraftError(Exception):
    """An error with a cause and a remedy.

    Args:
        problem: What was given and what was expected, in one sentence.
        remedy: What the user can do about it, in one sentence. Shown after the problem.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class CheckpointError(RegraftError):
    """A checkpoint that cannot be used. The problem names the file and the fault."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks to run code, holds only pickles, or has paths that leave its folder."""


class UnreadableFileError(CheckpointError):
    """A file that is there and cannot be read now (permissions, a disk's fault): what it holds is not known to be wrong."""


class NonFiniteError(CheckpointError):
    """NaN or infinite values in weights or in what the model computes."""


class AnatomyError(RegraftError):
    """An anatomy file with a fault, a checkpoint that does not fit its anatomy, or a change that its class cannot say."""


class BadReferenceError(RegraftError):
    """A reference (`path`, `hf:`, `pip:`, `builtin:` ...) that cannot be read or found."""


class HubError(BadReferenceError):
    """A Hub repository that is gated, absent or unreachable."""


class CatalogueError(RegraftError):
    """A catalogue of checkpoints that cannot be read or written, or a filter that it does not know."""


class TaskError(RegraftError):
    """Task data that cannot be read or used."""


class MethodError(RegraftError):
    """An unknown method or a parameter that the method does not take."""


class ResizeError(RegraftError):
    """A size, a pattern or a rank that a checkpoint cannot take, or statistics that do not fit it."""


class BudgetError(RegraftError):
    """A budget that cannot be read or is too small for anything."""


class RecipeError(RegraftError):
    """A recipe that cannot be read or replayed."""


class RunError(RegraftError):
    """A run folder that cannot be used."""


class RunLockedError(RunError):
    """A run folder that another process is using."""


class StoreError(RegraftError):
    """The store cannot be read or written."""


class VerificationError(RegraftError):
    """A certificate that is missing or cannot be read."""
