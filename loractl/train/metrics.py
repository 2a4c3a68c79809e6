"""The numbers of every step in metrics.jsonl, one line of JSON each.

No line holds the time, so that a run which was interrupted leaves the same file as one which was not.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from loractl.formats.safefile import replacing

NAME = "metrics.jsonl"


class MetricsFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds the line of a step in one write; `step` counts the steps done."""
        line = json.dumps({"step": step, **numbers})
        with self.path.open("ab") as file:
            file.write(f"{line}\n".encode())

    def truncate(self, step: int) -> None:
        """Drops the lines of later steps, and those that a crash has torn; what is left keeps its bytes."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if 0 < _step(line) <= step]
        with replacing(self.path, overwrite=True) as file:
            file.writelines(kept)


def _step(line: bytes) -> int:
    """The step that a line is about, 0 for a line that is not whole."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0
