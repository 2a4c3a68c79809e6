"""Which changes of a job an interrupted run may go on with; and that what the jobs name is there."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from loractl_dreambooth.run import cook
from loractl_dreambooth.spec import DreamBoothSpec
from loractl_pti.spec import PivotalTuningSpec

from loractl.errors import MismatchError
from loractl.runs.changes import ACCEPTED, WARNED, dumped, judge, require_same_steps
from loractl.sections.training import OPTIMIZERS, TrainingSpec
from loractl.train.optim import _KINDS

JOB = {"seed": 1, "train": {"lr": 1e-4, "steps": 10}, "adapter": {"rank": 4}, "sample": {"seeds": [0]}}


def test_the_same_job_may_go_on() -> None:
    assert judge(JOB, JOB) == ([], [])


@pytest.mark.parametrize(
    ("change", "refused", "warned"),
    [
        ({"seed": 2}, ["seed: 1 → 2"], []),
        ({"adapter": {"rank": 8}}, ["adapter.rank: 4 → 8"], []),
        ({"adapter": {"rank": 4, "alpha": 2.0}}, ["adapter.alpha: not set → 2.0"], []),
        ({"train": {"lr": 1e-3, "steps": 10}}, [], ["train.lr: 0.0001 → 0.001"]),
        ({"train": {"lr": 1e-4, "steps": 20}}, [], []),
        ({"sample": {"seeds": [1, 2], "every": 5}}, [], []),
        ({"data": {"flip": True}}, ["data.flip: not set → true"], []),
    ],
)
def test_keys_are_judged_one_by_one(change: dict[str, object], refused: list[str], warned: list[str]) -> None:
    assert judge(JOB, {**JOB, **change}) == (refused, warned)


def job(folder: Path, **sections: Any) -> DreamBoothSpec:
    plain = {"method": "dreambooth", "model": "lab", "subject": {"prompt": "a dog"}, "data": {"path": str(folder)}}
    return DreamBoothSpec.model_validate_json(json.dumps(plain | sections))


def interrupted(folder: Path, **before: Any) -> list[str]:
    """What is said when a run goes on whose checkpoint was written by a job with these sections."""
    (folder / "a.png").touch()
    spec = job(folder)
    checkpoint = {"job": {**json.loads(json.dumps(dumped(spec))), **before}, "data": "hash", "step": 3}
    return require_same_steps(checkpoint, spec, "hash", cook)


def test_what_an_earlier_job_measured_with_may_be_gone(tmp_path: Path) -> None:
    assert interrupted(tmp_path, eval={"held_out": str(tmp_path / "gone")}) == []


def test_a_job_that_would_be_refused_now_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"is refused now .*equal to 1.* start over"):
        interrupted(tmp_path, train={"steps": 0})


def test_steps_that_are_done_are_not_undone(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    spec = job(tmp_path, train={"steps": 400})
    checkpoint = {"job": json.loads(json.dumps(dumped(spec))), "data": "hash", "step": 400}
    assert require_same_steps(checkpoint, spec, "hash", cook) == []
    with pytest.raises(MismatchError, match=r"train\.steps: 400 are asked for and 500 are done"):
        require_same_steps({**checkpoint, "step": 500}, spec, "hash", cook)


def test_every_key_of_the_tables_exists() -> None:
    for key in (*ACCEPTED, *WARNED):
        section, _, name = key.partition(".")
        owners = [spec for spec in (DreamBoothSpec, PivotalTuningSpec) if section in spec.model_fields]
        assert owners, key
        kind = owners[0].model_fields[section].annotation
        kinds = [kind, *get_args(kind)]
        assert not name or any(name in getattr(each, "model_fields", {}) for each in kinds), key


def test_the_optimizers_that_a_job_may_name_are_those_there_are() -> None:
    assert set(OPTIMIZERS) == set(_KINDS)


def test_every_training_job_may_resume() -> None:
    assert TrainingSpec.resumes
