"""The pictures that a training makes on its way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from loractl.errors import MismatchError
from loractl.events import Event
from loractl.families.pipeline import load_model
from loractl.runs.studio import Studio
from loractl.sample.denoise import Request, render
from tests.methods.lab_job import run_subject

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


def test_a_size_that_is_not_drawn_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "make", lambda *_, **__: pytest.fail("class pictures are made first"))
    with pytest.raises(MismatchError, match=r"a multiple of 8 pixels: set sample\.size = 96, not 100"):
        run_subject(tmp_path / "out", "sample.size=100", "sample.at_start=false")
