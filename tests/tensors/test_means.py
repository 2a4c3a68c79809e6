"""Means by angles: what inner products give is what the matrices themselves would give."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from loractl.tensors.algebra import gram, scaled, weighted
from loractl.tensors.lowrank import LowRank
from loractl.tensors.means import karcher, slerp, stock
from tests.tensors.updates import SHAPES, delta, patient, random_update, updates

WIDE = updates(SHAPES["unet.wide"])
PLACES = st.floats(0, 1)


def unit(low: LowRank) -> LowRank:
    return scaled(low, 1 / float(delta(low).norm()))


def angle(a: Tensor, b: Tensor) -> float:
    """2·atan2(‖u − v‖, ‖u + v‖), which is exact for small angles too."""
    u, v = a / a.norm(), b / b.norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


@patient
@given(WIDE, WIDE, PLACES)
def test_slerp_goes_along_the_arc_at_even_speed(a: LowRank, b: LowRank, t: float) -> None:
    a, b = unit(a), unit(b)
    whole = angle(delta(a), delta(b))
    assume(0.1 < whole < 3.0)
    between = delta(weighted([a, b], slerp(gram([a, b]), [1 - t, t])))
    assert float(between.norm()) == pytest.approx(1, abs=1e-5)
    assert angle(delta(a), between) == pytest.approx(t * whole, abs=1e-5)


@patient
@given(WIDE, WIDE, st.floats(-0.5, 1.5))
def test_slerp_has_exact_ends_and_is_linear_where_there_is_no_arc(a: LowRank, b: LowRank, t: float) -> None:
    assert slerp(gram([a, b]), [1, 0]) == pytest.approx([1, 0], abs=1e-15)
    assert slerp(gram([a, b]), [0, 1]) == pytest.approx([0, 1], abs=1e-15)
    for other in (scaled(a, 3.0), scaled(a, -1.0), scaled(a, 0.0)):
        assert slerp(gram([a, other]), [1 - t, t]) == pytest.approx([1 - t, t])


@patient
@given(WIDE, WIDE, PLACES)
def test_the_karcher_mean_of_two_directions_is_slerp(a: LowRank, b: LowRank, t: float) -> None:
    a, b = unit(a), unit(b)
    assume(0.1 < angle(delta(a), delta(b)) < 3.0)
    products = gram([a, b])
    assert karcher(products, [1 - t, t]) == pytest.approx(slerp(products, [1 - t, t]), abs=1e-6)


@patient
@given(st.lists(WIDE, min_size=2, max_size=4), st.data())
def test_geodesics_from_the_karcher_mean_cancel(parts: list[LowRank], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.2, 1), min_size=len(parts), max_size=len(parts)))
    vectors = [delta(low).flatten() for low in parts]
    assume(all(angle(u, v) < 1.8 for u in vectors for v in vectors))
    mean = delta(weighted(parts, karcher(gram(parts), weights))).flatten()
    norms = [float(vector.norm()) for vector in vectors]
    assert float(mean.norm()) == pytest.approx(sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights))
    mu, pull = mean / mean.norm(), torch.zeros_like(mean)
    for weight, vector in zip(weights, vectors, strict=True):
        across = vector - (vector @ mu) * mu
        pull += weight * angle(vector, mu) * across / across.norm().clamp_min(1e-12)
    assert float(pull.norm()) < 1e-4


def test_opposite_updates_have_a_linear_mean_for_want_of_a_direction() -> None:
    a = random_update((5, 9), 2, 1.0, 0)
    assert karcher(gram([a, scaled(a, -1.0)]), [2, 2]) == pytest.approx([0.5, 0.5])


def test_an_absent_update_has_no_say_in_the_direction_and_counts_in_the_norm() -> None:
    a = random_update((5, 9), 2, 1.0, 0)
    assert karcher(gram([a, scaled(a, 0.0)]), [1, 3])[0] == pytest.approx(0.25)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [2, 3])
def test_model_stock_is_the_foot_of_its_paper(cosine: float, n: int) -> None:
    """The numbers of the paper's equation: t = N·cos θ / (1 + (N − 1)·cos θ), here times the mean of N updates."""
    products = 4 * torch.full((n, n), cosine, dtype=torch.float64).fill_diagonal_(1)
    t = n * cosine / (1 + (n - 1) * cosine)
    assert stock(products, []) == pytest.approx([t / n] * n)


def test_model_stock_leaves_out_the_absent_and_the_opposed() -> None:
    a, b = random_update((5, 9), 2, 1.0, 0), random_update((5, 9), 3, 1.0, 1)
    nothing = scaled(a, 0.0)
    assert stock(gram([a, nothing]), []) == [1, 0]
    assert stock(gram([nothing, nothing]), []) == [0, 0]
    assert stock(gram([a, scaled(a, -1.0)]), []) == [0, 0]
    three = stock(gram([a, nothing, b]), [])
    assert three[1] == 0 and [three[0], three[2]] == pytest.approx(stock(gram([a, b]), []))
