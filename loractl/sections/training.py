"""The training loop of a job, what is kept and measured on the way, and the root of every job that trains."""

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loractl.sections.conflicts import Problems, of_adapters, of_idle, of_memory, of_prior, of_rates, of_warmup, rates
from loractl.sections.data import DataSection
from loractl.sections.learning import AdapterSection, EmbeddingSection
from loractl.sections.memory import DenoiserMemorySection
from loractl.sections.presets import PRESET, PresetName, with_preset
from loractl.sections.rates import RATE, changed, with_rate
from loractl.sections.scoring import EncoderChoice, EncoderSection, Limited, unmeasured, written_below
from loractl.specs import (
    AdapterOutputSection,
    AnyPath,
    Finite,
    InputPath,
    Model,
    Positive,
    Rate,
    SampleSection,
    Section,
    Spec,
    Weight,
    refusal,
)

OPTIMIZERS = ("adamw", "adafactor", "prodigy", "schedulefree-adamw", "lion", "adamw8bit")
Tracker = Literal["tensorboard", "wandb"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainSection(Section):
    steps: Positive = Field(800, description="optimizer steps")
    batch_size: Positive = Field(1, description="subject pictures per step; prior preservation doubles it")
    grad_accum: Positive = Field(1, description="batches summed up for one optimizer step")
    lr: Rate = Field(
        RATE, description="learning rate of the denoiser's parameters; by default higher for some families of models"
    )
    up_lr_ratio: float = Field(1.0, gt=0, description="LoRA+: learning rate of `up` over that of `down`")
    text_encoder_lr: Rate | None = Field(None, description="learning rate of the text encoder's; by default lr / 20")
    text_encoder_steps: Positive | None = Field(None, description="the text encoder stops after so many of its steps")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    snr_gamma: float | None = Field(None, gt=0, description="min-SNR loss weighting with this γ (Hang et al. 2023)")
    ema: float | None = Field(None, gt=0, lt=1, description="save the moving average of the parameters with this decay")
    deterministic: bool = Field(True, description="refuse operations whose result differs from run to run")
    max_minutes: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="stop at a checkpoint after this time; the same job goes on from it",
    )


class LossSection(Section):
    kind: Literal["mse", "huber", "smooth_l1"] = Field("mse", description="what an error costs")
    huber_c: float = Field(0.1, gt=0, description="where huber and smooth_l1 turn from square to linear")
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="huber_c at every timestep, or in pure noise and rising to 1 towards the clean picture"
    )
    debiased: bool = Field(False, description="weigh a timestep by 1/√SNR of its error in ε (Yu et al. 2023)")


class NoiseSection(Section):
    offset: Weight = Field(
        0.0, description="noise that is the same all over a channel, for darker and brighter pictures"
    )
    pyramid: float = Field(0.0, ge=0, lt=1, description="share of coarser noise from level to level")
    perturbation: Weight = Field(
        0.0, description="noise on the noise that the model sees (Ning et al. 2023); 0.1 is usual"
    )
    zero_terminal_snr: bool = Field(
        False, description="rescale the noise schedule to end in pure noise (Lin et al. 2024)"
    )
    distribution: Literal["uniform", "logit-normal"] = Field("uniform", description="how timesteps are drawn")
    mean: float = Field(0.0, allow_inf_nan=False, description="of the logit-normal distribution")
    std: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the logit-normal distribution")
    low: float = Field(0.0, ge=0, lt=1, description="the least timestep, as a share of all")
    high: float = Field(1.0, gt=0, le=1, description="the greatest timestep, as a share of all")

    @model_validator(mode="after")
    def _range(self) -> "NoiseSection":
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        return self


class OptimizerSection(Section):
    name: str = Field("adamw", description=f"{', '.join(OPTIMIZERS)}, or a class by its dotted path")
    betas: tuple[Decay, Decay] | None = Field(
        None,
        description="decay of the two moments; by default the optimizer's own: 0.9 and 0.999, of lion 0.9 and 0.99",
    )
    weight_decay: Weight = Field(1e-2, description="decoupled weight decay; tokens have none")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    options: dict[str, Any] = Field({}, description="further arguments of the optimizer's class")

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in OPTIMIZERS and "." not in name:
            near = difflib.get_close_matches(name, OPTIMIZERS, n=1)
            raise ValueError(
                f"there is no optimizer {name!r}; {f'do you mean {near[0]}?' if near else ', '.join(OPTIMIZERS)}"
            )
        return name


class ScheduleSection(Section):
    name: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = Field(
        "constant", description="learning-rate schedule, as diffusers defines it"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises from zero")


class TrainMemorySection(DenoiserMemorySection):
    processes: Positive = Field(
        1, description="share every step among so many, each on a GPU of its own (extra accelerate)"
    )
    preset: PresetName | None = Field(None, description=PRESET)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the frozen model and its arithmetic; auto: bf16 on a GPU that has it, else fp32"
    )
    compile: bool = Field(
        False, description="compile the denoiser, a transformer block by block: a slow start, faster steps"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    phases: bool = Field(
        False,
        description="load, and have on the device, only what the moment needs of a model's networks",
    )
    text_encoders: Literal["device", "cpu"] = Field(
        "device",
        description="where captions are read; cpu, with phases, is for text encoders too large for the GPU, and counts "
        "where nothing learns in them",
    )
    cache_latents: bool = Field(True, description="encode every picture once, not at every step")
    cache_variants: Positive = Field(4, description="random crops and colors of each picture that the cache holds")
    cache_folder: AnyPath | None = Field(None, description="keep the latents there for other runs")


class TrainSampleSection(SampleSection):
    every: Positive | None = Field(None, description="make the pictures after every so many steps, too")


class CheckpointSection(Section):
    every: Positive = Field(250, description="steps between two checkpoints")
    keep: Positive = Field(4, description="how many there are at most")
    resume: Literal["auto", "never"] = Field("auto", description="go on from the last checkpoint, or refuse to")
    adapters: bool = Field(
        False, description="keep the adapter of each of them on the way in adapters/ of the output, for loractl grid"
    )


class EvalSection(Section):
    encoders: tuple[EncoderChoice, ...] | None = Field(
        None, description='who judges the pictures; by default "lab" on the lab model and nobody elsewhere'
    )
    held_out: InputPath | None = Field(
        None, description="pictures of the subject that are not trained on, for encoders to compare with"
    )
    samples: Positive = Field(64, description="pictures sampled for each score")
    every: Positive | None = Field(None, description="measure after every so many steps, too")
    keep_best: Limited | None = Field(None, description="save what had the highest of this score, not what came last")
    fail_below: dict[Limited, Finite] = Field(
        {}, description="score → the least it may be; below it the exit code is 8, after everything is saved"
    )


class LogSection(Section):
    trackers: tuple[Tracker, ...] = Field((), description="who else is told of every step; metrics.jsonl always is")


class TrainingSpec(Spec):
    """What every training job may say."""

    resumes: ClassVar[bool] = True

    model: Model = Field(description="the base model")
    data: DataSection = Field(description="the subject's pictures")
    train: TrainSection = Field(TrainSection(), validate_default=True, description="the training loop")
    loss: LossSection = Field(LossSection(), description="what is minimized")
    noise: NoiseSection = Field(NoiseSection(), description="the noise of training and its timesteps")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="the optimizer")
    schedule: ScheduleSection = Field(ScheduleSection(), description="the learning rate along the steps")
    memory: TrainMemorySection = Field(TrainMemorySection(), description="device, precision and what is kept")
    sample: TrainSampleSection = Field(TrainSampleSection(), description="pictures made before, during and after")
    eval: EvalSection = Field(EvalSection(), description="what is measured")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="what an interrupted run goes on from")
    log: LogSection = Field(LogSection(), description="who is told of the run")
    output: AdapterOutputSection = Field(AdapterOutputSection(), description="where the result goes")

    @field_validator("train")
    @classmethod
    def _resolve_rate(cls, train: TrainSection, info: ValidationInfo) -> TrainSection:
        model = info.data.get("model")
        return with_rate(train, model.source) if model else train

    @field_validator("memory")
    @classmethod
    def _resolve_preset(cls, memory: TrainMemorySection, info: ValidationInfo) -> TrainMemorySection:
        model = info.data.get("model")
        return with_preset(memory, memory.preset, model.source) if model else memory

    @model_validator(mode="after")
    def _settings_fit(self) -> "TrainingSpec":
        if self.loss.debiased and self.train.snr_gamma is not None:
            raise ValueError("train.snr_gamma and loss.debiased both weigh the timesteps: set one of them")
        sources = [encoder.source for encoder in self.judges]
        if "lab" in sources and (len(sources) > 1 or self.model.source != "lab"):
            raise ValueError(
                'the encoder "lab" judges alone, and the lab model only: the reader knows no other pictures'
            )
        if (self.eval.fail_below or self.eval.keep_best) and not sources:
            raise ValueError("eval.fail_below and eval.keep_best need eval.encoders")
        if self.memory.phases and not self.memory.cache_latents:
            raise ValueError("memory.phases needs memory.cache_latents: the autoencoder can't be there at every step")
        if self.memory.text_encoders == "cpu" and not self.memory.phases:
            raise ValueError('memory.text_encoders = "cpu" needs memory.phases: without it nothing leaves the device')
        if self.eval.keep_best and not self.eval.every:
            raise ValueError("eval.keep_best needs eval.every: it chooses among the scores on the way")
        self.require_shareable(self.memory.processes)
        return self

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> "TrainingSpec":
        if problems := self.conflicts():
            raise refusal(problems)
        return self

    def conflicts(self) -> Problems:
        """What is found of all keys together, before torch is imported."""
        adapter: AdapterSection | None = getattr(self, "adapter", None)
        return {
            **of_rates(self.optimizer.name, self.schedule.name, self.rates, self.early_end),
            **of_idle(changed(self.train, self.model.source), adapter),
            **of_warmup(self.schedule.name, self.schedule.warmup_steps),
            **of_memory(self.memory.quantize, self.memory.device, self.model.source),
            **of_prior(getattr(self, "prior", None), self.model.source),
            **of_adapters(self.checkpoint.adapters, adapter),
            **self._unmeasured(),
        }

    def _unmeasured(self) -> Problems:
        """The scores on which something depends and that this job does not measure."""
        said = {f"eval.fail_below.{name}": name for name in self.eval.fail_below}
        if self.eval.keep_best:
            said["eval.keep_best"] = self.eval.keep_best
        needs = unmeasured(
            said.values(),
            self.judges,
            ("the subject's",),
            self.eval.samples,
            held_out=self.eval.held_out is not None or [judge.source for judge in self.judges] == ["lab"],
            training=True,
            section="eval.",
        )
        return {key: needs[name] for key, name in said.items() if name in needs}

    @property
    def rates(self) -> dict[str, float]:
        """What learns, by the key of its rate → that rate."""
        adapter: AdapterSection | None = getattr(self, "adapter", None)
        embedding: EmbeddingSection | None = getattr(self, "embedding", None)
        return rates(self.train.lr, self.train.text_encoder_lr, self.train.up_lr_ratio, adapter, embedding)

    @property
    def early_end(self) -> str | None:
        """The key that lets a part learn for fewer steps than another that learns beside it."""
        adapter, until = getattr(self, "adapter", None), self.train.text_encoder_steps
        ends = adapter is not None and adapter.text_encoder and until is not None and until < self.train.steps
        return "train.text_encoder_steps" if ends else None

    def require_shareable(self, processes: int) -> None:
        """ValueError when so many processes can't take equally much of a step."""
        pictures = self.train.batch_size * self.train.grad_accum
        if pictures % processes:
            raise ValueError(
                f"{processes} processes can't take equal shares of the {pictures} pictures of a step: choose a number "
                "that divides train.batch_size × train.grad_accum"
            )

    @property
    def judges(self) -> tuple[EncoderSection, ...]:
        if self.eval.encoders is not None:
            return self.eval.encoders
        return (EncoderSection(source="lab"),) if self.model.source == "lab" else ()

    def shortfalls(self) -> list[str]:
        return written_below(self.destination() / "scores.json", self.eval.fail_below)

    def checkpoints(self) -> Path:
        return self.destination() / "checkpoints"
