"""Pictures of a model whose networks take turns on the device: all texts are read, all latents made, all decoded.

Each part is the pipeline's own, which is called for it and left when it is done. The second call is told what the text
encoders said in the first; what comes out of its loop goes to the autoencoder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from PIL import Image
from torch import Tensor

from loractl.families.family import Family
from loractl.sample.denoise import After, Request, batches, in_batches, render_batch
from loractl.sample.reading import read_there

Said = list[Any]  # by `encode_prompt`, call by call


class _Done(BaseException):  # which no pipeline catches
    """What was wanted of a pipeline is there."""


def render_in_phases(
    model: Family,
    requests: Sequence[Request],
    batch_size: int = 4,
    on_step: After | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Image.Image]:
    """What `render` makes with the model's own scheduler; `more` are further arguments of the pipeline."""
    told, said = dict(more or {}), dict[tuple[Request, ...], Said]()
    model.bring(*model.text_encoder_names)
    for batch in batches(requests, batch_size):
        if _texts(batch) not in said:
            said[_texts(batch)] = said_of(model, batch, told)
    model.bring(model.denoiser_name, *(["vae"] if model.is_inpainting else []))
    latents = list(in_batches(partial(_latents, model, said, told), requests, batch_size, on_step))
    model.bring("vae")
    return [picture for each in latents for picture in pictures(model, each)]


def pictures(model: Family, latents: Tensor) -> list[Image.Image]:
    """Latents (n, c, h, w) in the denoiser's scale, decoded."""
    made: list[Image.Image] = model.pipeline.image_processor.postprocess(model.decode(latents), output_type="pil")
    return made


def _texts(batch: Sequence[Request]) -> tuple[Request, ...]:
    """What the text encoders' part depends on."""
    return tuple(replace(request, seed=0) for request in batch)


def said_of(model: Family, batch: Sequence[Request], more: Mapping[str, Any]) -> Said:
    """What the text encoders say for a batch, on the device wherever they read."""
    said: Said = []
    encode = model.pipeline.encode_prompt

    def listen(*arguments: Any, **named: Any) -> Any:
        said.append(read_there(model, encode, *arguments, **named))
        return said[-1]

    def read(**wanted: Any) -> Any:
        with _until_done(model.pipeline, encode_prompt=listen, prepare_latents=_leave):
            model.paint(**wanted, **more)
        return SimpleNamespace(images=[])

    render_batch(read, batch, lambda *_: None)
    return said


def _latents(
    model: Family,
    said: Mapping[tuple[Request, ...], Said],
    more: Mapping[str, Any],
    batch: Sequence[Request],
    after: After,
) -> list[Tensor]:
    """The latents of a batch together, as a list of one."""
    answers, found = iter(said[_texts(batch)]), list[Tensor]()

    def at_end(heard: Callable[..., Any], pipeline: Any, turn: int, time: Any, kwargs: dict[str, Any]) -> Any:
        heard(pipeline, turn, time, kwargs)
        if turn + 1 == pipeline.num_timesteps:
            found.append(model.unpacked(kwargs["latents"], *batch[0].shape))
            raise _Done
        return kwargs

    def denoise(**wanted: Any) -> Any:
        wanted["callback_on_step_end"] = partial(at_end, wanted["callback_on_step_end"])
        with _until_done(model.pipeline, encode_prompt=lambda *_, **__: next(answers)):
            model.paint(**wanted, **more)
        return SimpleNamespace(images=[])

    render_batch(denoise, batch, after)
    return found


@contextmanager
def _until_done(pipeline: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """With these in the place of the pipeline's own methods, until one of them has what was wanted."""
    for name, method in methods.items():
        setattr(pipeline, name, method)
    try:
        yield
    except _Done:
        pass
    finally:
        for name in methods:
            delattr(pipeline, name)


def _leave(*_: Any, **__: Any) -> None:
    raise _Done
