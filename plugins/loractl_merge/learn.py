"""Finds a merge's weights on a model: from the job to what `fit` minimizes, and back to a job with numbers.

Beside the merged file NAME.safetensors there are NAME.weights.toml, a job without [learn] that makes the same file
again, and NAME.before-after.png, pictures with the weights from the beginning and with those found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loractl.data.buckets import frames
from loractl.data.examples import read_examples
from loractl.data.latents import Latents
from loractl.data.views import Variety
from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.errors import InputError, MismatchError
from loractl.events import Emit, Facts, Progress, Wrote
from loractl.families.family import Family
from loractl.families.pipeline import load_model
from loractl.formats.lineage import Parent, child_of
from loractl.inject.tokens import add_tokens
from loractl.job import dump_job
from loractl.runs.studio import Studio
from loractl.sample.picture import save_png, sheet
from loractl.tensors.adapter import Adapter
from loractl.train.batches import Source
from loractl.train.blend import Blend, BlendLoss, Strand
from loractl.train.loop import Plan, Training, fit
from loractl.train.optim import make_optimizer
from loractl_merge.blocks import ALL, block_of, have_blocks
from loractl_merge.factors import adjusted, factors_of
from loractl_merge.spec import LearnSection, MergeInput, MergeSpec

WHOLE = "weight"  # the one weight of an adapter that is not divided into blocks
DIGITS = 4  # of a weight: nobody can tell more of them apart

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Learned:
    """The job with the weights in it, what was written on the way, and the mean loss of the last steps."""

    job: MergeSpec
    files: Mapping[str, Path]
    numbers: Mapping[str, float]


def learn(spec: MergeSpec, section: LearnSection, parents: Sequence[Parent], emit: Emit) -> Learned:
    require_determinism()
    files = {"weights": side_file(spec, ".weights.toml"), "pictures": side_file(spec, ".before-after.png")}
    device = pick_device(spec.memory.device)
    model = load_model(section.model.source, device, pick_dtype("auto", device), **section.model.loading)
    blend = blend_of(spec, section, parents, model)
    source = source_of(spec, section, model, emit)
    studio = Studio(model, emit)
    before = studio.samples(section.sample, section.prompt, "samples before") if section.sample.at_start else []
    losses = optimize(section, blend, source, emit)
    weights = list(blend.values().values())
    emit(Facts("learned weights", table(parents, weights)))
    after = studio.samples(section.sample, section.prompt, "samples after")
    save_png(files["pictures"], sheet([*([("before", before)] if before else []), ("after", after)]))
    job = with_weights(spec, weights)
    files["weights"].write_text(dump_job(job.resolved()), encoding="utf-8")
    for what, file in files.items():
        emit(Wrote(file, what))
    return Learned(job, files, {"loss": sum(losses[-50:]) / len(losses[-50:])})


def side_file(spec: MergeSpec, ending: str) -> Path:
    """A file beside the merged one. InputError when it is there and may not be replaced."""
    file = spec.destination().with_suffix(ending)
    if file.exists() and not spec.output.overwrite:
        raise InputError(f"{file} is already there: choose another --out, or replace it with --overwrite")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def blend_of(spec: MergeSpec, section: LearnSection, parents: Sequence[Parent], model: Family) -> Blend:
    """The adapters on the model, with their tokens and with the fixed factors of the job, named by their numbers."""
    strands = {}
    for number, (parent, use, weight) in enumerate(zip(parents, spec.adapters, spec.weights, strict=True), 1):
        adapter = Adapter(adjusted(parent, factors_of(parent, use))[0])
        if strangers := sorted(set(adapter.components()) - set(model.components)):
            raise MismatchError(f"{parent.path} adapts {', '.join(strangers)}, which the model to learn with lacks")
        follows = {path: block_of(path) if section.per_block else WHOLE for path in adapter.modules}
        named = {path: name for path, name in follows.items() if name is not None}
        if section.per_block and not have_blocks(adapter.modules):
            raise MismatchError(f"{parent.path} has no module in a block of a UNet: set learn.per_block = false")
        strands[f"adapter{number}"] = Strand(adapter, dict.fromkeys(sorted(set(named.values())), weight), named, weight)
    put_tokens(model, child_of(parents, spec.weights, {}).tokens)
    return Blend(model, strands)


def put_tokens(model: Family, tokens: Mapping[str, Tensor]) -> None:
    """Learned tokens, by component and token, into the model's vocabularies."""
    for component, tokenizer in model.tokenizers.items():
        prefix = f"{component}."
        own = {path.removeprefix(prefix): rows for path, rows in tokens.items() if path.startswith(prefix)}
        if own:
            add_tokens(tokenizer, model.components[component], own)


def source_of(spec: MergeSpec, section: LearnSection, model: Family, emit: Emit) -> Source:
    """The reference pictures, encoded ahead."""
    pictures = read_examples(section.pictures, "auto", section.prompt)
    sizes = frames([example.path for example in pictures], model.resolution)
    variety = Variety(holes=model.is_inpainting)
    source = Source("reference", Latents(pictures, sizes, model.encode_pictures, model.device, variety), spec.seed)
    source.prepare(report=lambda done, of: emit(Progress("reference pictures encoded", done, of)))
    return source


def optimize(section: LearnSection, blend: Blend, source: Source, emit: Emit) -> list[float]:
    """Trains the weights, and leaves the model as the merged one; returns each step's loss."""
    keep = dict(zip(blend.weights, section.keep, strict=False))
    loss = BlendLoss(blend, source, section.batch_size, keep, section.penalty)
    groups = [blend.group(section.lr)]
    plan = Plan(section.steps, max_grad_norm=None, schedule="cosine")
    losses = fit(Training(groups, make_optimizer(groups, "adamw"), plan), loss, emit, stage="learn")
    blend.settle()
    return losses


def table(parents: Sequence[Parent], weights: Sequence[Weights]) -> dict[str, object]:
    """A row for each adapter, or for each adapter and block."""
    return {
        f"{number}: {parent.path.name}" + ("" if name == WHOLE else f" {name}"): round(weight, DIGITS)
        for number, (parent, own) in enumerate(zip(parents, weights, strict=True), start=1)
        for name, weight in own.items()
    }


def with_weights(spec: MergeSpec, weights: Sequence[Weights]) -> MergeSpec:
    """The job that says the weights and learns nothing."""
    uses = zip(spec.adapters, spec.weights, weights, strict=True)
    adapters = tuple(_weighted(use, start, own) for use, start, own in uses)
    return spec.model_copy(update={"adapters": adapters, "alpha": None, "learn": None})


def _weighted(use: MergeInput, start: float, own: Weights) -> MergeInput:
    """Weights of blocks are said as factors of the weight from which they started."""
    if WHOLE in own:
        return use.model_copy(update={"weight": round(own[WHOLE], DIGITS)})
    blocks = tuple(round(own.get(block, start) / start, DIGITS) for block in ALL)
    return use.model_copy(update={"weight": start, "blocks": blocks})
