"""Weights along a run: the curves, and the step that a call of the denoiser belongs to, for diffusers' schedulers."""

import math

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loractl.families.prediction import FlowPath, NoisePath, noise_path
from loractl.sample.schedule import Moment, Schedule, Shape, Use, noise_level, run_moments

values = st.floats(-2, 2)
curves = st.lists(st.tuples(st.floats(0, 1), values), min_size=1, max_size=5, unique_by=lambda point: point[0]).map(
    sorted
)
shapes = st.sampled_from(["hold", "linear", "cosine"])


def moment(step: int, steps: int, sigma: float = 1.0) -> Moment:
    return Moment(step, steps, sigma)


@settings(max_examples=60, deadline=None)
@given(curves, shapes)
def test_a_schedule_has_its_values_at_its_points_and_holds_the_outer_ones(points: list, shape: Shape) -> None:
    schedule = Schedule(tuple(points), shape=shape)
    assert [schedule.value(place) for place, _ in points] == pytest.approx([value for _, value in points])
    assert schedule.value(points[0][0] - 1) == points[0][1] and schedule.value(points[-1][0] + 1) == points[-1][1]


@settings(max_examples=60, deadline=None)
@given(curves, shapes, st.floats(0, 1))
def test_between_two_points_it_stays_between_their_values(points: list, shape: Shape, place: float) -> None:
    all_values = [value for _, value in points]
    assert min(all_values) - 1e-9 <= Schedule(tuple(points), shape=shape).value(place) <= max(all_values) + 1e-9


@pytest.mark.parametrize(
    ("shape", "quarter", "half"), [("hold", 0, 0), ("linear", 0.25, 0.5), ("cosine", (1 - math.sqrt(0.5)) / 2, 0.5)]
)
def test_the_three_shapes(shape: Shape, quarter: float, half: float) -> None:
    schedule = Schedule(((0.0, 0.0), (1.0, 1.0)), shape=shape)
    assert [schedule.value(place) for place in (0, 0.25, 0.5, 1)] == pytest.approx([0, quarter, half, 1])


def test_a_run_goes_from_0_to_1_and_segments_are_of_equal_length() -> None:
    assert [moment(step, 5).fraction for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert moment(0, 1).fraction == 0
    quarters = Schedule(tuple((i / 4, float(i)) for i in range(4)))
    for steps in (4, 8, 20, 24):
        assert [quarters.at(moment(step, steps)) for step in range(steps)] == [4 * s // steps for s in range(steps)]


def test_places_are_fractions_noise_levels_or_steps() -> None:
    points = ((1.0, 0.5), (3.0, 2.0))
    assert Schedule(points, "step").at(moment(2, 50, sigma=9)) == 0.5
    assert Schedule(points, "step").at(moment(3, 50, sigma=9)) == 2
    assert Schedule(points, "sigma").at(moment(0, 50, sigma=9)) == 2
    assert Schedule(points, "sigma", "linear").at(moment(0, 50, sigma=2)) == 1.25
    assert Schedule(points, "sigma", "linear").at(moment(0, 50, sigma=math.inf)) == 2


def test_patterns_and_blocks_take_a_factor_or_a_schedule_of_their_own() -> None:
    late = Schedule(((0.0, 0.0), (0.5, 1.0)))
    use = Use(0.5, late, {"to_k": 2.0, "mid_block": Schedule(), "unet.up_blocks.1": 0.0, "text_encoder": 3.0})
    paths = ["unet.conv_in", "unet.down_blocks.1.attn.to_k", "unet.mid_block.attn.to_k", "unet.up_blocks.1.attn.to_k"]
    for step, expected in ((0, [0, 0, 0.5, 0]), (9, [0.5, 1, 0.5, 0])):
        strengths = use.strengths(moment(step, 10))
        assert [strengths[use.group(path)] for path in paths] == expected
    before = use.strengths(None)
    assert before[use.group("text_encoder.layers.0.to_q")] == 1.5, "text encoders know no schedule"
    assert before[use.group("unet.conv_in")] == 0.5
    assert use.group("unet.up_blocks.10.attn.to_q") == 0, "a block is no beginning of another's name"


CALLS = {
    "HeunDiscreteScheduler": [2, 2, 2, 2, 2, 1],
    "KDPM2DiscreteScheduler": [2, 2, 2, 2, 2, 1],
    "KDPM2AncestralDiscreteScheduler": [2, 2, 2, 2, 2, 1],
    "PNDMScheduler": [4, 4, 4, 1, 1, 1],
}
"""Of the denoiser in each of six steps; one where nothing is said."""
NAMES = ["DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerAncestralDiscrete"]
NAMES += ["EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "PNDM", "UniPCMultistep"]


def scheduler_of(name: str, **config: object) -> diffusers.SchedulerMixin:
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **config)
    scheduler.set_timesteps(6)
    return scheduler


def check_calls(scheduler: diffusers.SchedulerMixin, calls: list[int]) -> None:
    count = len(scheduler.timesteps)
    moments = run_moments(scheduler, count, noise_path(scheduler))
    assert [each.step for each in moments] == [step for step, number in enumerate(calls) for _ in range(number)]
    assert {each.steps for each in moments} == {6}
    starts = [moments[sum(calls[:step])].sigma for step in range(6)]
    assert starts == sorted(starts, reverse=True) and len({*starts}) == 6, "the noise falls from step to step"
    rest = run_moments(scheduler, sum(calls[2:]), noise_path(scheduler))
    assert [each.step for each in rest] == [each.step - 2 for each in moments[sum(calls[:2]) :]], (
        "a picture to start from"
    )
    assert {each.steps for each in rest} == {4} and rest[0].fraction == 0 and rest[-1].fraction == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_call_belongs_to_its_step_whatever_the_scheduler(name: str) -> None:
    name = f"{name}Scheduler"
    check_calls(scheduler_of(name), CALLS.get(name, [1] * 6))


def test_the_scheduler_that_stable_diffusion_comes_with() -> None:
    check_calls(scheduler_of("PNDMScheduler", skip_prk_steps=True), [2, 1, 1, 1, 1, 1])


def test_noise_levels_are_those_of_the_sampler() -> None:
    euler = scheduler_of("EulerDiscreteScheduler")
    moments = run_moments(euler, 6, noise_path(euler))
    assert [each.sigma for each in moments] == pytest.approx(euler.sigmas[:6].tolist(), rel=2e-3)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(6)
    moments = run_moments(flow, 6, noise_path(flow))
    assert [each.sigma for each in moments] == pytest.approx(flow.sigmas[:6].tolist())


def test_edms_samplers_say_their_own_noise_levels() -> None:
    """Their times are of no step of the model's noise path."""
    edm = diffusers.EDMEulerScheduler()
    edm.set_timesteps(6)
    moments = run_moments(edm, 6, noise_path(scheduler_of("DDIMScheduler")))
    assert [each.sigma for each in moments] == pytest.approx(edm.sigmas[:6].tolist())


def test_without_signal_the_noise_is_infinite() -> None:
    path = NoisePath(torch.tensor([0.5, 0.0]), "v_prediction")
    assert noise_level(path, 0) == 1 and noise_level(path, 1) == math.inf
    assert noise_level(path, 0.5) == pytest.approx(math.sqrt(3))
    assert noise_level(FlowPath(1000), 250.0) == 0.25
