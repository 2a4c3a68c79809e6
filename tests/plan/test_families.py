"""Every family's denoiser is given what it takes, and adapted where its own run adapts it."""

from pathlib import Path

import pytest
from torch import nn

from loractl.errors import MismatchError
from loractl.inject.targets import resolve
from loractl.plan.estimate import estimate
from loractl.plan.gpus import find
from loractl.plan.inputs import denoiser_inputs
from loractl.plan.job import Training
from loractl.plan.shapes import family_in
from loractl.plugins import load_plugins
from tests.families.tiny import whole


@pytest.mark.parametrize("family", ["sd3", "flux", "flux2", "qwen_image", "z_image", "sana", "lumina2"])
def test_a_family_is_planned(family: str, tmp_path: Path) -> None:
    load_plugins()
    pipeline = whole(family)
    pipeline.save_pretrained(tmp_path)
    found = estimate(Training(str(tmp_path), rank=4, resolution=64), find("4090"))
    targets = resolve(pipeline.transformer, family_in(tmp_path).presets["attention"], 4)
    layers = [pipeline.transformer.get_submodule(path) for path in targets]
    assert found.modules == {"transformer": len(layers)}
    assert found.trained == sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    # one picture of 64 × 64: every weight of a layer meets some token at least once, forward
    assert found.operations > 2 * found.parameters["transformer"]


def test_a_denoiser_that_is_not_known_is_refused() -> None:
    with pytest.raises(MismatchError, match="plan does not know what a Linear is given: it knows UNet2DCondition"):
        denoiser_inputs(nn.Linear(2, 2), 1, 8, 8)
