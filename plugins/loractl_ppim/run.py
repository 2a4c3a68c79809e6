"""Carries out a job that prepares pictures: its sections become a plan, and the plan a training set."""

from contextlib import nullcontext
from functools import partial

from loractl.captioner import CaptionerSettings
from loractl.events import Emit, Note
from loractl.method import Outcome
from loractl.plugins import load_plugins
from loractl.prepare.assemble import prepare
from loractl.prepare.caption_rules import Rules
from loractl.prepare.captioning import Wording
from loractl.prepare.checks import Limits
from loractl.prepare.cutting import Cutting
from loractl.prepare.layouts import Layout
from loractl.prepare.networks import Network
from loractl.prepare.plan import Plan, Workplace
from loractl.prepare.process import Copies, Masking, Recipe
from loractl.prepare.workers import cores
from loractl.prepare.write import SUFFIXES
from loractl.train.lock import lock
from loractl_ppim.spec import AugmentSection, PpimSpec


def run(spec: PpimSpec, emit: Emit) -> Outcome:
    plan = plan_of(spec)
    if text := too_few(spec.augment):
        emit(Note(text, "warning"))
    with nullcontext() if plan.dry_run else lock(plan.out):
        files, numbers = prepare(plan, emit)
    return Outcome(files, numbers)


def too_few(augment: AugmentSection) -> str | None:
    """A warning where fewer copies than asked for can differ."""
    if augment.possible == augment.copies:
        return None
    said = (
        f"augment.copies = {augment.copies} makes {augment.possible} of each picture, since flip alone makes no other"
    )
    return f"{said}: set augment.rotate or augment.jitter too"


def plan_of(spec: PpimSpec) -> Plan:
    run, write, check = spec.run, spec.write, spec.check
    workers = cores() if run.workers is None else run.workers
    return Plan(
        title=spec.name,
        source=spec.source.path,
        out=spec.destination(),
        recipe=recipe_of(spec),
        layout=layout_of(spec),
        wording=wording_of(spec),
        masks=spec.mask.folder,
        masker=masker_of(spec),
        captioner=captioner_of(spec),
        near_duplicates=check.duplicates,
        min_variety=check.min_variety,
        refuse_failing=check.on_fail == "error",
        workplace=Workplace(workers, run.memory_mb, run.executor),
        page=write.page,
        sheet=write.sheet,
        overwrite=spec.output.overwrite,
        dry_run=run.dry_run,
    )


def recipe_of(spec: PpimSpec) -> Recipe:
    check, copies, mask, write = spec.check, spec.augment, spec.mask, spec.write
    source = "network" if mask.source == "transformers" or mask.source == "rembg" else mask.source
    return Recipe(
        seed=spec.seed,
        max_pixels=int(spec.read.max_megapixels * 1e6),
        background=spec.read.background,
        limits=Limits(**check.model_dump(exclude={"duplicates", "min_variety", "on_fail"})),
        keep_failing=check.on_fail == "report",
        cutting=Cutting(**spec.crop.model_dump()),
        light=spec.resize.light,
        copies=Copies(copies.copies, copies.flip, copies.rotate, copies.jitter),
        masking=Masking(source, mask.soften, mask.invert),
        format=write.encoding,
        quality=write.quality,
    )


def layout_of(spec: PpimSpec) -> Layout:
    write, caption = spec.write, spec.caption
    folder = f"{caption.trigger} {caption.class_word}".strip() or spec.name
    return Layout(write.layout, SUFFIXES[write.encoding], folder, write.repeats, write.sidecars)


def wording_of(spec: PpimSpec) -> Wording:
    said = spec.caption
    rules = Rules(
        trigger=said.trigger,
        where=said.where,
        class_word=said.class_word,
        drop=said.drop,
        replace=said.replace,
        prefix=said.prefix,
        suffix=said.suffix,
        longest=said.longest,
    )
    return Wording(said.sources, said.template, rules)


def captioner_of(spec: PpimSpec) -> Network | None:
    """JobError for a name that no plugin offers."""
    said, run = spec.caption, spec.run
    if "captioner" not in said.sources:
        return None
    settings = CaptionerSettings(said.model, said.revision, said.prompt, said.max_tokens, run.device, run.precision)
    captioner = load_plugins().captioner(said.captioner)
    told = said.model_dump(include={"model", "revision", "prompt", "max_tokens"})
    return Network(captioner.name, partial(captioner.load, settings), told, run.batch_size)


def masker_of(spec: PpimSpec) -> Network | None:
    from loractl.prepare.mask_models import load_rembg, load_segmenter
    from loractl.prepare.pretrained import Checkpoint

    mask, run = spec.mask, spec.run
    told = mask.model_dump(include={"model", "revision", "prompt", "threshold"})
    if mask.source == "rembg":
        return Network("rembg", partial(load_rembg, mask.model or "u2net"), told, run.batch_size)
    if mask.source == "transformers":
        checkpoint = Checkpoint(str(mask.model), mask.revision, run.device, run.precision)
        load = partial(load_segmenter, checkpoint, prompt=mask.prompt, threshold=mask.threshold)
        return Network("transformers", load, told, run.batch_size)
    return None
