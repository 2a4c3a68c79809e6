"""Work in batches that shrink when memory runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from loractl.errors import DeviceError, PluginError

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Batches(Generic[A, B]):
    """Calls `work` on at most `size` items at a time. When that runs out of memory, the size is halved for good.

    Raises DeviceError when one item is too much, PluginError when `work`, called `name` in errors, does not give one
    result for each item.
    """

    work: Callable[[Sequence[A]], Sequence[B]]
    size: int = 8
    name: str = "the model"

    def __call__(self, items: Sequence[A]) -> list[B]:
        done: list[B] = []
        while len(done) < len(items):
            batch = items[len(done) : len(done) + self.size]
            results = self._try(batch)
            if results is None:
                self.size = len(batch) // 2  # after the exception is gone, and with it what its frames held
            elif len(results) != len(batch):
                raise PluginError(f"{self.name} gave {len(results)} results for {len(batch)} pictures: report it")
            else:
                done += results
        return done

    def _try(self, batch: Sequence[A]) -> Sequence[B] | None:
        """None: out of memory."""
        try:
            return self.work(batch)
        except Exception as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, judged by name: it may not be here
                raise
            if len(batch) == 1:
                advice = "choose a smaller model or the CPU"
                raise DeviceError(f"{self.name} and one picture don't fit in the device's memory: {advice}") from error
            return None
