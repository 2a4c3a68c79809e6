"""What an inference job may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.sections.conflicts import of_scheduler
from loractl.sections.memory import PictureMemorySection, PictureSpec
from loractl.sections.schedules import Schedule
from loractl.specs import AdapterUse, Finite, Model, Section, refusal, stems
from loractl_infer.prompts import Prompt, parse_prompt
from loractl_infer.sample import InferSampleSection


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


class InferSpec(PictureSpec):
    method: Literal["infer"] = Field("infer", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[ScheduledUse, ...] = Field(
        (),
        description="applied together, each with its weight, which <lora:face:0.8> in a prompt replaces for "
        "face.safetensors there",
    )
    allow_pickle: bool = Field(False, description="read pickles as well (.pt, .bin): their tensors alone, never code")
    sample: InferSampleSection = Field(description="what is made")
    composition: CompositionSection = Field(CompositionSection(), description="how adapters are applied")
    memory: PictureMemorySection = Field(PictureMemorySection(), description="device, precision, denoiser")

    resumes = True

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters: their files', numbered from the second of a name on: face, face-2."""
        return stems(use.path for use in self.adapters)

    @property
    def engine(self) -> Literal["auto", "composed", "branch"]:
        """The one that acts on the denoiser as it is kept, or what the job says."""
        return self.composition.engine if self.memory.engine == "auto" else self.memory.engine

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(map(parse_prompt, self.sample.prompts))

    @model_validator(mode="after")
    def _engine_acts(self) -> Self:
        if self.composition.engine not in ("auto", self.engine):
            raise ValueError(
                f'composition.engine = "{self.composition.engine}" does not act on a denoiser that memory.quantize or '
                f"memory.offload keeps so: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _scheduler_fits(self) -> Self:
        if problems := of_scheduler("sample.scheduler", self.sample.scheduler, self.model.source):
            raise refusal(problems)
        return self

    @model_validator(mode="after")
    def _prompts_name_adapters(self) -> Self:
        for prompt in self.prompts:
            for name, _ in prompt.weights:
                if name not in self.names:
                    known = f"there are {', '.join(self.names)}" if self.adapters else "the job has none"
                    raise ValueError(f"a prompt names the adapter {name}, which is not among the job's: {known}")
        return self
