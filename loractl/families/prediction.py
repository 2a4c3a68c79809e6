"""How a diffusion model's training target follows from its scheduler: the noise path, and what is predicted.

NoisePath: x_t = √ᾱ_t · x + √(1 − ᾱ_t) · ε, with ᾱ the scheduler's `alphas_cumprod` (Ho et al. 2020, equation 4).
FlowPath:  x_t = (1 − σ) · x + σ · ε, a straight line (Liu et al. 2022; Esser et al. 2024, section 2).

Both take times in [0, 1), from the clean picture to noise, and turn them into the model's own timesteps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loractl.errors import MismatchError


@dataclass(frozen=True)
class NoisePath:
    """`alphas_cumprod` (T,) in fp32; `predicts` is diffusers' prediction_type: epsilon, v_prediction or sample."""

    alphas_cumprod: Tensor
    predicts: str

    def __post_init__(self) -> None:
        if self.predicts not in ("epsilon", "v_prediction", "sample"):
            raise MismatchError(f"the model's scheduler predicts {self.predicts!r}, which is not a DDPM target")

    @property
    def steps(self) -> int:
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device) -> "NoisePath":
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def with_zero_terminal_snr(self) -> "NoisePath":
        """The path that ends in pure noise, as sampling begins. MismatchError for a model that predicts ε."""
        if self.predicts == "epsilon":
            raise MismatchError(
                "a zero terminal SNR needs a model that predicts v: to tell the noise from pure noise teaches nothing, "
                "so switch it off"
            )
        return replace(self, alphas_cumprod=zero_terminal_snr(self.alphas_cumprod))

    def timesteps(self, times: Tensor) -> Tensor:
        """⌊times · T⌋, (n,)."""
        return (times * self.steps).long().clamp(max=self.steps - 1)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for latents and noise (n, c, h, w) at timesteps t (n,)."""
        signal, spread = self._coefficients(t, x)
        return signal * x + spread * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser shall say: ε, x, or v = √ᾱ·ε − √(1 − ᾱ)·x (Salimans & Ho 2022, appendix D)."""
        if self.predicts == "epsilon":
            return noise
        if self.predicts == "sample":
            return x
        signal, spread = self._coefficients(t, x)
        return signal * noise - spread * x

    def snr(self, t: Tensor) -> Tensor:
        """ᾱ / (1 − ᾱ) at timesteps t (n,)."""
        alphas = self.alphas_cumprod[t]
        return alphas / (1 - alphas)

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = _spread(self.alphas_cumprod[t], like)
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


@dataclass(frozen=True)
class FlowPath:
    """Flow matching: the model's timestep is σ · T, a float, with σ shifted in training as it is in sampling."""

    steps: int = 1000
    shift: float = 1.0
    predicts: str = "flow"

    def to(self, device: torch.device) -> "FlowPath":  # noqa: ARG002  it has no tensors, and the place of a NoisePath
        return self

    def timesteps(self, times: Tensor) -> Tensor:
        """T · s·u / (1 + (s − 1)·u) for times u (n,): Esser et al. 2024, section 5.3.2."""
        return self.steps * self.shift * times / (1 + (self.shift - 1) * times)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for latents and noise (n, c, h, w) at timesteps t (n,)."""
        sigma = _spread(t / self.steps, x).to(x.dtype)
        return (1 - sigma) * x + sigma * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  the same at every timestep
        """ε − x, the velocity of x_t as σ grows."""
        return noise - x

    def snr(self, t: Tensor) -> Tensor:
        """((1 − σ) / σ)² at timesteps t (n,); infinite at σ = 0."""
        sigma = t / self.steps
        return ((1 - sigma) / sigma).square()


DiffusionPath = NoisePath | FlowPath


def noise_path(scheduler: Any, tokens: int | None = None, mu: float | None = None) -> DiffusionPath:
    """The path of a diffusers scheduler.

    Some flow models are sampled with a shift that grows with the picture: `tokens` is the picture's length as the
    denoiser sees it, and without it the longest that the scheduler knows, which is the model's own resolution. `mu` is
    what a pipeline tells the scheduler that finds the shift in its own way.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas"):  # a scheduler of diffusion models, which Sana's pipelines put on a flow
        return FlowPath(config.num_train_timesteps, float(config.flow_shift))
    if "shift" in config:
        return FlowPath(config.num_train_timesteps, _shift(config, tokens, mu))
    return NoisePath(scheduler.alphas_cumprod.float().cpu(), config.prediction_type)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ (T,) with √ᾱ moved and stretched so that it ends at exactly 0 and begins where it began (Lin et al. 2023,
    "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1).
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * (first / (first - last))).square()


_TIME_SHIFTS: Mapping[str, Callable[[float], float]] = {"exponential": math.exp, "linear": float}


def _shift(config: Any, tokens: int | None, mu: float | None) -> float:
    if not config.use_dynamic_shifting:
        return float(config.shift)
    return _TIME_SHIFTS[config.time_shift_type](_usual_mu(config, tokens) if mu is None else mu)


def _usual_mu(config: Any, tokens: int | None) -> float:
    shortest, longest = config.base_image_seq_len, config.max_image_seq_len
    share = ((tokens or longest) - shortest) / (longest - shortest)
    return float(config.base_shift + share * (config.max_shift - config.base_shift))


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(n,) → (n, 1, …), to be multiplied with `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
