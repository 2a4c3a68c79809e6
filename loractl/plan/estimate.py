"""Parameters, file size, peak memory and time of a training job, from its model's configurations alone.

training = weights + factors + gradients + optimizer states + averages + activations
peak     = context + the largest phase: pictures encoded, captions encoded, training, sampling
time     = operations / (the GPU's rate × UTILIZATION), or bytes moved / bandwidth where that is longer
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loractl.device import PRECISIONS
from loractl.families.family import Family
from loractl.inject.inject import adapter_parameters, inject
from loractl.inject.layers import Form
from loractl.inject.targets import Target, resolve
from loractl.plan.autocast import Autocast
from loractl.plan.gpus import Gpu
from loractl.plan.inputs import TEXT_LENGTH, denoiser_inputs, words_in
from loractl.plan.job import Estimate, Training
from loractl.plan.memory import STATES, Pass, largest_block, peak, stored, train_pass
from loractl.plan.shapes import (
    count,
    family_in,
    model_folder,
    networks,
    own_resolution,
    pixels_per_latent,
    shapes_only,
)

UTILIZATION = 0.35
"""The share of its rate that a GPU reaches in training: an assumption, as large models are reported between 0.3 and
0.5. It is not yet measured here.
"""
CONTEXT = {"cuda": 600 * 2**20, "cpu": 440 * 2**20}
"""What a process holds before it loads a model: CUDA's context and the workspaces of its libraries; on a CPU Python
with torch, diffusers and transformers.
"""
OPTIMIZER_STATE = 8  # bytes a parameter, for a class by its dotted path: two moments, as most have


def estimate(job: Training, gpu: Gpu | None = None) -> Estimate:
    """Without a GPU the job is taken to run on the CPU, whose rate is not known."""
    precision = _precision(job.precision, gpu)
    folder = model_folder(job.source, job.revision, job.config)
    with shapes_only():
        parts = networks(folder, PRECISIONS[precision])
        return _Plan(job, gpu, precision, family_in(folder), parts).estimate()


def _precision(asked: str, gpu: Gpu | None) -> str:
    return asked if asked != "auto" else "bf16" if gpu and gpu.bf16 else "fp32"


@dataclass
class _Plan:
    job: Training
    gpu: Gpu | None
    precision: str
    family: type[Family]
    parts: dict[str, nn.Module]
    modules: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = PRECISIONS[self.precision]
        self.name = self.family.denoiser_name
        self.denoiser: Any = self.parts[self.name]
        self.encoders = [name for name in self.family.encoders if name in self.parts]
        self.parameters = {name: count(network) for name, network in self.parts.items()}
        self.side = (self.job.resolution or own_resolution(self.parts, self.name)) // pixels_per_latent(self.parts)
        # before anything is wrapped: what wrappers add is counted apart
        self.weights = {name: self._stored(name, network) for name, network in self.parts.items()}
        self.block = largest_block(self.denoiser, self.dtype.itemsize, self.job.quantize)
        self.copies = self._copies()

    def estimate(self) -> Estimate:
        job = self.job
        trained = self._let_learn()
        step = self._step()
        training = self._training(trained, step)
        phases = {
            "captions": self._reading(),
            "pictures": self._resident("vae") + self._encoding(),
            "training": sum(training.values()),
            "samples": self._sampling() if job.samples else 0,
        }
        context = CONTEXT["cuda" if self.gpu else "cpu"]
        operations, read = job.grad_accum * (step.forward + step.backward), self.weights[self.name]
        seconds = self._seconds(operations, job.grad_accum * 2 * (step.kept + read))
        guided = self._seconds(2 * step.forward // job.batch, read)  # one picture's denoising step
        pictures = job.samples * job.sample_steps
        return Estimate(
            self.parameters,
            self.modules,
            trained,
            trained * PRECISIONS[job.saved].itemsize,
            self.precision,
            training,
            {name: size + context for name, size in phases.items() if size},
            operations,
            seconds,
            None if seconds is None or guided is None else seconds * job.steps + guided * pictures,
            self.gpu,
        )

    # What is there

    def _stored(self, name: str, network: nn.Module) -> int:
        if name == self.name and not self.job.whole:
            return stored(network, self.dtype.itemsize, self.job.quantize)
        trains = self.job.whole and name in (self.name, *self._adapted_encoders())
        return stored(network, 4 if trains else self.dtype.itemsize)

    def _copies(self) -> int:
        """Weights that are cast or brought for a layer are kept for its backward: of all, or of the block at hand."""
        if self.job.quantize != "fp8" and self.job.offload == "none":
            return 0
        size = self.dtype.itemsize
        return largest_block(self.denoiser, size) if self.job.gradient_checkpointing else stored(self.denoiser, size)

    def _resident(self, *names: str) -> int:
        """Weights on the device: all of them, or in phases those named; of an offloaded denoiser two blocks."""
        there = self.weights if not self.job.phases else {name: self.weights[name] for name in names}
        offloaded = self.job.offload == "blocks" and self.name in there
        return sum(there.values()) - (self.weights[self.name] - 2 * self.block if offloaded else 0)

    def _reading(self) -> int:
        """Text encoders, which need little besides; those that read on the CPU take nothing of the GPU."""
        return 0 if self._read_elsewhere() else self._resident(*self.encoders)

    def _read_elsewhere(self) -> bool:
        return self.gpu is not None and self.job.texts_on_cpu and not self._learning_encoders()

    def _staying_encoders(self) -> list[str]:
        """Those beside the denoiser in training: all of them, where words learn or are read at every step."""
        reads = self.job.reads_at_each_step and not self._read_elsewhere()
        return self.encoders if reads or self._learning_encoders() else []

    def _sampling(self) -> int:
        """All networks while a picture is decoded; or the largest of those that take turns."""
        if not self.job.phases:
            return self._resident() + self._decoding()
        return max(self._resident(self.name), self._resident("vae") + self._decoding())

    def _learning_encoders(self) -> list[str]:
        """Those through which gradients flow, to tokens or to adapters of their own."""
        return self.encoders if self.job.vectors else self._adapted_encoders()

    def _adapted_encoders(self) -> list[str]:
        return [name for name in self.encoders if name in self.family.adaptable] if self.job.text_encoder else []

    # What learns

    def _let_learn(self) -> int:
        """Makes what the job says trainable, and counts it."""
        job = self.job
        if job.whole:
            names = [self.name, *self._adapted_encoders()]
            for name in names:
                self.parts[name].requires_grad_(True)
            return sum(self.parameters[name] for name in names) + self._vectors()
        form: Form = "auto" if (job.quantize, job.offload) == ("none", "none") else "branch"  # as in the run
        for name, targets in self._targets():
            self.modules[name] = len(inject(self.parts[name], targets, form=form))
        adapted = [adapter_parameters(self.parts[name]) for name in self.modules]
        return sum(each.numel() for parameters in adapted for each in parameters.values()) + self._vectors()

    def _targets(self) -> Iterator[tuple[str, Mapping[str, Target]]]:
        job, presets = self.job, self.family.presets
        if job.targets is None:
            return
        said = job.targets if isinstance(job.targets, Mapping) else dict.fromkeys(job.targets, (None, None))
        table = {pattern: each for name, each in said.items() for pattern in presets.get(name, (name,))}
        yield self.name, resolve(self.denoiser, table, job.rank, job.alpha)
        for name in self._adapted_encoders():
            yield name, resolve(self.parts[name], ["text-encoder"], job.text_encoder_rank or job.rank)

    def _vectors(self) -> int:
        """Numbers of the learned tokens, in every text encoder."""
        encoders: list[Any] = [self.parts[name] for name in self.encoders] if self.job.vectors else []
        return sum(self.job.vectors * encoder.get_input_embeddings().embedding_dim for encoder in encoders)

    # What is computed

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return Autocast(self.dtype) if self.dtype != torch.float32 else nullcontext()

    def _step(self) -> Pass:
        """One forward pass and its backward, of the text encoders too where their words learn."""
        given = denoiser_inputs(self.denoiser, self.job.batch, self.side, self.side)
        learning = [self.parts[name] for name in self._learning_encoders()]
        for words in words_in(given) if learning else ():
            words.requires_grad_(True)

        def forward() -> Tensor:
            with self._arithmetic():
                said = [_read(encoder, self.job.batch).float().mean() for encoder in learning]
                out = self.denoiser(**given, return_dict=False)[0]
                return sum(said, torch.stack(out) if isinstance(out, list) else out)

        for encoder in learning if self.job.vectors else ():  # a token's gradient flows through all of it
            encoder.get_input_embeddings().requires_grad_(True)  # type: ignore[operator]  # a transformers model
        recomputed = self.denoiser if self.job.gradient_checkpointing else None
        return train_pass([self.denoiser, *learning], forward, recomputed)

    def _training(self, trained: int, step: Pass) -> dict[str, int]:
        job = self.job
        per_parameter = STATES.get(job.optimizer, OPTIMIZER_STATE)
        return {
            "weights": self._resident(self.name, *self._staying_encoders()),
            "adapter": 0 if job.whole else 4 * trained,
            "gradients": 4 * trained,
            "optimizer": int(per_parameter * trained),
            "averages": 4 * trained if job.averaged else 0,
            "activations": step.kept + self.copies,
        }

    def _encoding(self) -> int:
        """Beside the weights, for one picture, as they are encoded one by one."""
        vae: Any = self.parts.get("vae")
        side = self.side * pixels_per_latent(self.parts)
        pixels = torch.zeros(1, 3, *_frames(vae), side, side, dtype=self.dtype)
        return peak([vae], lambda: vae.encode(pixels)) if vae else 0

    def _decoding(self) -> int:
        """For one picture, as they are decoded one by one. Denoising, without gradients, takes less."""
        vae: Any = self.parts.get("vae")
        channels = (vae.config.get("latent_channels") or vae.config["z_dim"]) if vae else 0
        latents = torch.zeros(1, channels, *_frames(vae), self.side, self.side, dtype=self.dtype)
        with self._arithmetic():
            return peak([vae], lambda: vae.decode(latents)) if vae else 0

    def _seconds(self, operations: int, moved: int) -> float | None:
        """Forward and backward each read the denoiser's weights; what is kept is written by one, read by the other."""
        if self.gpu is None:
            return None
        return max(operations / (self.gpu.tflops * 1e12 * UTILIZATION), moved / (self.gpu.bandwidth * 1e9))


def _frames(vae: Any) -> list[int]:
    """The frames of a picture, for autoencoders that are made for films."""
    return [1] if vae and "temperal_downsample" in vae.config else []


def _read(encoder: Any, n: int) -> Tensor:
    """A text encoder's output for n captions of the length it takes."""
    length = min(getattr(encoder.config, "max_position_embeddings", TEXT_LENGTH), TEXT_LENGTH)
    hidden: Tensor = encoder(torch.zeros(n, length, dtype=torch.long))[0]
    return hidden
