"""Weights are exact at every call of the denoiser, the first included, with guidance, for every scheduler of diffusers.

A step of a scheduler is what `num_inference_steps` counts. Heun, DPM2 and their kin call the denoiser twice in each but
the last, PNDM four times in the first three, or twice in the first: all calls of a step have the weight of the step.
"""

from collections.abc import Iterator

import diffusers
import pytest
import torch
from torch import Tensor

from loractl.families.sd import StableDiffusion
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from tests.sample.models import PROMPT, SPIED, random_adapter, tiny_model

# For other kinds of models: discrete tokens, flows, videos, molecules, or a loop of their own.
OTHERS = """Amused BlockRefinement CogVideoXDPM CosineDPMSolverMultistep DDPMWuerstchen DiscreteDDIM EntropyBound
FlowMapEulerDiscrete FlowMatchEulerDiscrete FlowMatchHeunDiscrete FlowMatchLCM Helios HeliosDMD KarrasVe
LTXEulerAncestralRF MiniMaxH3 Piflow RFD4Proteina RePaint SCM ScoreSdeVe UnCLIP VQDiffusion"""
KNOWN = {name.removesuffix("Scheduler") for name in dir(diffusers) if name.endswith("Scheduler")}
NAMES = sorted(name for name in KNOWN - {*OTHERS.split()} if not name.startswith("Flax"))

TWICE = [0, 0, 1, 1, 2, 2, 3]
CALLS = {
    "HeunDiscrete": TWICE,
    "KDPM2Discrete": TWICE,
    "KDPM2AncestralDiscrete": TWICE,
    "DPMSolverSDE": TWICE,
    "PNDM": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3],
    "PNDM, short": [0, 0, 1, 2, 3],
}
"""The step of each call when there are four; one call in each where nothing is said."""


@pytest.fixture(scope="module")
def spied() -> Iterator[tuple[StableDiffusion, list[float], Session]]:
    """A model whose denoiser computes nothing, the strength of the adapter at each of its calls, and the session."""
    model, seen = tiny_model(), list[float]()
    adapter, weight = random_adapter(model), model.denoiser.get_parameter(f"{SPIED}.weight")
    base, delta = weight.clone(), adapter.modules[f"unet.{SPIED}"].delta()

    def forward(x: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        assert len(x) == 2, "guidance is on"
        seen.append(float(((weight - base) / delta).median()))
        return (torch.zeros_like(x),)

    model.denoiser.forward = forward  # type: ignore[assignment]
    with Session(model, "composed") as session:
        session.add("one", adapter, Use(1.0, Schedule(tuple((float(i), i + 1.0) for i in range(4)), "step")))
        yield model, seen, session


@pytest.mark.parametrize("name", [*NAMES, "PNDM, short"])
def test_every_call_has_the_weight_of_its_step(name: str, spied: tuple[StableDiffusion, list[float], Session]) -> None:
    model, seen, session = spied
    config = {**model.scheduler.config, **({"skip_prk_steps": True} if name == "PNDM, short" else {})}
    kind = getattr(diffusers, f"{name.partition(',')[0]}Scheduler")
    try:
        model.pipeline.scheduler = kind.from_config(config)
    except ImportError as error:  # scipy or torchsde
        pytest.skip(str(error))
    seen.clear()
    session.generate(PROMPT, steps=4)
    steps = CALLS.get(name, [0, 1, 2, 3])
    assert seen == pytest.approx([step + 1.0 for step in steps], rel=1e-3)
    run = session.runs[-1]
    assert [row["one"] for row in run.strengths] == [step + 1.0 for step in steps]
    assert [(moment.step, moment.steps) for moment in run.moments] == [(step, 4) for step in steps]


def test_the_list_of_other_schedulers_is_not_out_of_date() -> None:
    assert {*OTHERS.split()} <= KNOWN and {name.partition(",")[0] for name in CALLS} <= {*NAMES}
