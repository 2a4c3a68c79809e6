"""A short DreamBooth job on the lab model, for tests."""

from pathlib import Path
from typing import Any

from loractl.events import Event, Progress
from loractl.job import Layer, override, read_job
from loractl.method import Outcome
from loractl.plugins import load_plugins

JOBS = Path(__file__).parents[2] / "jobs"
SHORT = (
    "train.steps=3",
    "train.batch_size=2",
    "prior.num_images=2",
    "sample.steps=2",
    "sample.seeds=[0]",
    "eval.encoders=[]",
)


def run_subject(out: Path, *settings: str) -> tuple[Outcome, list[Event]]:
    """Runs jobs/subject.toml, shortened, into `out`; returns the outcome and its events."""
    return run_job(JOBS / "subject.toml", out, *SHORT, *settings)


def run_job(file: Path, out: Path, *settings: str) -> tuple[Outcome, list[Event]]:
    methods = load_plugins().methods
    layers: list[Layer] = [override(setting) for setting in (*settings, f"output.path={out}")]
    spec: Any = read_job(file, methods, layers)
    events: list[Event] = []
    return methods[spec.method].run(spec, events.append), events


def stages(events: list[Event]) -> list[str]:
    """The stages in order, each once."""
    return list(dict.fromkeys(event.stage for event in events if isinstance(event, Progress)))
