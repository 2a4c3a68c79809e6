"""Samples follow from (seed, purpose, step, sample) and from nothing else."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from loractl.data.latents import Latents, View
from loractl.families.sd import Posterior
from loractl.train.batches import Source


def encode(pictures: Tensor) -> Posterior:
    """A stand-in for an autoencoder: the picture itself, with a spread."""
    return Posterior(pictures, torch.full_like(pictures, 0.5))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for i in range(3):
        picture = Image.new("RGB", (12, 8), (80 * i, 0, 0))
        picture.putpixel((3, 0), (0, 255, 0))  # so that mirror images and crops differ
        picture.save(tmp_path / f"{i}.png")
    latents = Latents(sorted(tmp_path.glob("*.png")), 8, encode)
    return Source("subject", latents, ["zero", "one", "two"], seed=1, flip=True)


def test_two_accumulated_batches_are_one_of_twice_the_size(source: Source) -> None:
    whole = source.batch(5, range(4), 4, 1000)
    halves = source.batch(5, range(2), 4, 1000) + source.batch(5, range(2, 4), 4, 1000)
    assert torch.equal(whole.latents, halves.latents)
    assert torch.equal(whole.noise, halves.noise)
    assert torch.equal(whole.timesteps, halves.timesteps)
    assert list(whole.captions) == list(halves.captions)


def test_every_picture_is_shown_as_often_as_it_is_repeated(source: Source) -> None:
    twice = replace(source, repeats=2)
    shown = Counter(caption for step in range(3) for caption in twice.batch(step, range(4), 4, 1000).captions)
    assert shown == {"zero": 4, "one": 4, "two": 4}


def test_steps_seeds_and_purposes_differ(source: Source) -> None:
    others = [source.batch(1, range(2), 2, 1000), replace(source, seed=2).batch(0, range(2), 2, 1000)]
    others.append(replace(source, purpose="class").batch(0, range(2), 2, 1000))
    first = source.batch(0, range(2), 2, 1000)
    assert not any(torch.equal(first.noise, other.noise) for other in others)


def test_flips_and_dropped_captions_are_drawn_anew(source: Source) -> None:
    dropping = replace(source, caption_dropout=0.3)
    drawn = [dropping._draw(step, 0, 1, 1000) for step in range(400)]
    assert 150 < sum(view.flip for view, _, _ in drawn) < 250
    assert 80 < sum(caption == "" for _, caption, _ in drawn) < 160
    assert min(t for *_, t in drawn) < 20 and max(t for *_, t in drawn) > 980


def test_kept_latents_equal_fresh_ones(source: Source) -> None:
    fresh = source.batch(0, range(4), 4, 1000)
    source.latents.prepare(flips=True)
    assert torch.equal(source.batch(0, range(4), 4, 1000).latents, fresh.latents)


def test_a_kept_posterior_still_gives_a_new_draw_each_time(source: Source) -> None:
    source.latents.prepare(flips=False)
    one, two = (source.latents.sample([View(0)], torch.full((1, 3, 8, 8), value)) for value in (0.0, 1.0))
    torch.testing.assert_close(two - one, torch.full((1, 3, 8, 8), 0.5))


def test_a_flipped_view_is_the_mirror_image(source: Source) -> None:
    zero = torch.zeros(1, 3, 8, 8)
    straight, mirrored = (source.latents.sample([View(0, flip)], zero) for flip in (False, True))
    assert torch.equal(straight.flip(-1), mirrored) and not torch.equal(straight, mirrored)


def test_crops_move(source: Source) -> None:
    zero = torch.zeros(1, 3, 8, 8)
    left, right = (source.latents.sample([View(0, x=x)], zero) for x in (0.0, 1.0))
    assert left[0, 1, 0, 3] > 0.5 and (right[0, 1] < 0).all()  # the green pixel is 3 from the left of 12
