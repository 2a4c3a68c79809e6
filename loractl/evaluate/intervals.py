"""How sure a score is: bootstrap intervals over prompts and seeds, and what chance alone would show.

A statistic is a function of counts (draws, n), how often each of n pictures counts, to values (draws,): counts of one
give the score, resampled counts its bootstrap distribution (Efron 1979). A comparison takes two rows of counts over the
same pictures, those on the one side and those on the other.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]  # (draws, n) → (draws,)
Comparison = Callable[[Tensor, Tensor], Tensor]  # two of (draws, n) → (draws,)

DRAWS = 1000
TAILS = (0.025, 0.975)  # of a 95 % interval


def once(count: int) -> Tensor:
    """Each picture counts once: (1, count)."""
    return torch.ones(1, count, dtype=torch.float64)


def resampled(prompts: Sequence[str], seed: int = 0, draws: int = DRAWS) -> Tensor:
    """Bootstrap counts (draws, n) of pictures made for `prompts`: prompts are drawn, then the pictures of each.

    Two stages, since pictures of one prompt are alike and make no independent witnesses (Davison & Hinkley 1997,
    section 3.8).
    """
    rng = torch.Generator().manual_seed(seed)
    groups = [[i for i, each in enumerate(prompts) if each == prompt] for prompt in dict.fromkeys(prompts)]
    sizes = torch.tensor([len(group) for group in groups])
    longest = int(sizes.max())
    members = torch.tensor([[*group, *[0] * (longest - len(group))] for group in groups])  # (groups, longest)
    drawn = torch.randint(len(groups), (draws, len(groups)), generator=rng)
    size = sizes[drawn][..., None]  # (draws, groups, 1)
    places = (torch.rand(draws, len(groups), longest, generator=rng) * size).long()
    counted = (torch.arange(longest) < size).double()
    pictures = members[drawn[..., None], places]  # (draws, groups, longest)
    return torch.zeros(draws, len(prompts), dtype=torch.float64).scatter_add_(
        1, pictures.flatten(1), counted.flatten(1)
    )


def percentiles(estimates: Tensor) -> tuple[float, float]:
    """The middle 95 % of bootstrap estimates; draws that gave none (NaN) are left out."""
    low, high = torch.nanquantile(estimates, torch.tensor(TAILS, dtype=torch.float64)).tolist()
    return low, high


def reflected(value: float, estimates: Tensor) -> tuple[float, float]:
    """The same mirrored at the value, within [0, 1]: the "basic" interval (Davison & Hinkley 1997, section 5.2).

    A distance between samples is too large on average, and the bootstrap adds about the same excess once more;
    mirrored, the two cancel. So the interval is of the distance without the excess, and the value may lie above it.
    """
    low, high = percentiles(estimates)
    return max(2 * value - high, 0.0), min(max(2 * value - low, 0.0), 1.0)


def by_chance(compare: Comparison, pairs: int, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """What a comparison of pictures before with as many after gives when before and after mean nothing: (draws,).

    A permutation null: in each of the `pairs`, of one prompt and seed, the two change places or not.
    """
    rng = torch.Generator().manual_seed(seed)
    swapped = torch.randint(2, (draws, pairs), generator=rng).double()
    kept = 1 - swapped
    return compare(torch.cat([kept, swapped], 1), torch.cat([swapped, kept], 1))
