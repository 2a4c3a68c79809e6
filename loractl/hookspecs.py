"""The whole plugin surface: a few hooks. A plugin marks its functions with `hookimpl`."""

from collections.abc import Sequence
from typing import Any

import pluggy

from loractl.captioner import Captioner
from loractl.catalog import FamilyPlace
from loractl.events import Event
from loractl.method import Method

hookspec = pluggy.HookspecMarker("loractl")
hookimpl = pluggy.HookimplMarker("loractl")


@hookspec
def register_methods() -> Sequence[Method[Any]]:  # type: ignore[empty-body]  # a hook has no body of its own
    """The methods this plugin offers. Called once, at start-up, so it must not import torch."""


@hookspec
def register_captioners() -> Sequence[Captioner]:  # type: ignore[empty-body]  # as above
    """The captioners this plugin offers. Called once, at start-up, so it must not import torch."""


@hookspec
def register_families() -> Sequence[FamilyPlace]:  # type: ignore[empty-body]  # as above
    """The families of base models this plugin knows. Called once, at start-up, so it must not import torch."""


@hookspec
def on_event(event: Event) -> None:
    """Hears every event of a run, in order. An exception raised here stops the run."""
