"""What a DreamBooth job may say."""

from typing import Literal

from pydantic import Field, model_validator

from loractl.specs import (
    AdapterOutputSection,
    AdapterSection,
    DataSection,
    EvalSection,
    Model,
    OptimizerSection,
    PriorSection,
    SampleSection,
    ScheduleSection,
    Spec,
    SubjectSection,
    TrainMemorySection,
    TrainSection,
)


class DreamBoothSpec(Spec):
    method: Literal["dreambooth"] = Field("dreambooth", description="which method runs the job")
    model: Model = Field(description="the base model")
    data: DataSection = Field(description="the subject's pictures")
    subject: SubjectSection = Field(description="how the subject and its class are called")
    prior: PriorSection = Field(PriorSection(), description="class pictures that keep the class from being forgotten")
    adapter: AdapterSection = Field(AdapterSection(), description="what learns")
    train: TrainSection = Field(TrainSection(), description="the training loop")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="the optimizer")
    schedule: ScheduleSection = Field(ScheduleSection(), description="the learning rate along the steps")
    memory: TrainMemorySection = Field(TrainMemorySection(), description="device, precision and what is kept")
    sample: SampleSection = Field(SampleSection(), description="pictures made before and after")
    eval: EvalSection = Field(EvalSection(), description="what is measured at the end")
    output: AdapterOutputSection = Field(AdapterOutputSection(), description="where the result goes")

    @model_validator(mode="after")
    def _sections_fit(self) -> "DreamBoothSpec":
        if self.eval.metrics and "lab" in self.eval.metrics and self.model.source != "lab":
            raise ValueError('eval.metrics "lab" needs model = "lab": the reader knows no other pictures')
        if self.subject.class_prompt is None and self.prior != PriorSection():
            raise ValueError(
                "[prior] has no effect without subject.class_prompt: add the class prompt or remove [prior]"
            )
        whole = AdapterSection(kind="full", text_encoder=self.adapter.text_encoder)
        if self.adapter.kind == "full" and self.adapter != whole:
            raise ValueError('adapter.kind = "full" trains every weight: remove adapter.rank, alpha and targets')
        return self

    @property
    def prior_is_on(self) -> bool:
        return self.subject.class_prompt is not None and self.prior.weight > 0
