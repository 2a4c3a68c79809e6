"""Running a job where an earlier run was: what is done stays, what was interrupted goes on, another job is refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

import loractl.cli
from loractl.errors import InputError, ScoreError
from loractl.events import Emit
from loractl.method import Method, Outcome
from loractl.sections.scoring import below
from tests import toy
from tests.cli.calling import JOB, call

DONE = "already done: "


class PatientSpec(toy.ToySpec):
    method: Literal["patient"] = Field("patient", description="which method runs the job")  # type: ignore[assignment]
    resumes = True


def one_step(spec: PatientSpec, _: Emit) -> Outcome:
    """Does one step at each call, and is interrupted before the last."""
    checkpoints = spec.destination() / "checkpoints"
    if spec.output.overwrite:
        shutil.rmtree(checkpoints)
    done = len(list(checkpoints.glob("*"))) + 1
    (checkpoints / str(done)).mkdir(parents=True)
    if done < spec.train.steps:
        raise KeyboardInterrupt
    return Outcome()


@pytest.fixture(autouse=True)
def patient(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method("patient", "Take several runs.", PatientSpec, one_step)
    methods = {**toy.METHODS, "patient": method}
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(toy.plugins(), methods=methods))
    job = here / "job.toml"
    job.write_text(job.read_text().replace('"toy"', '"patient"'), encoding="utf-8")


def test_an_interrupted_run_goes_on_and_a_finished_one_is_left_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [call(capsys, "run", "job.toml")[0] for _ in range(3)] == [130, 130, 0]
    code, out, err = call(capsys, "run", "job.toml")
    assert (code, out, err) == (0, "", f"{DONE}{here / 'out/job'}\n")
    assert len(list((here / "out/job/checkpoints").iterdir())) == 3


def test_a_run_that_starts_over_and_is_interrupted_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [call(capsys, "run", "job.toml")[0] for _ in range(3)]
    codes.append(call(capsys, "run", "job.toml", "--overwrite")[0])
    codes += [call(capsys, "run", "job.toml")[0] for _ in range(2)]
    assert codes == [130, 130, 0, 130, 130, 0]


def test_how_long_a_run_may_take_is_nothing_to_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert [call(capsys, "run", "job.toml", "--max-time", "9s")[0] for _ in range(3)][-1] == 0
    for time in ("2h", "9s"):
        code, _, err = call(capsys, "run", "job.toml", "--max-time", time)
        assert (code, DONE in err) == (0, True)


def test_another_job_is_refused_and_told_what_differs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        call(capsys, "run", "job.toml")
    code, _, err = call(capsys, "run", "job.toml", "--set", "seed=5", "--set", "train.ema=0.9")
    assert code == InputError.exit_code
    told = "made by another job (seed: 42 → 5; train.ema: not set → 0.9): choose another --out, or replace it with"
    assert f"{here / 'out/job/job.toml'} is already there, {told} --overwrite\n" in err
    many = ["--set", "adapter.rank=1", "--set", "adapter.alpha=1", "--set", "train.lr=1", "--set", "seed=5"]
    assert "; and 1 more): choose" in call(capsys, "run", "job.toml", *many)[2]


def test_a_job_of_another_method_is_told_as_such(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "toy", "p", "--steps", "3", "--out", "out/job")[0] == 0
    code, _, err = call(capsys, "run", "job.toml")
    assert (code, 'made by another job (method: "toy" → "patient"' in err) == (InputError.exit_code, True)
    (here / "out/job/job.toml").write_text("method = 'gone'", encoding="utf-8")
    code, _, err = call(capsys, "run", "job.toml")
    assert (code, "job.toml is already there: choose another --out" in err) == (InputError.exit_code, True)


class JudgedSpec(PatientSpec):
    method: Literal["judged"] = Field("judged", description="which method runs the job")  # type: ignore[assignment]
    fail_below: dict[str, float] = Field({}, description="score → the least it may be")

    def shortfalls(self) -> list[str]:
        return below({"score": 0.5}, self.fail_below)


class JudgedOnceSpec(JudgedSpec):
    method: Literal["once"] = Field("once", description="which method runs the job")  # type: ignore[assignment]
    resumes = False


@pytest.mark.parametrize(("spec", "good_enough"), [(JudgedSpec, 0), (JudgedOnceSpec, InputError.exit_code)])
def test_a_result_below_its_limit_is_kept_and_told_again(
    spec: type[JudgedSpec],
    good_enough: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = []

    def judge(spec: JudgedSpec, _: Emit) -> Outcome:
        runs.append(spec)
        raise ScoreError("; ".join(spec.shortfalls()))

    name = spec.model_fields["method"].default
    methods = {name: Method(name, "Judge.", spec, judge)}
    monkeypatch.setattr(loractl.cli, "load_plugins", lambda: replace(toy.plugins(), methods=methods))
    (here / "job.toml").write_text(JOB.replace('"toy"', f'"{name}"') + "fail_below.score = 0.8\n")
    told = "error: score is 0.500, below 0.8\n"
    code, _, err = call(capsys, "run", "job.toml")
    assert (code, err) == (ScoreError.exit_code, told) and (here / "out/job/job.toml").is_file()
    code, _, err = call(capsys, "run", "job.toml")
    assert (code, err) == (ScoreError.exit_code, f"{DONE}{here / 'out/job'}\n{told}")
    assert call(capsys, "run", "job.toml", "--set", "fail_below.score=0.4")[0] == good_enough
    assert call(capsys, "run", "job.toml", "--set", "fail_below.score=0.6")[0] == ScoreError.exit_code
    assert len(runs) == 1
