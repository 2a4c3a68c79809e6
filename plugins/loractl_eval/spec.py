"""What a scoring job may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from loractl.sections.memory import PictureMemorySection, PictureSpec
from loractl.sections.scoring import EncoderChoice, EncoderSection, Limited, Text, unmeasured, written_below
from loractl.specs import SIDES, AdapterUse, Finite, InputPath, Model, Positive, Section, Sides, refusal

READER = 64  # pixels


class ScoredSampleSection(Section):
    steps: Positive = Field(20, description="denoising steps")
    guidance: float | None = Field(None, ge=0, description="classifier-free guidance scale; by default the model's own")
    size: Sides | None = Field(None, description=SIDES)
    negative: str = Field("", description="negative prompt")


class EvalSpec(PictureSpec):
    method: Literal["eval"] = Field("eval", description="which method runs the job")
    model: Model = Field(description="the base model")
    adapters: tuple[AdapterUse, ...] = Field((), description="judged together, each with its weight")
    prompts: tuple[Text, ...] = Field(
        min_length=1, description="what the pictures show, in turn; on the lab each is asked for in all ten places"
    )
    class_prompts: tuple[Text, ...] = Field((), description="the class without the subject: how far has it drifted")
    held_out: InputPath | None = Field(None, description="pictures of the subject that were not trained on")
    training: InputPath | None = Field(None, description="the pictures that were: have they been copied")
    encoders: tuple[EncoderChoice, ...] = Field(
        (),
        description='the first compares pictures, the first that reads texts reads prompts; on the lab "lab"',
    )
    samples: Positive = Field(64, description="pictures for each score; the seed of each is one more than the last")
    fail_below: dict[Limited, Finite] = Field(
        {}, description="score → the least it may be; below it the exit code is 8"
    )
    sample: ScoredSampleSection = Field(ScoredSampleSection(), description="how the pictures are made")
    memory: PictureMemorySection = Field(PictureMemorySection(), description="device, precision, denoiser")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        sources = [encoder.source for encoder in self.judges]
        if not sources:
            raise ValueError('name at least one of encoders, for example "openai/clip-vit-base-patch32"')
        if "lab" in sources and (len(sources) > 1 or self.model.source != "lab"):
            raise ValueError(
                'the encoder "lab" judges alone, and the lab model only: the reader knows no other pictures'
            )
        if "lab" in sources and self.sample.size not in (None, READER):
            raise refusal({"sample.size": f'the encoder "lab" reads pictures of {READER} pixels: leave it out'})
        held_out, training = self.held_out is not None, self.training is not None
        settings = (self.fail_below, self.judges, self.prompts, self.samples)
        if needs := unmeasured(*settings, held_out=held_out, training=training):
            raise refusal({f"fail_below.{name}": need for name, need in needs.items()})
        return self

    def shortfalls(self) -> list[str]:
        return written_below(self.destination() / "scores.json", self.fail_below)

    @property
    def judges(self) -> tuple[EncoderSection, ...]:
        return self.encoders or ((EncoderSection(source="lab"),) if self.model.source == "lab" else ())
