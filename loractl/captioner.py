"""A captioner says what pictures show: a plugin offers it by a name, and a job that gives the name has it loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Write = Callable[[Sequence[Any]], list[str]]  # a batch of RGB pictures (PIL) → a caption for each, in their order


@dataclass(frozen=True)
class CaptionerSettings:
    """What a job says of its captioner, which reads what it has a use for. `source` is a hub id or a path, `device`
    and `precision` are what `loractl.device` picks from.
    """

    source: str | None = None
    revision: str | None = None
    prompt: str | None = None
    max_tokens: int = 64
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Captioner:
    """`load` may import torch, in its body, and raises one of `loractl.errors` where settings don't suit it. What it
    returns is called with batches of the job's size, or smaller ones after a batch ran out of memory.
    """

    name: str
    description: str
    load: Callable[[CaptionerSettings], Write]
