"""Carries out an averaging job."""

from collections.abc import Mapping, Sequence

import torch

from loractl.errors import MismatchError
from loractl.events import Emit, Facts, Wrote
from loractl.formats import load_adapter, save_adapter
from loractl.method import Outcome
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from loractl_average.spec import AverageSpec


def run(spec: AverageSpec, emit: Emit) -> Outcome:
    adapters = [load_adapter(path).modules for path in spec.adapters]
    result = Adapter(mean(adapters), spec.provenance())
    emit(Facts("mean", {"adapters": len(adapters), "modules": len(result.modules), "parameters": result.parameters}))
    file, overwrite = spec.destination(), spec.output.overwrite
    file.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(file, result, spec.format, dtype=torch.float32, name=spec.name, overwrite=overwrite)
    emit(Wrote(file, spec.format))
    return Outcome({spec.format: file}, {"parameters": result.parameters})


def mean(adapters: Sequence[Mapping[str, LowRank]]) -> dict[str, LowRank]:
    """ΔW = 1/n · Σ ΔWᵢ for every module that any adapter has; an adapter without the module counts as zero."""
    paths = sorted({path for adapter in adapters for path in adapter})
    return {path: stack([each[path] for each in adapters if path in each], 1 / len(adapters), path) for path in paths}


def stack(parts: Sequence[LowRank], weight: float, path: str) -> LowRank:
    """weight · Σ ΔWᵢ, exact: the factors stand side by side along the rank, and each scale goes into its `up`."""
    if len({part.shape for part in parts}) > 1:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise MismatchError(f"{path} has shapes {shapes}: these adapters are for different models")
    down = torch.cat([part.down.float() for part in parts], dim=0)  # (Σr, in, *k)
    up = torch.cat([weight * part.scale * part.up.float() for part in parts], dim=1)  # (out, Σr, *1)
    return LowRank(down, up, alpha=down.shape[0])
