"""Texts that are read elsewhere than pictures are made: on the CPU, where text encoders are too large for the GPU."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from loractl.families.family import Family
from loractl.families.shelf import compute_on

KEPT = 16  # answers, which take some MB each


def read_there(model: Family, encode: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a pipeline's `encode_prompt` says where the text encoders are, brought to where pictures are made."""
    call = signature(encode).bind(*arguments, **named)
    call.arguments["device"] = model.text_device
    return _moved(encode(*call.args, **call.kwargs), model.device)


class Reader:
    """Reads for pipelines whose text encoders are on the CPU, where it takes long: what was read lately is known."""

    def __init__(self, model: Family) -> None:
        self._model = model
        self._known: OrderedDict[Hashable, Any] = OrderedDict()

    @contextmanager
    def reading(self, pipeline: Any, state: Hashable) -> Iterator[None]:
        """The pipeline is the model's, or another on its networks; `state` says what its text encoders are now."""
        if not self._model.texts_on_cpu:
            yield
            return
        encode, kind = pipeline.encode_prompt, type(pipeline).__name__
        if pipeline is not self._model.pipeline:
            compute_on(pipeline, self._model.device)

        def read(*arguments: Any, **named: Any) -> Any:
            key = (kind, state, repr((arguments, sorted(named.items(), key=lambda item: item[0]))))
            if key not in self._known:
                self._known[key] = read_there(self._model, encode, *arguments, **named)
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return self._known[key]

        pipeline.encode_prompt = read
        try:
            yield
        finally:
            del pipeline.encode_prompt


def _moved(said: Any, device: torch.device) -> Any:
    """Tensors, and what holds them, on the device."""
    if isinstance(said, tuple | list):
        return type(said)(_moved(each, device) for each in said)
    return said.to(device) if isinstance(said, Tensor) else said
