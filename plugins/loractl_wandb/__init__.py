"""Weights & Biases: hears a run that has "wandb" in log.trackers. Its files are in wandb/ of the output."""

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from loractl.errors import InputError
from loractl.events import Event, Finished, Numbers, Pictures, Started
from loractl.hookspecs import hookimpl


@dataclass(eq=False)
class WeightsAndBiases:
    """`run` is wandb's own, and None while no job wants to be heard."""

    run: Any = None

    @hookimpl
    def on_event(self, event: Event) -> None:
        if isinstance(event, Started):
            self.start(event)
        elif self.run is None:
            return
        elif isinstance(event, Numbers):
            self.run.log(dict(event.values), step=event.step)
        elif isinstance(event, Pictures):
            self.run.log({event.what: _package().Image(str(event.path))}, step=event.step)
        elif isinstance(event, Finished):
            self.run.summary.update(dict(event.numbers))
            self.close()

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
        self.run = None

    def start(self, started: Started) -> None:
        self.close()
        if "wandb" not in started.trackers():
            return
        wandb = _package()
        started.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project="loractl",
            name=started.job["name"],
            config=dict(started.job),
            dir=str(started.folder),
            mode=_mode(wandb),
            settings=wandb.Settings(console="off"),  # the terminal is the display's
        )


def _mode(wandb: Any) -> str | None:
    """Offline where nobody is logged in and WANDB_MODE says nothing else: wandb would ask, and a run asks nothing."""
    return None if os.environ.get("WANDB_MODE") or wandb.login(prompt=False) else "offline"


def _package() -> Any:
    try:
        return import_module("wandb")
    except ImportError:
        advice = 'pip install "loractl[wandb]", or take it out of log.trackers'
        raise InputError(f'log.trackers names "wandb", which is not installed: {advice}') from None


listener = WeightsAndBiases()
