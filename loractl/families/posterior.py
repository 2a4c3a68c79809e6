"""What an autoencoder says of pictures."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """What the autoencoder says of pictures: means and, unless it is deterministic, spreads (n, c, h, w), scaled
    for the denoiser.
    """

    mean: Tensor
    spread: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean if self.spread is None else self.mean + self.spread * noise
