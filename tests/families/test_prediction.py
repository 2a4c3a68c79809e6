"""Noise paths against their definitions and against the schedulers that sample along them."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from loractl.errors import MismatchError
from loractl.families.prediction import FlowPath, NoisePath, noise_path, zero_terminal_snr

ALPHAS = torch.tensor([0.9, 0.5, 0.2, 0.0])  # the last is zero terminal SNR
X, NOISE = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def test_targets_follow_their_definitions() -> None:
    x, noise, t = torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([2])
    path = NoisePath(ALPHAS, "v_prediction")
    assert path.add_noise(x, noise, t).item() == pytest.approx(0.2**0.5 * 2 + 0.8**0.5 * 1)
    assert path.target(x, noise, t).item() == pytest.approx(0.2**0.5 * 1 - 0.8**0.5 * 2)
    assert NoisePath(ALPHAS, "epsilon").target(x, noise, t).item() == 1.0
    assert NoisePath(ALPHAS, "sample").target(x, noise, t).item() == 2.0


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_noise_path_agrees_with_diffusers(predicts: str) -> None:
    scheduler = DDIMScheduler(prediction_type=predicts, rescale_betas_zero_snr=predicts == "v_prediction")
    path, t = noise_path(scheduler), torch.tensor([0, 500, 999])
    torch.testing.assert_close(path.add_noise(X, NOISE, t), scheduler.add_noise(X, NOISE, t))
    torch.testing.assert_close(path.snr(t), compute_snr(scheduler, t))
    if predicts == "v_prediction":
        torch.testing.assert_close(path.target(X, NOISE, t), scheduler.get_velocity(X, NOISE, t))


def test_every_timestep_is_as_likely_and_the_last_is_reached() -> None:
    path = NoisePath(torch.linspace(0.9, 0.1, 1000), "epsilon")
    t = path.timesteps((torch.arange(4000) + 0.5) / 4000)
    assert t.dtype == torch.long and t.bincount().tolist() == [4] * 1000
    assert path.timesteps(torch.tensor([0.0, 1 - 2**-24, 1.0])).tolist() == [0, 999, 999]


def test_zero_terminal_snr_is_exactly_zero_and_begins_where_it_began() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    rescaled = zero_terminal_snr(scheduler.alphas_cumprod)
    assert rescaled[-1] == 0.0 and (rescaled.diff() < 0).all()
    assert rescaled[0].item() == pytest.approx(scheduler.alphas_cumprod[0].item(), rel=1e-6)
    expected = (1 - rescale_zero_terminal_snr(scheduler.betas.double())).cumprod(0)
    torch.testing.assert_close(rescaled.double(), expected, atol=1e-6, rtol=1e-4)


def test_at_zero_terminal_snr_the_picture_is_pure_noise_and_v_is_its_negative() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    path = noise_path(scheduler)
    assert isinstance(path, NoisePath)
    rescaled, last = path.with_zero_terminal_snr(), torch.full((3,), 999)
    assert not torch.equal(path.add_noise(X, NOISE, last), NOISE)
    assert torch.equal(rescaled.add_noise(X, NOISE, last), NOISE)
    assert torch.equal(rescaled.target(X, NOISE, last), -X)
    with pytest.raises(MismatchError, match="predicts v"):
        NoisePath(ALPHAS, "epsilon").with_zero_terminal_snr()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_path_agrees_with_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    path = noise_path(scheduler)
    t = path.timesteps(torch.linspace(1, 0.001, 1000))
    torch.testing.assert_close(t, scheduler.timesteps, atol=1e-3, rtol=0)
    chosen = scheduler.timesteps[[999, 500, 0]]
    torch.testing.assert_close(path.add_noise(X, NOISE, chosen), scheduler.scale_noise(X, chosen, NOISE))


def test_a_flow_leads_from_the_picture_to_the_noise_along_its_target() -> None:
    path, t = FlowPath(shift=3.0), torch.tensor([0.0, 250.0, 1000.0])
    step = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(path.add_noise(X, NOISE, t), X + step * path.target(X, NOISE, t))
    torch.testing.assert_close(path.snr(torch.tensor([0.0, 250.0, 1000.0])), torch.tensor([math.inf, 9.0, 0.0]))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_by_the_picture_s_size_is_the_one_of_sampling(kind: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, time_shift_type=kind)
    u = torch.linspace(0.01, 1, 50)
    for tokens in (256, 1024):
        expected = scheduler.time_shift(calculate_shift(tokens), 1.0, u) * 1000
        torch.testing.assert_close(noise_path(scheduler, tokens).timesteps(u), expected)
    assert noise_path(scheduler) == noise_path(scheduler, 4096) != noise_path(scheduler, 256)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(MismatchError, match="flow"):
        NoisePath(ALPHAS, "flow_prediction")
