"""Starts the processes that carry a job out together with this one, as accelerate launch would have started them."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from loractl.errors import DeviceError
from loractl.launch import launched

CONTEXT = multiprocessing.get_context("spawn")  # a fork has its parent's CUDA, which does not work there
GRACE = 10  # seconds that the others have to end when everything is said


@contextmanager
def helpers(count: int, work: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Inside, this process is the first of 1 + `count`, and each of the others does `work(*arguments)`. One that a
    launcher has started is one of as many as that has said, and starts none.
    """
    if count == 0 or launched():
        yield
        return
    everyone = _environments(1 + count)
    others = [_Helper.start(each, work, arguments) for each in everyone[1:]]
    patience = 0  # whoever leaves at once, as on Ctrl-C, takes the others along
    try:
        for number, other in enumerate(others, start=2):
            other.require_begun(f"process {number} of {1 + count}")
        with _environment(everyone[0]):
            yield
        patience = GRACE
    except Exception:
        patience = GRACE
        raise
    finally:
        for other in others:
            other.process.join(patience)
            other.process.kill()


@dataclass(frozen=True)
class _Helper:
    process: BaseProcess
    line: Connection  # something comes when it begins its work

    @classmethod
    def start(cls, environment: Mapping[str, str], work: Callable[..., object], arguments: Any) -> "_Helper":
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_help, args=(there, environment, work, arguments), daemon=True)
        process.start()
        there.close()
        return cls(process, here)

    def require_begun(self, name: str) -> None:
        """Waits until it is at work. DeviceError when it ended before, for which the others would wait in vain."""
        try:
            self.line.recv()
        except EOFError:
            raise DeviceError(f"{name} ended before it began: see above why, or lower memory.processes") from None


def _help(line: Connection, environment: Mapping[str, str], work: Callable[..., object], arguments: Any) -> None:
    """What a started process does. Ctrl-C is the first one's to hear, and stdout to write to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    os.environ.update(environment)
    with suppress(ImportError):  # the job says so better
        import accelerate  # noqa: F401  # most of what takes time and memory before the processes meet
    line.send("here")
    work(*arguments)


def _environments(size: int) -> list[dict[str, str]]:
    """For each process what torchrun would have told it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    everyone = [{**common, "RANK": index, "LOCAL_RANK": index} for index in range(size)]
    return [{name: str(value) for name, value in each.items()} for each in everyone]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
