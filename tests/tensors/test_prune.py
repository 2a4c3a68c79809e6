"""What the merges that drop entries keep."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loractl.tensors.prune import breadcrumbs, dare, generator_for, prune, ties
from tests.tensors.updates import patient


def matrices(n: int = 2, size: int = 40) -> list[Tensor]:
    return list(torch.randn(n, size, size, generator=torch.Generator().manual_seed(0)))


def rng() -> torch.Generator:
    return generator_for(0, "x")


def test_ties_trims_elects_and_averages() -> None:
    """Worked by hand: each keeps its two largest of four entries; the sum elects the sign; who disagrees is out."""
    a = torch.tensor([3.0, -4.0, 1.0, 0.5])
    b = torch.tensor([-2.0, -6.0, 0.1, 0.0])
    assert ties([a, b], [0.5, 0.5], 0.5, rng()).tolist() == [3.0, -5.0, 0.0, 0.0]
    assert ties([a, b], [3.0, 1.0], 1.0, rng()).tolist() == pytest.approx([3.0, -4.5, 0.775, 0.5])


@patient
@given(st.floats(0.1, 3))
def test_ties_of_one_adapter_is_the_adapter_whatever_its_weight(weight: float) -> None:
    (delta,) = matrices(1)
    torch.testing.assert_close(ties([delta], [weight], 1.0, rng()), delta)
    torch.testing.assert_close(ties([delta], [-weight], 1.0, rng()), -delta)


@pytest.mark.parametrize("rule", [dare, prune])
def test_at_density_1_nothing_is_dropped(rule: object) -> None:
    a, b = matrices()
    assert callable(rule)
    torch.testing.assert_close(rule([a, b], [0.7, -0.3], 1.0, rng()), 0.7 * a - 0.3 * b)


@patient
@given(st.sampled_from([0.1, 0.25, 0.5]))
def test_prune_keeps_just_the_largest(density: float) -> None:
    (delta,) = matrices(1)
    kept = prune([delta], [1.0], density, rng())
    there = kept != 0
    assert there.sum() == round(density * delta.numel())
    assert torch.equal(kept[there], delta[there])
    assert delta[there].abs().min() >= delta[~there].abs().max()


def test_breadcrumbs_drops_the_largest_and_the_smallest() -> None:
    (delta,) = matrices(1)
    kept = breadcrumbs([delta], [1.0], 0.5, rng())
    sizes, there = delta.abs(), kept != 0
    assert there.sum() == 800
    assert (sizes > sizes[there].max()).sum() == 16, "1 % of 1600 entries are outliers"
    assert (sizes < sizes[there].min()).sum() == 784


def test_dare_keeps_the_density_and_the_mean() -> None:
    delta = torch.ones(200, 200)
    kept = dare([delta], [1.0], 0.3, rng())
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.3])
    assert float((kept != 0).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_chance_is_of_the_seed_and_the_module_alone() -> None:
    a, b = matrices()
    first = dare([a, b], [0.5, 0.5], 0.5, generator_for(1, "unet.x"))
    assert torch.equal(first, dare([a, b], [0.5, 0.5], 0.5, generator_for(1, "unet.x")))
    assert not torch.equal(first, dare([a, b], [0.5, 0.5], 0.5, generator_for(2, "unet.x")))
    assert not torch.equal(first, dare([a, b], [0.5, 0.5], 0.5, generator_for(1, "unet.y")))
