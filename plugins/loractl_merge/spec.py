"""What a merging job may say."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from loractl.specs import (
    ChildOutputSection,
    DeviceSection,
    Finite,
    InputPath,
    Model,
    Positive,
    Rate,
    SampleSection,
    Section,
    Share,
    SizedSpec,
    Token,
    Weight,
)
from loractl_merge.blocks import PRESETS, VECTORS

DENSE = ("ties", "dare", "prune", "breadcrumbs")  # they change single entries of ΔW


class MergeInput(Section):
    path: InputPath = Field(description="the adapter's file")
    weight: Finite | None = Field(None, description="what its ΔW is multiplied by; by default 1/n of n adapters")
    layers: dict[str, Finite] = Field(
        {},
        description="further factors by pattern of dotted module paths (with * ? [], or the end of a path); "
        "of several that match the last one counts",
    )
    blocks: str | tuple[Finite, ...] | None = Field(
        None, description="further factors by block of the UNet: a preset (INS, OUTALL, …) or 12, 17, 20 or 26 numbers"
    )

    rename: dict[Token, Token] = Field({}, description="other names for learned tokens of this file: old → new")

    @field_validator("blocks")
    @classmethod
    def _known(cls, blocks: str | tuple[float, ...] | None) -> str | tuple[float, ...] | None:
        if isinstance(blocks, str) and blocks not in PRESETS:
            raise ValueError(f"there is no preset {blocks}: choose one of {', '.join(PRESETS)}")
        if isinstance(blocks, tuple) and len(blocks) not in VECTORS:
            raise ValueError(f"{len(blocks)} numbers are no block weights: there are vectors of 12, 17, 20 and 26")
        return blocks

    @property
    def vector(self) -> tuple[float, ...] | None:
        """The block weights as numbers."""
        return tuple(PRESETS[self.blocks]) if isinstance(self.blocks, str) else self.blocks


class LearnSection(Section):
    """Weights that are found, not given; those that are given are where they start."""

    model: Model = Field(description="the base model")
    pictures: InputPath = Field(description="what the merged adapter should make: a folder of pictures, or one")
    prompt: str = Field(min_length=1, description="their caption, but for a picture with a .txt file of its own")
    per_block: bool = Field(False, description="a weight for each block of the UNet, not one for the whole adapter")
    steps: Positive = Field(200, description="optimizer steps")
    batch_size: Positive = Field(8, description="pictures per step, each with noise of its own")
    lr: Rate = Field(0.01, description="learning rate of the weights; it falls to 0 along a cosine")
    keep: tuple[str, ...] = Field(
        (), description="for each adapter a prompt for what it has learnt, which the merged model should make as well"
    )
    penalty: Weight = Field(1.0, description="what keep counts beside the pictures")
    sample: SampleSection = Field(SampleSection(), description="the pictures before and after")


class MergeSpec(SizedSpec):
    method: Literal["merge"] = Field("merge", description="which method runs the job")
    adapters: tuple[MergeInput, ...] = Field(min_length=1, description="what is merged, each with its weight")
    algorithm: Literal["sum", "slerp", "karcher", "stock", "ties", "dare", "prune", "breadcrumbs"] = Field(
        "sum", description="how: the exact sum, a mean by angles (slerp to stock), or entries of ΔW dropped first"
    )
    alpha: Finite | None = Field(None, description="of two adapters: alpha · first + (1 − alpha) · second")
    density: Share = Field(0.5, description="share of entries that ties, dare, prune and breadcrumbs keep of each ΔW")
    learn: LearnSection | None = Field(None, description="find the weights with reference pictures")
    memory: DeviceSection = Field(DeviceSection(), description="the device")
    output: ChildOutputSection = Field(ChildOutputSection(), description="where the result goes, and in which form")

    writes_file = True

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each adapter; when the job says nothing, those of the plain mean."""
        if self.alpha is not None:
            return (self.alpha, 1 - self.alpha)
        return tuple(1 / len(self.adapters) if use.weight is None else use.weight for use in self.adapters)

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        given = [use.weight for use in self.adapters if use.weight is not None]
        if self.alpha is not None and (given or len(self.adapters) != 2):
            raise ValueError("alpha blends two adapters without weights: give weights instead")
        if given and len(given) < len(self.adapters):
            raise ValueError("some adapters have a weight and others none: give all of them one")
        if self.algorithm == "stock" and (given or self.alpha is not None):
            raise ValueError("stock finds the weights itself: remove them, and alpha")
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        if self.algorithm == "slerp" and len(self.adapters) != 2:
            raise ValueError("slerp is between two adapters: take karcher for others")
        if self.algorithm in ("slerp", "karcher") and (min(self.weights) < 0 or not any(self.weights)):
            raise ValueError(f"{self.algorithm} needs weights that are not negative, and not all of them 0")
        if self.algorithm in DENSE and not self.is_sized:
            raise ValueError(f"{self.algorithm} gives full rank: say how much of it with rank, energy or budget_mb")
        return self

    @model_validator(mode="after")
    def _learning_fits(self) -> Self:
        if self.learn is None:
            return self
        if self.algorithm != "sum":
            raise ValueError(f"learn finds the weights of the plain sum: leave {self.algorithm} out")
        if self.learn.keep and len(self.learn.keep) != len(self.adapters):
            raise ValueError(f"learn.keep has {len(self.learn.keep)} prompts for {len(self.adapters)} adapters")
        if self.learn.per_block and any(use.blocks for use in self.adapters):
            raise ValueError("learn.per_block finds the blocks' weights itself: remove blocks from the adapters")
        if self.learn.per_block and not all(self.weights):
            raise ValueError("learn.per_block finds factors of the weights: begin with weights other than 0")
        return self
