"""What learns in a DreamBooth job: low-rank adapters, or the whole networks."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from loractl.device import PRECISIONS
from loractl.families.sd import StableDiffusion
from loractl.formats import save_adapter
from loractl.inject.inject import adapter_parameters, collect, inject
from loractl.inject.targets import Target, resolve
from loractl.tensors.adapter import Adapter
from loractl.train.loop import Group
from loractl.train.streams import stream
from loractl_dreambooth.spec import DreamBoothSpec


class Learner(Protocol):
    text_encoder_learns: bool

    def groups(self) -> list[Group]: ...

    def facts(self) -> dict[str, Any]: ...

    def numbers(self) -> dict[str, float]: ...

    def save(self, folder: Path) -> dict[str, Path]: ...


def make_learner(model: StableDiffusion, spec: DreamBoothSpec) -> Learner:
    if spec.memory.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return LoraLearner(model, spec) if spec.adapter.kind == "lora" else FullLearner(model, spec)


class LoraLearner:
    """Adapters on the denoiser and, if asked for, on the text encoder's attention."""

    def __init__(self, model: StableDiffusion, spec: DreamBoothSpec) -> None:
        self.model, self.spec = model, spec
        self.text_encoder_learns = spec.adapter.text_encoder
        self.targets = {model.denoiser_name: self._denoiser_targets()}
        if self.text_encoder_learns:
            rank = spec.adapter.text_encoder_rank or spec.adapter.rank
            for name in model.text_encoder_names:
                self.targets[name] = resolve(model.components[name], ["text-encoder"], rank, None)
        for name, targets in self.targets.items():
            inject(model.components[name], targets, generator=stream(spec.seed, "adapter", name))

    def _denoiser_targets(self) -> dict[str, Target]:
        adapter = self.spec.adapter
        targets = adapter.targets
        if isinstance(targets, dict):
            table = {pattern: (settings.rank, settings.alpha) for pattern, settings in targets.items()}
            return resolve(self.model.denoiser, table, adapter.rank, adapter.alpha)
        return resolve(self.model.denoiser, targets, adapter.rank, adapter.alpha)

    def _parameters(self, component: str) -> list[nn.Parameter]:
        return list(adapter_parameters(self.model.components[component]).values())

    def groups(self) -> list[Group]:
        return [Group(self._parameters(name), component_lr(self.spec, self.model, name)) for name in self.targets]

    def facts(self) -> dict[str, Any]:
        trained = sum(parameter.numel() for name in self.targets for parameter in self._parameters(name))
        adapted = sum(
            matrix_size(self.model.components[name].get_submodule(path))
            for name, targets in self.targets.items()
            for path in targets
        )
        bytes_each = PRECISIONS[self.spec.output.dtype].itemsize
        modules = ", ".join(f"{len(targets)} in {name}" for name, targets in self.targets.items())
        return {
            "modules": modules,
            "trainable parameters": trained,
            "fewer than the whole model": f"{whole(self.model) / trained:.0f}×",
            "fewer than the adapted matrices": f"{adapted / trained:.1f}×",
            "adapter file": f"{trained * bytes_each / 1e6:.2f} MB ({self.spec.output.dtype})",
            "scale (alpha / rank)": ", ".join(
                sorted({f"{t.alpha / t.rank:g}" for m in self.targets.values() for t in m.values()})
            ),
        }

    def numbers(self) -> dict[str, float]:
        return {"trainable_parameters": sum(p.numel() for name in self.targets for p in self._parameters(name))}

    def save(self, folder: Path) -> dict[str, Path]:
        modules = {
            f"{name}.{path}": low for name in self.targets for path, low in collect(self.model.components[name]).items()
        }
        adapter = Adapter(modules, self.spec.provenance())
        names, dtype = adapter_files(self.spec.name), PRECISIONS[self.spec.output.dtype]
        files: dict[str, Path] = {}
        for kind in self.spec.output.format:
            path = files[kind] = folder / names[kind]
            save_adapter(path, adapter, kind, dtype=dtype, name=self.spec.name, overwrite=self.spec.output.overwrite)
        return files


class FullLearner:
    """Every weight of the denoiser and, if asked for, of the text encoder: the large and forgetful baseline."""

    def __init__(self, model: StableDiffusion, spec: DreamBoothSpec) -> None:
        self.model, self.spec = model, spec
        self.text_encoder_learns = spec.adapter.text_encoder
        names = [model.denoiser_name, *(model.text_encoder_names if self.text_encoder_learns else ())]
        self.networks = {name: model.components[name] for name in names}
        for network in self.networks.values():
            network.requires_grad_(True).float()

    def groups(self) -> list[Group]:
        return [
            Group(list(n.parameters()), component_lr(self.spec, self.model, name)) for name, n in self.networks.items()
        ]

    def facts(self) -> dict[str, Any]:
        trained = self._trained()
        return {
            "networks": ", ".join(self.networks),
            "trainable parameters": trained,
            "share of the whole model": f"{trained / whole(self.model):.0%}",
            "files": f"{trained * PRECISIONS[self.spec.output.dtype].itemsize / 1e6:.1f} MB ({self.spec.output.dtype})",
        }

    def _trained(self) -> int:
        return sum(parameter.numel() for network in self.networks.values() for parameter in network.parameters())

    def numbers(self) -> dict[str, float]:
        return {"trainable_parameters": self._trained()}

    def save(self, folder: Path) -> dict[str, Path]:
        """One diffusers folder for each network, in the output's precision."""
        files = {}
        for name, network in self.networks.items():
            temporary, final = folder / f".{name}.tmp", folder / name
            trained_dtype = next(network.parameters()).dtype
            saved: Any = network.to(PRECISIONS[self.spec.output.dtype])  # a diffusers or transformers model
            saved.save_pretrained(temporary)
            network.to(trained_dtype)
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
            files[name] = final
        return files


def adapter_files(name: str) -> Mapping[str, str]:
    """The file of each form: kohya's under the job's name, since user interfaces show it; diffusers' under the name
    it looks for.
    """
    return {"diffusers": "pytorch_lora_weights.safetensors", "kohya": f"{name}.safetensors"}


def matrix_size(layer: nn.Module) -> int:
    """Entries of the weight that an injected layer adapts."""
    return cast(Tensor, layer.weight).numel()


def component_lr(spec: DreamBoothSpec, model: StableDiffusion, component: str) -> float:
    if component == model.denoiser_name:
        return spec.train.lr
    return spec.train.text_encoder_lr or spec.train.lr / 20


def whole(model: StableDiffusion) -> int:
    """Parameters of all the model's networks, without the adapter's own."""
    return sum(
        parameter.numel()
        for network in model.networks.values()
        for name, parameter in network.named_parameters()
        if ".adapters." not in name
    )
