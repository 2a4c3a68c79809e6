"""A method is a spec, a function that carries it out, and, if it has one, a command that writes the spec."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from loractl.events import Emit
from loractl.specs import Spec

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind: files by what they are ("diffusers", "kohya", "grid", …), and measured numbers."""

    files: Mapping[str, Path] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method(Generic[S]):
    """`run` may import torch, in its body; `command` is a Typer command that returns a spec and does nothing else."""

    name: str
    summary: str
    spec: type[S]
    run: Callable[[S, Emit], Outcome]
    command: Callable[..., S] | None = None
