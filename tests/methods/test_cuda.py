"""What can only be said of a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_dreambooth.run import cook

from loractl.events import Event
from loractl.families.pipeline import load_model
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.runs.learner import Learner
from loractl.runs.objective import Objective
from loractl.runs.sources import make_sources
from loractl.runs.studio import Studio
from loractl.train.conditioning import Conditioner
from loractl.train.optim import make_optimizer
from tests.methods.lab_job import JOBS, SHORT, run_subject

pytestmark = pytest.mark.cuda


def ignore(_: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def step(tmp_path: Path) -> Any:
    """One whole training step of the subject job, after a first one that fills the caches."""
    methods = load_plugins().methods
    settings = (*SHORT, f"output.path={tmp_path}")
    spec: Any = read_job(JOBS / "subject.toml", methods, [override(setting) for setting in settings])
    model = load_model("lab", torch.device("cuda"), torch.bfloat16)
    recipe = cook(spec)
    sources, _ = make_sources(spec, recipe, Studio(model, ignore), ignore)
    learner = Learner(model, spec, recipe)
    loss = Objective(spec, recipe, model, learner, sources, Conditioner(model))
    optimizer = make_optimizer(learner.groups(), "adamw")

    def whole_step(number: int) -> None:
        loss(number, 0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    whole_step(0)
    return whole_step


def test_a_step_never_waits_for_the_gpu(step: Any) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_texts_that_are_read_on_the_cpu_train_the_same(tmp_path: Path) -> None:
    settings = ("memory.device=cuda", "memory.precision=fp32", "memory.phases=true")
    there, _ = run_subject(tmp_path / "there", *settings)
    here, _ = run_subject(tmp_path / "here", *settings, "memory.text_encoders=cpu")
    assert here.numbers["loss"] == pytest.approx(there.numbers["loss"], rel=1e-3)


def test_a_job_runs_in_bf16(tmp_path: Path) -> None:
    outcome, _ = run_subject(tmp_path / "out", "memory.device=cuda", "memory.precision=bf16")
    assert 0 < outcome.numbers["loss"] < 10
