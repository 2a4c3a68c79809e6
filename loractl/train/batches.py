"""What the samples of a step are: which picture, how cut, which caption, which noise and timestep.

Everything follows from (seed, purpose, step, sample), so a step can be made again alone, and two accumulated
batches are one of twice the size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from loractl.data.latents import Latents, View
from loractl.device import upload
from loractl.train.streams import stream


@dataclass(frozen=True)
class Batch:
    """Latents and noise (n, c, h, w), timesteps (n,), one caption each."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __add__(self, other: "Batch") -> "Batch":
        return Batch(
            torch.cat([self.latents, other.latents]),
            torch.cat([self.noise, other.noise]),
            torch.cat([self.timesteps, other.timesteps]),
            [*self.captions, *other.captions],
        )


@dataclass(frozen=True)
class Source:
    """Pictures and how they are shown. `purpose` keeps the randomness of two sources apart."""

    purpose: str
    latents: Latents
    captions: Sequence[str]
    seed: int
    repeats: int = 1
    flip: bool = False
    random_crop: bool = False
    caption_dropout: float = 0.0

    def batch(self, step: int, samples: range, per_step: int, num_timesteps: int) -> Batch:
        """The samples numbered `samples` among the `per_step` of one step, on the latents' device."""
        drawn = [self._draw(step, sample, per_step, num_timesteps) for sample in samples]
        shape = self.latents.shape
        generators = [stream(self.seed, self.purpose, "noise", step, sample) for sample in samples]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        posterior_noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        latents = self.latents.sample([view for view, _, _ in drawn], posterior_noise)
        timesteps = upload(torch.tensor([t for _, _, t in drawn]), latents.device)
        return Batch(latents, upload(noise, latents.device), timesteps, [caption for _, caption, _ in drawn])

    def _draw(self, step: int, sample: int, per_step: int, num_timesteps: int) -> tuple[View, str, int]:
        epoch, position = divmod(step * per_step + sample, len(self.latents) * self.repeats)
        index = _order(self.seed, self.purpose, epoch, len(self.latents), self.repeats)[position]
        flip, x, y, drop, t = torch.rand(5, generator=stream(self.seed, self.purpose, "view", step, sample)).tolist()
        view = View(index, self.flip and flip < 0.5, *((x, y) if self.random_crop else (0.5, 0.5)))
        caption = "" if drop < self.caption_dropout else self.captions[index]
        return view, caption, int(t * num_timesteps)


@lru_cache(maxsize=8)
def _order(seed: int, purpose: str, epoch: int, count: int, repeats: int) -> list[int]:
    """The pictures of one epoch, shuffled."""
    order = torch.randperm(count * repeats, generator=stream(seed, purpose, "order", epoch))
    return (order % count).tolist()
