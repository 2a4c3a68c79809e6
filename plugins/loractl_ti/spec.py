"""What a textual-inversion job may say."""

from typing import Literal

from pydantic import Field, model_validator

from loractl.sections import EmbeddingSection, TrainingSpec, TrainSection
from loractl.specs import Section


class WordsSection(Section):
    kind: Literal["object", "style"] | None = Field(
        None, description="train on the sentences for objects or for styles, one drawn at each step, not on captions"
    )
    prompt: str | None = Field(
        None,
        min_length=1,
        description='a sentence with the tokens: "a photo of a <rex> dog"; by default "a photo of a <token>"',
    )
    class_prompt: str | None = Field(
        None, min_length=1, description="the same sentence without the token, to measure that the class has not changed"
    )


class TextualInversionSpec(TrainingSpec):
    method: Literal["ti"] = Field("ti", description="which method runs the job")
    embedding: EmbeddingSection = Field(EmbeddingSection(), description="the tokens that learn")
    subject: WordsSection = Field(WordsSection(), description="the sentences around the tokens")
    train: TrainSection = Field(
        TrainSection(steps=2000), validate_default=True, description="the training loop; embedding.lr is the rate"
    )

    @model_validator(mode="after")
    def _prompt_has_a_token(self) -> "TextualInversionSpec":
        missing = [token for token in self.embedding.tokens if token not in self.prompt]
        if missing:
            raise ValueError(f"subject.prompt must have the tokens that learn; {', '.join(missing)} is missing")
        return self

    @property
    def words(self) -> str:
        return " ".join(self.embedding.tokens)

    @property
    def prompt(self) -> str:
        return self.subject.prompt or f"a photo of a {self.words}"
