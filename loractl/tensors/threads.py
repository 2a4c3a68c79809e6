"""How many threads small linear algebra gets: one. On a busy machine of two cores, two took 70 times as long."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside; as many as before afterwards. Serves as a decorator too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
