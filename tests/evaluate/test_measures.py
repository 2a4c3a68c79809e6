"""The statistics against their definitions, spelt out."""

import random
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from loractl.evaluate.intervals import once
from loractl.evaluate.measures import cosine_distances, energy, mean, mean_pair_distance, total_variation
from loractl.lab.scenes import ATTRIBUTES
from loractl.lab.scores import DRIFTING, class_drift


def points(count: int, seed: int, shift: float = 0.0) -> Tensor:
    drawn = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn + torch.tensor([shift, 0, 0, 0, 0]), dim=1)


def halves(one: int, other: int) -> tuple[Tensor, Tensor]:
    """Counts of one for the first `one` of all points, and for the `other` after them."""
    first = torch.cat([once(one), torch.zeros(1, other, dtype=torch.float64)], 1)
    return first, 1 - first


def between(x: Tensor, y: Tensor) -> float:
    return float(energy(torch.cat([x, y]))(*halves(len(x), len(y))))


def test_energy_is_its_definition() -> None:
    x, y = points(4, 0), points(6, 1, shift=1.0)

    def expected(a: Tensor, b: Tensor) -> float:
        return sum(float((one - two).norm()) for one in a for two in b) / len(a) / len(b)

    right = 1 - (expected(x, x) + expected(y, y)) / (2 * expected(x, y))
    assert between(x, y) == pytest.approx(right, abs=1e-12)


def test_energy_is_a_distance_of_distributions() -> None:
    x, y = points(20, 0), points(20, 1, shift=2.0)
    turn = torch.linalg.qr(points(5, 2))[0]
    assert between(x, x) == pytest.approx(0, abs=1e-12)
    assert between(x, y) == pytest.approx(between(y, x)) == pytest.approx(between(x @ turn, y @ turn))
    assert between(x, points(20, 1, shift=0.5)) < between(x, y)
    assert between(x[:1].repeat(3, 1), y[:1].repeat(4, 1)) == 1, "two points, one each"


def test_energy_sees_a_collapse_that_leaves_the_mean_where_it_was() -> None:
    x = torch.cat([points(50, 0), -points(50, 0)])
    collapsed = torch.cat([x[:1], -x[:1]]).repeat(50, 1)
    assert torch.allclose(x.mean(0), collapsed.mean(0))
    assert between(x, collapsed) > 0.1


def test_total_variation_is_the_labs_class_drift() -> None:
    rng = random.Random(0)
    before, after = ([{n: rng.choice(v) for n, v in ATTRIBUTES.items()} for _ in range(12)] for _ in range(2))
    attributes = [[reading[name] for reading in (*before, *after)] for name in DRIFTING]
    assert float(total_variation(attributes)(*halves(12, 12))) == pytest.approx(class_drift(before, after))


def test_pairs_are_of_one_prompt_and_never_of_a_picture_with_itself() -> None:
    features, prompts = points(5, 0), ["a", "b", "a", "b", "a"]
    distances = cosine_distances(features, features)
    statistic = mean_pair_distance(distances, prompts)
    pairs = [(i, j) for i, j in combinations(range(5), 2) if prompts[i] == prompts[j]]
    right = sum(float(1 - features[i] @ features[j]) for i, j in pairs) / len(pairs)
    assert float(statistic(once(5))) == pytest.approx(right)
    twice = torch.tensor([[2.0, 0, 1, 0, 0]], dtype=torch.float64)
    assert float(statistic(twice)) == pytest.approx(float(distances[0, 2])), "0 with 2, though 0 counts twice"
    assert statistic(torch.tensor([[3.0, 1, 0, 0, 0]], dtype=torch.float64)).isnan().all(), "no pair is left"


def test_a_mean_counts_pictures_as_often_as_they_were_drawn() -> None:
    assert float(mean(torch.tensor([1.0, 4.0]))(torch.tensor([[2.0, 1.0]], dtype=torch.float64))) == 2


def test_cosine_distance() -> None:
    a = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert torch.allclose(cosine_distances(a, -a), torch.tensor([[2.0, 1.6], [1.6, 2.0]], dtype=torch.float64))
