"""Batches get smaller when memory runs out, and nobody notices but the clock."""

from collections.abc import Sequence

import pytest

from loractl.errors import DeviceError, PluginError
from loractl.prepare.batches import Batches


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


class Doubling:
    """Doubles at most `room` numbers at a time."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, list[int]()

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise OutOfMemoryError("CUDA out of memory")
        return [2 * number for number in batch]


def test_the_size_is_halved_until_it_fits_and_stays_so() -> None:
    work = Doubling(3)
    batches = Batches(work, 8)
    assert batches(range(10)) == [2 * number for number in range(10)]
    assert work.sizes == [8, 4, 2, 2, 2, 2, 2]
    work.sizes.clear()
    assert batches([5, 6, 7]) == [10, 12, 14]
    assert work.sizes == [2, 1]


def test_one_that_does_not_fit_is_too_much() -> None:
    with pytest.raises(DeviceError, match="the reader and one picture don't fit"):
        Batches(Doubling(0), 4, "the reader")([1, 2])


def test_other_failures_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        Batches(lambda batch: [1 // number for number in batch])([0])
    with pytest.raises(PluginError, match="the reader gave 1 results for 2 pictures"):
        Batches(lambda batch: list(batch[:1]), 2, "the reader")([1, 2, 3])
