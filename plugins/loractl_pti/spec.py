"""What a pivotal-tuning job may say."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from loractl.sections import AdapterSection, EmbeddingSection, PriorSection, SubjectSection, TrainingSpec, TrainSection
from loractl.specs import Positive, Section, Share

Gain = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PhasesSection(Section):
    mode: Literal["sequential", "alternating", "joint"] = Field(
        "sequential",
        description="tokens, then the adapter; or in turns; or both until the tokens are frozen",
    )
    token_share: Share = Field(
        0.5, description="share of the steps for the tokens; in mode joint, after which they are frozen"
    )
    turn: Positive = Field(10, description="steps in a row in mode alternating")
    token_weight: Gain = Field(
        1.0,
        description="weight of the loss for the tokens, whose gradients it scales; AdamW's steps hardly depend on "
        "their size: with it, change embedding.lr instead",
    )
    subject_weight: Gain = Field(1.0, description="weight of the subject's loss beside prior.weight")


class PivotalTuningSpec(TrainingSpec):
    method: Literal["pti"] = Field("pti", description="which method runs the job")
    subject: SubjectSection = Field(description="how the subject, by its tokens, and its class are called")
    embedding: EmbeddingSection = Field(EmbeddingSection(lr=5e-4), description="the tokens that learn")
    adapter: AdapterSection = Field(AdapterSection(), description="the adapter that learns")
    phases: PhasesSection = Field(PhasesSection(), description="what learns when")
    prior: PriorSection = Field(PriorSection(), description="what keeps the class from being forgotten")
    train: TrainSection = Field(TrainSection(steps=2000), validate_default=True, description="the training loop")

    @model_validator(mode="after")
    def _sections_fit(self) -> "PivotalTuningSpec":
        missing = [token for token in self.embedding.tokens if token not in self.subject.prompt]
        if missing:
            raise ValueError(f"subject.prompt must have the tokens that learn; {', '.join(missing)} is missing")
        if self.adapter.kind == "full":
            raise ValueError('pivotal tuning saves tokens and adapter as one file: adapter.kind must be "lora"')
        if self.subject.class_prompt is None and self.prior != PriorSection():
            raise ValueError(
                "[prior] has no effect without subject.class_prompt: add the class prompt or remove [prior]"
            )
        return self

    @property
    def early_end(self) -> str | None:
        frozen = self.phases.mode == "joint" and self.phases.token_share < 1
        return "phases.mode" if frozen else super().early_end

    @property
    def prior_is_on(self) -> bool:
        return self.subject.class_prompt is not None and self.prior.weight > 0
