"""The pictures that a training makes on its way."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from loractl.events import Event
from loractl.families.pipeline import load_model
from loractl.runs.studio import Studio
from loractl.sample.denoise import Request, render

CPU = torch.device("cpu")


def quiet(_: Event) -> None:
    """Hears nothing."""


@pytest.mark.parametrize("phases", [False, True])
def test_class_pictures_are_made_by_the_method_that_is_named(phases: bool) -> None:
    model = load_model("lab", CPU, torch.float32, phases=phases)
    plain = [Request("a picture of a critter", seed, 3, model.guidance, 64) for seed in (1, 2)]
    made = Studio(model, quiet).make(plain, "class pictures", "dpm++2m")
    assert isinstance(model.pipeline.scheduler, DDIMScheduler), "as it was"
    other = load_model("lab", CPU, torch.float32)
    named = [Request("a picture of a critter", seed, 3, other.guidance, 64, scheduler="dpm++2m") for seed in (1, 2)]
    for picture, expected, own in zip(made, render(other.pipeline, named), render(other.pipeline, plain), strict=True):
        assert np.array_equal(picture, expected) and not np.array_equal(picture, own)
