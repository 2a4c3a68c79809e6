"""Networks that turn pictures, and some of them texts, into directions that can be compared.

A hub id or a folder gives CLIP, SigLIP and their kin (pictures and texts in one space), DINOv2 and other vision models
of transformers (pictures alone); a dotted path and a file of weights give any classifier built as torchvision builds
them, taken before its head.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from loractl.data.images import square, to_tensor
from loractl.errors import InputError, MismatchError
from loractl.formats.pickles import is_pickle, read_pickle
from loractl.formats.safefile import read_tensors

CHUNK = 16  # pictures encoded together
SIDE = 224  # pixels, what classifiers are trained on
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which they are trained on


@dataclass(frozen=True)
class EncoderSource:
    """A hub id, a folder, or, with `weights`, the dotted path of a function that builds a classifier."""

    source: str
    revision: str | None = None
    weights: Path | None = None
    allow_pickle: bool = False


class Encoder(Protocol):
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d) on the CPU, rows of length 1."""

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """The same for texts, comparable with the pictures; None from an encoder that reads none."""


def load_encoder(source: EncoderSource, device: torch.device) -> Encoder:
    """Raises InputError where there is no such encoder, MismatchError for weights of another network."""
    if source.weights is not None:
        return Classifier(_build(source), device)
    return _load_pretrained(source, device)


class Pretrained:
    """A model of transformers."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any | None) -> None:
        self._model, self._processor, self._tokenizer = model, processor, tokenizer

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        encode = getattr(self._model, "get_image_features", self._model)
        inputs = (self._processor(images=list(chunk), return_tensors="pt") for chunk in _chunks(pictures))
        return _unit([self._pooled(encode, each) for each in inputs])

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """Texts are padded to the full length, which SigLIP was trained with and CLIP does not mind."""
        if self._tokenizer is None:
            return None
        length = self._model.config.text_config.max_position_embeddings
        settings = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        inputs = (self._tokenizer(list(chunk), **settings) for chunk in _chunks(texts))
        return _unit([self._pooled(self._model.get_text_features, each) for each in inputs])

    def _pooled(self, encode: Callable[..., Any], inputs: Any) -> Tensor:
        pooled: Tensor = encode(**inputs.to(self._model.device)).pooler_output
        return pooled


class Classifier:
    """A network whose features are what goes into its last linear layer."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise MismatchError(f"{type(network).__name__} has no linear layer at its end: it is no classifier")
        self._network, self._device = network.to(device).eval(), device
        self._features: list[Tensor] = []
        heads[-1].register_forward_pre_hook(lambda _, inputs: self._features.append(inputs[0]))

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
        self._features.clear()
        for chunk in _chunks(pictures):
            pixels = to_tensor([square(picture, SIDE) for picture in chunk]) / 2 + 0.5
            self._network(((pixels - mean) / std).to(self._device))
        return _unit(self._features)

    def texts(self, texts: Sequence[str]) -> Tensor | None:  # noqa: ARG002  # the protocol's
        return None


def _load_pretrained(source: EncoderSource, device: torch.device) -> Pretrained:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    name, revision = source.source, source.revision
    try:
        model = AutoModel.from_pretrained(name, revision=revision, dtype=torch.float32).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil")
        reads = hasattr(model, "get_text_features")
        return Pretrained(model, processor, AutoTokenizer.from_pretrained(name, revision=revision) if reads else None)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"the encoder {name!r} can't be loaded from a folder here or from the hub: {reason}"
        ) from error


def _build(source: EncoderSource) -> nn.Module:
    """Calls the function and fills the network that it returns."""
    module, _, function = source.source.rpartition(".")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the encoder {source.source!r} is no function that can be imported: {error}") from error
    if not isinstance(network, nn.Module):
        raise MismatchError(f"{source.source} returned a {type(network).__name__}, not a network")
    path = Path(source.weights or "")
    tensors, _ = read_pickle(path) if source.allow_pickle and is_pickle(path) else read_tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise MismatchError(f"the weights in {path} are not those of {source.source}") from error
    return network


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[first : first + CHUNK] for first in range(0, len(items), CHUNK))


def _unit(features: Sequence[Tensor]) -> Tensor:
    return normalize(torch.cat([part.flatten(1).float().cpu() for part in features]), dim=1)
