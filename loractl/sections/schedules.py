"""How a job says what an adapter's weight is multiplied by along a denoising run: in full, or in a few characters."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from loractl.specs import Finite, Section

Over = Literal["fraction", "sigma", "step"]
Shape = Literal["hold", "linear", "cosine"]

_PLACES = {
    "fraction": "they go from 0 to 1",
    "sigma": "noise levels are 0 or more",
    "step": "steps are counted 0, 1, 2, …",
}


def as_tuples(value: Any) -> Any:
    """Behind the validator of the short form values are not JSON any more, and strict about what they are."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


class ScheduleSection(Section):
    points: Annotated[tuple[tuple[Finite, Finite], ...], BeforeValidator(as_tuples)] = Field(
        min_length=1, description="[place, value] in rising order of the places; outside, the first and the last hold"
    )
    over: Over = Field(
        "fraction",
        description="what places are: 0 at the first step to 1 at the last, noise levels, or steps from 0 on; only "
        "steps that are run count, which with a picture to start from are the last ones",
    )
    shape: Shape = Field(
        "hold", description="between two points: the value of the one before, a line, or half a cosine"
    )

    @field_validator("points")
    @classmethod
    def _rising(cls, points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for (place, _), (following, _) in pairwise(points):
            if following <= place:
                raise ValueError(f"the places should rise, and {following:g} comes after {place:g}")
        return points

    @model_validator(mode="after")
    def _places_exist(self) -> Self:
        ends = {"fraction": 1.0}
        for place, _ in self.points:
            if not 0 <= place <= ends.get(self.over, place) or (self.over == "step" and place % 1):
                raise ValueError(f"{place:g} is no {self.over}: {_PLACES[self.over]}")
        return self

    def __str__(self) -> str:
        """The short form, which `parsed` reads."""
        words = [word for word, usual in ((self.shape, "hold"), (self.over, "fraction")) if word != usual]
        return ":".join([*words, ",".join(f"{place:.15g}:{value:.15g}" for place, value in self.points)])


def parsed(text: str) -> dict[str, Any]:
    """The table that a short form stands for: "0:0.2,0.5:1" is places and values, "0.5" the same all along; before them
    the shape may be named, and what places are: "linear:0:0,1:1", "cosine:sigma:1:0,14:1".
    """
    table, rest = dict[str, Any](), text.strip()
    for name, kinds in (("shape", Shape), ("over", Over)):
        word, _, behind = rest.partition(":")
        if word in get_args(kinds):
            table[name], rest = word, behind
    pairs = rest if ":" in rest else f"0:{rest}"
    try:
        points = [[float(number) for number in pair.split(":", 1)] for pair in pairs.split(",")]
    except ValueError:
        raise ValueError(f'"{text}" is not like 0:0.2,0.5:1 or linear:0:1,1:0, which is places and values') from None
    return {**table, "points": points}


def _as_schedule(value: Any) -> Any:
    return parsed(value) if isinstance(value, str) else value


Schedule = Annotated[ScheduleSection, BeforeValidator(_as_schedule, json_schema_input_type=str | ScheduleSection)]
