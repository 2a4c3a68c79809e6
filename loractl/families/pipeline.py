"""Loads a base model: the built-in lab, a diffusers folder or a hub id."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from loractl.bases import is_single_file
from loractl.catalog import families
from loractl.errors import InputError, MismatchError
from loractl.families.family import Family
from loractl.families.outlines import outlines
from loractl.families.precision import Keeping, check, loading, refuse_for_one_file, settle
from loractl.families.shelf import Shelf, compute_on
from loractl.families.single_file import load_single_file, variant_of

LAB = Path(__file__).parent.parent / "lab" / "weights"
LAB_GUIDANCE = 4.0  # at 7 the reader sees eyes a little better, accents and feet a little worse
REFUSED = {
    "StableDiffusionXLImg2ImgPipeline": "the refiner of Stable Diffusion XL, which retouches pictures that are nearly "
    "done, or a pipeline like it: train the base model",
}
T = TypeVar("T")


def load_model(
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    phases: bool = False,
    *,
    texts_on_cpu: bool = False,
    config: str | None = None,
    allow_pickle: bool = False,
    keeping: Keeping = Keeping(),
    trains: bool = False,
) -> Family:
    """Everything frozen and in evaluation mode. Raises InputError when there is no such model, MismatchError for a
    family that is not known. With `phases` networks wait until `bring` calls them: those of a folder or a hub id
    unread, those of a single file in main memory. With `texts_on_cpu` text encoders stay in main memory. `config` and
    `allow_pickle` are for a checkpoint in one file; `keeping` says how the denoiser is kept, which `trains` or not.
    """
    quiet()
    from diffusers import DiffusionPipeline

    def ready(denoiser: nn.Module) -> None:
        settle(denoiser, keeping, device, dtype, trains)

    where, shelf = str(LAB) if source == "lab" else source, None
    if is_single_file(where):
        refuse_for_one_file(keeping.quantize)
        pipeline = load_single_file(where, dtype, config, allow_pickle)
        family = family_of(source, type(pipeline).__name__)
    else:
        index = _found(source, lambda: DiffusionPipeline.load_config(where, revision=revision))
        family = family_of(source, index["_class_name"])
        how = {"revision": revision, "dtype": dtype, "variant": variant_of(Path(where)), **family.loading}
        how |= loading(keeping.quantize, family.denoiser_name, dtype, device)
        load = partial(_load_folder, source, where, how)
        parts = _outlines(source, where, how, index) if phases else {}
        pipeline = load(**parts)
        shelf = Shelf(pipeline, parts, load, {family.denoiser_name: ready}) if phases else None
    pipeline.set_progress_bar_config(disable=True)
    guidance, guest_of = LAB_GUIDANCE if source == "lab" else None, device if phases else None
    model = family(pipeline, dtype, guidance, guest_of, keeping.offload == "blocks", shelf)
    model.texts_on_cpu = texts_on_cpu
    for network in model.networks.values():
        network.requires_grad_(False).eval()
    if phases or texts_on_cpu:
        compute_on(pipeline, device)
    for name, network in model.movable.items() if not phases else ():
        network.to("cpu" if texts_on_cpu and name in model.encoders else device)
    (ready if shelf is None else partial(check, keeping=keeping, trains=trains))(model.denoiser)
    return model


def _load_folder(source: str, where: str, how: Mapping[str, Any], **parts: Any) -> Any:
    """The pipeline of a folder or a hub id, which gives what is not among the parts."""
    from diffusers import DiffusionPipeline

    return _found(source, lambda: DiffusionPipeline.from_pretrained(where, **{**how, **parts}))


def _outlines(source: str, where: str, how: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Of the networks of a folder, or of a hub id, which comes into the cache."""
    from diffusers import DiffusionPipeline

    folder = where if Path(where).is_dir() else _found(source, lambda: DiffusionPipeline.download(where, **how))
    with torch.device("meta"):
        return outlines(Path(folder), index, how["dtype"])


def family_of(source: str, pipeline: str) -> type[Family]:
    """The class for models with a pipeline of this name. MismatchError when there is none."""
    known = families()
    if pipeline not in known:
        near = difflib.get_close_matches(pipeline, known, n=1) or sorted(known)
        strange = f"which no family of base models knows; there is {', '.join(near)}, and plugins can add others"
        raise MismatchError(f"{source} is a {pipeline}, {REFUSED.get(pipeline, strange)}")
    module, _, name = known[pipeline].partition(":")
    found: type[Family] = getattr(import_module(module), name)
    return found


def _found(source: str, load: Callable[[], T]) -> T:
    """What is loaded. InputError when the model is nowhere."""
    try:
        return load()
    except OSError as error:
        reason = str(error).partition(". ")[0].partition("\n")[0]
        raise InputError(f"the model {source!r} is no folder here and the hub did not give it: {reason}") from error


def quiet() -> None:
    """Keeps the libraries' notices and progress bars off the screen: errors reach a person as our own sentences."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logging: Any
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
