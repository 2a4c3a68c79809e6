"""What a DreamBooth job may say."""

from typing import Literal

from pydantic import Field, model_validator

from loractl.sections import AdapterSection, EmbeddingSection, PriorSection, SubjectSection, TrainingSpec


class DreamBoothSpec(TrainingSpec):
    method: Literal["dreambooth"] = Field("dreambooth", description="which method runs the job")
    subject: SubjectSection = Field(description="how the subject and its class are called")
    prior: PriorSection = Field(PriorSection(), description="what keeps the class from being forgotten")
    adapter: AdapterSection = Field(AdapterSection(), description="what learns")
    embedding: EmbeddingSection | None = Field(
        None, description="learn the subject's token too; subject.prompt has it in place of a rare word"
    )

    @model_validator(mode="after")
    def _sections_fit(self) -> "DreamBoothSpec":
        if self.subject.class_prompt is None and self.prior != PriorSection():
            raise ValueError(
                "[prior] has no effect without subject.class_prompt: add the class prompt or remove [prior]"
            )
        whole = AdapterSection(kind="full", text_encoder=self.adapter.text_encoder)
        if self.adapter.kind == "full" and self.adapter != whole:
            raise ValueError('adapter.kind = "full" trains every weight: remove adapter.rank, alpha and targets')
        if self.adapter.kind == "full" and self.prior.source == "prediction":
            raise ValueError(
                'prior.source = "prediction" needs adapters that can be switched off: adapter.kind = "lora"'
            )
        if self.embedding and not any(token in self.subject.prompt for token in self.embedding.tokens):
            raise ValueError(f"subject.prompt has none of the tokens that learn: {', '.join(self.embedding.tokens)}")
        return self

    @property
    def prior_is_on(self) -> bool:
        return self.subject.class_prompt is not None and self.prior.weight > 0
