"""Latents of training examples: encoded anew for each sample, or once for several views of each picture.

What is kept of a view is its posterior, mean and spread, so that every step draws from it afresh.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from loractl.data.cache import Cache, file_hash
from loractl.data.examples import Example
from loractl.data.images import Size, picture_size, read_picture, to_tensor
from loractl.data.masks import mask_tensor, nearest, read_mask, shrink
from loractl.data.views import Variety, View
from loractl.device import upload
from loractl.families.posterior import Posterior

Draw = Callable[[str, int], torch.Generator]  # (hash of a picture, number of a variant) → where it is drawn from
Report = Callable[[int, int], None]  # pictures done, of how many


@dataclass(frozen=True)
class Encoded:
    """Views as the denoiser will see them: the posterior (n, c, h, w), the mask (n, 1, h, w) in [0, 1], and for
    inpainting the hole (n, 1, h, w), 1 where the picture is hidden, and the posterior of what is left of it.
    """

    mean: Tensor
    spread: Tensor | None = None
    mask: Tensor | None = None
    hole: Tensor | None = None
    seen_mean: Tensor | None = None
    seen_spread: Tensor | None = None

    @property
    def latents(self) -> Posterior:
        return Posterior(self.mean, self.spread)

    @property
    def seen(self) -> Posterior | None:
        return None if self.seen_mean is None else Posterior(self.seen_mean, self.seen_spread)

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def to(self, move: Callable[[Tensor], Tensor]) -> "Encoded":
        return Encoded(**{name: move(value) for name, value in self.tensors().items()})


class Latents:
    """Examples, the size at which each is trained (`frames`), and how their views may vary.

    `encode` takes pictures (1, 3, height, width) in [-1, 1]; once everything is prepared (`complete`) it is not called
    again, and the autoencoder may go.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        frames: Sequence[Size],
        encode: Callable[[Tensor], Posterior],
        device: torch.device,
        variety: Variety = Variety(),
        from_alpha: bool = False,
    ) -> None:
        self.examples, self.frames, self.variety = examples, frames, variety
        self._encode, self._device, self._from_alpha = encode, device, from_alpha
        self._variants: list[list[View]] = []
        self._kept: dict[View, Encoded] = {}  # on the CPU: many pictures would crowd a GPU
        self._read = lru_cache(maxsize=1)(self._read_files)
        self._size = lru_cache(maxsize=None)(lambda index: picture_size(examples[index].path))

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def complete(self) -> bool:
        return len(self._variants) == len(self)

    def prepare(
        self,
        draw: Draw,
        variants: int = 1,
        cache: Cache | None = None,
        report: Report = lambda *_: None,
    ) -> None:
        """Encodes every picture: as it is where views don't vary, else `variants` times; and if flips are on, all of
        them mirrored as well. What the cache has is not encoded again.
        """
        self._variants.clear()
        self._kept.clear()
        for index in range(len(self)):
            self._read.cache_clear()  # the file may be another by now
            content = self._content(index)
            count = variants if self.variety.is_endless else 1
            views = [self.variety.view(index, draw(content["picture"], k)) for k in range(count)]
            for view in views:
                for flip in (False, True) if self.variety.flip else (False,):
                    shown = replace(view, flip=flip)
                    self._kept[shown] = self._recall(shown, content, cache)
            self._variants.append(views)
            report(index + 1, len(self))

    def view(self, index: int, generator: torch.Generator) -> View:
        """A view of a picture drawn at random: any there can be, or, once they are prepared, one of those."""
        fresh = self.variety.view(index, generator)
        if not self.complete:
            return fresh
        variants = self._variants[index]
        chosen = int(torch.randint(len(variants), (1,), generator=generator))
        return replace(variants[chosen], flip=fresh.flip)

    def encoded(self, views: Sequence[View]) -> Encoded:
        """Views of one size, on the device. Masks are all 1 where only other pictures have one."""
        if self.complete:
            return _stack([self._kept[view] for view in views]).to(lambda tensor: upload(tensor, self._device))
        # One by one, kept or not: what a picture becomes must not depend on its neighbors in a batch.
        return _stack([self._show(view) for view in views])

    def sizes(self, views: Sequence[View]) -> Tensor:
        """What each view's picture is cut from, (n, 6); see `View.sizes`."""
        rows = [view.sizes(self._size(view.index), self.frames[view.index]) for view in views]
        return upload(torch.tensor(rows, dtype=torch.float32), self._device)

    def _recall(self, view: View, content: Mapping[str, Any], cache: Cache | None) -> Encoded:
        key = {**content, "size": self.frames[view.index], "view": asdict(replace(view, index=0))}
        found = cache.read(key) if cache else None
        if found is not None:
            return Encoded(**found)
        encoded = self._show(view).to(Tensor.cpu)
        if cache:
            cache.write(key, encoded.tensors())
        return encoded

    def _content(self, index: int) -> dict[str, Any]:
        """What a picture's latents follow from, beside the view and the autoencoder."""
        example = self.examples[index]
        mask = None if example.mask is None else file_hash(example.mask)
        return {"picture": file_hash(example.path), "mask": mask, "from_alpha": self._from_alpha}

    def _show(self, view: View) -> Encoded:
        """One view encoded on the device."""
        size = self.frames[view.index]
        picture, mask = self._read(view.index)
        pixels = upload(to_tensor([view.picture(picture, size)]), self._device)
        posterior = self._encode(pixels)
        encoded = Encoded(posterior.mean, posterior.spread)
        cover = None if mask is None else self._cover(view.mask(mask, size))
        if cover is not None:
            encoded = replace(encoded, mask=shrink(cover, posterior.mean.shape[2:]))
        if view.hole is None:
            return encoded
        return self._with_hole(encoded, pixels, self._cover(view.hole.mask(size)) if cover is None else cover)

    def _with_hole(self, encoded: Encoded, pixels: Tensor, cover: Tensor) -> Encoded:
        """The same, and what an inpainting model sees: hidden pixels are gray, as in the pipelines."""
        hole = (cover >= 0.5).float()
        seen = self._encode(pixels * (1 - hole))
        small = nearest(hole, encoded.mean.shape[2:])
        return replace(encoded, hole=small, seen_mean=seen.mean, seen_spread=seen.spread)

    def _cover(self, mask: Image.Image) -> Tensor:
        return upload(mask_tensor(mask), self._device)

    def _read_files(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        example = self.examples[index]
        return read_picture(example.path), read_mask(example.path, example.mask, self._from_alpha)


def _stack(rows: Sequence[Encoded]) -> Encoded:
    if any(row.mask is not None for row in rows):
        rows = [row if row.mask is not None else replace(row, mask=torch.ones_like(row.mean[:, :1])) for row in rows]
    names = rows[0].tensors()
    return Encoded(**{name: torch.cat([row.tensors()[name] for row in rows]) for name in names})
