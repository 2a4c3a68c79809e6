"""Scores of a model: was the subject learnt, are prompts followed, what became of its class, and were pictures copied.

| score | what it is | by encoders | on the lab |
|---|---|---|---|
| subject_fidelity | likeness to held-out pictures | mean cosine, −1 to 1 | share of the eight attributes |
| prompt_fidelity | does a picture show its prompt | cosine with the text, −1 to 1 | share in the place as asked |
| class_drift | change of what the class prompt shows | energy coefficient, 0 to 1 | total variation, 0 to 1 |
| diversity | distance of two pictures of one prompt | 1 − cosine, 0 to 2 | the same, of the reader's features |
| memorization | distance to the nearest training picture | 1 − cosine, 0 for a copy | the same |

Cosines compare only with those of the same encoder. Less drift is better; of all others, more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from loractl.errors import MismatchError
from loractl.evaluate.encoders import EncoderSource, load_encoder
from loractl.evaluate.intervals import Comparison, Statistic, by_chance, once, percentiles, reflected, resampled
from loractl.evaluate.judges import EncoderJudge, Exam, Judge
from loractl.evaluate.lab import LabJudge
from loractl.evaluate.measures import mean, mean_pair_distance

Make = Callable[[Sequence[str], str], list[Image.Image]]  # (prompts, the stage's name) → a picture each
LAB = EncoderSource("lab")


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval over prompts and seeds, of `count` pictures.

    `floor` is what chance alone would show, for a score where that is not zero: two finite samples always differ a
    little. The interval of such a score allows for it, so that the value may lie above its interval.
    """

    value: float
    low: float
    high: float
    count: int
    floor: float | None = None


class Scorer:
    """`before` is called with the untouched model, `after` with the one that is judged, as often as it is to be judged.

    The pictures of both must be made with the same seeds, one for each place in the list of prompts.
    """

    def __init__(self, judge: Judge, exam: Exam) -> None:
        self._judge = judge
        self._prompts = judge.prompts(exam.prompts, exam.samples)
        self._class_prompts = judge.prompts(exam.class_prompts, exam.samples) if exam.class_prompts else []
        self._class_before: list[Image.Image] = []

    @property
    def reads_texts(self) -> bool:
        """Whether prompt fidelity can be given."""
        return self._judge.reads_texts

    def before(self, make: Make) -> None:
        """Takes samples of the class; without class prompts there is nothing to do."""
        if self._class_prompts:
            self._class_before = make(self._class_prompts, "class samples before")

    def after(self, make: Make) -> dict[str, Score]:
        """The scores that can be given, by name: drift needs `before`, the others what the exam brings along."""
        prompts = self._prompts
        marks = self._judge.mark(make(prompts, "subject samples"), prompts)
        scores = {}
        if marks.subject is not None:
            scores["subject_fidelity"] = _score(mean(marks.subject), prompts)
        if marks.prompt is not None:
            scores["prompt_fidelity"] = _score(mean(marks.prompt), prompts)
        if self._class_before:
            class_after = make(self._class_prompts, "class samples after")
            compare = self._judge.compare([*self._class_before, *class_after])
            scores["class_drift"] = drift(compare, self._class_prompts)
        if len(set(prompts)) < len(prompts):
            scores["diversity"] = _score(mean_pair_distance(marks.distances, prompts), prompts)
        if marks.nearest is not None:
            scores["memorization"] = _score(mean(marks.nearest), prompts)
        return scores


def make_scorer(encoders: Sequence[EncoderSource], exam: Exam, device: torch.device) -> Scorer:
    """Loads the encoders, or for [LAB] the lab's reader. The first encoder compares pictures, the first that reads
    texts compares them with their prompts.
    """
    if list(encoders) == [LAB]:
        return Scorer(LabJudge(exam), exam)
    if LAB in encoders:
        raise MismatchError("the lab's reader judges alone: name it, or other encoders")
    return Scorer(EncoderJudge([load_encoder(source, device) for source in encoders], exam), exam)


def drift(compare: Comparison, prompts: Sequence[str]) -> Score:
    """The score of a comparison between the pictures of `prompts` before, which come first, and after.

    Its interval begins at 0 where chance gives as much in one of twenty cases.
    """
    count = len(prompts)
    value = float(compare(*_sides(once(count))))
    low, high = reflected(value, compare(*_sides(resampled(prompts))))
    chance = by_chance(compare, count)
    return Score(value, low if value > chance.quantile(0.95) else 0.0, high, count, float(chance.mean()))


def _score(statistic: Statistic, prompts: Sequence[str]) -> Score:
    low, high = percentiles(statistic(resampled(prompts)))
    return Score(float(statistic(once(len(prompts)))), low, high, len(prompts))


def _sides(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same counts for the pictures before and for those after, as rows over both: two of (draws, 2n)."""
    none = torch.zeros_like(counts)
    return torch.cat([counts, none], 1), torch.cat([none, counts], 1)
