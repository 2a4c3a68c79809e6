"""Pictures from pictures, masks, schedulers and layers of CLIP: as diffusers' own pipelines make them."""

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from loractl.errors import MismatchError
from loractl.families.pipeline import load_model
from loractl.families.sd import StableDiffusion
from loractl.sample.canvas import Canvas, soft_edge
from loractl.sample.denoise import Request, render
from loractl.sample.preview import Preview
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.sample.task import make_scheduler, sampler_label
from loractl.samplers import FOLLOW_FLOWS, SAMPLERS
from tests.sample.models import outputs, random_adapter
from tests.tiny import tiny_sd

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' schedulers against numpy 2

PROMPT = "a picture of a red critter in the snow"
SIDE = 64


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    yield load_model("lab", torch.device("cpu"), torch.float32)


def scene() -> Image.Image:
    """Of another size than what is made of it."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    drawn = Image.new("L", (96, 96), 0)
    ImageDraw.Draw(drawn).rectangle((24, 24, 71, 71), fill=255)
    return drawn


def ours(model: StableDiffusion, **changes: Any) -> tuple[Tensor, Image.Image]:
    """What the denoiser says at each call, and the picture."""
    request, made = Request(**{**vars(Request(PROMPT, 7, 4, 4.0, SIDE)), **changes}), list[Image.Image]()
    said = outputs(model, lambda: made.extend(render(model.pipeline, [request])))
    return said, made[0]


def theirs(model: StableDiffusion, pipeline: Any, **changes: Any) -> tuple[Tensor, Image.Image]:
    pipeline.set_progress_bar_config(disable=True)
    settings = {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 4.0} | changes
    made = list[Image.Image]()
    rng = torch.Generator().manual_seed(7)
    said = outputs(model, lambda: made.extend(pipeline(**settings, generator=rng).images))
    return said, made[0]


def assert_same(one: tuple[Tensor, Image.Image], two: tuple[Tensor, Image.Image]) -> None:
    torch.testing.assert_close(one[0], two[0], atol=1e-5, rtol=0)
    assert np.abs(np.asarray(one[1], int) - np.asarray(two[1], int)).max() <= 1


def pipeline_of(kind: str, model: StableDiffusion, scheduler: Any) -> Any:
    """Diffusers' class, made by hand."""
    return getattr(diffusers, kind)(
        **model.pipeline.components | {"scheduler": scheduler}, requires_safety_checker=False
    )


@pytest.mark.parametrize(
    ("sampler", "kind", "calls"),
    [("", "DDIMScheduler", 2), ("heun", "HeunDiscreteScheduler", 3), ("euler-a", "EulerAncestralDiscreteScheduler", 2)],
)
def test_a_picture_from_a_picture_is_diffusers_own(lab: Any, sampler: str, kind: str, calls: int) -> None:
    """Of 4 steps at strength 0.6 the last two are run."""
    said, made = ours(lab, scheduler=sampler, canvas=Canvas(scene(), 0.6))
    scheduler = getattr(diffusers, kind).from_config(lab.scheduler.config)
    pipeline = pipeline_of("StableDiffusionImg2ImgPipeline", lab, scheduler)
    start = scene().resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert_same((said, made), theirs(lab, pipeline, image=start, strength=0.6))
    assert len(said) == calls


def test_inpainting_with_an_ordinary_model_is_diffusers_own(lab: Any) -> None:
    pipeline = pipeline_of("StableDiffusionInpaintPipeline", lab, lab.scheduler)
    expected = theirs(lab, pipeline, image=scene(), mask_image=mask(), height=SIDE, width=SIDE, strength=0.75)
    assert_same(ours(lab, canvas=Canvas(scene(), 0.75, mask())), expected)


def test_inpainting_with_a_model_for_it_is_diffusers_own() -> None:
    model = StableDiffusion(tiny_sd(in_channels=9, out_channels=4), torch.float32)
    pipeline = pipeline_of("StableDiffusionInpaintPipeline", model, model.scheduler)
    expected = theirs(model, pipeline, image=scene(), mask_image=mask(), height=SIDE, width=SIDE, strength=1.0)
    assert_same(ours(model, canvas=Canvas(scene(), 1.0, mask())), expected)


def test_what_is_kept_comes_back_to_the_bit(lab: Any) -> None:
    canvas = Canvas(scene(), 0.75, mask(), edge=8)
    (_, through), (_, pasted) = ours(lab, canvas=Canvas(scene(), 0.75, mask())), ours(lab, canvas=canvas)
    fitted = canvas.fitted((SIDE, SIDE))
    assert fitted.mask is not None
    kept = np.asarray(fitted.mask) < 128
    start, one, two = (np.asarray(picture) for picture in (fitted.picture, pasted, through))
    assert (one[kept] == start[kept]).all() and (two[kept] != start[kept]).any()
    assert (one[28:36, 28:36] == two[28:36, 28:36]).all()


@given(st.integers(0, 12), *[st.integers(0, 63)] * 4)
def test_a_soft_edge_never_leaves_its_mask(width: int, left: int, top: int, right: int, bottom: int) -> None:
    """It is nothing outside, and whole from `width` pixels on, or one more where it is odd."""
    drawn, deep = Image.new("L", (64, 64), 0), width + width % 2
    (left, right), (top, bottom) = sorted((left, right)), sorted((top, bottom))
    ImageDraw.Draw(drawn).rectangle((left, top, right, bottom), fill=200)
    weights, inside = np.asarray(soft_edge(drawn, width)), np.asarray(drawn) > 0
    assert not weights[~inside].any()
    rows = slice(top + deep if top else 0, bottom - deep + 1 if bottom < 63 else 64)
    columns = slice(left + deep if left else 0, right - deep + 1 if right < 63 else 64)
    if rows.start < rows.stop and columns.start < columns.stop:
        assert (weights[rows, columns] == 255).all()


def test_schedules_run_over_the_steps_that_are_run(lab: Any) -> None:
    rise = Schedule(((0.0, 0.0), (1.0, 1.0)), shape="linear")
    request = Request(PROMPT, 7, 10, 1.0, SIDE, canvas=Canvas(scene(), 0.5))
    with Session(lab) as session:
        session.add("one", random_adapter(lab), Use(0.01, rise))
        heard = list[tuple[int, int]]()
        list(session.render([request], on_step=lambda *steps: heard.append(steps)))
        (run,) = session.runs
    assert [moment.step for moment in run.moments] == [0, 1, 2, 3, 4]
    assert [weights["one"] for weights in run.strengths] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert run.moments[0].sigma < 2 and heard == [(step, 5) for step in range(1, 6)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_scheduler_makes_the_picture_that_diffusers_makes_with_it(lab: Any, name: str) -> None:
    sampler = SAMPLERS[name]
    scheduler = getattr(diffusers, sampler.kind).from_config(lab.scheduler.config, **sampler.options)
    pipeline = pipeline_of("StableDiffusionPipeline", lab, scheduler)
    said, made = ours(lab, scheduler=name, steps=2, guidance=1.0)
    expected = theirs(lab, pipeline, num_inference_steps=2, guidance_scale=1.0, height=SIDE, width=SIDE)
    assert_same((said, made), expected)
    assert said.isfinite().all() and np.asarray(made).std() > 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scheduler_keeps_what_the_model_predicts_and_its_label(lab: Any, name: str) -> None:
    own = diffusers.DPMSolverMultistepScheduler.from_config(lab.scheduler.config, use_karras_sigmas=True)
    made = make_scheduler(own, name)
    assert made.config.prediction_type == "v_prediction" and made.config.timestep_spacing == "trailing"
    assert sampler_label(made) == SAMPLERS[name].label, "whatever the model's own was set to"
    if "rescale_betas_zero_snr" in signature(type(made)).parameters:
        torch.testing.assert_close(made.alphas_cumprod[:-1], lab.scheduler.alphas_cumprod[:-1], atol=1e-6, rtol=0)


def test_a_flow_model_has_no_scheduler_by_name() -> None:
    with pytest.raises(MismatchError, match=r"DPM\+\+ 2M is not for a flow model"):
        make_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(), "dpm++2m")


def test_clip_skip_counts_from_one(lab: Any) -> None:
    """The layer before the last, through the last norm, for the prompt alone."""
    encoder: Any = lab.pipeline.text_encoder
    ids = lab.tokenizer(PROMPT, padding="max_length", max_length=32, return_tensors="pt").input_ids
    states = encoder(ids, output_hidden_states=True).hidden_states
    conditioning = encoder.final_layer_norm(states[-2])
    expected = theirs(lab, lab.pipeline, prompt=None, prompt_embeds=conditioning, height=SIDE, width=SIDE)
    said = ours(lab, clip_skip=2)
    assert_same(said, expected)
    assert (said[0] - ours(lab)[0]).abs().max() > 1e-3 and not hasattr(encoder, "text_model")
    with pytest.raises(MismatchError, match="has 3 layers, so clip_skip = 4 skips too many"):
        ours(lab, clip_skip=4)


def watched(model: Any, name: str) -> tuple[Image.Image, list[Image.Image], Preview]:
    """A picture, what was seen of it after its last step, and the preview."""
    request = Request(PROMPT, 7, 4, 4.0, SIDE, scheduler=name)
    preview = Preview(model, 4.0, 1, every=2)
    on_step: Callable[[int, int], object] = lambda done, _: preview.look(done)  # noqa: E731
    with preview.listening():
        (picture,) = render(model.pipeline, [request], on_step=on_step)  # type: ignore[arg-type]
    return picture, preview.pictures(), preview


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m"])
def test_the_last_preview_is_the_picture_and_looking_changes_nothing(lab: Any, name: str) -> None:
    """Whatever scale the scheduler's own latents have."""
    picture, (last,), preview = watched(lab, name)
    assert np.abs(np.asarray(picture, int) - np.asarray(last, int)).max() <= 1
    assert np.array_equal(np.asarray(picture), np.asarray(ours(lab, scheduler=name)[1]))
    (strip,) = preview.strips()
    assert strip.width > 2 * 128 and preview.look(4) is False


def test_a_preview_of_noise_predictions_is_the_picture() -> None:
    model = StableDiffusion(tiny_sd(), torch.float32)
    assert model.path.predicts == "epsilon"
    picture, (last,), _ = watched(model, "euler")
    assert np.abs(np.asarray(picture, int) - np.asarray(last, int)).max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_follows_a_flow_is_what_diffusers_puts_on_one(name: str) -> None:
    kind = SAMPLERS[name].kind
    assert (kind in FOLLOW_FLOWS) == ("use_flow_sigmas" in signature(getattr(diffusers, kind)).parameters)


ON_FLOWS = {"dpm++2m", "dpm++2m-sde", "dpm++2s", "deis", "unipc"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_method_that_knows_no_flow_is_refused_on_sana_s(name: str) -> None:
    """Its scheduler is one of diffusion models, put on a flow."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    own = diffusers.DPMSolverMultistepScheduler(**flow)
    if name not in ON_FLOWS:
        with pytest.raises(MismatchError, match="is not for a flow model"):
            make_scheduler(own, name)
        return
    made = make_scheduler(own, name)
    made.set_timesteps(4)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x = noise
    for t, sigma in zip(made.timesteps, made.sigmas, strict=False):
        x = made.step(x / sigma, t, x).prev_sample  # the velocity of a flow from an empty picture
    assert x.isfinite().all() and x.abs().max() < noise.abs().max()
