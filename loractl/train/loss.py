"""The loss of a denoiser, sample by sample, and how the prior's share is weighed in."""

from torch import Tensor

from loractl.families.sd import StableDiffusion
from loractl.train.batches import Batch


def denoising_errors(
    model: StableDiffusion, batch: Batch, conditioning: Tensor, snr_gamma: float | None = None
) -> Tensor:
    """Mean squared error of each sample's prediction, (n,) in fp32; with `snr_gamma`, weighed by min-SNR.

    conditioning: (n, tokens, width).
    """
    noisy = model.path.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = model.path.target(batch.latents, batch.noise, batch.timesteps)
    predicted = model.predict(noisy.to(model.dtype), batch.timesteps, conditioning)
    errors = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return errors if snr_gamma is None else errors * model.path.min_snr_weights(batch.timesteps, snr_gamma)


def with_prior(errors: Tensor, subjects: int, weight: float) -> Tensor:
    """Mean of the first `subjects` errors plus `weight` times the mean of the rest, the class pictures' (Ruiz et
    al. 2023, DreamBooth, equation 2). A scalar; without class pictures the plain mean.
    """
    loss = errors[:subjects].mean()
    return loss + weight * errors[subjects:].mean() if len(errors) > subjects else loss
