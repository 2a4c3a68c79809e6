"""The networks of a diffusers folder, each loaded when it is first needed and freed when another takes its place.

What is not in main memory has an outline in the pipeline: the network as its configuration has it, which answers for
names, shapes and settings and can compute nothing.
"""

import gc
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


class Shelf:
    """Puts networks into a pipeline that has their outlines, and takes them out again."""

    def __init__(
        self,
        pipeline: Any,
        outlines: Mapping[str, nn.Module],
        load: Callable[..., Any],
        ready: Mapping[str, Callable[[nn.Module], None]],
    ) -> None:
        """`load(**parts)` makes the pipeline of these parts and loads what is missing among them; `ready` has what is
        to be done to a network of this name when it has been loaded.
        """
        self._pipeline, self._outlines, self._load, self._ready = pipeline, dict(outlines), load, ready

    def has(self, name: str) -> bool:
        """Whether the network is out of memory."""
        return name in self._outlines and getattr(self._pipeline, name) is self._outlines[name]

    def take(self, name: str) -> None:
        """Loads the network, as the pipeline would with all others."""
        others = {each: part for each, part in self._pipeline.components.items() if each != name}
        network = getattr(self._load(**others), name).requires_grad_(False).eval()
        if name in self._ready:
            self._ready[name](network)
        setattr(self._pipeline, name, network)

    def put_back(self, name: str) -> bool:
        """Frees the network unless something in it learns, which no folder has. Whether it is free."""
        if name not in self._outlines or any(each.requires_grad for each in getattr(self._pipeline, name).parameters()):
            return False
        setattr(self._pipeline, name, self._outlines[name])
        gc.collect()  # networks have cycles, and may be most of the memory there is
        return True


def compute_on(pipeline: Any, device: Any) -> None:
    """Tells a pipeline where it computes. diffusers would ask a network, which may be elsewhere at the moment."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": device})
