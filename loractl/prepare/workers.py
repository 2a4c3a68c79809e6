"""Carries out one function over many files in worker processes: a worker that dies costs one file, not the run.

Workers are spawned, so that nothing of the program's threads or memory comes along, and at most one task more than
there are workers is in flight: memory doesn't grow with the number of files.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def here(work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
    """In this very process, one after the other."""
    return map(work, tasks)


def in_processes(
    work: Callable[[T], R], tasks: Iterable[T], died: Callable[[T], R], workers: int, memory_mb: int | None = None
) -> Iterator[R]:
    """The results, as they come. A worker that dies takes the others with it: the tasks that were in flight are done
    once more, each alone, and `died` gives the result of the one that kills its worker again.
    """
    waiting = deque(tasks)
    while waiting:
        for task in (yield from _together(work, waiting, workers, memory_mb)):
            yield alone(work, task, died, memory_mb)


def alone(work: Callable[[T], R], task: T, died: Callable[[T], R], memory_mb: int | None = None) -> R:
    """The result of one task in a process of its own."""
    with _pool(1, memory_mb) as pool:
        try:
            return pool.submit(work, task).result()
        except BrokenProcessPool:
            return died(task)


def _together(
    work: Callable[[T], R], waiting: deque[T], workers: int, memory_mb: int | None
) -> Generator[R, None, list[T]]:
    """Takes tasks until there are none or a worker dies; returns those that were lost with it."""
    flying: dict[Future[R], T] = {}
    lost: list[T] = []
    pool = _pool(min(workers, len(waiting)), memory_mb)
    try:
        while (waiting and not lost) or flying:
            while waiting and not lost and len(flying) <= workers:
                lost += _submit(pool, work, waiting.popleft(), flying)
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                task = flying.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(task)
                else:
                    yield future.result()
        return lost
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, work: Callable[[T], R], task: T, flying: dict[Future[R], T]) -> list[T]:
    """Hands a task over; returns it where the pool has broken in the meantime."""
    try:
        flying[pool.submit(work, task)] = task
    except BrokenProcessPool:
        return [task]
    return []


def _pool(workers: int, memory_mb: int | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (memory_mb,))


def _begin(memory_mb: int | None) -> None:
    """A new worker leaves Ctrl-C to the program, and stays below its memory where the system can hold it to that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # the cores are shared by file; numpy, which reads this, is not loaded yet
    if memory_mb is not None:
        import resource  # there is none on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 2**20,) * 2)
