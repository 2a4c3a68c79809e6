"""Who judges pictures: encoders, or the reader on the lab. What a judge says is made into scores in `scores`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from loractl.data.images import read_picture
from loractl.evaluate.encoders import Encoder
from loractl.evaluate.intervals import Comparison
from loractl.evaluate.measures import cosine_distances, energy


@dataclass(frozen=True)
class Exam:
    """What is asked of a model: `samples` pictures of the prompts in turn, and as many of the class prompts.

    `held_out` are pictures of the subject that it was not trained on, `training` those that it was.
    """

    prompts: Sequence[str]
    class_prompts: Sequence[str] = ()
    samples: int = 64
    held_out: Sequence[Path] = ()
    training: Sequence[Path] = ()


@dataclass(frozen=True)
class Marks:
    """What a judge says of n pictures: how well each shows the subject (n,) and its prompt (n,), how far they are from
    one another (n, n) and from the nearest training picture (n,). None stands for what can't be said.
    """

    subject: Tensor | None
    prompt: Tensor | None
    distances: Tensor
    nearest: Tensor | None


class Judge(Protocol):
    @property
    def reads_texts(self) -> bool:
        """Whether it can say how well a picture shows its prompt."""

    def prompts(self, prompts: Sequence[str], count: int) -> list[str]:
        """What `count` pictures are made of."""

    def mark(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Marks: ...

    def compare(self, pictures: Sequence[Image.Image]) -> Comparison:
        """How to tell one part of the pictures from another."""


class EncoderJudge:
    """Pictures are compared by the first encoder, with their prompts by the first that reads texts."""

    def __init__(self, encoders: Sequence[Encoder], exam: Exam) -> None:
        self.encoder = encoders[0]
        self.reader = next((encoder for encoder in encoders if encoder.texts([""]) is not None), None)
        self.held_out, self.training = (_features(self.encoder, paths) for paths in (exam.held_out, exam.training))

    @property
    def reads_texts(self) -> bool:
        return self.reader is not None

    def prompts(self, prompts: Sequence[str], count: int) -> list[str]:
        return [prompts[i % len(prompts)] for i in range(count)]

    def mark(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Marks:
        features = self.encoder.images(pictures)
        return Marks(
            None if self.held_out is None else 1 - cosine_distances(features, self.held_out).mean(1),
            self._fit(pictures, prompts),
            cosine_distances(features, features),
            None if self.training is None else cosine_distances(features, self.training).amin(1),
        )

    def compare(self, pictures: Sequence[Image.Image]) -> Comparison:
        return energy(self.encoder.images(pictures))

    def _fit(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor | None:
        """The cosine of each picture with its own prompt."""
        texts = None if self.reader is None else self.reader.texts(prompts)
        if self.reader is None or texts is None:
            return None
        return (self.reader.images(pictures).double() * texts.double()).sum(1)


def _features(encoder: Encoder, paths: Sequence[Path]) -> Tensor | None:
    return encoder.images([read_picture(path) for path in paths]) if paths else None
