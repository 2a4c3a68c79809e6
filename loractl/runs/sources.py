"""The pictures of a job, from its sections to what `fit` draws its batches from."""

import hashlib
from collections.abc import Sequence
from functools import partial

from loractl.data.buckets import STEP, frames
from loractl.data.cache import Cache, file_hash, fingerprint
from loractl.data.examples import Example, read_examples, survey_examples
from loractl.data.images import Size
from loractl.data.latents import Latents
from loractl.data.views import Variety
from loractl.errors import InputError, MismatchError
from loractl.events import Emit, Note, Progress
from loractl.families.family import Family
from loractl.runs.recipe import Recipe
from loractl.runs.studio import Studio
from loractl.sections import TrainingSpec
from loractl.train.batches import Source
from loractl.train.noise import Noising
from loractl.train.prior import class_pictures

CLASS_SEED = 10_000


def make_sources(spec: TrainingSpec, recipe: Recipe, studio: Studio, emit: Emit) -> tuple[list[Source], list[Example]]:
    """The subject's source and, where its pictures keep the class, the class's; and the subject's examples."""
    pictures = examples(spec, recipe.prompt, studio.model.resolution, emit)
    require_tokens(recipe, [example.caption for example in pictures], emit)
    sources = [source(spec, studio, "subject", pictures)]
    if recipe.prior is not None and recipe.prior.source == "images":
        sources.append(source(spec, studio, "class", class_examples(spec, recipe, studio)))
    return sources, pictures


def examples(spec: TrainingSpec, prompt: str, resolution: int, emit: Emit) -> list[Example]:
    """The pictures of all sets that can be read; the others are an error, or skipped with a warning."""
    settings = {f"data.{key}": value for key, value in spec.data.model_dump(mode="json").items()}
    settings |= {"data.resolution": spec.data.resolution or resolution, "train.batch_size": spec.train.batch_size}
    found = [
        example
        for each in spec.data.sets
        for example in read_examples(
            each.path or each.glob or "",
            each.captions,
            prompt,
            template=each.template,
            repeats=each.repeats,
            masks=each.masks,
            settings=settings,
        )
    ]
    good, bad = survey_examples(found)
    lines = [f"{picture.path}: {picture.reason}" for picture in bad]
    if bad and (spec.data.on_bad_image == "error" or not good):
        advice = 'mend or remove them, or set data.on_bad_image = "skip"'
        raise InputError(f"{len(bad)} of {len(found)} pictures can't be read ({advice}):\n" + "\n".join(lines))
    for line in lines:
        emit(Note(f"skipped {line}", "warning"))
    return good


def require_tokens(recipe: Recipe, captions: Sequence[str], emit: Emit) -> None:
    """InputError when a token that learns is in no caption, a warning when it is not in all: a token learns from the
    captions that it is in alone. Templates have all of them.
    """
    tokens = recipe.embedding.tokens if recipe.embedding and not recipe.templates else ()
    lacking = {token: sum(token not in caption for caption in captions) for token in tokens}
    advice = 'write it into them, or set data.captions = "prompt", or "template" with {prompt} in data.template'
    if never := [token for token, count in lacking.items() if count == len(captions)]:
        raise InputError(f"no caption has {' or '.join(never)}, so nothing would be learnt for it: {advice}")
    for token, count in lacking.items():
        if count:
            emit(Note(f"{count} of {len(captions)} captions lack {token}, which learns nothing from them", "warning"))


def class_examples(spec: TrainingSpec, recipe: Recipe, studio: Studio) -> list[Example]:
    """Class pictures, generated as far as they are missing."""
    prior, prompt = recipe.prior, recipe.class_prompt or ""
    assert prior is not None
    requests = [studio.plain_request(prompt, CLASS_SEED + i, prior.steps) for i in range(prior.num_images)]
    make = partial(studio.make, stage="class pictures", sampler=prior.scheduler or "")
    maker = {"model": spec.model.source, "revision": spec.model.revision or "", "scheduler": prior.scheduler or ""}
    paths = class_pictures(prior.images or spec.destination() / "class", requests, maker, make)
    return [Example(path, prompt) for path in paths]


def source(spec: TrainingSpec, studio: Studio, purpose: str, pictures: Sequence[Example]) -> Source:
    """Pictures as they are shown in training, encoded ahead unless the job forbids it."""
    data, model = spec.data, studio.model
    resolution = data.resolution or model.resolution
    sizes = frames([example.path for example in pictures], resolution, STEP if data.buckets else None, data.upscale)
    check_sizes(model, sizes)
    variety = Variety(data.flip, data.crop == "random", data.jitter, model.is_inpainting)
    model.bring("vae")
    latents = Latents(pictures, sizes, model.encode_pictures, model.device, variety, data.alpha_masks)
    made = Source(
        purpose,
        latents,
        spec.seed,
        noising(spec),
        data.caption_dropout,
        data.shuffle_tags,
        data.keep_tags,
        data.tag_dropout,
        data.mask_floor,
    )
    if spec.memory.cache_latents:
        folder = spec.memory.cache_folder
        cache = Cache(folder, fingerprint(model.vae)) if folder else None
        what = f"{purpose} pictures encoded"
        made.prepare(spec.memory.cache_variants, cache, lambda done, of: studio.emit(Progress(what, done, of)))
    return made


def check_sizes(model: Family, sizes: Sequence[Size]) -> None:
    """MismatchError for a size that the model cannot be trained at."""
    for size in sizes:
        if any(side % model.multiple for side in size):
            raise MismatchError(
                f"{model.title} sees pictures whose sides are multiples of {model.multiple} pixels, and not "
                f"{size[0]} × {size[1]}: change data.resolution"
            )


def data_hash(pictures: Sequence[Example]) -> str:
    """Of the bytes of all pictures and masks, the captions and the repeats."""
    digest = hashlib.sha256()
    for example in pictures:
        mask = file_hash(example.mask) if example.mask else ""
        digest.update(repr((file_hash(example.path), example.caption, example.repeats, mask)).encode())
    return digest.hexdigest()


def noising(spec: TrainingSpec) -> Noising:
    noise = spec.noise
    return Noising(
        offset=noise.offset,
        pyramid=noise.pyramid,
        perturbation=noise.perturbation,
        low=noise.low,
        high=noise.high,
        distribution=noise.distribution,
        mean=noise.mean,
        std=noise.std,
    )
