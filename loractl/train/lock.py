"""One run at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loractl.errors import InputError


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made if it is missing; the kernel lets go when the process dies, however it dies.

    Raises InputError, with the other's process id, when another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise InputError(
                f"{folder} is in use by another run (process {holder}): wait for it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
