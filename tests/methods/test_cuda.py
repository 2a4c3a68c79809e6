"""What can only be said of a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_dreambooth.learners import make_learner
from loractl_dreambooth.run import dreambooth_loss, make_source

from loractl.families.pipeline import load_model
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.train.loop import make_optimizer
from tests.methods.lab_job import JOBS, SHORT, run_subject

pytestmark = pytest.mark.cuda


@pytest.fixture
def step() -> Any:
    """One whole training step of the subject job, after a first one that fills the caches."""
    methods = load_plugins().methods
    spec: Any = read_job(JOBS / "subject.toml", methods, [override(setting) for setting in SHORT])
    model = load_model("lab", torch.device("cuda"), torch.bfloat16)
    learner = make_learner(model, spec)
    pictures = sorted(spec.data.path.glob("*.png"))
    source = make_source(spec, model, "subject", pictures, [spec.subject.prompt] * len(pictures))
    loss = dreambooth_loss(spec, model, learner, [source])
    optimizer = make_optimizer(learner.groups(), (0.9, 0.999), 0.01, 1e-8)

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


def test_a_job_runs_in_bf16(tmp_path: Path) -> None:
    outcome, _ = run_subject(tmp_path / "out", "memory.device=cuda", "memory.precision=bf16")
    assert 0 < outcome.numbers["loss"] < 10
