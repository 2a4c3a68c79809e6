"""What goes into a plan, and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loractl.inject.targets import Settings
from loractl.plan.gpus import Gpu


@dataclass(frozen=True)
class Training:
    """What a job says, as far as memory and time follow from it.

    `targets` is None where no adapter learns, and `whole` means that all weights do. `batch` counts the pictures of one
    forward pass, those of the class included; `vectors` the embedding vectors that learn. `reads_at_each_step`:
    new captions come up all the time. `samples` are all pictures made, in `sample_steps` steps each.
    """

    source: str
    revision: str | None = None
    config: str | None = None
    targets: Sequence[str] | Settings | None = ("attention",)
    rank: int = 16
    alpha: float | None = None
    whole: bool = False
    text_encoder: bool = False
    text_encoder_rank: int | None = None
    vectors: int = 0
    resolution: int | None = None
    batch: int = 1
    grad_accum: int = 1
    steps: int = 800
    optimizer: str = "adamw"
    averaged: bool = False
    precision: str = "auto"
    gradient_checkpointing: bool = False
    phases: bool = False
    texts_on_cpu: bool = False
    reads_at_each_step: bool = False
    quantize: str = "none"
    offload: str = "none"
    saved: str = "fp16"
    samples: int = 0
    sample_steps: int = 25


@dataclass(frozen=True)
class Estimate:
    """What `estimate` finds; memory in bytes, times in seconds and None where the device's rate is not known."""

    parameters: Mapping[str, int]  # of each network
    modules: Mapping[str, int]  # that are adapted, of each network
    trained: int
    file: int
    precision: str
    training: Mapping[str, int]  # what the peak of training is made of
    phases: Mapping[str, int]  # the peak of each phase, with the context
    operations: int  # of one step
    step: float | None
    total: float | None
    gpu: Gpu | None = None

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def fits(self) -> bool | None:
        return None if self.gpu is None else self.peak <= self.gpu.memory * 2**30
