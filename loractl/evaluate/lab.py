"""Scores of a run on the lab model: the class before training, the subject and the class after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from loractl.data.images import read_picture, square
from loractl.lab.drawing import SIZE
from loractl.lab.reader import load_reader, read
from loractl.lab.scores import Reading, class_drift, common_subject, place_prompts, prompt_fidelity, subject_fidelity

Sampler = Callable[[Sequence[str], str], list[Image.Image]]  # (prompts, the stage's name) → a picture each


@dataclass(frozen=True)
class LabScores:
    """Measures with `samples` pictures a score; `prompt` names the subject, `class_prompt` its class."""

    sampler: Sampler
    pictures: Sequence[Path]
    prompt: str
    class_prompt: str | None
    samples: int

    def read_class(self, stage: str) -> list[Reading]:
        """What the class prompt shows now, in all places."""
        if self.class_prompt is None:
            return []
        return self._sample(place_prompts(self.class_prompt, self.samples), stage)

    def after(self, class_before: Sequence[Reading]) -> dict[str, float]:
        """The three scores; drift only where there is a class prompt."""
        reader = load_reader()
        subject = common_subject(read(reader, [square(read_picture(path), SIZE) for path in self.pictures]))
        prompts = place_prompts(self.prompt, self.samples)
        readings = self._sample(prompts, "subject samples")
        scores = {
            "subject_fidelity": subject_fidelity(readings, subject),
            "prompt_fidelity": prompt_fidelity(readings, [place for _, place in prompts]),
        }
        if class_before:
            scores["class_drift"] = class_drift(class_before, self.read_class("class samples after"))
        return scores

    def _sample(self, prompts: Sequence[tuple[str, str]], stage: str) -> list[Reading]:
        return list(read(load_reader(), self.sampler([prompt for prompt, _ in prompts], stage)))
