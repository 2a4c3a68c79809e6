"""An adapter's scale, alpha / rank, is the job's in the denoiser and in the text encoder."""

from typing import Any

import pytest
import torch
from loractl_dreambooth.run import cook

from loractl.families.pipeline import load_model
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.runs.learner import Learner
from tests.methods.lab_job import JOBS


@pytest.mark.parametrize(
    ("settings", "rank", "scale"),
    [
        ((), 6, 1.0),
        (("adapter.alpha=3.0",), 6, 0.5),
        (("adapter.alpha=3.0", "adapter.text_encoder_rank=2"), 2, 0.5),
        (("adapter.text_encoder_rank=2",), 2, 1.0),
    ],
)
def test_it_is_one_for_all(settings: tuple[str, ...], rank: int, scale: float) -> None:
    layers = [override(each) for each in (*settings, "adapter.rank=6", "adapter.text_encoder=true")]
    spec: Any = read_job(JOBS / "subject.toml", load_plugins(["dreambooth"]).methods, layers)
    learner = Learner(load_model("lab", torch.device("cpu"), torch.float32), spec, cook(spec))
    assert learner.lora is not None
    denoiser, encoder = (set(learner.lora.targets[name].values()) for name in ("unet", "text_encoder"))
    assert {(each.rank, each.alpha / each.rank) for each in denoiser} == {(6, scale)}
    assert {(each.rank, each.alpha / each.rank) for each in encoder} == {(rank, scale)}
