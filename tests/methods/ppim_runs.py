"""Runs of ppim, for tests, and what they left."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loractl_ppim import register_methods, start
from loractl_ppim.command import ppim

from loractl.events import Event, Note
from loractl.job import dump_job, override, read_job
from loractl.prepare.table import Row, read_rows
from tests.methods.lab_job import JOBS

METHODS = {method.name: method for method in register_methods()}
HERE = "run.workers=0"


@dataclass
class Run:
    """What a run left: its rows, numbers and events."""

    out: Path
    numbers: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def rows(self) -> dict[str, Row]:
        return read_rows(self.out / "table.jsonl")

    def metadata(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metadata.jsonl").read_text().splitlines()]

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note) and event.level == "warning"]


def run_example(out: Path, *settings: str) -> Run:
    """jobs/ppim.toml, in this process."""
    spec = read_job(JOBS / "ppim.toml", METHODS, [override(each) for each in (HERE, f"output.path={out}", *settings)])
    return carried_out(spec, out)


def carried_out(spec: Any, out: Path) -> Run:
    run = Run(out)
    run.numbers = dict(start(spec, run.events.append).numbers)
    return run


def run_folder(photos: Path, out: Path, *settings: str, **options: Any) -> Run:
    """`loractl ppim photos out`, with pictures small enough for a test."""
    spec: Any = ppim(photos, out, **{"workers": 0, "size": 16, **options})
    job = out.with_suffix(".toml")
    job.write_text(dump_job(spec))
    loose = ("check.min_side=0", "check.min_blur=0", "check.min_contrast=0", "check.min_variety=0")
    return carried_out(read_job(job, METHODS, [override(each) for each in (*loose, *settings)]), out)


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """The hash and the time of every file, the lock apart."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha for name, (sha, _) in contents(folder).items()}
