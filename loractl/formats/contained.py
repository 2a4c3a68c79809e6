"""Whether a model is another one with updates in its weights: the proof, module by module, of what was baked."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from loractl.errors import MismatchError
from loractl.formats.checkpoint import Weight, model_weights
from loractl.tensors.lowrank import LowRank


def residues(merged: Path, base: Path, modules: Mapping[str, LowRank]) -> Iterator[tuple[str, float]]:
    """Path and ‖W' − (W + ΔW)‖ / ‖ΔW‖ of every module of the models, W + ΔW rounded to the precision of W'.

    Where a module has no update the norm is ‖W' − W‖ / ‖W‖. Zero means that the model has this update and no other.
    MismatchError names the first module that the models or the adapter do not share.
    """
    found, weights = model_weights(merged), model_weights(base)
    for path in sorted({*found, *weights, *modules}):
        shapes = {each[path].shape for each in (found, weights) if path in each}
        shapes |= {tuple(modules[path].shape)} if path in modules else set()
        if path not in found or path not in weights or len(shapes) > 1:
            raise MismatchError(f"{path} is not in both models in one shape: {merged} was not made of {base}")
    for path, weight in weights.items():
        yield path, _residue(found[path], weight, modules.get(path))


def _residue(merged: Weight, base: Weight, low: LowRank | None) -> float:
    found, before = merged.read(), base.read().float()
    delta = low.to(torch.float32).delta() if low else torch.zeros(())
    wanted = (before + delta).to(found.dtype).float()
    size = delta.norm() if low else before.norm()
    lost = (found.float() - wanted).norm()
    return float(lost / size) if size else float(lost)
