"""Worker processes: every task has its result, a death costs one, and memory has a bound."""

import os
import sys
from collections.abc import Callable
from typing import Any

from loractl.prepare.workers import here, in_processes


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def deadly(number: int) -> int:
    """As if the system had killed the worker for its memory."""
    if number == 3:
        os._exit(9)
    return number


def greedy(megabytes: int) -> str:
    try:
        return f"{len(bytearray(megabytes * 2**20)) // 2**20} MB"
    except MemoryError:
        return "refused"


def loaded(_: int) -> bool:

    return "torch" in sys.modules


def gone(number: int) -> Any:
    return -number


def results(work: Callable[[int], Any], tasks: list[int], workers: int = 2, memory_mb: int | None = None) -> list[Any]:
    return sorted(in_processes(work, tasks, gone, workers, memory_mb))


def test_each_task_has_its_result_and_is_done_elsewhere() -> None:
    found = results(double, list(range(7)))
    assert [number for number, _ in found] == [number for number, _ in here(double, range(7))] == [*range(0, 14, 2)]
    assert os.getpid() not in {process for _, process in found}


def test_no_tasks_no_processes() -> None:
    assert results(double, []) == []


def test_a_worker_that_dies_costs_one_task() -> None:
    assert results(deadly, [*range(6), 3]) == [-3, -3, 0, 1, 2, 4, 5]


def test_a_worker_stays_below_its_memory() -> None:
    assert results(greedy, [10, 4000], 1, 1000) == ["10 MB", "refused"]


def test_workers_start_without_torch() -> None:
    assert results(loaded, [0], 1) == [False]
