"""What is drawn: plain where nothing is asked for, and of the right spread where something is."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from loractl.train.noise import Noising

SHAPE = (4, 16, 16)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def draws(noising: Noising, count: int = 200) -> Tensor:
    generator = seeded()
    return torch.stack([noising.noise(SHAPE, generator) for _ in range(count)])


def times(noising: Noising, count: int = 2000) -> Tensor:
    generator = seeded()
    return torch.tensor([noising.time(generator) for _ in range(count)], dtype=torch.float64)


def test_by_default_every_draw_is_the_plain_one() -> None:
    generator, plain = seeded(), seeded()
    noise = Noising().noise(SHAPE, generator)
    assert torch.equal(noise, torch.randn(SHAPE, generator=plain))
    assert Noising().mixed(noise, generator) is noise
    assert Noising().time(generator) == torch.rand(1, generator=plain).item()
    assert torch.equal(generator.get_state(), plain.get_state()), "nothing else was drawn"


def test_offset_moves_each_channel_s_mean() -> None:
    noise = draws(Noising(offset=0.5))
    assert noise.mean((2, 3)).std().item() == pytest.approx((0.25 + 1 / 256) ** 0.5, rel=0.1)
    inside = noise - noise.mean((2, 3), keepdim=True)
    assert inside.std().item() == pytest.approx(1.0, rel=0.01)
    assert torch.corrcoef(noise.mean((2, 3)).T)[0, 1].abs() < 0.15, "channels move apart"


def test_pyramid_noise_has_unit_variance_and_more_of_the_coarse() -> None:
    noise, plain = draws(Noising(pyramid=0.6), 100), draws(Noising(), 100)
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(100))
    coarse, white = (F.avg_pool2d(each, 4).std() for each in (noise, plain))
    assert coarse > 1.4 * white
    wide = Noising(pyramid=0.6).noise((4, 8, 24), seeded())
    assert wide.shape == (4, 8, 24)


def test_perturbation_is_in_what_is_mixed_and_not_in_the_target() -> None:
    noising = Noising(perturbation=0.1)
    plain = draws(Noising(), 1)[0]
    assert torch.equal(noising.noise(SHAPE, seeded()), plain)
    more = noising.mixed(plain, seeded(1)) - plain
    torch.testing.assert_close(more, 0.1 * torch.randn(SHAPE, generator=seeded(1)), atol=1e-6, rtol=0)


def test_uniform_times_fill_their_range() -> None:
    drawn = times(Noising(low=0.2, high=0.6))
    assert 0.2 <= drawn.min() < 0.202 and 0.598 < drawn.max() < 0.6
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.01)


def test_logit_normal_times_have_the_mean_and_spread_that_are_asked_for() -> None:
    logits = times(Noising(distribution="logit-normal", mean=-0.5, std=0.7)).logit()
    assert logits.mean().item() == pytest.approx(-0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(0.7, rel=0.05)
    extreme = times(Noising(distribution="logit-normal", mean=8, std=10, low=0.1, high=0.9), 500)
    assert extreme.min() >= 0.1 and extreme.max() <= 0.9
