"""What happens during a run, as values. The display, the JSON lines and trackers listen to these alone."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    kind: ClassVar[str] = "event"

    def as_json(self) -> dict[str, Any]:
        """The event as plain JSON values, with its kind under "event"."""
        return {"event": self.kind, **{name: _plain(value) for name, value in asdict(self).items()}}


@dataclass(frozen=True)
class Started(Event):
    """The first event of a run: its resolved job as plain values, and the folder of its result."""

    kind = "started"
    job: Mapping[str, Any]
    folder: Path

    def trackers(self) -> tuple[str, ...]:
        """Who the job wants to be told of every step."""
        return tuple(self.job.get("log", {}).get("trackers", ()))


@dataclass(frozen=True)
class Note(Event):
    """Something a person should know; `level` is "info" or "warning"."""

    kind = "note"
    text: str
    level: str = "info"


@dataclass(frozen=True)
class Facts(Event):
    """A titled table of names and values, shown once."""

    kind = "facts"
    title: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` steps of a stage, with the numbers of the moment. Rate and ETA are the listener's work."""

    kind = "progress"
    stage: str
    done: int
    total: int
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers(Event):
    """What was measured at a step of training. Steps only grow; those of a resumed run begin where it goes on."""

    kind = "numbers"
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Pictures(Event):
    """A file of pictures was made after a step of training, 0 being before it; `what` is the same at every step."""

    kind = "pictures"
    step: int
    path: Path
    what: str


@dataclass(frozen=True)
class Wrote(Event):
    """A file of the result is complete on disk."""

    kind = "wrote"
    path: Path
    what: str


@dataclass(frozen=True)
class Finished(Event):
    """The last event of a run that succeeded."""

    kind = "finished"
    files: Mapping[str, Path]
    numbers: Mapping[str, float]


Emit = Callable[[Event], None]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
