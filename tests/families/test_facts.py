"""What the families say of themselves, held against diffusers' pipelines; and what is refused."""

from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loractl.catalog import BUILT_IN
from loractl.errors import MismatchError
from loractl.families.conditioning import joined, padded
from loractl.families.family import Family
from loractl.families.flux import Flux
from loractl.families.flux2 import Flux2Klein
from loractl.families.packing import grid, pack, places, sequence, unpack
from loractl.families.pipeline import family_of
from loractl.families.prediction import FlowPath
from loractl.families.sdxl import StableDiffusionXL
from loractl.inject.targets import resolve
from loractl.runs.sources import check_sizes
from tests.families.conftest import PROMPT, SHORT, Train, load
from tests.families.tiny import PIPELINES, flux, sd3, whole
from tests.methods.lab_job import JOBS, run_job

FAMILIES = list(PIPELINES)
CPU = torch.device("cpu")
each_family = pytest.mark.parametrize("name", FAMILIES)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_given(name: str, latents: Tensor) -> Tensor:
    """As the pipeline's `latents` want them."""
    return pack(latents) if name in ("flux", "qwen_image") else latents


def as_grid(name: str, latents: Tensor, height: int, width: int) -> Tensor:
    """From what the pipeline's loop has."""
    if name == "flux2":
        return grid(latents, height, width)
    return unpack(latents, height, width) if name in ("flux", "qwen_image") else latents


@each_family
def test_the_pipeline_steps_along_the_prediction(trained: Train, name: str) -> None:
    """One step from pure noise, with the text, the time, the sizes and the direction that the pipeline has."""
    model = load(trained(name).folder)
    noisy, ends = noise(*model.encode_pictures(torch.zeros(1, 3, 64, 64)).mean.shape), []

    def at_end(_: Any, __: int, time: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        ends.append((time, kwargs["latents"]))
        return kwargs

    model.paint(
        prompt=[PROMPT],
        negative_prompt=[""],
        num_inference_steps=1,
        guidance_scale=0.0 if name == "z_image" else 1.0,  # which leave the negative prompt out
        height=64,
        width=64,
        latents=as_given(name, noisy),
        callback_on_step_end=at_end,
    )
    ((time, end),) = ends
    with torch.no_grad():
        said = model.predict(noisy, time.expand(1), model.encode_text([PROMPT]))
    step = noisy - said if isinstance(model.path, FlowPath) else model.scheduler.step(said, time, noisy).prev_sample
    torch.testing.assert_close(as_grid(name, end, *noisy.shape[2:]), step, rtol=0, atol=1e-4)


@each_family
def test_a_sample_does_not_depend_on_its_batch(trained: Train, name: str) -> None:
    """Captions of different lengths, encoded alone and told together."""
    model = load(trained(name).folder)
    captions = ["a dog", "a photo of sks dog on the beach"]
    latents = noise(2, *model.encode_pictures(torch.zeros(1, 3, 64, 64)).mean.shape[1:])
    t = model.path.timesteps(torch.tensor([0.3, 0.8]))
    with torch.no_grad():
        told = [model.encode_text([caption]) for caption in captions]
        both = model.predict(latents, t, joined(told))
        for row, each in enumerate(told):
            alone = model.predict(latents[row : row + 1], t[row : row + 1], each)
            torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-4)


@each_family
def test_presets_fit(trained: Train, name: str) -> None:
    """Each names more layers than the one before, in every pattern of it."""
    model = load(trained(name).folder)
    sizes = [len(resolve(model.denoiser, model.patterns(each), 1)) for each in ("attention", "extended")]
    assert 0 < sizes[0] < sizes[1]


def test_packing_is_diffusers_own() -> None:
    latents = noise(2, 3, 4, 6)
    packed = FluxPipeline._pack_latents(latents, 2, 3, 4, 6)
    assert torch.equal(pack(latents), packed) and torch.equal(unpack(packed, 4, 6), latents)
    patches = Flux2KleinPipeline._patchify_latents(latents)
    assert torch.equal(sequence(patches), packed) and torch.equal(grid(packed, 2, 3), patches)
    assert torch.equal(places(2, 3, 3, CPU), FluxPipeline._prepare_latent_image_ids(1, 2, 3, CPU, torch.float32))
    assert torch.equal(places(2, 3, 4, CPU), Flux2KleinPipeline._prepare_latent_ids(patches)[0].float())


def test_flux2_whitens_latents_as_its_pipeline_does(trained: Train) -> None:
    model, picture = load(trained("flux2").folder), noise(1, 3, 64, 64).clamp(-1, 1)
    theirs = model.pipeline._encode_vae_image(picture, None)
    torch.testing.assert_close(model.encode_pictures(picture).mean, theirs, rtol=0, atol=1e-6)


def test_flux2_trains_along_the_shift_of_its_own_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own size and number of steps, as the pipeline takes them; it tells the scheduler a shift of its own."""
    model = Flux2Klein(whole("flux2"), torch.float32)
    scheduler = model.scheduler

    @wraps(scheduler.set_timesteps)
    def stop(*arguments: Any, **named: Any) -> None:
        type(scheduler).set_timesteps(scheduler, *arguments, **named)
        raise InterruptedError

    monkeypatch.setattr(scheduler, "set_timesteps", stop)
    with pytest.raises(InterruptedError):
        model.paint(prompt=["a dog"], negative_prompt=[""], guidance_scale=1.0)
    found = model.path.timesteps(torch.linspace(1, 1 / 50, 50))
    torch.testing.assert_close(found, scheduler.timesteps, atol=1e-2, rtol=0)
    assert isinstance(model.path, FlowPath) and 7 < model.path.shift < 9


def test_qwen_image_scales_each_channel(trained: Train) -> None:
    """As the pipeline undoes it: latents · std + mean."""
    model, picture = load(trained("qwen_image").folder), noise(1, 3, 64, 64).clamp(-1, 1)
    scaled, raw = model.encode_pictures(picture), model.vae.encode(picture.unsqueeze(2)).latent_dist
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in _statistics(model))
    torch.testing.assert_close(scaled.mean * std + mean, raw.mean.squeeze(2), rtol=0, atol=1e-6)
    assert scaled.spread is not None
    torch.testing.assert_close(scaled.spread * std, raw.std.squeeze(2), rtol=0, atol=1e-6)


def _statistics(model: Family) -> tuple[list[float], list[float]]:
    return model.vae.config.latents_mean, model.vae.config.latents_std


def test_the_shift_is_taken_off_before_scaling(trained: Train) -> None:
    """Stable Diffusion 3's numbers: (z − 0.0609) · 1.5305."""
    model, picture = load(trained("sd3").folder), noise(1, 3, 64, 64).clamp(-1, 1)
    raw = model.vae.encode(picture).latent_dist.mean
    torch.testing.assert_close(model.encode_pictures(picture).mean, (raw - 0.0609) * 1.5305, rtol=0, atol=1e-6)


def test_stable_diffusion_3_does_without_t5() -> None:
    with torch.random.fork_rng(devices=[]):
        model = family_of("here", "StableDiffusion3Pipeline")(sd3(with_t5=False), torch.float32)
    assert model.text_encoder_names == ("text_encoder", "text_encoder_2")
    text = model.encode_text(["a dog"])["text"]  # type: ignore[index]
    assert text[:, :77].any() and not text[:, 77:].any()


def test_schnell_has_shorter_texts_and_is_told_no_guidance() -> None:
    with torch.random.fork_rng(devices=[]):
        model = Flux(flux(guidance=False), torch.float32)
    told = model.encode_text(["a dog"])
    assert told["text"].shape[1] == 256
    assert model.predict(noise(1, 16, 8, 8), torch.tensor([500.0]), told).shape == (1, 16, 8, 8)


def test_a_negative_prompt_that_would_not_count_is_refused(trained: Train) -> None:
    model = load(trained("flux2").folder)
    with pytest.raises(MismatchError, match=r"Flux\.2 Klein takes no negative prompt"):
        model.paint(prompt=["a dog"], negative_prompt=["blurred"])


def test_text_encoders_that_nothing_loads_adapters_for_are_refused(trained: Train) -> None:
    assert load(trained("sdxl").folder).adaptable_encoders() == ("text_encoder", "text_encoder_2")
    with pytest.raises(MismatchError, match="text encoder of Z-Image: leave"):
        load(trained("z_image").folder).adaptable_encoders()


def test_sizes_that_make_no_patches_are_refused(trained: Train) -> None:
    check_sizes(load(trained("flux").folder), [(64, 96)])
    with pytest.raises(MismatchError, match=r"Flux\.1 sees .* multiples of 16 pixels, and not 64 × 72: change data"):
        check_sizes(load(trained("flux").folder), [(64, 64), (64, 72)])


def test_a_token_that_would_not_be_read_is_refused(trained: Train, tmp_path: Path) -> None:
    settings = ("embedding.token=<Rex>", "subject.prompt='a <Rex>'", "sample.prompts=['a <Rex>']")
    with pytest.raises(MismatchError, match=r"Sana reads texts in lower case: write <rex>, not <Rex>"):
        run_job(JOBS / "ti.toml", tmp_path, *SHORT, *settings, f"model={trained('sana').folder}")


def test_the_refiner_is_refused() -> None:
    with pytest.raises(MismatchError, match="refiner of Stable Diffusion XL, which retouches"):
        family_of("refiner", "StableDiffusionXLImg2ImgPipeline")
    refiner: Any = SimpleNamespace(text_encoder=None)
    with pytest.raises(MismatchError, match="refiner of Stable Diffusion XL, which only retouches"):
        StableDiffusionXL(refiner, torch.float32)


def test_the_nearest_family_is_named(tmp_path: Path) -> None:
    whole("sd").save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDifusionPipeline"'))
    with pytest.raises(MismatchError, match="no family of base models knows; there is StableDiffusionPipeline, and"):
        load(tmp_path)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_texts_of_different_lengths_stand_side_by_side(lengths: list[int]) -> None:
    """Padding and joining commute, and the mask finds every text again."""
    texts = [noise(length, 2, seed=length) for length in lengths]
    together, one_by_one = padded(texts), joined([padded([text]) for text in texts])
    assert isinstance(one_by_one, dict)
    for name, whole_tensor in together.items():
        assert torch.equal(whole_tensor, one_by_one[name])
    for text, row, mask in zip(texts, together["text"], together["mask"], strict=True):
        assert torch.equal(row[mask.bool()], text) and not row[~mask.bool()].any()


def test_summaries_are_joined_as_they_are() -> None:
    rows = [{"pooled": noise(1, 3, seed=seed)} for seed in range(2)]
    found = joined(rows)
    assert isinstance(found, dict)
    assert torch.equal(found["pooled"], torch.cat([row["pooled"] for row in rows]))
    assert torch.equal(joined([noise(1, 4, 2), noise(2, 4, 2)]), torch.cat([noise(1, 4, 2), noise(2, 4, 2)]))  # type: ignore[arg-type]


def test_the_page_says_what_the_classes_say() -> None:
    lines = (Path(__file__).parents[2] / "docs/families.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    models = {row[0]: row for row in rows if len(row) == 4}
    facts = {row[0]: row for row in rows if len(row) == 6}
    for pipeline in BUILT_IN:
        family = family_of("", pipeline)
        assert pipeline in models[family.title][1].split(", ")
        *_, encoders, kohya, guidance = facts[family.title]
        assert encoders == {(): "none", ("text_encoder",): "CLIP"}.get(family.adaptable, "both CLIPs")
        assert (kohya, guidance) == ("yes" if family.has_kohya_names else "no", f"{family.guidance_default:g}")
