"""Judges what was measured of a picture: which limits it breaks, as short reasons."""

from collections.abc import Callable
from dataclasses import dataclass

from loractl.prepare.measures import Measures


@dataclass(frozen=True)
class Limits:
    """What a picture must keep to. The defaults let pass nearly all that a person would; 0 and 1 turn them off."""

    min_side: int = 256
    max_aspect: float = 3.0  # of the longer side to the shorter
    min_blur: float = 20.0
    min_exposure: float = 0.05
    max_exposure: float = 0.95
    min_contrast: float = 0.04
    max_border: float = 1.0


def _size(found: Measures, limits: Limits) -> str | None:
    is_small = min(found.width, found.height) < limits.min_side
    return f"too small: {found.width} × {found.height}, asked for {limits.min_side}" if is_small else None


def _aspect(found: Measures, limits: Limits) -> str | None:
    ratio = max(found.width, found.height) / min(found.width, found.height)
    return f"too long: {ratio:.2f} to 1 > {limits.max_aspect:g}" if ratio > limits.max_aspect else None


def _below(reason: str, value: float, least: float) -> str | None:
    return f"{reason}: {value:.3g} < {least:g}" if value < least else None


def _above(reason: str, value: float, most: float) -> str | None:
    return f"{reason}: {value:.3g} > {most:g}" if value > most else None


CHECKS: tuple[Callable[[Measures, Limits], str | None], ...] = (
    _size,
    _aspect,
    lambda found, limits: _below("blurred", found.blur, limits.min_blur),
    lambda found, limits: _below("too dark", found.exposure, limits.min_exposure),
    lambda found, limits: _above("too bright", found.exposure, limits.max_exposure),
    lambda found, limits: _below("too little contrast", found.contrast, limits.min_contrast),
    lambda found, limits: _above("wide borders", found.border, limits.max_border),
)


def verdicts(measures: Measures, limits: Limits) -> tuple[str, ...]:
    """The reasons, "kind: numbers"; none when the picture is good."""
    found = (check(measures, limits) for check in CHECKS)
    return tuple(reason for reason in found if reason is not None)
