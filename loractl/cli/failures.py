"""Failures as a person or a program hears of them: a sentence for each problem, and an exit code."""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from loractl.cli.display import say_error, write_json
from loractl.errors import (
    INTERRUPTED,
    TERMINATED,
    DeviceError,
    DiskFullError,
    InputError,
    JobError,
    LoractlError,
    Terminated,
)
from loractl.fields import fields
from loractl.specs import Spec

USAGE_ERROR = typer.BadParameter.__mro__[1]  # click's UsageError, whichever click this Typer brings
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
ROOM = {
    "train.batch_size": "lower train.batch_size",
    "sample.size": "lower sample.size",
    "memory.gradient_checkpointing": "set memory.gradient_checkpointing = true",
    "memory.offload": 'set memory.offload = "blocks"',
    "memory.device": 'set memory.device = "cpu"',
    "run.device": 'set run.device = "cpu"',
    "caption.model": "choose a smaller mask.model or caption.model",
}
"""What makes room on a device, by the key that a method must have for it; the best come first."""


def fail(error: BaseException, as_json: bool) -> int:
    """Says what went wrong, for a person on stderr or for a program on stdout; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    code, problems = diagnose(error)
    if code == LoractlError.exit_code:
        traceback.print_exception(error)
    if as_json:
        write_json(sys.stdout, {"event": "error", "exit_code": code, "problems": problems})
    else:
        for problem in problems:
            say_error(problem)
    return code


def diagnose(error: BaseException) -> tuple[int, tuple[str, ...]]:
    """Exit code and sentences for a failure; anything that is not ours to foresee is a bug."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        code, word = (TERMINATED, "terminated") if isinstance(error, Terminated) else (INTERRUPTED, "interrupted")
        return code, (getattr(error, "resume", word),)  # training says how to go on
    if isinstance(error, USAGE_ERROR):
        return JobError.exit_code, (_usage(error),)
    known = error if isinstance(error, LoractlError) else _recognize(error)
    if isinstance(known, JobError):
        return known.exit_code, known.problems
    if known is not None:
        return known.exit_code, (str(known),)
    return LoractlError.exit_code, (f"{type(error).__name__}: {error}",)


def _usage(error: BaseException) -> str:
    """A Typer usage error as one sentence, with where to read on."""
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]  # USAGE_ERROR has it
    command = getattr(getattr(error, "ctx", None), "command_path", "loractl")
    return f"{message} (see {command} --help)"


def _recognize(error: BaseException) -> LoractlError | None:
    """Failures of the machine that libraries raise in their own ways."""
    if (isinstance(error, OSError) and error.errno in NO_SPACE) or "No space left on device" in str(error):
        return DiskFullError(f"{error}; the last good files are untouched: free some space or choose another --out")
    if isinstance(error, OSError) and error.errno in NO_RIGHT + NO_PLACE and error.filename is not None:
        path = error.filename2 or error.filename
        return InputError(f"{path} can't be read or written ({error.strerror}): mend the path, or choose another --out")
    return None


@contextmanager
def advising(spec: type[Spec]) -> Iterator[None]:
    """DeviceError in place of torch's error for a full device, which says what in such a job makes room."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # judged by name, torch may not be here
            raise
        keys = dict(fields(spec))
        advice = [words for key, words in ROOM.items() if key in keys][:3] or ["choose a smaller model"]
        raise DeviceError(f"the device is out of memory: {', or '.join(advice)}") from error
