"""Carries out a distilling job: the difference of two models, one pair of weights at a time, and its factors."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from loractl.device import PRECISIONS, pick_device
from loractl.errors import MismatchError, NumericsError
from loractl.events import Emit, Facts, Note, Progress, Wrote
from loractl.formats import save_adapter
from loractl.formats.checkpoint import Weight, model_parameters
from loractl.method import Outcome
from loractl.tensors.adapter import Adapter
from loractl.tensors.distill import change, distill
from loractl.tensors.lowrank import LowRank
from loractl.tensors.threads import one_thread
from loractl_distill.spec import DistillSpec

# Adapters with these fail to load in diffusers and in user interfaces.
_REFUSED = re.compile(r"unet\.(conv_in|conv_out|time_embedding\..+|add_embedding\..+)")


class Found(NamedTuple):
    """One module's update, ‖ΔW‖² and the share of it that the update holds."""

    low: LowRank
    square: float
    energy: float


def run(spec: DistillSpec, emit: Emit) -> Outcome:
    tuned, base = model_parameters(spec.tuned), model_parameters(spec.base)
    tell_vectors(spec, tuned, base, emit)
    tuned, base = _matrices(tuned), _matrices(base)
    check_pair(spec, tuned, base)
    with one_thread():
        found = dict(differences(spec, tuned, base, emit))
    if not found:
        raise MismatchError(f"{spec.tuned} and {spec.base} do not differ: there is nothing to distill")
    numbers = {"modules": len(found), "left_out": len(base) - len(found), "energy": _energy(found)}
    emit(Facts("captured energy", {path: f"{each.energy:.4f} (rank {each.low.rank})" for path, each in found.items()}))
    emit(Facts("distilled", numbers))
    adapter = Adapter({path: each.low for path, each in found.items()}, spec.provenance())
    out = spec.destination()
    out.parent.mkdir(parents=True, exist_ok=True)
    dtype, overwrite = PRECISIONS[spec.output.dtype], spec.output.overwrite
    save_adapter(out, adapter, spec.output.format, dtype=dtype, name=spec.name, overwrite=overwrite)
    emit(Wrote(out, spec.output.format))
    return Outcome({spec.output.format: out}, numbers)


def check_pair(spec: DistillSpec, tuned: Mapping[str, Weight], base: Mapping[str, Weight]) -> None:
    """MismatchError names the first module that one of the models lacks or that has two shapes."""
    for path in sorted(tuned.keys() | base.keys()):
        shapes = [models[path].shape if path in models else None for models in (tuned, base)]
        if shapes[0] != shapes[1]:
            words = [str(shape) if shape else "nothing" for shape in shapes]
            raise MismatchError(
                f"{path}: {spec.tuned} has {words[0]} and {spec.base} has {words[1]}, so they are no pair"
            )


def tell_vectors(spec: DistillSpec, tuned: Mapping[str, Weight], base: Mapping[str, Weight], emit: Emit) -> None:
    """A warning where biases or norms have changed, which no low-rank update holds."""
    vectors = [path for path, weight in base.items() if len(weight.shape) == 1 and path in tuned]
    changed = [path for path in vectors if not change(tuned[path].read(), base[path].read()) <= spec.unchanged]
    if changed:
        told = f"{len(changed)} biases and norms have changed and are left out; the first is {changed[0]}"
        emit(Note(told, "warning"))


def differences(
    spec: DistillSpec, tuned: Mapping[str, Weight], base: Mapping[str, Weight], emit: Emit
) -> Iterator[tuple[str, Found]]:
    """Path and update of each module that changed and that adapters can have."""
    device, refused = pick_device(spec.memory.device), []
    for done, path in enumerate(base):
        weights = (tuned[path].read().to(device), base[path].read().to(device))
        if not change(*weights) <= spec.unchanged:  # so that NaN is a change, too
            if _REFUSED.fullmatch(path):
                refused.append(path)
            else:
                yield path, _find(path, weights[0].float() - weights[1].float(), spec)
        emit(Progress("distill", done + 1, len(base)))
    if refused:
        emit(Note(f"left out, because programs refuse adapters that have them: {', '.join(refused)}", "warning"))


def _matrices(parameters: Mapping[str, Weight]) -> dict[str, Weight]:
    """Module → weight, of linear layers and convolutions."""
    return {path.removesuffix(".weight"): each for path, each in parameters.items() if len(each.shape) > 1}


def _find(path: str, delta: Tensor, spec: DistillSpec) -> Found:
    if not delta.isfinite().all():
        raise NumericsError(f"{path} is not finite in one of the models: the file is damaged, so fetch it again")
    low, energy = distill(delta, spec.rank, spec.energy, spec.seed)
    low = low.to(low.down.dtype, torch.device("cpu"))  # where files are written; so a GPU holds one module's at a time
    return Found(low, float(delta.square().sum()), energy)


def _energy(found: Mapping[str, Found]) -> float:
    """The share of the whole difference that is kept."""
    total = sum(each.square for each in found.values())
    return sum(each.square * each.energy for each in found.values()) / total
