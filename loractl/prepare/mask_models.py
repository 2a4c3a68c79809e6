"""Masks from networks: segmentation models of transformers by hub id or path, and rembg.

Pictures go in as squares: so most of these networks saw them in training, nothing is padded or cropped, and a
picture's mask doesn't depend on its batch.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loractl.errors import InputError
from loractl.prepare.masks import from_values
from loractl.prepare.pretrained import Checkpoint, Model, load_config, load_model

SIDE = 640  # pixels of the squares, which the processors bring to the networks' own sizes
BACKGROUNDS = ("background", "__background__")  # labels that are not the subject
_ASK_MORE = {"oneformer", "videomt"}  # kinds that take more than a picture

Masker = Callable[[Sequence[Image.Image]], list[Image.Image]]  # a batch of RGB pictures → a mask for each
_Reader = Callable[[Sequence[Image.Image]], NDArray[np.float32]]  # squares → how likely the subject is: (n, h, w)


def load_segmenter(checkpoint: Checkpoint, *, prompt: str | None = None, threshold: float | None = 0.5) -> Masker:
    """A segmentation model. `prompt` says what the mask shows: for CLIPSeg any text, for others labels of theirs, with
    commas between them, by default all but the background. `threshold` is a probability; None is Otsu's, for models
    whose probabilities are not to be taken literally.

    Raises InputError where there is no such model or label.
    """
    import torch

    read = _load_reader(checkpoint, prompt)

    def mask(pictures: Sequence[Image.Image]) -> list[Image.Image]:
        squares = [picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for picture in pictures]
        with torch.inference_mode():
            values = read(squares)
        return [from_values(each, picture.size, threshold) for each, picture in zip(values, pictures, strict=True)]

    return mask


def load_rembg(name: str = "u2net") -> Masker:
    """One of rembg's models, which the package downloads by itself. InputError where it is not installed."""
    try:
        rembg: Any = import_module("rembg")
    except (ImportError, SystemExit):  # it exits where its onnxruntime is missing
        advice = 'pip install "loractl[rembg]", or take masks from saliency or a segmentation model'
        raise InputError(f"masks by rembg need a package that is not installed: {advice}") from None
    try:
        session = rembg.new_session(name)
    except (OSError, ValueError) as error:
        raise InputError(f"rembg's model {name!r} can't be loaded: {error}") from error
    return lambda pictures: [rembg.remove(each, session=session, only_mask=True).convert("L") for each in pictures]


def _load_reader(checkpoint: Checkpoint, prompt: str | None) -> _Reader:
    import transformers

    config = load_config(checkpoint)
    if config.model_type == "clipseg":
        if not prompt:
            raise InputError(f"{checkpoint.source} finds what a text says: name the subject in a prompt")
        model = load_model(checkpoint, transformers.CLIPSegForImageSegmentation, transformers.AutoProcessor)
        return lambda squares: _by_text(model, squares, prompt)
    wanted = _labels(checkpoint.source, config.id2label, prompt)
    model = load_model(checkpoint, _network(checkpoint.source, config), transformers.AutoImageProcessor)
    return lambda squares: _by_label(model, squares, wanted)


def _network(source: str, config: Any) -> Any:
    import transformers

    for task in ("SEMANTIC", "UNIVERSAL", "IMAGE"):
        classes = getattr(transformers, f"MODEL_FOR_{task}_SEGMENTATION_MAPPING")
        if type(config) in classes and config.model_type not in _ASK_MORE:
            return classes[type(config)]
    raise InputError(f"{source} is of the kind {config.model_type}, which is no segmentation model: choose another")


def _labels(source: str, names: dict[int, str], prompt: str | None) -> list[int]:
    """The numbers of the labels that the prompt names."""
    known = {name.strip().casefold(): number for number, name in names.items()}
    if prompt is None:
        if known.keys().isdisjoint(BACKGROUNDS):
            raise InputError(f"{source} has no background label: name the subject's in a prompt ({_some(names)})")
        return sorted(number for name, number in known.items() if name not in BACKGROUNDS)
    asked = [name.strip() for name in prompt.split(",") if name.strip()]
    for name in asked:
        if name.casefold() not in known:
            near = get_close_matches(name.casefold(), known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"it has {_some(names)}"
            raise InputError(f"{source} has no label {name!r}; {advice}")
    return sorted({known[name.casefold()] for name in asked})


def _some(names: dict[int, str]) -> str:
    return ", ".join(list(names.values())[:20]) + (", …" if len(names) > 20 else "")


def _by_text(model: Model, squares: Sequence[Image.Image], prompt: str) -> NDArray[np.float32]:
    inputs = model.inputs(text=[prompt] * len(squares), images=list(squares), padding=True)
    logits = model.network(**inputs).logits
    return _array(logits.reshape(len(squares), *logits.shape[-2:]).float().sigmoid())


def _by_label(model: Model, squares: Sequence[Image.Image], wanted: Sequence[int]) -> NDArray[np.float32]:
    import torch

    # MobileViT's processor would cut the border off, and the mask would be of the middle alone.
    whole = {"do_center_crop": False} if hasattr(model.processor, "do_center_crop") else {}
    outputs = model.network(**model.inputs(images=list(squares), **whole))
    logits = outputs.logits if "logits" in outputs else None
    if logits is not None and logits.ndim == 4:  # (n, labels, h, w); a single label stands against the rest
        chances = logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(1)
        return _array(chances[:, list(wanted)].sum(1))
    sizes = [(SIDE, SIDE)] * len(squares)
    maps = torch.stack(model.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes))  # of labels
    return _array(torch.isin(maps, torch.tensor(wanted, device=maps.device)).float())


def _array(tensor: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
