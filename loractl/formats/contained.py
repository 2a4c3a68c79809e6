"""Whether a model is another one with updates in its weights: the proof, tensor by tensor, of what was baked."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from loractl.errors import MismatchError
from loractl.formats.checkpoint import Weight, model_parameters
from loractl.tensors.lowrank import LowRank

Updates = Mapping[str, LowRank | Tensor]


def residues(merged: Path, base: Path, updates: Updates) -> Iterator[tuple[str, float]]:
    """Path and ‖W' − (W + ΔW)‖ / ‖ΔW‖ of every parameter of the models, W + ΔW rounded to the precision of W'.

    Where a parameter has no update the norm is ‖W' − W‖ / ‖W‖. Zero means that the model has this update and no other.
    MismatchError names the first that the models or the updates do not share; but norms whose name is known in the
    layout of one model alone are passed over.
    """
    found, weights = model_parameters(merged), model_parameters(base)
    updates = {path: _fitted(update, weights.get(path)) for path, update in updates.items()}
    for path in sorted({*found, *weights, *updates}):
        shapes = {each[path].shape for each in (found, weights) if path in each}
        shapes |= {tuple(updates[path].shape)} if path in updates else set()
        shared = path in found and path in weights
        if len(shapes) > 1 or (not shared and (path in updates or len(shapes.pop()) > 1)):
            raise MismatchError(f"{path} is not in both models in one shape: {merged} was not made of {base}")
    for path in sorted(weights.keys() & found.keys()):
        yield path, _residue(found[path], weights[path], updates.get(path))


def _fitted(update: LowRank | Tensor, weight: Weight | None) -> LowRank | Tensor:
    return update.fitted(weight.shape) if weight and isinstance(update, LowRank) else update


def _residue(merged: Weight, base: Weight, update: LowRank | Tensor | None) -> float:
    found, before = merged.read(), base.read().float()
    delta = update.to(torch.float32).delta().to(before.device) if isinstance(update, LowRank) else update
    wanted = (before if delta is None else before + delta).to(found.dtype).float()
    size = before.norm() if delta is None else delta.norm()
    lost = (found.float() - wanted).norm()
    return float(lost / size) if size else float(lost)
