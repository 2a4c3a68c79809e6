"""Every failure a person can meet, each with its exit code. A message says what, where, and what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class LoractlError(Exception):
    """The base of all errors that loractl raises on purpose; anything else is a bug."""

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "a bug in loractl: the traceback is printed, please report it"


class JobError(LoractlError):
    """The job file or the command line is wrong. `problems` holds one line for each thing to mend."""

    exit_code = 2
    meaning = "the job file or the arguments are wrong"

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InputError(LoractlError):
    exit_code = 3
    meaning = "an input is missing, unreadable or of an unknown kind"


class FormatError(InputError):
    """A file is not what it claims to be."""


class MismatchError(LoractlError):
    exit_code = 4
    meaning = "the parts do not fit each other: another base model, no target matched"


class DeviceError(LoractlError):
    exit_code = 5
    meaning = "the device is missing or its memory is too small"


class PluginError(LoractlError):
    exit_code = 6
    meaning = "a plugin could not be loaded or clashes with another"


class NumericsError(LoractlError):
    exit_code = 7
    meaning = "the loss or the weights are not finite"


class ScoreError(LoractlError):
    exit_code = 8
    meaning = "a score is below what the job asks for; the result is written all the same"


class DiskFullError(LoractlError):
    exit_code = 74
    meaning = "the disk is full; the last good files are untouched"


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise KeyboardInterrupt, so that one `except` does for both."""


INTERRUPTED = 130
TERMINATED = 143


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The name that was meant, or the whole list where none is near."""
    known = sorted(known)
    if near := get_close_matches(name, known, n=1):
        return f"did you mean {near[0]}?"
    return f"known: {', '.join(known) or 'none'}"
