"""TensorBoard: hears a run that has "tensorboard" in log.trackers, and writes what it hears to tensorboard/."""

import atexit
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from loractl.errors import InputError
from loractl.events import Event, Finished, Numbers, Pictures, Started
from loractl.hookspecs import hookimpl


@dataclass(eq=False)
class TensorBoard:
    """`folder` is None while no run wants to be heard; the file in it is made at the first step."""

    folder: Path | None = None
    writer: Any = None
    step: int = 0

    @hookimpl
    def on_event(self, event: Event) -> None:
        if isinstance(event, Started):
            self.start(event)
        elif self.folder is None:
            return
        elif isinstance(event, Numbers):
            self.write(event.step, event.values)
        elif isinstance(event, Pictures):
            self.show(event)
        elif isinstance(event, Finished):
            self.write(self.step, {f"result/{name}": value for name, value in event.numbers.items()})
            self.close()

    def start(self, started: Started) -> None:
        self.close()
        if "tensorboard" in started.trackers():
            _package()
            self.folder = started.folder / "tensorboard"

    def at(self, step: int) -> Any:
        """The writer. Its first step tells TensorBoard to forget an earlier run from there on."""
        if self.writer is None:
            self.writer = _package().SummaryWriter(str(self.folder), purge_step=step)
            atexit.register(self.writer.close)  # an interrupted run has no Finished
        self.step = step
        return self.writer

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.at(step).add_scalar(name, value, step)

    def show(self, pictures: Pictures) -> None:
        import numpy
        from PIL import Image

        with Image.open(pictures.path) as picture:
            pixels = numpy.asarray(picture.convert("RGB"))
        self.at(pictures.step).add_image(pictures.what, pixels, pictures.step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.folder, self.writer, self.step = None, None, 0


def _package() -> Any:
    try:
        return import_module("torch.utils.tensorboard")
    except ImportError:
        advice = 'pip install "loractl[tensorboard]", or take it out of log.trackers'
        raise InputError(f'log.trackers names "tensorboard", which is not installed: {advice}') from None


listener = TensorBoard()
