"""How a diffusion model's training target follows from its scheduler: the noise path, what is predicted, how steps
weigh.

x_t = √ᾱ_t · x + √(1 − ᾱ_t) · ε, with ᾱ the scheduler's `alphas_cumprod` (Ho et al. 2020, equation 4).
"""

from dataclasses import dataclass
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
        return NoisePath(self.alphas_cumprod.to(device), self.predicts)

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

    def min_snr_weights(self, t: Tensor, gamma: float) -> Tensor:
        """Loss weights (n,) for the target at hand (Hang et al. 2023, section 3.4): min(SNR, γ) over SNR for ε, over
        SNR + 1 for v, and itself for x. Finite at SNR = 0."""
        snr = self.snr(t)
        if self.predicts == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        return snr.clamp(max=gamma) / (snr + 1 if self.predicts == "v_prediction" else 1.0)

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod[t].view(-1, *[1] * (like.dim() - 1))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


def noise_path(scheduler: Any) -> NoisePath:
    """The path of a diffusers scheduler."""
    return NoisePath(scheduler.alphas_cumprod.float().cpu(), scheduler.config.prediction_type)
