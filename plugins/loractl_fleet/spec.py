"""What a fleet's job may say: a DreamBooth job's sections for all subjects, and each subject's own on top of them."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from loractl.sections import AdapterSection, DataSection, PriorSection, SubjectSection, TrainingSpec, TrainSection
from loractl.sections.training import EvalSection, ScheduleSection, TrainSampleSection
from loractl.specs import Name, Section, Spec, first_problem

S = TypeVar("S", bound=Section)

SHARED = ("model", "adapter", "loss", "noise", "optimizer", "memory", "checkpoint", "log")
OWN = ("prior", "train", "schedule", "sample", "eval")
"""Sections that are the job's for all subjects, and those of which a subject may have keys of its own, beside data."""

CLASS = "_class"
"""The folder of the class pictures that all subjects share; no subject can be called so."""


class SoloSpec(TrainingSpec):
    """A subject's job as it would be alone: `loractl run` takes it for a DreamBooth job."""

    method: Literal["dreambooth"] = Field("dreambooth", description="which method runs the job")
    subject: SubjectSection = Field(description="how the subject and its class are called")
    prior: PriorSection = Field(PriorSection(), description="what keeps the class from being forgotten")
    adapter: AdapterSection = Field(AdapterSection(), description="what learns")

    @property
    def prior_is_on(self) -> bool:
        return self.subject.class_prompt is not None and self.prior.weight > 0


class SharedDataSection(DataSection):
    """How pictures are shown; which, each subject says itself."""

    @model_validator(mode="after")
    def _has_pictures(self) -> "SharedDataSection":
        if self.path or self.glob or self.sources:
            raise ValueError("each of [[subjects]] names its own pictures: move path, glob or sources there")
        return self


class FleetSubject(Section):
    """One subject. Keys it does not set in its sections are those of the job's section of that name."""

    name: Name = Field(description="names the subject's folder and files")
    data: DataSection = Field(description="the subject's pictures")
    seed: int | None = Field(None, ge=0, lt=2**63, description="by default the job's")
    prompt: str | None = Field(None, min_length=1, description="names the subject; by default subject.prompt")
    class_prompt: str | None = Field(None, min_length=1, description="by default subject.class_prompt")
    prior: PriorSection = Field(PriorSection(), description="what keeps the class from being forgotten")
    train: TrainSection = Field(TrainSection(), description="the training loop")
    schedule: ScheduleSection = Field(ScheduleSection(), description="the learning rate along the steps")
    sample: TrainSampleSection = Field(TrainSampleSection(), description="pictures made before, during and after")
    eval: EvalSection = Field(EvalSection(), description="what is measured")

    def over(self, shared: Mapping[str, Any]) -> "FleetSubject":
        """The subject with everything that the job says for all and it does not say itself."""
        update: dict[str, Any] = {
            key: filled(getattr(self, key), shared[key]) for key in ("data", *OWN) if key in shared
        }
        words = dict(shared.get("subject") or {}) | {"seed": shared.get("seed")}
        update |= {key: value for key, value in words.items() if getattr(self, key) is None}
        if "train" in update:  # time is the fleet's; what concerns the process can't differ
            of_all = {"max_minutes": None, "deterministic": shared["train"].deterministic}
            update["train"] = update["train"].model_copy(update=of_all)
        if not update.get("class_prompt", self.class_prompt):
            update["prior"] = PriorSection()  # a DreamBooth job without a class refuses any other
        return self.model_copy(update=update)


def filled(own: S, shared: Section) -> S:
    """The section with its own keys as they are and the others as the shared one has them."""
    said = {key: getattr(own, key) for key in own.model_fields_set}
    return type(own)(**{**dict(shared), **said})


class FleetSpec(TrainingSpec):
    method: Literal["fleet"] = Field("fleet", description="which method runs the job")
    data: SharedDataSection = Field(SharedDataSection(), description="how the pictures of all subjects are shown")
    subject: SubjectSection | None = Field(None, description="how subjects are called that don't say it themselves")
    prior: PriorSection = Field(PriorSection(), description="what keeps the classes from being forgotten")
    adapter: AdapterSection = Field(AdapterSection(), description="what learns, for each subject")
    at_once: int = Field(
        16, ge=1, description="subjects whose pictures go through the model together: fewer take less memory"
    )
    subjects: tuple[FleetSubject, ...] = Field(
        min_length=1,
        description="tables [[subjects]]: name, data, and as far as they differ from the job's seed, prompt, "
        "class_prompt, prior, train, schedule, sample and eval",
    )

    @field_validator("subjects")
    @classmethod
    def _fill(cls, subjects: tuple[FleetSubject, ...], info: ValidationInfo) -> tuple[FleetSubject, ...]:
        """Every subject spelt out, so that the resolved job is the same job."""
        names = [subject.name for subject in subjects]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two subjects are called {', '.join(twice)}: each needs a name of its own")
        try:
            return tuple(subject.over(info.data) for subject in subjects)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None

    @model_validator(mode="after")
    def _can_share(self) -> "FleetSpec":
        if self.adapter.kind == "full":
            raise ValueError('the subjects of a fleet share the model: adapter.kind must be "lora"')
        if self.memory.phases:
            raise ValueError("a fleet keeps its adapters on the device: leave memory.phases out")
        memory = self.memory
        if memory.quantize != "none" or memory.offload != "none" or memory.attention or memory.compile:
            raise ValueError("a fleet keeps the model as it is: leave memory.quantize, offload, attention, compile out")
        for subject in self.subjects:
            self._check(subject)
        return self

    def conflicts(self) -> dict[str, str]:
        """None: what the sections say for all counts where a subject is silent, and its own job is judged."""
        return {}

    def _check(self, subject: FleetSubject) -> None:
        if subject.prompt is None:
            raise ValueError(f"the subject {subject.name} has no prompt: give it one, or set subject.prompt for all")
        if subject.prior.source == "prediction":
            raise ValueError('a fleet keeps classes by their pictures: prior.source must be "images"')
        try:
            self.solo(subject)
        except ValidationError as error:
            raise ValueError(f"the subject {subject.name}: {first_problem(error)}") from None

    def shortfalls(self) -> list[str]:
        low = {subject.name: self.solo(subject).shortfalls() for subject in self.subjects}
        return [f"{name}: {'; '.join(problems)}" for name, problems in low.items() if problems]

    def require_shareable(self, processes: int) -> None:
        Spec.require_shareable(self, processes)

    def solo(self, subject: FleetSubject) -> SoloSpec:
        """The subject's job, in its own folder of the fleet's; those of one class share its pictures."""
        keys = {key: getattr(self, key) for key in SHARED} | {key: getattr(subject, key) for key in ("name", *OWN)}
        if subject.class_prompt and {each.class_prompt for each in self.subjects} == {subject.class_prompt}:
            images = subject.prior.images or self.destination() / CLASS
            keys["prior"] = subject.prior.model_copy(update={"images": images})
        return SoloSpec(
            **keys,
            seed=self.seed if subject.seed is None else subject.seed,
            data=subject.data,
            subject=SubjectSection(prompt=subject.prompt or "", class_prompt=subject.class_prompt),
            output=self.output.model_copy(update={"path": self.destination() / subject.name}),
        )
