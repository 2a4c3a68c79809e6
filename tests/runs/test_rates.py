"""The learning rates that a job's sections tell are those of the groups that learn."""

from typing import Any

import pytest
import torch
from loractl_dreambooth.run import cook

from loractl.families.pipeline import load_model
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.runs.learner import Learner
from tests.methods.lab_job import JOBS

TABLES = ('{"attn2.to_k"={lr=2e-3}, "*.conv1"={}}', '{"attn2.to_k"={lr=2e-3}, "*.conv1"={lr=3e-3}}')


@pytest.mark.parametrize("targets", ['["attention"]', *TABLES])
@pytest.mark.parametrize("settings", [("adapter.text_encoder=true", "train.up_lr_ratio=4.0"), ("embedding.lr=5e-3",)])
def test_all_rates_are_told(targets: str, settings: tuple[str, ...]) -> None:
    if settings[0].startswith("embedding"):
        settings = (*settings, "embedding.token=<rex>", "subject.prompt=a <rex> critter")
    layers = [override(each) for each in (*settings, f"adapter.targets={targets}", "data.captions=auto")]
    spec: Any = read_job(JOBS / "subject.toml", load_plugins(["dreambooth"]).methods, layers)
    learner = Learner(load_model("lab", torch.device("cpu"), torch.float32), spec, cook(spec))
    assert {group.lr for group in learner.groups()} == {*spec.rates.values()}
