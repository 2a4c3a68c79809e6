"""What Stable Diffusion XL is told of the sizes of its training pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from loractl.data.examples import Example
from loractl.data.images import part
from loractl.data.latents import Latents
from loractl.data.views import Variety, View
from loractl.families.pipeline import family_of
from loractl.train.batches import Source
from loractl.train.loss import prediction
from tests.families.tiny import whole

CPU = torch.device("cpu")
SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@pytest.mark.parametrize(
    ("view", "whole_size", "size", "told"),
    [
        (View(0), (64, 64), (64, 64), (64, 64, 0, 0, 64, 64)),
        (View(0), (1000, 500), (250, 250), (500, 1000, 0, 125, 250, 250)),
        (View(0, x=0.2), (1000, 500), (250, 250), (500, 1000, 0, 50, 250, 250)),
        (View(0, x=0.2, flip=True), (1000, 500), (250, 250), (500, 1000, 0, 200, 250, 250)),
        (View(0, y=1.0), (30, 60), (60, 60), (60, 30, 60, 0, 60, 60)),  # enlarged twice
        (View(0), (300, 200), (150, 100), (200, 300, 0, 0, 100, 150)),
    ],
)
def test_sizes_of_a_view(view: View, whole_size: Any, size: Any, told: tuple[int, ...]) -> None:
    assert view.sizes(whole_size, size) == told


@given(SIZES, st.tuples(st.integers(1, 2000), st.integers(1, 2000)), st.floats(0, 1), st.floats(0, 1))
def test_a_part_has_its_place_in_the_whole(whole_size: Any, size: Any, x: float, y: float) -> None:
    """As large as fits in one direction, and a mirrored view is cut from the other side."""
    left, top, right, bottom = part(whole_size, size, x, y)
    assert 0 <= left <= right <= whole_size[0] and 0 <= top <= bottom <= whole_size[1]
    assert right - left == whole_size[0] or bottom - top == whole_size[1]


@pytest.mark.parametrize("name", ["sdxl", "sd"])
def test_the_denoiser_is_told_of_each_sample(name: str, tmp_path: Path) -> None:
    """Of two pictures in one step, mirrored as they are shown; other families are told nothing of it."""
    pipeline = whole(name)
    model = family_of("here", type(pipeline).__name__)(pipeline, torch.float32)
    for number, size in enumerate(((160, 80), (64, 96))):
        Image.new("RGB", size, (40, 90, 20 * number)).save(tmp_path / f"{number}.png")
    examples = [Example(tmp_path / f"{number}.png", "a dog") for number in range(2)]
    variety = Variety(flip=True, random_crop=True)
    source = Source("subject", Latents(examples, [(64, 64)] * 2, model.encode_pictures, CPU, variety), seed=3)
    source.prepare(variants=2)
    told: list[Tensor | None] = []
    forward = pipeline.unet.forward

    def listening(*arguments: Any, **named: Any) -> Any:
        told.append((named.get("added_cond_kwargs") or {}).get("time_ids"))
        return forward(*arguments, **named)

    pipeline.unet.forward = listening
    batch = source.batch(0, range(2), 2)
    both = batch + batch
    prediction(model, both, model.encode_text(both.captions))
    wanted = [
        view.sizes(Image.open(examples[view.index].path).size, (64, 64))
        for view in (source.view(0, sample, 2) for sample in range(2))
    ]
    assert len({row[:2] for row in wanted}) == 2 and any(row[2] or row[3] for row in wanted)
    if name == "sdxl":
        assert told[0] is not None and told[0].tolist() == [list(row) for row in (*wanted, *wanted)]
    else:
        assert told == [None]
