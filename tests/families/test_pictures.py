"""Pictures of any shape, from pictures and masks and along schedules: in every family what diffusers' own pipelines
make of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from loractl_infer.shots import pixels
from PIL import Image
from torch import Tensor

from loractl.errors import MismatchError
from loractl.families.family import Family
from loractl.families.pipeline import family_of
from loractl.inject.targets import resolve
from loractl.sample.canvas import Canvas
from loractl.sample.denoise import Request
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.sample.task import task_pipeline
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.families.conftest import PROMPT
from tests.families.tiny import PIPELINES, whole
from tests.tiny import WIDTH

WIDE = (96, 64)
CLASSES = {
    "sd": "StableDiffusion",
    "sdxl": "StableDiffusionXL",
    "sd3": "StableDiffusion3",
    "flux": "Flux",
    "qwen_image": "QwenImage",
    "z_image": "ZImage",
}
"""The families that diffusers draws in from a picture, and what their pipelines' names begin with."""


@cache
def model_of(name: str) -> Family:
    pipeline = whole(name)
    model = family_of(name, type(pipeline).__name__)(pipeline, torch.float32)
    for network in model.networks.values():
        network.requires_grad_(False).eval()
    return model


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))


def half(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def request(model: Family, canvas: Canvas | None = None, steps: int = 4) -> Request:
    return Request(PROMPT, 3, steps, model.guidance, WIDE, canvas=canvas)


def ours(name: str, canvas: Canvas | None = None) -> Image.Image:
    model = model_of(name)
    with Session(model) as session:
        (picture,) = session.render([request(model, canvas)])
    return picture


def theirs(name: str, pipeline: Any, **canvas: Any) -> Image.Image:
    """Diffusers' own call, of its own class."""
    model = model_of(name)
    told = model.arguments(
        {
            "prompt": [PROMPT],
            "negative_prompt": [""],
            "num_inference_steps": 4,
            "guidance_scale": model.guidance,
            "generator": torch.Generator().manual_seed(3),
            "width": WIDE[0],
            "height": WIDE[1],
            **canvas,
        }
    )
    pipeline.set_progress_bar_config(disable=True)
    known = signature(pipeline.__call__).parameters
    made: Image.Image = pipeline(**{word: value for word, value in told.items() if word in known}).images[0]
    return made


def by_hand(name: str, kind: str) -> Any:
    """A pipeline of a class of diffusers, out of the family's networks."""
    own = model_of(name).pipeline
    scheduler = type(own.scheduler).from_config(own.scheduler.config)
    made = getattr(diffusers, f"{CLASSES[name]}{kind}Pipeline")
    wanted = signature(made.__init__).parameters
    parts = {part: network for part, network in own.components.items() if part in wanted}
    more = {"requires_safety_checker": False} if "requires_safety_checker" in wanted else {}
    return made(**parts | {"scheduler": scheduler}, **more)


def distance(one: Image.Image, two: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(two, int)).max())


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_may_be_wider_than_high(name: str) -> None:
    made = ours(name)
    assert made.size == WIDE and np.asarray(made).std() > 1
    assert distance(made, theirs(name, model_of(name).pipeline)) <= 1


@pytest.mark.parametrize("name", CLASSES)
def test_a_picture_from_a_picture_is_diffusers_own(name: str) -> None:
    start = noise(WIDE)
    made = ours(name, Canvas(start, 0.5))
    assert made.size == WIDE and distance(made, ours(name)) > 1
    assert distance(made, theirs(name, by_hand(name, "Img2Img"), image=start, strength=0.5)) <= 1


@pytest.mark.parametrize("name", CLASSES)
def test_inpainting_is_diffusers_own(name: str) -> None:
    start, mask = noise(WIDE), half(WIDE)
    made = ours(name, Canvas(start, 0.75, mask))
    assert made.size == WIDE and distance(made, ours(name, Canvas(start, 0.75))) > 1
    inpaint = by_hand(name, "Inpaint")
    assert distance(made, theirs(name, inpaint, image=start, mask_image=mask, strength=0.75)) <= 1


@pytest.mark.parametrize("name", sorted({*PIPELINES} - {*CLASSES, "sd2"}))
def test_families_that_cannot_start_from_a_picture_say_so(name: str) -> None:
    """Flux.2's pipeline takes pictures, but as something to look at."""
    own = model_of(name).pipeline
    for kind, mask in (("Image2Image", None), ("Inpainting", half(WIDE))):
        with pytest.raises(MismatchError, match=f"no {kind} pipeline for {type(own).__name__}: use another model"):
            task_pipeline(own, Canvas(noise(WIDE), 0.5, mask), "")


def test_sides_are_multiples_of_a_familys_patches() -> None:
    assert pixels(model_of("flux"), "96x64") == WIDE and pixels(model_of("flux"), 32) == (32, 32)
    with pytest.raises(MismatchError, match=r"a multiple of 16 pixels: set sample\.size = 96x64, not 104x64"):
        pixels(model_of("flux"), "104x64")


def test_a_token_is_read_whole_from_a_picture_too() -> None:
    """Flux's pipelines that start from pictures leave it to others to write out the vectors of a token."""
    model, said = model_of("flux"), []
    for second in (0.0, 1.0):
        rows = torch.stack([torch.zeros(WIDTH), torch.full((WIDTH,), second)])
        token = Adapter({}, {}, {f"{encoder}.<rex>": rows for encoder in model.text_encoder_names})
        with Session(model) as session, recording(model) as heard:
            session.add("rex", token)
            list(session.render([replace(request(model, Canvas(noise(WIDE), 0.5)), prompt="a <rex>")]))
        said.append(heard[0])
    assert (said[0] - said[1]).abs().max() > 1e-5


# Schedules


def random_adapter(model: Family, seed: int) -> Adapter:
    rng, modules = torch.Generator().manual_seed(seed), {}
    for path in resolve(model.denoiser, model.patterns("attention"), 2):
        out, inner = model.denoiser.get_parameter(f"{path}.weight").shape
        down, up = torch.randn(2, inner, generator=rng) / 5, torch.randn(out, 2, generator=rng) / 5
        modules[f"{model.denoiser_name}.{path}"] = LowRank(down, up, 2.0)
    return Adapter(modules)


@contextmanager
def recording(model: Family) -> Iterator[list[Tensor]]:
    """What the denoiser says, call by call."""
    said: list[Tensor] = []

    def hear(*arguments: Any) -> None:
        first = arguments[-1][0]
        said.append(torch.stack(first) if isinstance(first, list) else first.clone())

    hook = model.denoiser.register_forward_hook(hear)
    try:
        yield said
    finally:
        hook.remove()


def composed_by_hand(model: Family, adapter: Adapter, weights: list[float]) -> list[Tensor]:
    """Writes W + w·ΔW into the denoiser after every step of diffusers' own loop, and at last W."""
    modules = adapter.component(model.denoiser_name)
    before = {path: model.denoiser.get_parameter(f"{path}.weight").clone() for path in modules}

    def write(weight: float) -> None:
        for path, low in modules.items():
            model.denoiser.get_parameter(f"{path}.weight").data = before[path] + weight * low.delta()

    def after(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        write([*weights, 0.0][step + 1])
        return kwargs

    write(weights[0])
    with recording(model) as said:
        model.paint(
            prompt=[PROMPT],
            negative_prompt=[""],
            num_inference_steps=len(weights),
            guidance_scale=model.guidance,
            width=WIDE[0],
            height=WIDE[1],
            generator=[torch.Generator().manual_seed(3)],
            callback_on_step_end=after,
        )
    return said


def scheduled(model: Family, adapter: Adapter, use: Use, engine: Any) -> list[Tensor]:
    with Session(model, engine) as session, recording(model) as said:
        session.add("one", adapter, use)
        list(session.render([request(model, steps=3)]))
    return said


@pytest.mark.parametrize("name", PIPELINES)
def test_a_schedule_is_composing_by_hand(name: str) -> None:
    """With either engine, at every step."""
    model = model_of(name)
    adapter = random_adapter(model, 1)
    use = Use(0.8, Schedule(((0.0, 0.5), (1.0, 1.5)), shape="linear"))
    expected = composed_by_hand(model, adapter, [0.4, 0.8, 1.2])
    steady = scheduled(model, adapter, Use(0.8), "composed")
    assert max(float((one - two).abs().max()) for one, two in zip(steady, expected, strict=True)) > 1e-3
    for engine in ("composed", "branch"):
        found = scheduled(model, adapter, use, engine)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
