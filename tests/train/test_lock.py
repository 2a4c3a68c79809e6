"""Two runs can't share a folder, and a dead run holds none."""

import os
import signal
from pathlib import Path

import pytest

from loractl.errors import InputError
from loractl.train.lock import lock


def hold_in_a_child(folder: Path) -> int:
    """The process id of a child that holds the folder until it is killed."""
    held, told = os.pipe()
    child = os.fork()
    if child == 0:
        with lock(folder):
            os.write(told, b"held")
            signal.pause()
    assert os.read(held, 4) == b"held"
    return child


def test_a_second_run_is_told_who_holds_the_folder_until_that_dies(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    child = hold_in_a_child(folder)
    try:
        with pytest.raises(InputError, match=f"out is in use by another run .process {child}."), lock(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with lock(folder):
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_run_that_ends_lets_go(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path), pytest.raises(InputError), lock(tmp_path):
            pass
    with lock(tmp_path):
        pass
