"""A scorer gives right marks to pictures whose marks are known: fills of one color, and drawings of the lab."""

import random
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from loractl.data.images import to_tensor
from loractl.errors import MismatchError
from loractl.evaluate.encoders import EncoderSource
from loractl.evaluate.judges import EncoderJudge, Exam
from loractl.evaluate.lab import LabJudge
from loractl.evaluate.report import write_scores
from loractl.evaluate.scores import LAB, Score, Scorer, make_scorer
from loractl.lab.drawing import draw
from loractl.lab.reader import load_reader, read
from loractl.lab.scenes import PLACES, Scene, sample_scene
from loractl.lab.scores import class_drift, place_in, prompt_fidelity, subject_fidelity
from loractl.lab.subjects import HOMES, SUBJECTS, subject_pictures
from loractl.sections.scoring import EncoderSection, Limited, below, unmeasured, written_below

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = {"red": RED, "green": GREEN, "blue": BLUE}


class ColorEncoder:
    """A picture's direction is its color, a text's the color it names."""

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        return normalize(torch.stack([to_tensor([picture])[0].mean((1, 2)) + 1 for picture in pictures]), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        return normalize(torch.tensor([[float(name in text) for name in COLORS] for text in texts]) + 1e-9, dim=1)


def fill(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (8, 8), color)


@pytest.fixture
def exam(tmp_path: Path) -> Exam:
    fill(RED).save(tmp_path / "held-out.png")
    fill(BLUE).save(tmp_path / "training.png")
    files = ([tmp_path / "held-out.png"], [tmp_path / "training.png"])
    return Exam(["a red thing", "a thing in red"], ["a thing"], 8, *files)


def test_colors_get_the_marks_they_deserve(exam: Exam) -> None:
    scorer = Scorer(EncoderJudge([ColorEncoder()], exam), exam)
    scorer.before(lambda prompts, _: [fill(GREEN)] * len(prompts))
    scores = scorer.after(lambda prompts, _: [fill(RED)] * len(prompts))
    values = {name: pytest.approx(score.value, abs=1e-6) for name, score in scores.items()}
    assert values == {
        **{"subject_fidelity": 1, "prompt_fidelity": 1, "class_drift": 1},
        **{"diversity": 0, "memorization": 1},
    }
    assert all(score.low <= score.value + 1e-6 and score.count == 8 for score in scores.values())
    assert scores["class_drift"].floor is not None and scores["class_drift"].floor < 0.5
    copies = scorer.after(lambda prompts, _: [fill(BLUE)] * len(prompts))
    assert copies["memorization"].value == pytest.approx(0, abs=1e-6)
    assert max(copies[name].value for name in ("subject_fidelity", "prompt_fidelity")) < 1e-6


def test_diversity_is_within_a_prompt(exam: Exam) -> None:
    scorer = Scorer(EncoderJudge([ColorEncoder()], exam), exam)
    by_prompt = scorer.after(lambda prompts, _: [fill(RED if p.startswith("a red") else BLUE) for p in prompts])
    assert by_prompt["diversity"].value == pytest.approx(0, abs=1e-6)
    mixed = scorer.after(lambda prompts, _: [fill((RED, RED, BLUE, BLUE)[i % 4]) for i in range(len(prompts))])
    assert mixed["diversity"].value == pytest.approx(2 / 3, abs=1e-6), "of six pairs of a prompt four differ"


def test_what_cannot_be_said_is_left_out() -> None:
    exam = Exam(["a red thing"], samples=1)
    scorer = Scorer(EncoderJudge([ColorEncoder()], exam), exam)
    scorer.before(lambda *_: pytest.fail("there is no class prompt to make pictures of"))
    assert scorer.after(lambda prompts, _: [fill(RED)] * len(prompts)).keys() == {"prompt_fidelity"}


def lab_exam(folder: Path) -> Exam:
    for place, picture in zip(HOMES, subject_pictures("subject"), strict=True):
        picture.save(folder / f"{place}.png")
    return Exam(["sks critter"], ["critter"], 20, sorted(folder.glob("*.png")), sorted(folder.glob("*.png")))


def in_place(scene: Scene, prompt: str, rng: random.Random) -> Image.Image:
    return draw(scene.at(place_in(prompt) or ""), rng, 64)


def test_the_lab_reads_drawings_as_it_always_did(tmp_path: Path) -> None:
    exam, rng = lab_exam(tmp_path), random.Random(0)
    scorer = make_scorer([LAB], exam, torch.device("cpu"))
    made: dict[str, tuple[Sequence[str], list[Image.Image]]] = {}

    def make(prompts: Sequence[str], stage: str) -> list[Image.Image]:
        scenes = [sample_scene(rng, "critter") if "class" in stage else SUBJECTS["subject"] for _ in prompts]
        made[stage] = prompts, [in_place(scene, p, rng) for scene, p in zip(scenes, prompts, strict=True)]
        return made[stage][1]

    scorer.before(make)
    scores = scorer.after(make)
    prompts, _ = made["subject samples"]
    assert prompts[0] == "sks critter on the grass" == prompts[10] and len(set(prompts)) == 10
    readings = {stage: read(load_reader(), each) for stage, (_, each) in made.items()}
    own = readings["subject samples"]
    assert scores["subject_fidelity"].value == pytest.approx(subject_fidelity(own, vars(SUBJECTS["subject"])))
    assert scores["prompt_fidelity"].value == prompt_fidelity(own, [place_in(p) or "" for p in prompts])
    drifted = class_drift(readings["class samples before"], readings["class samples after"])
    assert scores["class_drift"].value == pytest.approx(drifted)
    assert scores["subject_fidelity"].value > 0.95 and scores["prompt_fidelity"].value == 1
    assert scores["class_drift"].low == 0, "both are random critters"
    assert 0 < scores["diversity"].value < 1 and 0 < scores["memorization"].value < 1
    copies = scorer.after(lambda prompts, _: [subject_pictures("subject", 64)[0]] * len(prompts))
    assert copies["memorization"].value < scores["memorization"].value / 4 and copies["diversity"].value < 1e-6


def test_the_lab_judges_alone() -> None:
    with pytest.raises(MismatchError, match="judges alone"):
        make_scorer([EncoderSource("nowhere"), LAB], Exam(["a"]), torch.device("cpu"))


def test_every_place_is_found_in_its_prompt() -> None:
    assert [place_in(f"a critter {words}") for words in PLACES.values()] == list(PLACES)
    assert place_in("a critter in space") is None


def test_what_is_below_its_limit() -> None:
    scores = {"subject_fidelity": 0.75, "diversity": 0.2}
    assert below(scores, {"subject_fidelity": 0.75, "diversity": 0.1}) == []
    assert below(scores, {"subject_fidelity": 0.8}) == ["subject_fidelity is 0.750, below 0.8"]
    assert below({"diversity": nan}, {"diversity": 0.1}) == ["diversity is nan, below 0.1"]
    assert below(scores, {"memorization": 0.1}) == ["memorization was not measured, so it can't be 0.1"]


def test_written_scores_are_judged_as_those_in_memory(tmp_path: Path) -> None:
    scores = {"subject_fidelity": Score(0.79996, 0.7, 0.9, 8), "diversity": Score(nan, nan, nan, 8)}
    values, limits = {name: score.value for name, score in scores.items()}, {"subject_fidelity": 0.8, "diversity": 0.1}
    file = write_scores(tmp_path / "scores.json", scores, {})
    assert written_below(file, limits) == below(values, limits) != []
    assert written_below(tmp_path / "nowhere.json", {"diversity": 0.1}) == below({}, {"diversity": 0.1})


@pytest.mark.parametrize(
    ("judge", "prompts", "samples", "pictures"),
    [
        ("some/clip", ["a red thing"], 1, True),
        ("some/clip", ["a red thing"], 2, False),
        ("some/clip", ["a red thing", "a blue thing"], 2, True),
        ("some/clip", ["a red thing"] * 2, 2, True),
        ("lab", ["a red thing"], 10, True),
        ("lab", ["a red thing"], 11, False),
        ("lab", ["a red thing", "a blue thing"], 20, True),
        ("lab", ["a red thing", "a blue thing"], 21, True),
    ],
)
def test_what_a_job_can_measure_is_known_beforehand(
    judge: str, prompts: list[str], samples: int, pictures: bool, tmp_path: Path
) -> None:
    fill(RED).save(tmp_path / "a.png")
    shown = [tmp_path / "a.png"] if pictures else []
    exam = Exam(prompts, (), samples, shown, shown)
    scorer = Scorer(LabJudge(exam) if judge == "lab" else EncoderJudge([ColorEncoder()], exam), exam)
    given = scorer.after(lambda prompts, _: [Image.new("RGB", (64, 64), RED)] * len(prompts))
    limited, judges = get_args(Limited), [EncoderSection(source=judge)]
    missing = unmeasured(limited, judges, prompts, samples, held_out=pictures, training=pictures)
    assert missing.keys() == {*limited} - given.keys()
