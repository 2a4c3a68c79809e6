"""The loss of a denoiser, sample by sample: distance, mask, weight of the timestep, and the prior's share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from loractl.errors import JobError
from loractl.families.conditioning import Conditioning
from loractl.families.family import Family
from loractl.families.prediction import DiffusionPath
from loractl.train.batches import Batch

Distance = Literal["mse", "huber", "smooth_l1"]
Schedule = Literal["constant", "exponential", "snr"]


@dataclass(frozen=True)
class Weighting:
    """How far a prediction is from its target, and how much its timestep counts; as it stands, the plain mean square.

    `huber_c` is the error at which the two Huber losses turn from square to linear: at every timestep if the schedule
    is constant, else in pure noise, and ever later towards the clean picture. `snr_gamma` and `debiased` exclude one
    another.
    """

    kind: Distance = "mse"
    huber_c: float = 0.1
    snr_gamma: float | None = None
    debiased: bool = False
    huber_schedule: Schedule = "snr"

    def __post_init__(self) -> None:
        if self.debiased and self.snr_gamma is not None:
            raise JobError("min-SNR and debiased estimation both weigh the timesteps: set one of them")

    def costs(self, errors: Tensor, path: DiffusionPath, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of each sample's prediction − target (n, c, h, w) at timesteps t: (n,)."""
        return masked_mean(self.distances(errors, path, t), mask) * self.weights(path, t)

    def distances(self, errors: Tensor, path: DiffusionPath, t: Tensor) -> Tensor:
        """The same, entry by entry: e²; 2(√(e² + c²) − c) for smooth_l1, which is 2|e| where c is small; and c times
        that for huber, which is e² where c is large.

        The pseudo-Huber losses of Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using
        Scheduled Pseudo-Huber Loss", as sd-scripts scales them.
        """
        if self.kind == "mse":
            return errors.square()
        c = _HUBER_C[self.huber_schedule](self.huber_c, path, t).view(-1, *[1] * (errors.dim() - 1))
        smooth_l1 = 2 * errors.square() / ((errors.square() + c.square()).sqrt() + c)  # so that nothing cancels
        return c * smooth_l1 if self.kind == "huber" else smooth_l1

    def weights(self, path: DiffusionPath, t: Tensor) -> Tensor:
        """Of each sample, (n,), for the target at hand and finite at every SNR.

        Both are weights of x's squared error, min(SNR, γ) (Hang et al. 2023, section 3.4) and √SNR (Yu et al. 2023,
        "Debias the Training of Diffusion Models": 1/√SNR for ε), so one model learns the same whatever it predicts.
        """
        if self.snr_gamma is None and not self.debiased:
            return torch.ones(len(t), device=t.device)
        snr = path.snr(t).clamp(1e-6, 1e6)
        return (snr.sqrt() if self.debiased else snr.clamp(max=self.snr_gamma)) * _X_ERROR[path.predicts](snr)


# Where c follows the timestep it falls from 1 at the clean picture to c in pure noise: the schedules of sd-scripts.
_HUBER_C: Mapping[Schedule, Callable[[float, DiffusionPath, Tensor], Tensor]] = {
    "constant": lambda c, _, t: torch.full(t.shape, c, device=t.device),
    "exponential": lambda c, path, t: c ** (t / path.steps),
    "snr": lambda c, path, t: c + (1 - c) / (1 + path.snr(t).rsqrt()).square(),
}

# The squared error of x that goes with a squared error of 1 in the prediction, by the SNR.
_X_ERROR: Mapping[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: 1 / snr,
    "v_prediction": lambda snr: 1 / (snr + 1),
    "sample": torch.ones_like,
    "flow": lambda snr: 1 / (snr.sqrt() + 1).square(),  # σ²
}


def prediction(model: Family, batch: Batch, conditioning: Conditioning) -> Tensor:
    """What the denoiser says of the batch's x_t, (n, c, h, w) in fp32; an inpainting model sees `extra` as well."""
    t = model.path.timesteps(batch.times)
    noisy = model.path.add_noise(batch.latents, batch.mixed, t)
    shown = noisy if batch.extra is None else torch.cat([noisy, batch.extra], dim=1)
    told = conditioning if batch.sizes is None else model.told_of_sizes(conditioning, batch.sizes)
    return model.predict(shown.to(model.dtype), t, told).float()


def denoising_errors(
    model: Family, batch: Batch, conditioning: Conditioning, weighting: Weighting = Weighting()
) -> Tensor:
    """Distance of each sample's prediction from its target, (n,) in fp32, masked and weighed."""
    t = model.path.timesteps(batch.times)
    errors = prediction(model, batch, conditioning) - model.path.target(batch.latents, batch.noise, t).float()
    return weighting.costs(errors, model.path, t, batch.mask)


def predicted_prior_errors(
    model: Family,
    batch: Batch,
    conditioning: Conditioning,
    base_prediction: Tensor,
    weighting: Weighting = Weighting(),
) -> Tensor:
    """How far the model has left what it was before training, (n,): `base_prediction` is the untouched model's
    `prediction` for the same batch and class prompt.

    Its own answers stand for the old task's data (Li & Hoiem 2016, "Learning without Forgetting", section 3; as
    "differential output preservation" in ai-toolkit). The batch's mask is the subject's, and does not count.
    """
    errors = prediction(model, batch, conditioning) - base_prediction.detach()
    return weighting.costs(errors, model.path, model.path.timesteps(batch.times))


def with_prior(errors: Tensor, subjects: int, weight: float) -> Tensor:
    """Mean of the first `subjects` errors plus `weight` times the mean of the rest, the class pictures' (Ruiz et
    al. 2023, DreamBooth, equation 2). A scalar; without class pictures the plain mean.
    """
    loss = errors[:subjects].mean()
    return loss + weight * errors[subjects:].mean() if len(errors) > subjects else loss


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(n, c, h, w) → (n,), the mean weighed by a mask (n, 1, h, w); 0 where the mask lets nothing through."""
    if mask is None:
        return values.flatten(1).mean(1)
    weights = mask.to(values.dtype).expand_as(values).flatten(1)
    return (weights * values.flatten(1)).sum(1) / weights.sum(1).clamp(min=torch.finfo(values.dtype).tiny)
