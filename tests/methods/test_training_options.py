"""The options that all training methods share, each run once through a job on the lab model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file

from loractl.cli import execute
from loractl.errors import InputError, JobError, ScoreError
from loractl.formats import load_adapter
from loractl.job import override, read_job
from loractl.method import Outcome
from loractl.plugins import load_plugins
from tests.methods.lab_job import JOBS, SHORT, run_job, run_subject, stages
from tests.tiny import tiny_sd

PHOTOS = Path(__file__).parents[1] / "data" / "dreambooth"
NO_PRIOR = ("prior.weight=0.0", "sample.at_start=false")

OPTIONS = {
    "buckets": ("data.buckets=true", "data.resolution=128", "data.upscale=true", "prior.weight=1.0"),
    "random crops, cached": ("data.crop=random", "data.flip=true", "data.jitter=0.2", "memory.cache_variants=2"),
    "random crops, not cached": ("data.crop=random", "memory.cache_latents=false"),
    "tags": ("data.shuffle_tags=true", "data.keep_tags=1", "data.tag_dropout=0.5", "data.caption_dropout=0.5"),
    "noise": ("noise.offset=0.1", "noise.pyramid=0.3", "noise.perturbation=0.1"),
    "timesteps": ("noise.distribution=logit-normal", "noise.low=0.2", "noise.high=0.8", "noise.zero_terminal_snr=true"),
    "huber": ("loss.kind=huber", "train.snr_gamma=5.0"),
    "smooth_l1, debiased": ("loss.kind=smooth_l1", "loss.debiased=true"),
    "LoRA+": ("train.up_lr_ratio=16.0",),
    "rates by pattern": ('adapter.targets={"attn2.to_k"={rank=2, lr=1e-2}, "*.conv1"={}}',),
    "dropout": ("adapter.dropout=0.1", "adapter.rank_dropout=0.1", "adapter.module_dropout=0.1"),
    "max_norm": ("adapter.max_norm=1e-3",),
    "ema": ("train.ema=0.99",),
    "predicted prior": ("prior.source=prediction", "prior.weight=1.0"),
    "text encoder that stops": ("adapter.text_encoder=true", "train.text_encoder_steps=1"),
    "gradient checkpointing": ("memory.gradient_checkpointing=true",),
    "a learned token": ("subject.prompt=a picture of a <rex> critter", "embedding.token=<rex>", "sample.prompts=[]"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_trains(name: str, tmp_path: Path) -> None:
    outcome, _ = run_subject(tmp_path, *NO_PRIOR, *OPTIONS[name])
    assert outcome.numbers["loss"] > 0
    adapter = load_adapter(outcome.files["kohya"])
    assert all(torch.isfinite(low.up).all() for low in adapter.modules.values())
    assert any(low.up.abs().max() > 0 for low in adapter.modules.values())


@pytest.mark.parametrize("name", ["adafactor", "prodigy", "schedulefree-adamw", "lion"])
def test_an_optimizer_by_name(name: str, tmp_path: Path) -> None:
    if name in ("prodigy", "schedulefree-adamw"):
        pytest.importorskip({"prodigy": "prodigyopt"}.get(name, "schedulefree"))
    rate = "train.lr=1.0" if name == "prodigy" else "train.lr=1e-3"
    outcome, _ = run_subject(tmp_path, *NO_PRIOR, f"optimizer.name={name}", rate)
    assert any(low.up.abs().max() > 0 for low in load_adapter(outcome.files["kohya"]).modules.values())


def test_an_optimizer_that_does_not_exist_is_a_problem_of_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="adafactor"):
        run_subject(tmp_path, "optimizer.name=adafacter")


def test_the_predicted_prior_needs_no_class_pictures(tmp_path: Path) -> None:
    _, events = run_subject(tmp_path, "prior.source=prediction", "sample.at_start=false")
    assert "class pictures" not in stages(events) and not (tmp_path / "class").exists()


def test_a_black_mask_teaches_nothing(tmp_path: Path) -> None:
    """Where all is masked there is no gradient, so the adapter stays as it began."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for picture in (JOBS / "data" / "subject").glob("*.png"):
        with Image.open(picture) as opened:
            Image.new("L", opened.size, 0).save(masks / picture.name)
    outcome, events = run_subject(tmp_path / "out", *NO_PRIOR, f"data.masks={masks}")
    adapter = load_adapter(outcome.files["kohya"])
    assert all(low.up.abs().max() == 0 for low in adapter.modules.values())
    assert any("nothing was learnt" in getattr(event, "text", "") for event in events)


def test_the_cache_on_disk_changes_nothing(tmp_path: Path) -> None:
    settings = (*NO_PRIOR, "data.crop=random", "output.dtype=fp32")
    cached = f"memory.cache_folder={tmp_path / 'cache'}"
    outcomes = [
        run_subject(tmp_path / name, *settings, *more)[0]
        for name, more in {"none": (), "first": (cached,), "second": (cached,)}.items()
    ]
    first, *others = (load_file(outcome.files["diffusers"]) for outcome in outcomes)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)


def test_several_sources_with_captions_of_their_own(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in sorted((PHOTOS / "duck_toy").glob("*.jpg"))[:2]:
        (photos / photo.name).write_bytes(photo.read_bytes())
    lines = [json.dumps({"file_name": photo.name, "text": "a red critter"}) for photo in photos.glob("*.jpg")]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    job = tmp_path / "job.toml"
    job.write_text(
        f"""
method = "dreambooth"
model = "lab"
subject.prompt = "a picture of a sks critter"
[[data.sources]]
path = "{photos}"
repeats = 2
[[data.sources]]
glob = "{JOBS / "data" / "subject"}/*.png"
captions = "template"
template = "{{prompt}}, {{name}}"
"""
    )
    short = ("train.steps=2", "sample.steps=1", "sample.seeds=[0]", "eval.encoders=[]")
    assert run_job(job, tmp_path / "out", *short)[0].numbers["loss"] > 0
    with pytest.raises(JobError, match="once"):
        run_job(job, tmp_path / "other", *short, f"data.path={photos}")


def test_all_bad_pictures_are_listed_before_the_model_is_trained(tmp_path: Path) -> None:
    for name in ("one.jpg", "two.png"):
        (tmp_path / name).write_bytes(b"<html>not here</html>")
    with pytest.raises(InputError, match=r"(?s)one\.jpg.*two\.png"):
        run_subject(tmp_path / "out", f"data.path={tmp_path}")


def test_the_best_score_is_kept(tmp_path: Path) -> None:
    settings = ('eval.encoders=["lab"]', "eval.every=1", "eval.samples=2", "eval.keep_best=subject_fidelity")
    outcome, events = run_subject(tmp_path, *NO_PRIOR, *settings)
    assert any("the best" in getattr(event, "text", "") for event in events)
    assert outcome.numbers["subject_fidelity"] == max(
        event.values["eval/subject_fidelity"]
        for event in events
        if event.kind == "numbers" and "eval/subject_fidelity" in event.values  # type: ignore[attr-defined]
    )


def test_an_inpainting_model_learns_to_fill_holes(tmp_path: Path) -> None:
    """Nine channels: the noise, the hole, and what is left of the picture."""
    pipeline = tiny_sd(in_channels=9)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts = {name: getattr(pipeline, name) for name in names}
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionInpaintPipeline(**parts, **nothing).save_pretrained(tmp_path / "model")
    settings = (f"model={tmp_path / 'model'}", "data.resolution=64", "eval.encoders=[]")
    outcome, _ = run_subject(tmp_path / "out", *NO_PRIOR, *settings, 'adapter.targets=["attention"]')
    adapter = load_adapter(outcome.files["diffusers"])
    assert any(low.up.abs().max() > 0 for low in adapter.modules.values())


def test_a_score_that_is_too_low_fails_after_all_is_saved_and_is_judged_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plugins = load_plugins(["dreambooth"])

    def run(limit: float) -> Outcome:
        own = ("train.steps=1", 'eval.encoders=["lab"]', "eval.samples=2", "output.path=out")
        settings = (*SHORT, *NO_PRIOR, *own, f"eval.fail_below.subject_fidelity={limit}")
        return execute(read_job(JOBS / "subject.toml", plugins.methods, [override(each) for each in settings]), plugins)

    with pytest.raises(ScoreError, match=r"subject_fidelity is 0\.\d+, below 1") as first:
        run(1.0)
    assert {"subject.safetensors", "scores.json", "job.toml"} <= {path.name for path in Path("out").iterdir()}
    plugins = replace(plugins, methods={"dreambooth": replace(plugins.methods["dreambooth"], run=_never)})
    with pytest.raises(ScoreError) as again:
        run(1.0)
    assert str(again.value) == str(first.value)
    assert run(0.0) == Outcome()


def _never(*_: object) -> Outcome:
    raise AssertionError("the result is there")
