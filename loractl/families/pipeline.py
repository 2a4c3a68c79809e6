"""Loads a base model: the built-in lab, a diffusers folder or a hub id."""

from pathlib import Path

import torch

from loractl.errors import InputError, MismatchError
from loractl.families.sd import StableDiffusion

LAB = Path(__file__).parent.parent / "lab" / "weights"
GUIDANCE = 7.5
LAB_GUIDANCE = 4.0  # at 7 the reader sees eyes a little better, accents and feet a little worse


def load_model(
    source: str, device: torch.device, dtype: torch.dtype, revision: str | None = None, phases: bool = False
) -> StableDiffusion:
    """Everything frozen and in evaluation mode. Raises InputError when there is no such model, MismatchError for a
    family that is not known. With `phases` the networks wait in main memory until `bring` calls them.
    """
    _quiet()
    from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline

    where = str(LAB) if source == "lab" else source
    try:
        pipeline = DiffusionPipeline.from_pretrained(where, revision=revision, dtype=dtype, safety_checker=None)
    except OSError as error:
        reason = str(error).partition(". ")[0].partition("\n")[0]
        raise InputError(f"the model {source!r} is no folder here and the hub did not give it: {reason}") from error
    if not isinstance(pipeline, StableDiffusionPipeline | StableDiffusionInpaintPipeline):
        raise MismatchError(
            f"{source} is a {type(pipeline).__name__}; loractl trains Stable Diffusion 1.x and 2.x models"
        )
    if not phases:
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    guidance = LAB_GUIDANCE if source == "lab" else GUIDANCE
    model = StableDiffusion(pipeline, dtype, guidance, device if phases else None)
    for network in model.networks.values():
        network.requires_grad_(False).eval()
    return model


def _quiet() -> None:
    """Keeps the libraries' notices and progress bars off the screen: errors reach a person as our own sentences."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
