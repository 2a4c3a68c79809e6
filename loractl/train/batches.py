"""What the samples of a step are: which picture, how cut, which caption, which noise and time.

Everything follows from (seed, purpose, step, sample), so a step can be made again alone, and two accumulated
batches are one of twice the size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import gcd

import torch
from torch import Tensor

from loractl.data.cache import Cache
from loractl.data.captions import vary
from loractl.data.images import Size
from loractl.data.latents import Encoded, Latents, Report
from loractl.data.views import View
from loractl.device import upload
from loractl.families.posterior import Posterior
from loractl.train.noise import Noising
from loractl.train.streams import stream


@dataclass(frozen=True)
class Batch:
    """Samples of one size. The target's noise and what is mixed into x_t differ only where the input is perturbed."""

    latents: Tensor  # (n, c, h, w)
    noise: Tensor  # (n, c, h, w)
    mixed: Tensor  # (n, c, h, w)
    times: Tensor  # (n,) in [0, 1)
    captions: Sequence[str]
    mask: Tensor | None = None  # (n, 1, h, w): weights of the loss
    extra: Tensor | None = None  # (n, 1 + c, h, w): what an inpainting model sees beside x_t, the hole first
    names: Sequence[str] = ()  # the pictures' paths, for reports
    sizes: Tensor | None = None  # (n, 6): of the pictures, of what is cut off them, and of what is left

    def __len__(self) -> int:
        return len(self.captions)

    def __add__(self, other: "Batch") -> "Batch":
        """Both, one after the other; a mask of ones where only the other side has one."""
        return Batch(
            torch.cat([self.latents, other.latents]),
            torch.cat([self.noise, other.noise]),
            torch.cat([self.mixed, other.mixed]),
            torch.cat([self.times, other.times]),
            [*self.captions, *other.captions],
            _joined_masks(self, other),
            None if self.extra is None or other.extra is None else torch.cat([self.extra, other.extra]),
            [*self.names, *other.names],
            None if self.sizes is None or other.sizes is None else torch.cat([self.sizes, other.sizes]),
        )


@dataclass(frozen=True)
class Share:
    """The samples of a step that one of `processes` takes: accumulated batches of its own as far as these go around,
    and beyond that equal slices of them. All shares together are the step; each has as many samples as any other, so
    the mean of their means is the step's.
    """

    batch_size: int
    grad_accum: int = 1
    index: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.per_step % self.processes:
            raise ValueError(f"{self.processes} processes can't share {self.per_step} samples evenly")

    @property
    def per_step(self) -> int:
        """The samples of all."""
        return self.batch_size * self.grad_accum

    @property
    def parts(self) -> int:
        """Batches that the process accumulates."""
        return self.grad_accum // self._columns

    def samples(self, part: int) -> range:
        """The numbers of the samples in one of the process's batches."""
        size = self.per_step // (self.processes * self.parts)
        column, piece = self.index % self._columns, self.index // self._columns
        start = (column * self.parts + part) * self.batch_size + piece * size
        return range(start, start + size)

    @property
    def _columns(self) -> int:
        """Into how many groups the processes fall whose accumulated batches differ."""
        return gcd(self.grad_accum, self.processes)


def _joined_masks(*batches: Batch) -> Tensor | None:
    if all(batch.mask is None for batch in batches):
        return None
    masks = (torch.ones_like(batch.latents[:, :1]) if batch.mask is None else batch.mask for batch in batches)
    return torch.cat(list(masks))


@dataclass(frozen=True)
class Source:
    """Examples and how they are shown. `purpose` keeps the randomness of two sources apart.

    All samples of a step come from one bucket (the examples of one size). An epoch has as many steps of a bucket as
    hold its examples, shuffled together; in every one the bucket goes on where its last step stopped, through
    one shuffle after another, so that within it each example comes equally often, times its repeats.
    """

    purpose: str
    latents: Latents
    seed: int
    noising: Noising = field(default_factory=Noising)
    caption_dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    tag_dropout: float = 0.0
    mask_floor: float = 0.0  # the loss's weight where a mask is black

    def prepare(self, variants: int = 1, cache: Cache | None = None, report: Report = lambda *_: None) -> None:
        """Encodes all pictures ahead; see `Latents.prepare`."""
        self.latents.prepare(lambda content, k: self._stream("variant", content, k), variants, cache, report)

    def batch(self, step: int, samples: range, per_step: int) -> Batch:
        """The samples numbered `samples` among the `per_step` of one step, on the latents' device."""
        views = [self.view(step, sample, per_step) for sample in samples]
        examples = [self.latents.examples[view.index] for view in views]
        encoded = self.latents.encoded(views)
        noise, mixed = self._noise(encoded.mean, step, samples)
        times = torch.tensor([self.noising.time(self._stream("time", step, sample)) for sample in samples])
        return Batch(
            self._drawn(encoded.latents, "posterior", step, samples),
            noise,
            mixed,
            upload(times.float(), noise.device),
            [self._caption(example.caption, step, sample) for example, sample in zip(examples, samples, strict=True)],
            None if encoded.mask is None else self.mask_floor + (1 - self.mask_floor) * encoded.mask,
            self._extra(encoded, step, samples),
            [str(example.path) for example in examples],
            self.latents.sizes(views),
        )

    def view(self, step: int, sample: int, per_step: int) -> View:
        """Which picture a sample shows, and how."""
        steps = {size: -(-len(bucket) // per_step) for size, bucket in self._buckets.items()}
        epoch, position = divmod(step, sum(steps.values()))
        order = _bucket_order(self.seed, self.purpose, epoch, tuple(steps.items()))
        size = order[position]
        before = epoch * steps[size] + order[:position].count(size)  # steps that this bucket has had
        bucket = self._buckets[size]
        number, place = divmod(before * per_step + sample, len(bucket))
        index = bucket[_shuffled(self.seed, self.purpose, size, number, len(bucket))[place]]
        return self.latents.view(index, self._stream("view", step, sample))

    @cached_property
    def _buckets(self) -> dict[Size, list[int]]:
        """Indices of the examples of each size, in order of the sizes, each as often as it is repeated."""
        frames, examples = self.latents.frames, self.latents.examples
        return {
            size: [i for i, example in enumerate(examples) if frames[i] == size for _ in range(example.repeats)]
            for size in sorted(set(frames))
        }

    def _caption(self, caption: str, step: int, sample: int) -> str:
        return vary(
            caption,
            self._stream("caption", step, sample),
            shuffle_tags=self.shuffle_tags,
            keep_tokens=self.keep_tags,
            dropout=self.caption_dropout,
            tag_dropout=self.tag_dropout,
        )

    def _noise(self, like: Tensor, step: int, samples: range) -> tuple[Tensor, Tensor]:
        """ε of each sample, and what is mixed into x_t in its place: one tensor where they are the same."""
        streams = [self._stream("noise", step, sample) for sample in samples]
        noise = [self.noising.noise(like.shape[1:], generator) for generator in streams]
        mixed = [self.noising.mixed(each, generator) for each, generator in zip(noise, streams, strict=True)]
        uploaded = upload(torch.stack(noise), like.device)
        if all(one is other for one, other in zip(noise, mixed, strict=True)):
            return uploaded, uploaded
        return uploaded, upload(torch.stack(mixed), like.device)

    def _extra(self, encoded: Encoded, step: int, samples: range) -> Tensor | None:
        if encoded.hole is None or encoded.seen is None:
            return None
        return torch.cat([encoded.hole, self._drawn(encoded.seen, "seen", step, samples)], 1)

    def _drawn(self, posterior: Posterior, what: str, step: int, samples: range) -> Tensor:
        """A draw from each sample's posterior."""
        if posterior.spread is None:
            return posterior.mean
        shape = posterior.mean.shape[1:]
        noise = [torch.randn(shape, generator=self._stream(what, step, sample)) for sample in samples]
        return posterior.sample(upload(torch.stack(noise), posterior.mean.device))

    def _stream(self, *what: str | int) -> torch.Generator:
        return stream(self.seed, self.purpose, *what)


@lru_cache(maxsize=8)
def _bucket_order(seed: int, purpose: str, epoch: int, steps: tuple[tuple[Size, int], ...]) -> list[Size]:
    """The bucket of each step of an epoch: so many steps of each, shuffled."""
    sizes = [size for size, count in steps for _ in range(count)]
    order = torch.randperm(len(sizes), generator=stream(seed, purpose, "buckets", epoch)).tolist()
    return [sizes[place] for place in order]


@lru_cache(maxsize=256)
def _shuffled(seed: int, purpose: str, size: Size, number: int, count: int) -> list[int]:
    """A bucket's shuffle of this number."""
    order: list[int] = torch.randperm(count, generator=stream(seed, purpose, "order", *size, number)).tolist()
    return order
