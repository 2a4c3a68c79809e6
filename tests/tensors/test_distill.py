"""Distillation finds what was planted, says truly how much it holds, and comes close to the best there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loractl.tensors.distill import OVERSAMPLING, change, distill

SHAPES = st.sampled_from([(6, 5), (40, 30), (96, 120), (130, 90), (64, 12, 3, 3), (20, 8, 1, 1)])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planted(shape: tuple[int, ...], rank: int, seed: int = 0) -> Tensor:
    """A matrix of this rank, or a kernel."""
    inner = int(torch.tensor(shape[1:]).prod())
    return (normal(shape[0], rank, seed=seed) @ normal(rank, inner, seed=seed + 1)).view(shape)


def spectrum(rows: int, columns: int, sigma: Tensor) -> Tensor:
    u = torch.linalg.qr(normal(rows, len(sigma))).Q
    v = torch.linalg.qr(normal(columns, len(sigma), seed=1)).Q
    return (u * sigma) @ v.T


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@settings(deadline=None)
@given(SHAPES, st.integers(1, 5), st.integers(0, 1000))
def test_a_planted_difference_is_recovered(shape: tuple[int, ...], rank: int, seed: int) -> None:
    """As the difference of two fp32 models, one of which has it on top of weights a hundred times as large."""
    delta, base = planted(shape, rank, seed), 100 * normal(*shape, seed=seed + 2)
    low, energy = distill((base + delta) - base, rank)
    assert low.shape == delta.shape and low.rank == low.alpha <= rank
    assert relative(low.delta(), delta) < 1e-4
    assert energy == pytest.approx(1, abs=1e-6)


@settings(deadline=None)
@given(SHAPES, st.integers(1, 12), st.integers(0, 1000))
def test_the_energy_is_that_of_the_factors(shape: tuple[int, ...], rank: int, seed: int) -> None:
    delta = normal(*shape, seed=seed)
    low, energy = distill(delta, rank, seed=seed)
    lost = (low.delta() - delta).square().sum() / delta.square().sum()
    assert energy == pytest.approx(1 - float(lost), abs=1e-5)


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_nearly_as_good_as_the_best(power: float) -> None:
    """Eckart and Young's bound, for spectra that fall as slowly as those of full fine-tunes."""
    sigma = torch.arange(1, 201) ** -power
    delta = spectrum(300, 200, sigma)
    assert 2 * (8 + OVERSAMPLING) < 200  # so this is the randomized way
    _, energy = distill(delta, 8)
    best = float(sigma[:8].square().sum() / sigma.square().sum())
    assert 0.98 * best < energy <= best + 1e-6


@pytest.mark.parametrize("shape", [(30, 20), (300, 200)], ids=["exact", "randomized"])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_the_least_rank_that_holds_the_energy(shape: tuple[int, int], energy: float) -> None:
    sigma = 0.8 ** torch.arange(20.0)
    low, held = distill(spectrum(*shape, sigma), energy=energy)
    shares = sigma.square().cumsum(0) / sigma.square().sum()
    assert low.rank == int((shares < energy).sum()) + 1
    assert held == pytest.approx(float(shares[low.rank - 1]), abs=1e-4)


def test_rank_bounds_energy() -> None:
    low, held = distill(normal(200, 150), rank=3, energy=0.99)
    assert low.rank == 3 and held < 0.99


def test_full_rank_is_the_difference_itself() -> None:
    delta = normal(40, 30)
    low, energy = distill(delta, energy=1.0)
    assert relative(low.delta(), delta) < 1e-5 and energy == pytest.approx(1)


def test_factors_are_balanced_and_do_not_depend_on_the_run() -> None:
    delta = planted((300, 200), 4)
    low, again = distill(delta, 4).low, distill(delta, 4).low
    assert torch.equal(low.up, again.up) and torch.equal(low.down, again.down)
    torch.testing.assert_close(low.up.norm(dim=0), low.down.norm(dim=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_precision_is_no_change_and_training_is(dtype: torch.dtype) -> None:
    base = normal(64, 64)
    assert change(base.to(dtype), base) == 0 == change(base, base.to(dtype))
    assert change(base + 1e-3 * normal(64, 64, seed=1), base) == pytest.approx(1e-3, rel=0.1)
    assert change((1.01 * base).to(dtype), base) == pytest.approx(0.01, rel=0.2)


def test_a_zero_base_has_changed() -> None:
    assert change(torch.ones(2, 2), torch.zeros(2, 2)) > 1
    assert change(torch.zeros(2, 2), torch.zeros(2, 2)) == 0
