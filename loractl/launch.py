"""Which of several processes this one is, as the environment says that accelerate launch and torchrun give to each."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """A process of `size` on all machines; the first leads, and `local` is its number on its own machine."""

    index: int
    size: int
    local: int


def launched() -> Launch | None:
    """None in a process that was started alone."""
    index, size, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Launch(index, size, local) if size > 1 else None
