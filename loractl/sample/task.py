"""The diffusers pipeline for what is asked: from a text, from a picture, or inpainting; with a scheduler by its name.

It is made anew out of the same networks, with a scheduler of its own, so the model's pipeline stays as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from loractl.errors import MismatchError
from loractl.sample.canvas import Canvas, Size
from loractl.samplers import SAMPLERS, unfit


def task_pipeline(pipeline: Any, canvas: Canvas | None, sampler: str) -> Any:
    """The pipeline for pictures on this canvas, with a method of SAMPLERS, or the model's own if `sampler` is empty.

    MismatchError where diffusers has none for the model.
    """
    if canvas is None and not sampler:
        return pipeline
    import diffusers

    kind = "Text2Image" if canvas is None else "Image2Image" if canvas.mask is None else "Inpainting"
    scheduler = make_scheduler(pipeline.scheduler, sampler)
    none = MismatchError(f"diffusers has no {kind} pipeline for {type(pipeline).__name__}: use another model")
    try:
        made = getattr(diffusers, f"AutoPipelineFor{kind}").from_pipe(pipeline, scheduler=scheduler)
    except ValueError as error:
        raise none from error
    if canvas is not None and "strength" not in signature(made.__call__).parameters:
        raise none  # Flux.2's looks at a picture beside its own, and begins with noise alone
    made.set_progress_bar_config(disable=True)
    return made


def make_scheduler(own: Any, sampler: str) -> Any:
    """A method of SAMPLERS along the noise path of the model's own scheduler, or another of its own kind.

    What the model predicts stays as it is. So does a path that ends in pure noise where diffusers' class knows such
    paths; the others (Heun, DPM2, DEIS, …) begin at the last step with a signal, since an infinite σ is not for them.
    """
    if not sampler:
        return type(own).from_config(own.config)
    import diffusers

    if problem := unfit(sampler, own.config):
        raise MismatchError(problem)
    wanted = SAMPLERS[sampler]
    return getattr(diffusers, wanted.kind).from_config(own.config, **wanted.options)


@contextmanager
def sampling_by(pipeline: Any, sampler: str) -> Iterator[None]:
    """Inside, the pipeline samples by a method of SAMPLERS; still by its own if `sampler` is empty."""
    own = pipeline.scheduler
    pipeline.scheduler = make_scheduler(own, sampler) if sampler else own
    try:
        yield
    finally:
        pipeline.scheduler = own


def sampler_label(scheduler: Any) -> str:
    """What A1111 calls the method of a scheduler; the name of its class where it has no name for it."""
    kind, config = type(scheduler).__name__, scheduler.config
    for sampler in SAMPLERS.values():
        if sampler.kind == kind and all(config.get(name, value) == value for name, value in sampler.options.items()):
            return sampler.label
    return kind


def canvas_arguments(pipeline: Any, canvas: Canvas | None, size: Size, count: int) -> dict[str, Any]:
    """What the pipeline is told of the size of `count` pictures and of the canvas, which must have that size."""
    told: dict[str, Any] = {"width": size[0], "height": size[1]}
    if canvas is not None:
        told |= {"image": [canvas.picture] * count, "strength": canvas.strength}
    if canvas is not None and canvas.mask is not None:
        told["mask_image"] = [canvas.mask] * count
    if canvas is not None:  # the size is the picture's, which some pipelines are not told again
        told = {name: value for name, value in told.items() if name in signature(pipeline.__call__).parameters}
    return told


@contextmanager
def skipping(pipeline: Any, clip_skip: int) -> Iterator[dict[str, int]]:
    """The argument with which the pipeline reads an earlier layer of the text encoder: 1 is the last, as A1111 counts,
    where diffusers counts from 0. As in diffusers the negative prompt is read from the last layer all the same.
    """
    if clip_skip == 1:
        yield {}
        return
    encoder = pipeline.text_encoder
    if "clip_skip" not in signature(pipeline.__call__).parameters:
        raise MismatchError(f"a {type(pipeline).__name__} reads one layer of its text encoder: leave clip_skip out")
    if clip_skip > encoder.config.num_hidden_layers:
        raise MismatchError(
            f"the text encoder has {encoder.config.num_hidden_layers} layers, so clip_skip = {clip_skip} skips too many"
        )
    # Diffusers looks for the last norm in `text_model`, which CLIP's text model was in before transformers 5.
    is_bare = not hasattr(encoder, "text_model")
    if is_bare:
        object.__setattr__(encoder, "text_model", encoder)
    try:
        yield {"clip_skip": clip_skip - 1}
    finally:
        if is_bare:
            object.__delattr__(encoder, "text_model")
