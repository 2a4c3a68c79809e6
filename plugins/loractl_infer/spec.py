"""What an inference job may say."""

from collections import Counter
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from loractl.specs import AdapterUse, Finite, MemorySection, Model, PromptedSampleSection, Section, Spec
from loractl_infer.prompts import Prompt, parse_prompt


def _as_tuples(value: Any) -> Any:
    """Behind the validator of the short form values are not JSON any more, and strict about what they are."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


class ScheduleSection(Section):
    points: Annotated[tuple[tuple[Finite, Finite], ...], BeforeValidator(_as_tuples)] = Field(
        min_length=1, description="[place, value] in rising order of the places; outside, the first and the last hold"
    )
    over: Literal["fraction", "sigma", "step"] = Field(
        "fraction",
        description="what places are: 0 at the first step to 1 at the last, noise levels, or steps from 0 on",
    )
    shape: Literal["hold", "linear", "cosine"] = Field(
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


_PLACES = {
    "fraction": "they go from 0 to 1",
    "sigma": "noise levels are 0 or more",
    "step": "steps are counted 0, 1, 2, …",
}


def _as_schedule(value: Any) -> Any:
    """The short form, as on the command line: "0.0:0.2,0.5:1.0" is to be held over fractions of the run."""
    if not isinstance(value, str):
        return value
    try:
        return {"points": [[float(number) for number in pair.split(":", 1)] for pair in value.split(",")]}
    except ValueError:
        raise ValueError(f'"{value}" is not like 0.0:0.2,0.5:1.0, which is places and values') from None


Schedule = Annotated[ScheduleSection, BeforeValidator(_as_schedule, json_schema_input_type=str | ScheduleSection)]


class ScheduledUse(AdapterUse):
    schedule: Schedule | None = Field(
        None,
        description="what the weight is multiplied by along the run: a table, or in short "
        '"0.0:0.2,0.5:1.0"; text encoders, which run before it, have the weight alone',
    )
    layers: dict[str, Finite | Schedule] = Field(
        {},
        description="by pattern of dotted module paths, or block as mid_block: a further factor, or a schedule in the "
        "place of the adapter's; of several that match the last one counts",
    )


class CompositionSection(Section):
    engine: Literal["auto", "composed", "branch"] = Field(
        "auto", description="sum the weights for each set of adapter weights, or compute adapters beside them"
    )
    cache_mb: float = Field(
        2000, ge=0, allow_inf_nan=False, description="megabytes (10⁶) of summed weights that are kept for later steps"
    )


class InferSpec(Spec):
    method: Literal["infer"] = Field("infer", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[ScheduledUse, ...] = Field(
        (),
        description="applied together, each with its weight, which <lora:face:0.8> in a prompt replaces for "
        "face.safetensors there",
    )
    allow_pickle: bool = Field(False, description="read pickles as well (.pt, .bin): their tensors alone, never code")
    sample: PromptedSampleSection = Field(description="what is made")
    composition: CompositionSection = Field(CompositionSection(), description="how adapters are applied")
    memory: MemorySection = Field(MemorySection(), description="device and precision")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters: their files', numbered from the second of a name on: face, face-2."""
        stems, seen = [use.path.stem for use in self.adapters], Counter[str]()
        named = []
        for stem in stems:
            seen[stem] += 1
            named.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
        return tuple(named)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(map(parse_prompt, self.sample.prompts))

    @model_validator(mode="after")
    def _prompts_name_adapters(self) -> Self:
        for prompt in self.prompts:
            for name, _ in prompt.weights:
                if name not in self.names:
                    known = f"there are {', '.join(self.names)}" if self.adapters else "the job has none"
                    raise ValueError(f"a prompt names the adapter {name}, which is not among the job's: {known}")
        return self
