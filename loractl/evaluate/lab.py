"""The lab's judge: its reader says what a picture shows, and its features say how alike two are."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from loractl.data.images import read_picture, square, to_tensor
from loractl.evaluate.intervals import Comparison
from loractl.evaluate.judges import Exam, Marks
from loractl.evaluate.measures import cosine_distances, total_variation
from loractl.lab.drawing import SIZE
from loractl.lab.reader import load_reader, read
from loractl.lab.scores import (
    DRIFTING,
    common_subject,
    place_in,
    place_prompts,
    subject_share,
)


class LabJudge:
    """Every prompt is asked for in the lab's ten places in turn. Fidelity and drift are told from what the reader
    reads, distances from its features, which also see where things stand.
    """

    reads_texts = True

    def __init__(self, exam: Exam) -> None:
        self.reader = load_reader()
        held_out, training = ([_picture(path) for path in paths] for paths in (exam.held_out, exam.training))
        self.subject = common_subject(read(self.reader, held_out)) if held_out else None
        self.training = self._features(training) if training else None

    def prompts(self, prompts: Sequence[str], count: int) -> list[str]:
        return [prompt for prompt, _ in place_prompts(prompts, count)]

    def mark(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Marks:
        readings, features = read(self.reader, pictures), self._features(pictures)
        subject = self.subject
        places = [float(reading["background"] == place_in(p)) for reading, p in zip(readings, prompts, strict=True)]
        return Marks(
            None if subject is None else torch.tensor([subject_share(reading, subject) for reading in readings]),
            torch.tensor(places),
            cosine_distances(features, features),
            None if self.training is None else cosine_distances(features, self.training).amin(1),
        )

    def compare(self, pictures: Sequence[Image.Image]) -> Comparison:
        readings = read(self.reader, pictures)
        return total_variation([[reading[name] for reading in readings] for name in DRIFTING])

    @torch.inference_mode()
    def _features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d), rows of length 1."""
        return normalize(self.reader.features(to_tensor(pictures)).flatten(1), dim=1)


def _picture(path: Path) -> Image.Image:
    return square(read_picture(path), SIZE)
