"""The kinds of things that learn in a job: low-rank adapters, whole networks, tokens."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from loractl.device import PRECISIONS
from loractl.errors import InputError, MismatchError
from loractl.families.family import Family
from loractl.inject.dropout import Dropout, end_dropout, set_dropout
from loractl.inject.inject import adapter as injected_adapter
from loractl.inject.inject import adapter_parameters, collect, inject, set_weight
from loractl.inject.layers import Form
from loractl.inject.targets import Target, resolve
from loractl.inject.tokens import (
    add_tokens,
    collect_tokens,
    initial_vectors,
    preserve_norm_,
    pull,
    token_parameters,
    typical_norm,
)
from loractl.runs.sizes import count, matrix_size, whole
from loractl.sections import AdapterSection, EmbeddingSection, TargetSettings, TrainingSpec
from loractl.train.loop import Group
from loractl.train.norms import delta_norms, limit_norms
from loractl.train.rates import grouped, lora_plus
from loractl.train.streams import stream


class Part(Protocol):
    """One kind of thing that learns. Its groups are named "denoiser", "text_encoder" or "tokens", with ":…" behind."""

    def groups(self) -> list[Group]: ...

    def facts(self) -> dict[str, Any]: ...


class LoraPart:
    """Adapters on the denoiser and, if asked for, on the text encoders' attention."""

    def __init__(self, model: Family, spec: TrainingSpec, adapter: AdapterSection) -> None:
        self.model, self.spec, self.adapter = model, spec, adapter
        self.targets = {model.denoiser_name: self._denoiser_targets()}
        if adapter.text_encoder:
            rank = adapter.text_encoder_rank or adapter.rank
            alpha = adapter.alpha and adapter.alpha * rank / adapter.rank  # one scale for all
            for name in model.adaptable_encoders():
                self.targets[name] = resolve(model.components[name], ["text-encoder"], rank, alpha)
        for name, targets in self.targets.items():
            plain = name != model.denoiser_name or (spec.memory.quantize, spec.memory.offload) == ("none", "none")
            form: Form = "auto" if plain else "branch"  # weights in few bits or elsewhere can't be added to
            generator = stream(spec.seed, "adapter", name)
            inject(model.components[name], targets, generator=generator, form=form, device=model.device)
        # found once: to walk through a model at every step would cost as much as a small network
        self.layers = {name: [*injected_adapter(model.components[name]).values()] for name in self.targets}
        self.dropout = Dropout(adapter.dropout, adapter.rank_dropout, adapter.module_dropout)

    def _denoiser_targets(self) -> dict[str, Target]:
        adapter = self.adapter
        table = {pattern: (settings.rank, settings.alpha) for pattern, settings in self.settings.items()}
        return resolve(self.model.denoiser, table, adapter.rank, adapter.alpha)

    @property
    def settings(self) -> dict[str, TargetSettings]:
        """What the job says of each pattern, those of the family's own presets included."""
        targets = self.adapter.targets
        table = targets if isinstance(targets, dict) else dict.fromkeys(targets, TargetSettings())
        return {pattern: said for target, said in table.items() for pattern in self.model.patterns(target)}

    def parameters(self, component: str) -> dict[str, nn.Parameter]:
        return adapter_parameters(self.model.components[component])

    def groups(self) -> list[Group]:
        """By component, by the patterns that have a rate of their own, and with LoRA+ by factor."""
        found = []
        for name in self.targets:
            parameters, lr = self.parameters(name), component_lr(self.spec, self.model, name)
            rates = self.rates if name == self.model.denoiser_name else {}
            found += [(group, parameters) for group in grouped(role(self.model, name), parameters, lr, rates)]
        ratio = self.spec.train.up_lr_ratio
        if ratio == 1:
            return [group for group, _ in found]
        return [half for group, parameters in found for half in lora_plus(group, parameters, ratio)]

    @property
    def rates(self) -> dict[str, float]:
        """Pattern → learning rate."""
        return {pattern: settings.lr for pattern, settings in self.settings.items() if settings.lr is not None}

    @property
    def networks_by_name(self) -> dict[str, nn.Module]:
        return {name: self.model.components[name] for name in self.targets}

    @property
    def networks(self) -> list[nn.Module]:
        return list(self.networks_by_name.values())

    def start_step(self, step: int, active: frozenset[str]) -> None:
        """Draws what is left out in this step, if anything is, of the networks that learn in it."""
        if self.dropout == Dropout():
            return
        for name, layers in self.layers.items():
            if role(self.model, name) in active:
                set_dropout(layers, self.dropout, stream(self.spec.seed, "dropout", name, step))

    def end_step(self) -> None:
        for layers in self.layers.values():
            if self.dropout != Dropout():
                end_dropout(layers)
            if self.adapter.max_norm is not None:
                limit_norms(layers, self.adapter.max_norm)

    def learnt_nothing(self) -> bool:
        return not any(bool(delta_norms(layers).any()) for layers in self.layers.values())

    def facts(self) -> dict[str, Any]:
        trained = count(self.groups())
        adapted = sum(
            matrix_size(self.model.components[name].get_submodule(path))
            for name, targets in self.targets.items()
            for path in targets
        )
        dtype = self.spec.output.dtype
        scales = {f"{t.alpha / t.rank:g}" for targets in self.targets.values() for t in targets.values()}
        return {
            "modules": ", ".join(f"{len(targets)} in {name}" for name, targets in self.targets.items()),
            "trainable parameters": trained,
            "fewer than the whole model": f"{whole(self.model) / trained:.0f}×",
            "fewer than the adapted matrices": f"{adapted / trained:.1f}×",
            "adapter file": f"{trained * PRECISIONS[dtype].itemsize / 1e6:.2f} MB ({dtype})",
            "scale (alpha / rank)": ", ".join(sorted(scales)),
        }

    def modules(self) -> dict[str, Any]:
        """The adapter's modules by component and path."""
        return {
            f"{name}.{path}": low for name in self.targets for path, low in collect(self.model.components[name]).items()
        }

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The untouched model for a while."""
        for network in self.networks:
            set_weight(network, 0.0)
        try:
            yield
        finally:
            for network in self.networks:
                set_weight(network, 1.0)


class FullPart:
    """Every weight of the denoiser and, if asked for, of the text encoder: the large and forgetful baseline."""

    def __init__(self, model: Family, spec: TrainingSpec, adapter: AdapterSection) -> None:
        self.model, self.spec = model, spec
        names = [model.denoiser_name, *(model.adaptable_encoders() if adapter.text_encoder else ())]
        self.networks_by_name = {name: model.networks[name] for name in names}
        for network in self.networks_by_name.values():
            network.requires_grad_(True).float()

    def groups(self) -> list[Group]:
        return [
            Group(role(self.model, name), list(network.parameters()), component_lr(self.spec, self.model, name))
            for name, network in self.networks_by_name.items()
        ]

    def facts(self) -> dict[str, Any]:
        trained, dtype = count(self.groups()), self.spec.output.dtype
        return {
            "networks": ", ".join(self.networks_by_name),
            "trainable parameters": trained,
            "share of the whole model": f"{trained / whole(self.model):.0%}",
            "files": f"{trained * PRECISIONS[dtype].itemsize / 1e6:.1f} MB ({dtype})",
        }

    def save(self, folder: Path, overwrite: bool) -> dict[str, Path]:
        """One diffusers folder for each network, in the output's precision. InputError rather than replace one that
        came while the run was under way, unless the job allows it.
        """
        files = {}
        for name, network in self.networks_by_name.items():
            temporary, final = folder / f".{name}.tmp", folder / name
            if final.exists() and not overwrite:
                raise InputError(f"{final} is already there: choose another --out, or replace it with --overwrite")
            shutil.rmtree(temporary, ignore_errors=True)
            trained_dtype = next(network.parameters()).dtype
            saved: Any = network.to(PRECISIONS[self.spec.output.dtype])  # a diffusers or transformers model
            saved.save_pretrained(temporary)
            network.to(trained_dtype)
            put_in_place(temporary, final)
            files[name] = final
        return files


def put_in_place(folder: Path, final: Path) -> None:
    """Renames the folder to `final`; what was there is deleted last, so that one of both is always whole."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    folder.rename(final)
    shutil.rmtree(old, ignore_errors=True)


class TokenPart:
    """Placeholder tokens with embeddings of their own, in every text encoder."""

    def __init__(self, model: Family, spec: TrainingSpec, embedding: EmbeddingSection, weight: float) -> None:
        self.model, self.embedding = model, embedding
        for token in embedding.tokens:
            if not model.reads(token):
                raise MismatchError(f"{model.title} reads texts in lower case: write {token.lower()}, not {token}")
        self.encoders: dict[str, Any] = {name: model.components[name] for name in model.text_encoder_names}
        self.targets = {name: embedding.norm_target or typical_norm(encoder) for name, encoder in self.encoders.items()}
        for name, encoder in self.encoders.items():
            add_tokens(model.tokenizers[name], encoder, self._starts(name, spec.seed))
        if weight != 1:
            for parameter in self.parameters:
                parameter.register_hook(lambda gradient: weight * gradient)
        self.started = [parameter.detach().clone() for parameter in self.parameters]

    def _starts(self, name: str, seed: int) -> dict[str, Tensor]:
        """Token → the rows that it starts from in one text encoder."""
        embedding, tokenizer, encoder = self.embedding, self.model.tokenizers[name], self.encoders[name]
        return {
            token: initial_vectors(
                tokenizer, encoder, init, embedding.vectors, stream(seed, "token", token), embedding.spread
            )
            for token, init in embedding.starts.items()
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [rows for encoder in self.encoders.values() for rows in token_parameters(encoder).values()]

    def groups(self) -> list[Group]:
        return [Group("tokens", self.parameters, self.embedding.lr, weight_decay=0.0)]

    def facts(self) -> dict[str, Any]:
        widths = {
            token: " and ".join(str(token_parameters(encoder)[token].shape[1]) for encoder in self.encoders.values())
            for token in self.embedding.tokens
        }
        count = self.embedding.vectors
        return {"tokens": ", ".join(f"{token} ({count} vectors of {width})" for token, width in widths.items())}

    def pull(self) -> Tensor | float:
        if self.embedding.norm != "pull":
            return 0.0
        pulls = [
            pull(rows, self.targets[name])
            for name, encoder in self.encoders.items()
            for rows in token_parameters(encoder).values()
        ]
        return self.embedding.norm_weight * torch.stack(pulls).sum()

    def end_step(self) -> None:
        if self.embedding.norm == "preserve":
            for rows, started in zip(self.parameters, self.started, strict=True):
                preserve_norm_(rows, started.norm(dim=1))

    def learnt_nothing(self) -> bool:
        return all(torch.equal(rows, started) for rows, started in zip(self.parameters, self.started, strict=True))

    def collect(self) -> dict[str, Tensor]:
        """Component and token → rows."""
        return {
            f"{name}.{token}": rows
            for name, encoder in self.encoders.items()
            for token, rows in collect_tokens(encoder).items()
        }


def role(model: Family, component: str) -> str:
    return "denoiser" if component == model.denoiser_name else "text_encoder"


def component_lr(spec: TrainingSpec, model: Family, component: str) -> float:
    if component == model.denoiser_name:
        return spec.train.lr
    return spec.train.text_encoder_lr or spec.train.lr / 20
