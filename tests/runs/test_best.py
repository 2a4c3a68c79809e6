"""`eval.keep_best`: the best step is saved, whatever interrupts the run."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from loractl_dreambooth.spec import DreamBoothSpec
from torch import nn

from loractl.errors import InputError
from loractl.evaluate.scores import Score
from loractl.events import Note
from loractl.runs.best import Best
from loractl.runs.measure import Measure
from loractl.runs.training import Run
from loractl.train.loop import Group, Plan, Training
from loractl.train.optim import make_optimizer
from tests.evaluate.encoders import save_dinov2
from tests.methods.lab_job import JOBS
from tests.runs.test_changes import job
from tests.runs.test_going_on import Killed, run

SCORES = {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.4}


def spec(folder: Path, score: str) -> DreamBoothSpec:
    (folder / "a.png").touch()
    held_out = str(folder / "a.png")
    measured = {"encoders": ["lab"], "every": 2, "held_out": held_out, "keep_best": score, "samples": 20}
    return job(folder, eval=measured, output={"path": str(folder / "out")})


def training() -> Training:
    groups = [Group("denoiser", list(nn.Linear(2, 2).parameters()), 1e-3)]
    return Training(groups, make_optimizer(groups, "adamw"), Plan(8))


def kept(folder: Path, scores: Mapping[int, float], go_on: int, score: str = "diversity") -> Best:
    """What is taken up after an interruption of a run that scored some steps, by diversity."""
    before, trained = Best(spec(folder, "diversity")), training()
    for step, value in scores.items():
        trained.step = step
        before.offer({"diversity": value}, trained)
    best = Best(spec(folder, score))
    best.go_on_from(go_on)
    return best


def test_the_best_step_is_taken_up_with_its_score(tmp_path: Path) -> None:
    best = kept(tmp_path, SCORES, go_on=6)
    assert (best.step, best.value) == (4, 0.9)
    trained = training()
    assert best.restore(trained) and trained.step == 4


@pytest.mark.parametrize(("go_on", "score"), [(6, "memorization"), (3, "diversity")])
def test_another_score_and_a_step_that_was_taken_back_do_not_compare(go_on: int, score: str, tmp_path: Path) -> None:
    best = kept(tmp_path, SCORES, go_on, score)
    trained = training()
    assert not best.restore(trained) and trained.step == 0
    trained.step = 8
    best.offer({score: 0.01}, trained)
    assert (best.step, best.value) == (8, 0.01)


@pytest.mark.parametrize("killed", ["in the step after", "while it is scored"])
def test_a_killed_run_keeps_the_best_step(killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, score = [0], list[int](), Run.score

    def scored(self: Run, done: int) -> None:
        now[0] = done
        asked.append(done)
        score(self, done)

    def after(_: Measure) -> dict[str, Score]:
        if killed == "while it is scored" and asked == [2, 4]:
            raise Killed
        value = SCORES[now[0]]
        return {"subject_fidelity": Score(value, value, value, 1)}

    monkeypatch.setattr(Run, "score", scored)
    monkeypatch.setattr(Measure, "after", after)
    settings = ("eval.encoders=['lab']", "eval.every=2", "eval.samples=2", "eval.keep_best=subject_fidelity")
    run("ti", tmp_path, *settings, kill_after=5)
    assert not list(tmp_path.glob("embeddings/*"))
    events = run("ti", tmp_path, *settings)
    assert "going on from step 4 of 8" in [event.text for event in events if isinstance(event, Note)]
    assert any(isinstance(event, Note) and event.text.startswith("keeping step 4,") for event in events)
    assert asked == ([2, 4, 6, 8] if killed == "in the step after" else [2, 4, 4, 6, 8])


def test_a_score_that_no_encoder_can_give_is_refused_before_training(tmp_path: Path) -> None:
    save_dinov2(tmp_path / "dino")
    encoders = (f"eval.encoders=['{tmp_path / 'dino'}']", f"eval.held_out={JOBS / 'data' / 'subject'}")
    with pytest.raises(InputError, match=r"eval\.keep_best names prompt_fidelity, and .*dino can't read texts"):
        run("ti", tmp_path / "out", *encoders, "eval.every=2", "eval.keep_best=prompt_fidelity")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
