"""Carries out a DreamBooth job: load, class pictures, sample, inject, fit, save, sample, score."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from loractl.data.captions import read_caption
from loractl.data.images import find_pictures, survey
from loractl.data.latents import Latents
from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.errors import InputError
from loractl.evaluate.lab import LabScores
from loractl.events import Emit, Facts, Note, Progress, Wrote
from loractl.families.pipeline import load_model
from loractl.families.sd import StableDiffusion
from loractl.method import Outcome
from loractl.sample.denoise import Request, render
from loractl.sample.picture import save_png, sheet
from loractl.train.batches import Source
from loractl.train.conditioning import Conditioner
from loractl.train.loop import Loss, Plan, fit, make_optimizer
from loractl.train.loss import denoising_errors, with_prior
from loractl.train.prior import class_pictures
from loractl_dreambooth.learners import Learner, make_learner
from loractl_dreambooth.spec import DreamBoothSpec

SCORE_STEPS = 20  # denoising steps of the pictures that are measured
CLASS_SEED, SCORE_SEED = 10_000, 20_000


def run(spec: DreamBoothSpec, emit: Emit) -> Outcome:
    if spec.train.deterministic:
        require_determinism()
    spec.destination().mkdir(parents=True, exist_ok=True)
    pictures = readable(find_pictures(spec.data.path), spec.data.on_bad_image, emit)
    captions = [read_caption(path, spec.data.captions, spec.subject.prompt) for path in pictures]
    device = pick_device(spec.memory.device)
    model = load_model(spec.model.source, device, pick_dtype(spec.memory.precision, device), spec.model.revision)
    studio = Studio(model, emit)
    sources = [subject_source(spec, studio, pictures, captions)]
    if spec.prior_is_on:
        sources.append(prior_source(spec, studio))
    scores = lab_scores(spec, studio, pictures)
    class_before = scores.read_class("class samples before") if scores else []
    before = studio.make(sample_requests(spec, model), "samples before") if spec.sample.at_start else []

    learner = make_learner(model, spec)
    emit(Facts("what learns", learner.facts()))
    losses = train(spec, model, learner, sources, emit)
    files = learner.save(spec.destination())
    after = studio.make(sample_requests(spec, model), "samples after")
    rows = [("before", before)] if before else []
    files["grid"] = save_png(spec.destination() / "before-after.png", sheet([*rows, ("after", after)]))
    for what, path in files.items():
        emit(Wrote(path, what))
    numbers = {"loss": sum(losses[-50:]) / len(losses[-50:]), **learner.numbers()}
    if scores:
        numbers |= scores.after(class_before)
    return Outcome(files, numbers)


def readable(paths: Sequence[Path], on_bad: str, emit: Emit) -> list[Path]:
    """The pictures that can be read; the others are an error, or skipped with a warning, as the job says."""
    good, bad = survey(paths)
    lines = [f"{picture.path}: {picture.reason}" for picture in bad]
    if bad and (on_bad == "error" or not good):
        advice = 'mend or remove them, or set data.on_bad_image = "skip"'
        raise InputError(f"{len(bad)} of {len(paths)} pictures can't be read ({advice}):\n" + "\n".join(lines))
    for line in lines:
        emit(Note(f"skipped {line}", "warning"))
    return good


class Studio:
    """Makes pictures with the model as it is now, and reports progress."""

    def __init__(self, model: StableDiffusion, emit: Emit) -> None:
        self.model, self.emit = model, emit

    def make(self, requests: Sequence[Request], stage: str) -> list[Image.Image]:
        batch = 32 if self.model.resolution <= 64 else 4
        with self.model.autocast():
            return list(
                render(self.model.pipeline, requests, batch, lambda done, of: self.emit(Progress(stage, done, of)))
            )

    def score_samples(self, prompts: Sequence[str], stage: str) -> list[Image.Image]:
        return self.make([self.plain_request(prompt, SCORE_SEED + i) for i, prompt in enumerate(prompts)], stage)

    def plain_request(self, prompt: str, seed: int) -> Request:
        return Request(prompt, seed, SCORE_STEPS, self.model.guidance, self.model.resolution)


def sample_requests(spec: DreamBoothSpec, model: StableDiffusion) -> list[Request]:
    sample = spec.sample
    guidance = model.guidance if sample.guidance is None else sample.guidance
    size = sample.size or model.resolution
    prompts = sample.prompts or (spec.subject.prompt,)
    return [Request(p, seed, sample.steps, guidance, size, sample.negative) for p in prompts for seed in sample.seeds]


def make_source(
    spec: DreamBoothSpec, model: StableDiffusion, purpose: str, paths: Sequence[Path], captions: Sequence[str]
) -> Source:
    data = spec.data
    latents = Latents(paths, data.resolution or model.resolution, model.encode_pictures)
    if spec.memory.cache_latents and data.crop == "center":
        latents.prepare(data.flip)
    return Source(
        purpose, latents, captions, spec.seed, data.repeats, data.flip, data.crop == "random", data.caption_dropout
    )


def subject_source(spec: DreamBoothSpec, studio: Studio, pictures: Sequence[Path], captions: Sequence[str]) -> Source:
    return make_source(spec, studio.model, "subject", pictures, captions)


def prior_source(spec: DreamBoothSpec, studio: Studio) -> Source:
    """Class pictures, generated as far as they are missing."""
    prompt = spec.subject.class_prompt or ""
    requests = [studio.plain_request(prompt, CLASS_SEED + i) for i in range(spec.prior.num_images)]
    folder = spec.prior.images or spec.destination() / "class"
    paths = class_pictures(folder, requests, spec.model.source, lambda missing: studio.make(missing, "class pictures"))
    return make_source(spec, studio.model, "class", paths, [prompt] * len(paths))


def lab_scores(spec: DreamBoothSpec, studio: Studio, pictures: Sequence[Path]) -> LabScores | None:
    metrics = spec.eval.metrics
    if "lab" not in (metrics if metrics is not None else (("lab",) if spec.model.source == "lab" else ())):
        return None
    subject = spec.subject
    return LabScores(studio.score_samples, pictures, subject.prompt, subject.class_prompt, spec.eval.samples)


def train(
    spec: DreamBoothSpec, model: StableDiffusion, learner: Learner, sources: Sequence[Source], emit: Emit
) -> list[float]:
    settings = spec.train
    plan = Plan(
        settings.steps, settings.grad_accum, settings.max_grad_norm, spec.schedule.name, spec.schedule.warmup_steps
    )
    optimizer = make_optimizer(learner.groups(), spec.optimizer.betas, spec.optimizer.weight_decay, spec.optimizer.eps)
    return fit(optimizer, dreambooth_loss(spec, model, learner, sources), plan, emit)


def dreambooth_loss(spec: DreamBoothSpec, model: StableDiffusion, learner: Learner, sources: Sequence[Source]) -> Loss:
    conditioner = Conditioner(model, learns=learner.text_encoder_learns)
    size, per_step = spec.train.batch_size, spec.train.batch_size * spec.train.grad_accum

    def loss(step: int, part: int) -> Tensor:
        samples = range(part * size, (part + 1) * size)
        batches = [source.batch(step, samples, per_step, model.path.steps) for source in sources]
        batch = sum(batches[1:], batches[0])
        with model.autocast():
            errors = denoising_errors(model, batch, conditioner(batch.captions), spec.train.snr_gamma)
        return with_prior(errors, size, spec.prior.weight)

    return loss
