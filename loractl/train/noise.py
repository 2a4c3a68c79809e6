"""The noise of one sample, what the model is shown in its place, and the time at which: pure functions of a generator.

As it stands everything is off, and the draws are plain: ε ~ N(0, I) and t ~ U[0, 1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Distribution = Literal["uniform", "logit-normal"]


@dataclass(frozen=True)
class Noising:
    """`offset`, `pyramid` and `perturbation` are strengths; `low` and `high` bound the time, 0 clean and 1 noise.

    `mean` and `std` shape the logit-normal distribution alone.
    """

    offset: float = 0.0
    pyramid: float = 0.0
    perturbation: float = 0.0
    low: float = 0.0
    high: float = 1.0
    distribution: Distribution = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def noise(self, shape: torch.Size | tuple[int, int, int], generator: Generator) -> Tensor:
        """One sample's ε (c, h, w): what is mixed into the latents and, but for `mixed`, what the model must tell.

        `offset` adds a constant to each channel, so that a picture's mean can change (Guttenberg 2023, "Diffusion
        With Offset Noise").
        """
        noise = torch.randn(shape, generator=generator)
        if self.pyramid:
            noise = _with_pyramid(noise, self.pyramid, generator)
        if self.offset:
            noise = noise + self.offset * torch.randn(shape[0], 1, 1, generator=generator)
        return noise

    def mixed(self, noise: Tensor, generator: Generator) -> Tensor:
        """ε + γ·ξ, which goes into x_t while ε stays the target: the model learns to mend its own errors (Ning et al.
        2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models"; γ = 0.1 there).
        """
        if not self.perturbation:
            return noise
        return noise + self.perturbation * torch.randn(noise.shape, generator=generator)

    def time(self, generator: Generator) -> float:
        """A time in [low, high)."""
        drawn = torch.rand(1, generator=generator).item()
        return self.low + (self.high - self.low) * _QUANTILES[self.distribution](drawn, self)


def _with_pyramid(noise: Tensor, discount: float, generator: Generator) -> Tensor:
    """Adds noise of ever lower resolutions, of strength discountⁱ, and divides by the standard deviation of the sum
    (Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training").
    """
    height, width = noise.shape[-2:]
    for level in count():
        factor = (2 + 2 * torch.rand(1, generator=generator).item()) ** level  # each level 2 to 4 times as coarse
        size = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn(1, noise.shape[0], *size, generator=generator)
        noise = noise + discount**level * F.interpolate(coarse, (height, width), mode="bilinear")[0]
        if 1 in size:
            break
    return noise / noise.std()


def _logit_normal(u: float, noising: Noising) -> float:
    """1 / (1 + exp(−n)) for n ~ N(mean, std²), the normal distribution's quantile of u (Esser et al. 2024, "Scaling
    Rectified Flow Transformers for High-Resolution Image Synthesis", section 3.1).
    """
    quantile = torch.special.ndtri(torch.tensor(u, dtype=torch.float64))
    return torch.sigmoid(noising.mean + noising.std * quantile).item()


# How a uniform draw becomes a time.
_QUANTILES: Mapping[Distribution, Callable[[float, Noising], float]] = {
    "uniform": lambda u, _: u,
    "logit-normal": _logit_normal,
}
