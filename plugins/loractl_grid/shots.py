"""The pictures of a grid job: what each asks for, where it goes, and which are rendered together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from loractl.families.family import Family
from loractl.sample.adapted import requests
from loractl.sample.axes import Axis, short_names
from loractl.sample.canvas import blank
from loractl.sample.denoise import Request
from loractl.sample.sizes import pixels
from loractl_grid.spec import FILES, Choice, GridSpec

BATCH = 4


@dataclass(frozen=True, order=True)
class Worn:
    """An adapter's file and how it is used; the schedule in its short form, empty where there is none."""

    file: Path
    weight: float
    schedule: str = ""


Uses = tuple[Worn, ...]


@dataclass(frozen=True)
class Shot:
    """One picture of the table: its file, what is asked for, and what is worn."""

    file: Path
    request: Request
    uses: Uses

    def alike(self) -> tuple[Uses, int, float]:
        """What pictures that are rendered together have in common."""
        return self.uses, self.request.steps, self.request.guidance


def plan(spec: GridSpec, model: Family) -> list[Shot]:
    """A shot for each place of the table, x fastest, z slowest."""
    choices = [choice or Choice("", (None,)) for choice in reversed(spec.grid.choices)]
    shots = []
    for picks in product(*(enumerate(choice.values, start=1) for choice in choices)):
        said: dict[str, Any] = {"seed": spec.seed, **spec.sample.model_dump()}
        said |= {choice.kind: value for choice, (_, value) in zip(choices, picks, strict=True)}
        name = "-".join(f"{axis}{place}" for axis, (place, _) in zip("zyx", picks, strict=True))
        shots.append(Shot(spec.destination() / "pictures" / f"{name}.png", _request(model, said), _uses(spec, said)))
    return shots


def batches(shots: Sequence[Shot]) -> list[list[Shot]]:
    """The shots in groups that are rendered together, those with the same adapters one after the other.

    They follow from the job alone, whatever has been made already: a picture depends on its batch by a rounding.
    """
    groups = [list(group) for _, group in groupby(sorted(shots, key=Shot.alike), key=Shot.alike)]
    return [group[start : start + BATCH] for group in groups for start in range(0, len(group), BATCH)]


def axes(spec: GridSpec) -> tuple[Axis, Axis, Axis]:
    """X, y and z with the labels that a person reads."""
    x, y, z = (_axis(choice) if choice else Axis() for choice in spec.grid.choices)
    return x, y, z


def _axis(choice: Choice) -> Axis:
    if choice.kind in FILES:
        return Axis(choice.kind, short_names(choice.values))
    return Axis(choice.kind, tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in choice.values))


def _request(model: Family, said: dict[str, Any]) -> Request:
    prompt, seed, steps, guidance = (said[name] for name in ("prompt", "seed", "steps", "guidance"))
    size = pixels(model, said["size"])
    canvas = blank(size) if model.is_inpainting else None
    (request,) = requests(model, [prompt], [seed], steps, guidance, size, said["negative"], canvas=canvas)
    return request


def _uses(spec: GridSpec, said: dict[str, Any]) -> Uses:
    """Axes of weights and schedules are for the file on another axis if there is one, else for all adapters."""
    weight, schedule = said.get("weight"), str(said.get("schedule", ""))
    file = said.get("adapter") or said.get("checkpoint")
    if file is not None:
        own = (Worn(use.path, use.weight) for use in spec.adapters)
        return (*own, Worn(file, 1.0 if weight is None else weight, schedule))
    return tuple(Worn(use.path, use.weight if weight is None else weight, schedule) for use in spec.adapters)
