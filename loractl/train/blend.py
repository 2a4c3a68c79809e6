"""Blending weights of several adapters on one model, learned from pictures while everything else rests.

    W + Σᵢ wᵢ·ΔWᵢ, with wᵢ one number for an adapter, or one for each of its groups of modules

The loss is the denoising loss of the merged model on the pictures and, to keep each adapter's own subject, the distance
of the merged model's prediction for that adapter's own prompt from what the adapter alone predicts (as in Shah et al.
2023, "ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs", where each column of a ΔW has a weight).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loractl.families.conditioning import Conditioning
from loractl.families.family import Family
from loractl.inject.inject import bind_weights, load_into
from loractl.tensors.adapter import Adapter
from loractl.train.batches import Batch, Source
from loractl.train.conditioning import Conditioner
from loractl.train.loop import Group
from loractl.train.loss import denoising_errors, predicted_prior_errors, prediction


@dataclass(frozen=True)
class Strand:
    """One adapter of a blend: the names of its weights with the values they start from, and which of them each module
    (component and path) follows. A module that follows none keeps the weight `rest`.
    """

    adapter: Adapter
    start: Mapping[str, float]
    follows: Mapping[str, str]
    rest: float = 1.0


class Blend:
    """The strands on a model, told apart by their names. The model and the adapters themselves ask for no gradient."""

    def __init__(self, model: Family, strands: Mapping[str, Strand]) -> None:
        self.model, self.strands = model, strands
        self.weights = {
            name: nn.Parameter(torch.tensor([*strand.start.values()], dtype=torch.float32, device=model.device))
            for name, strand in strands.items()
        }
        for name, strand in strands.items():
            for component in strand.adapter.components():
                network = model.components[component]
                load_into(network, strand.adapter.component(component), name)
                network.requires_grad_(False)
        self.settle()

    @property
    def changes_text(self) -> bool:
        """Whether what a prompt means depends on the weights."""
        encoders = set(self.model.text_encoder_names)
        return any(encoders & set(strand.adapter.components()) for strand in self.strands.values())

    def group(self, lr: float) -> Group:
        """What learns. The weights do not decay: 0 is no better than any other."""
        return Group("weights", list(self.weights.values()), lr, weight_decay=0.0)

    def values(self) -> dict[str, dict[str, float]]:
        """Of each strand its weights by name, as they are now."""
        return {
            name: dict(zip(strand.start, self.weights[name].tolist(), strict=True))
            for name, strand in self.strands.items()
        }

    def follow(self) -> None:
        """The model is the merged one, and what it predicts next carries gradients to the weights."""
        for name, strand in self.strands.items():
            named = dict(zip(strand.start, self.weights[name].unbind(), strict=True))
            self._bind(name, named, torch.full((), strand.rest, device=self.model.device))

    def settle(self) -> None:
        """The model is the merged one, and carries no gradients."""
        with torch.no_grad():
            self.follow()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Inside, the model has this adapter at weight 1 and no other, and no gradients."""
        with torch.no_grad():
            for each, strand in self.strands.items():
                weight = torch.full((), float(each == name), device=self.model.device)
                self._bind(each, dict.fromkeys(strand.start, weight), weight)
            yield
        self.settle()

    def _bind(self, name: str, named: Mapping[str, Tensor], rest: Tensor) -> None:
        strand = self.strands[name]
        for component in strand.adapter.components():
            modules = strand.adapter.component(component)
            weights = {path: named.get(strand.follows.get(f"{component}.{path}", ""), rest) for path in modules}
            bind_weights(self.model.components[component], weights, name)


class BlendLoss:
    """Callable as `fit` wants it: (step, accumulated batch) → scalar."""

    def __init__(
        self, blend: Blend, source: Source, batch_size: int, keep: Mapping[str, str] = {}, penalty: float = 0.0
    ) -> None:
        """`keep` has the own prompts of strands; `penalty` is the weight of keeping what they alone predict."""
        self.blend, self.source, self.batch_size = blend, source, batch_size
        self.keep, self.penalty = keep if penalty else {}, penalty
        self._condition = Conditioner(blend.model)
        self._condition.expect(["", *keep.values(), *(example.caption for example in source.latents.examples)])

    def __call__(self, step: int, part: int) -> Tensor:
        size = self.batch_size
        batch = self.source.batch(step, range(part * size, (part + 1) * size), size)
        blend, model = self.blend, self.blend.model
        with model.autocast():
            alone = {name: self._alone(name, batch) for name in self.keep}
            blend.follow()
            loss = denoising_errors(model, batch, self._text(batch.captions)).mean()
            for name, said in alone.items():
                own = self._text([self.keep[name]] * len(batch))
                loss = loss + self.penalty * predicted_prior_errors(model, batch, own, said).mean()
        return loss

    def _alone(self, name: str, batch: Batch) -> Tensor:
        """What one adapter alone says of its own prompt at the same noisy pictures."""
        with self.blend.alone(name):
            return prediction(self.blend.model, batch, self._text([self.keep[name]] * len(batch)))

    def _text(self, captions: Sequence[str]) -> Conditioning:
        return self._condition(captions, learns=self.blend.changes_text)
