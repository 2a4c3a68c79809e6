"""Latents of a set of pictures, encoded once for each way a picture is cut and mirrored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from loractl.data.images import read_picture, square, to_tensor
from loractl.device import upload
from loractl.families.sd import Posterior


@dataclass(frozen=True)
class View:
    """One picture as one sample sees it: mirrored or not, cut at (x, y) from 0 (left, top) to 1 (right, bottom)."""

    index: int
    flip: bool = False
    x: float = 0.5
    y: float = 0.5


class Latents:
    """Posteriors of views. A view that was prepared is kept; another is encoded when it is asked for, so that
    random crops stay random.
    """

    def __init__(self, paths: Sequence[Path], resolution: int, encode: Callable[[Tensor], Posterior]) -> None:
        self.paths, self.resolution, self._encode = paths, resolution, encode
        self._kept: dict[View, Posterior] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def prepare(self, flips: bool, chunk: int = 8) -> None:
        """Encodes every picture's center, and its mirror image if `flips`."""
        views = [View(index, flip) for flip in ((False, True) if flips else (False,)) for index in range(len(self))]
        for first in range(0, len(views), chunk):
            several = views[first : first + chunk]
            posterior = self._posterior(several)
            for i, view in enumerate(several):
                self._kept[view] = _rows(posterior, slice(i, i + 1))

    def sample(self, views: Sequence[View], noise: Tensor) -> Tensor:
        """A draw from each view's posterior; noise (n, c, h, w) decides which."""
        if all(view in self._kept for view in views):
            kept = [self._kept[view] for view in views]
            spreads = [posterior.spread for posterior in kept if posterior.spread is not None]
            posterior = Posterior(torch.cat([p.mean for p in kept]), torch.cat(spreads) if spreads else None)
        else:
            posterior = self._posterior(views)
        return posterior.sample(upload(noise, posterior.mean.device))

    @property
    def shape(self) -> torch.Size:
        """Of one picture's latents: (c, h, w)."""
        posterior = self._kept.get(View(0)) or self._posterior([View(0)])
        return posterior.mean.shape[1:]

    def _posterior(self, views: Sequence[View]) -> Posterior:
        return self._encode(to_tensor([self._picture(view) for view in views]))

    def _picture(self, view: View) -> Image.Image:
        picture = square(read_picture(self.paths[view.index]), self.resolution, view.x, view.y)
        return ImageOps.mirror(picture) if view.flip else picture


def _rows(posterior: Posterior, rows: slice) -> Posterior:
    return Posterior(posterior.mean[rows], None if posterior.spread is None else posterior.spread[rows])
