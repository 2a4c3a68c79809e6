"""When a run should stop before its end: signals and the time it was given.

The first SIGINT or SIGTERM asks it to stop after the step, the second stops it at once; SIGUSR1 asks for a checkpoint.
"""

import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from loractl.errors import Terminated


@dataclass(frozen=True)
class Heard:
    """What a run is asked for: to leave, by a signal (0 for none) or since its time is over; and a checkpoint."""

    signal: int = 0
    late: bool = False
    checkpoint: bool = False

    @property
    def leaving(self) -> bool:
        return self.signal != 0 or self.late


class Stop:
    """Listens inside `with`, on the main thread, where alone Python has signals; on another it only looks at the clock,
    which runs from the beginning. A signal that the process ignores, as a job in the background does, stays ignored.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.requested: int | None = None
        self._end = float("inf") if max_seconds is None else time.monotonic() + max_seconds
        self._asked = self._answered = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            table = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop, signal.SIGUSR1: self._ask}
            for number, handler in table.items():
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def checkpoint_wanted(self) -> bool:
        """Whether SIGUSR1 came since this was last read."""
        asked = self._asked
        wanted, self._answered = asked > self._answered, asked
        return wanted

    def out_of_time(self) -> bool:
        return time.monotonic() >= self._end

    def heard(self) -> Heard:
        """All of it; a wish for a checkpoint is told once."""
        return Heard(self.requested or 0, self.out_of_time(), self.checkpoint_wanted)

    def leave(self, number: int | None = None) -> NoReturn:
        """Raises what the signal means, its own or another: Terminated for SIGTERM, else KeyboardInterrupt."""
        raise Terminated if (number or self.requested) == signal.SIGTERM else KeyboardInterrupt

    def _stop(self, number: int, _: FrameType | None) -> None:
        again, self.requested = self.requested is not None, number
        if again:
            self.leave()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1  # a count, not a flag: what comes in while the flag is cleared would be lost
