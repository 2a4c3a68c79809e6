"""The statistics behind the scores, as functions of how often each picture counts (see `intervals`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loractl.evaluate.intervals import Comparison, Statistic


def cosine_distances(a: Tensor, b: Tensor) -> Tensor:
    """1 − cosine for rows of length 1: (n, d), (m, d) → (n, m), from 0 (alike) to 2."""
    return (1 - a.double() @ b.double().T).clamp(0, 2)


def mean(values: Tensor) -> Statistic:
    """The mean of values (n,)."""
    return lambda counts: counts @ values.double() / counts.sum(1)


def mean_pair_distance(distances: Tensor, prompts: Sequence[str]) -> Statistic:
    """The mean distance between two pictures of one prompt. distances: (n, n).

    A picture is not paired with itself, however often it counts; NaN where no pair is left.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([number[prompt] for prompt in prompts])
    paired = (group[:, None] == group[None]).double().fill_diagonal_(0)
    near = distances * paired

    def statistic(counts: Tensor) -> Tensor:
        return (counts @ near * counts).sum(1) / (counts @ paired * counts).sum(1)

    return statistic


def energy(features: Tensor) -> Comparison:
    """How unlike two sets of pictures are: 1 − (E|X − X'| + E|Y − Y'|) / 2 E|X − Y|, for features (n, d).

    The energy distance as a share of its largest value (Székely & Rizzo 2013, "Energy statistics", the coefficient H):
    from 0 to 1, and 0 only where the distributions are the same. It has no bandwidth to choose and estimates no
    covariance, for which a Fréchet distance would need many more pictures than features.
    """
    points = features.double()
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")

    def between(a: Tensor, b: Tensor) -> Tensor:
        p, q = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
        to_p, to_q = p @ distances, q @ distances
        across, within = (to_p * q).sum(1), ((to_p * p).sum(1) + (to_q * q).sum(1)) / 2
        return torch.where(across > 0, 1 - within / across, 0.0).clamp(min=0)  # rounding may go below

    return between


def total_variation(attributes: Sequence[Sequence[str]]) -> Comparison:
    """Total variation between the distributions of each attribute (its values, one for each picture), averaged."""
    tables = [_one_hot(values) for values in attributes]

    def between(a: Tensor, b: Tensor) -> Tensor:
        of_a, of_b = a.sum(1, keepdim=True), b.sum(1, keepdim=True)
        shares = ((a @ table / of_a, b @ table / of_b) for table in tables)
        return torch.stack([(p - q).abs().sum(1) / 2 for p, q in shares]).mean(0)

    return between


def _one_hot(values: Sequence[str]) -> Tensor:
    """(n, number of values)."""
    names = list(dict.fromkeys(values))
    return torch.tensor([[float(value == name) for name in names] for value in values], dtype=torch.float64)
