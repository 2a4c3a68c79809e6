"""How strongly an adapter acts, as a function of where a denoising run is and of the layer: w(layer, moment).

w = weight · schedule(moment) · factor(layer); a layer's pattern may have a schedule of its own in the place of the
adapter's. Text encoders have run before the first step, so no schedule counts there: w = weight · factor(layer).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loractl.families.prediction import DiffusionPath, FlowPath
from loractl.inject.targets import matches

Over = Literal["fraction", "sigma", "step"]
Shape = Literal["hold", "linear", "cosine"]

_EASES: Mapping[Shape, Callable[[float], float]] = {
    "hold": lambda _: 0.0,
    "linear": lambda u: u,
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,
}
"""How a value goes over into the next one, by the share of the way between their points."""


@dataclass(frozen=True)
class Moment:
    """Of a run: the step (0 the first) of so many, and the noise level, √((1 − ᾱ) / ᾱ) or a flow model's σ."""

    step: int
    steps: int
    sigma: float

    @property
    def fraction(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.step / (self.steps - 1) if self.steps > 1 else 0.0


@dataclass(frozen=True)
class Schedule:
    """Values at points, (place, value) in rising order of the places. Before the first point its value holds already,
    after the last one for good; between two it is held, or goes over to the next one along a line or half a cosine.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    over: Over = "fraction"
    shape: Shape = "hold"

    def at(self, moment: Moment | None) -> float:
        """The value then; 1 where there is no run yet."""
        return 1.0 if moment is None else self.value(getattr(moment, self.over))

    def value(self, place: float) -> float:
        after = bisect_right(self.points, place, key=lambda point: point[0])
        if after in (0, len(self.points)):
            return self.points[min(after, len(self.points) - 1)][1]
        (here, value), (there, following) = self.points[after - 1 : after + 1]
        return value + _EASES[self.shape]((place - here) / (there - here)) * (following - value)


@dataclass(frozen=True)
class Use:
    """How an adapter is used. `layers`: pattern (see `targets`) or block ("mid_block", "unet.down_blocks.1") → a factor
    beside the schedule, or another schedule in its place; of several that match a layer the last one counts.
    """

    weight: float = 1.0
    schedule: Schedule = Schedule()
    layers: Mapping[str, float | Schedule] = field(default_factory=dict)

    def strengths(self, moment: Moment | None) -> tuple[float, ...]:
        """w for the layers that no pattern matches, then for those of each pattern; None is before the run."""
        own = self.schedule.at(moment)
        others = (part.at(moment) if isinstance(part, Schedule) else part * own for part in self.layers.values())
        return tuple(self.weight * factor for factor in (own, *others))

    def group(self, path: str) -> int:
        """Which of the `strengths` is that of a module, named with its component."""
        return max((i for i, pattern in enumerate(self.layers, start=1) if in_layers(path, pattern)), default=0)


def in_layers(path: str, pattern: str) -> bool:
    """Whether a pattern matches a module or a block that it is in."""
    return matches(path, pattern) or matches(path, f"{pattern}.*")


def run_moments(scheduler: Any, turns: int, path: DiffusionPath) -> list[Moment]:
    """One for each of the `turns` of a pipeline's loop, which a picture to start from shortens at its beginning.

    `scheduler` is diffusers', after its timesteps have been set.
    """
    levels = noise_levels(scheduler, path)
    steps = steps_of_turns(len(levels), int(scheduler.num_inference_steps), int(scheduler.order))[-turns:]
    count = steps[-1] - steps[0] + 1
    return [Moment(step - steps[0], count, level) for step, level in zip(steps, levels[-turns:], strict=True)]


def steps_of_turns(turns: int, steps: int, order: int) -> list[int]:
    """The step that each turn of a sampler's loop belongs to.

    Heun, DPM2 and their kin have `order` turns in a step, less where the last one ends. PNDM takes its first step in
    two, or the first three in four each (Liu et al. 2022, "Pseudo Numerical Methods", section 3.4).
    """
    if order > 1:
        return [turn // order for turn in range(turns)]
    first = {1: [2], 9: [4, 4, 4]}.get(turns - steps, [])
    counts = first + [1] * (steps - len(first))
    return [step for step, count in enumerate(counts) for _ in range(count)]


def noise_levels(scheduler: Any, path: DiffusionPath) -> list[float]:
    """σ at each turn. EDM's samplers (Karras et al. 2022) have no steps of a noise path for their times, but say σ."""
    if "sigma_data" in scheduler.config:
        return [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
    return [noise_level(path, float(t)) for t in scheduler.timesteps]


def noise_level(path: DiffusionPath, t: float) -> float:
    """σ at a timestep of the denoiser; ᾱ is linear between whole ones, and σ infinite where there is no signal."""
    if isinstance(path, FlowPath):
        return t / path.steps
    low = min(max(math.floor(t), 0), path.steps - 1)
    here, there = (float(path.alphas_cumprod[i]) for i in (low, min(low + 1, path.steps - 1)))
    alpha = here + (t - low) * (there - here)
    return math.sqrt((1 - alpha) / alpha) if alpha else math.inf
