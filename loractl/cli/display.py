"""Listeners: what a person sees of a run on stderr, or a program on stdout."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from loractl.events import Event, Facts, Finished, Note, Pictures, Progress, Wrote
from loractl.hookspecs import hookimpl

LINE_EVERY = 5.0  # seconds between progress lines where there is no terminal


@dataclass(eq=False)
class JsonLines:
    """Every event as one JSON object on a line."""

    stream: TextIO

    @hookimpl
    def on_event(self, event: Event) -> None:
        write_json(self.stream, event.as_json())


@dataclass(eq=False)
class Display:
    """Shows events to a person; `quiet` leaves only the warnings."""

    console: Console
    quiet: bool = False
    clock: Callable[[], float] = time.monotonic
    bars: Bars | None = None
    stage: "Stage | None" = None
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @hookimpl
    def on_event(self, event: Event) -> None:
        shows: dict[str, Callable[[Any], None]] = {
            Facts.kind: self.facts,
            Progress.kind: self.progress,
            Pictures.kind: self.pictures,
            Wrote.kind: self.wrote,
            Finished.kind: self.finished,
        }
        if isinstance(event, Note):
            self.note(event)
        elif not self.quiet and event.kind in shows:
            shows[event.kind](event)

    def note(self, note: Note) -> None:
        if note.level == "warning":
            self.say(f"warning: {note.text}", "yellow")
        elif not self.quiet:
            self.say(note.text)

    def facts(self, facts: Facts) -> None:
        self.say(facts.title, "bold")
        self.table(facts.values)

    def pictures(self, pictures: Pictures) -> None:
        self.say(f"wrote {pictures.what} at step {pictures.step}: {pictures.path}")

    def wrote(self, wrote: Wrote) -> None:
        self.say(f"wrote {wrote.what}: {wrote.path}")

    def finished(self, finished: Finished) -> None:
        self.close()
        self.table(finished.numbers)
        self.say(f"finished in {duration(self.clock() - self.started)}", "bold")

    def progress(self, progress: Progress) -> None:
        now = self.clock()
        if self.stage is None or self.stage.name != progress.stage or progress.done < self.stage.done:
            self.stage = Stage(progress.stage, now, progress.done, now)
        self.stage.done = progress.done
        if self.console.is_terminal:
            self.bar(progress, self.stage)
        elif self.stage.is_due(now) or progress.done == progress.total:
            self.stage.shown = now
            pace = self.stage.pace(now, progress.total)
            self.say(f"{progress.stage} {progress.done}/{progress.total}{pace}{listed(progress)}")

    def bar(self, progress: Progress, stage: "Stage") -> None:
        """A live bar; it stays on the screen when its stage is over."""
        if self.bars is None:
            self.bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[numbers]}", style="dim"),
                console=self.console,
            )
            self.bars.start()
        if stage.task is None:
            stage.task = self.bars.add_task(progress.stage, total=progress.total, numbers="")
        numbers = f"{stage.rate(self.clock()):.3g}/s{listed(progress)}"
        self.bars.update(stage.task, completed=progress.done, total=progress.total, numbers=numbers)

    def table(self, values: Mapping[str, Any]) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, value in values.items():
            table.add_row(Text(str(name), overflow="fold"), Text(number(value), overflow="fold"))
        if values:
            self.console.print(table, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True, highlight=False)

    def error(self, problem: str) -> None:
        self.say(f"error: {problem}", "red")

    def close(self) -> None:
        """Gives the terminal back."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


@dataclass
class Stage:
    """What a display remembers of the stage that is running; times in seconds."""

    name: str
    began: float
    done: int
    shown: float
    task: TaskID | None = None
    first: int = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.done

    def is_due(self, now: float) -> bool:
        return now - self.shown >= LINE_EVERY

    def rate(self, now: float) -> float:
        """Steps per second since the stage was first heard of."""
        return (self.done - self.first) / (now - self.began) if now > self.began else 0.0

    def pace(self, now: float, total: int) -> str:
        rate = self.rate(now)
        return f" ({rate:.3g}/s, {duration((total - self.done) / rate)} left)" if rate else ""


def say_error(problem: str) -> None:
    Display(Console(stderr=True)).error(problem)


def write_json(stream: TextIO, data: Mapping[str, Any]) -> None:
    """One JSON object on one line; what JSON can't hold becomes text, and a number that is not finite null."""
    print(json.dumps(_finite(data), default=str, ensure_ascii=False), file=stream, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def listed(progress: Progress) -> str:
    return "".join(f"  {name} {number(value)}" for name, value in progress.numbers.items())


def number(value: Any) -> str:
    """A value as a person reads it: 1,541,376 and 0.0123."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def bars(values: Mapping[str, float], width: int = 30) -> str:
    """A bar chart in plain text: one line each, the longest bar `width` characters, none for what is not finite."""
    lengths = {name: value if math.isfinite(value) else 0.0 for name, value in values.items()}
    wide, largest = max(map(len, values), default=0), max(lengths.values(), default=0.0) or 1.0
    lines = (
        f"{name:{wide}} {'█' * round(width * lengths[name] / largest):{width}} {value:.4g}"
        for name, value in values.items()
    )
    return "\n".join(lines) or "none"


def duration(seconds: float) -> str:
    """7 s, 2 min 5 s, 3 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
