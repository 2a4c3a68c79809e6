"""The loss against values worked out by hand, and on the lab model where gradients matter."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.errors import JobError
from loractl.families.pipeline import load_model
from loractl.families.prediction import DiffusionPath, FlowPath, NoisePath
from loractl.families.sd import StableDiffusion
from loractl.inject.inject import adapter_parameters, inject, injected, remove
from loractl.inject.targets import resolve
from loractl.train.batches import Batch
from loractl.train.loss import (
    Weighting,
    denoising_errors,
    masked_mean,
    predicted_prior_errors,
    prediction,
    with_prior,
)

ALPHAS = torch.tensor([0.9, 0.5, 0.2, 0.0])  # SNR 9, 1, 1/4 and 0, which is zero terminal SNR
FOUR = torch.arange(4)


class Scripted:
    """A model whose prediction is what its input decides; it remembers the input."""

    dtype = torch.float32

    def __init__(self, path: DiffusionPath, answer: Tensor) -> None:
        self.path, self.answer = path, answer

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        self.noisy, self.t, self.conditioning = noisy, t, conditioning
        return self.answer


def random_batch(count: int = 4, shape: tuple[int, ...] = (4, 8, 8), **more: Any) -> Batch:
    latents, noise = torch.randn(2, count, *shape, generator=torch.Generator().manual_seed(0)).unbind()
    times = (torch.arange(count) + 0.5) / count
    return Batch(latents, noise, noise, times, ["a red toy"] * count, **more)


def test_prior_is_added_to_the_subjects_mean() -> None:
    errors = torch.tensor([1.0, 3.0, 10.0, 20.0])
    assert with_prior(errors, subjects=2, weight=0.5).item() == pytest.approx(2.0 + 0.5 * 15.0)


def test_without_class_pictures_the_loss_is_the_mean() -> None:
    assert with_prior(torch.tensor([1.0, 3.0]), subjects=2, weight=9.0).item() == 2.0


@pytest.mark.parametrize("path", [NoisePath(ALPHAS, "v_prediction"), FlowPath(shift=3.0)], ids=["v", "flow"])
def test_the_plain_loss_is_the_mean_square_distance_from_the_target(path: DiffusionPath) -> None:
    batch = random_batch()
    model = Scripted(path, torch.zeros_like(batch.latents))
    errors = denoising_errors(model, batch, torch.empty(0))
    t = path.timesteps(batch.times)
    assert torch.equal(model.t, t) and torch.equal(model.noisy, path.add_noise(batch.latents, batch.noise, t))
    torch.testing.assert_close(errors, path.target(batch.latents, batch.noise, t).square().mean((1, 2, 3)))


def test_what_is_mixed_goes_in_and_the_noise_stays_the_target() -> None:
    batch = random_batch()
    mixed = replace(batch, mixed=batch.noise + 1)
    model = Scripted(NoisePath(ALPHAS, "epsilon"), batch.noise)
    assert torch.equal(denoising_errors(model, mixed, torch.empty(0)), torch.zeros(4))
    t = model.path.timesteps(batch.times)
    assert torch.equal(model.noisy, model.path.add_noise(batch.latents, batch.noise + 1, t))


def test_an_inpainting_model_sees_the_extra_channels() -> None:
    batch = random_batch(extra=torch.full((4, 5, 8, 8), 7.0))
    model = Scripted(NoisePath(ALPHAS, "epsilon"), batch.noise)
    prediction(model, batch, torch.empty(0))
    assert model.noisy.shape == (4, 9, 8, 8) and (model.noisy[:, 4:] == 7).all()


# Weights of timesteps


@pytest.mark.parametrize(
    ("predicts", "expected"),
    [
        ("epsilon", [5 / 9, 1.0, 1.0, 1.0]),
        ("v_prediction", [5 / 10, 1 / 2, 0.25 / 1.25, 0.0]),
        ("sample", [5, 1, 0.25, 0]),
    ],
)
def test_min_snr_weights(predicts: str, expected: list[float]) -> None:
    weights = Weighting(snr_gamma=5.0).weights(NoisePath(ALPHAS, predicts), FOUR)
    torch.testing.assert_close(weights, torch.tensor(expected), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("predicts", "expected"),
    [
        ("epsilon", [1 / 3, 1.0, 2.0]),  # 1 / √SNR
        ("v_prediction", [3 / 10, 1 / 2, 0.5 / 1.25]),
        ("sample", [3, 1, 0.5]),
    ],
)
def test_debiased_weights(predicts: str, expected: list[float]) -> None:
    weights = Weighting(debiased=True).weights(NoisePath(ALPHAS, predicts), FOUR)
    torch.testing.assert_close(weights[:3], torch.tensor(expected))
    assert weights.isfinite().all()


@pytest.mark.parametrize("weighting", [Weighting(snr_gamma=5.0), Weighting(debiased=True)], ids=["min-snr", "debiased"])
def test_a_model_learns_the_same_whatever_it_predicts(weighting: Weighting) -> None:
    """One wrong x̂ costs the same told as ε, as v and as x; and as a flow, along a flow of the same SNR."""
    batch, t = random_batch(3), torch.tensor([0, 1, 2])
    x, noise, wrong = batch.latents, batch.noise, batch.latents + 0.3
    costs = []
    for predicts in ("epsilon", "v_prediction", "sample"):
        path = NoisePath(ALPHAS, predicts)
        noisy = path.add_noise(x, noise, t)
        signal, spread = (value.sqrt().view(-1, 1, 1, 1) for value in (ALPHAS[t], 1 - ALPHAS[t]))
        told = path.target(wrong, (noisy - signal * wrong) / spread, t)
        costs.append(weighting.weights(path, t) * (told - path.target(x, noise, t)).square().mean((1, 2, 3)))
    flow, sigma = FlowPath(), 1 / (1 + (ALPHAS[t] / (1 - ALPHAS[t])).sqrt())
    noisy = flow.add_noise(x, noise, 1000 * sigma)
    told = (noisy - wrong) / sigma.view(-1, 1, 1, 1)
    costs.append(weighting.weights(flow, 1000 * sigma) * (told - (noise - x)).square().mean((1, 2, 3)))
    for cost in costs[1:]:
        torch.testing.assert_close(cost, costs[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", [Weighting(snr_gamma=5.0), Weighting(debiased=True), Weighting("huber")])
@pytest.mark.parametrize("path", [*(NoisePath(ALPHAS, p) for p in ("epsilon", "v_prediction", "sample")), FlowPath()])
def test_every_loss_and_gradient_is_finite_at_both_ends(weighting: Weighting, path: DiffusionPath) -> None:
    t = torch.tensor([0, path.steps - 1]) if isinstance(path, NoisePath) else torch.tensor([0.0, 1000.0])
    errors = torch.tensor([[0.0, 2.0], [0.0, 2.0]], requires_grad=True)
    (weighting.distances(errors, path, t).mean(1) * weighting.weights(path, t)).sum().backward()
    assert errors.grad is not None and errors.grad.isfinite().all()


def test_two_weights_of_the_timesteps_are_refused() -> None:
    with pytest.raises(JobError, match="set one"):
        Weighting(snr_gamma=5.0, debiased=True)


# Distances


def distances(weighting: Weighting, errors: Tensor) -> Tensor:
    return weighting.distances(errors[None], NoisePath(ALPHAS, "epsilon"), torch.tensor([1]))[0]


def test_huber_losses_follow_their_definitions() -> None:
    errors, c = torch.tensor([-3.0, 0.0, 0.01, 0.5]), 0.2
    root = (errors.square() + c**2).sqrt() - c
    for kind, factor in (("huber", 2 * c), ("smooth_l1", 2.0)):
        actual = distances(Weighting(kind, c, huber_schedule="constant"), errors)
        torch.testing.assert_close(actual, factor * root, atol=1e-6, rtol=1e-5)


def test_huber_losses_have_their_limits() -> None:
    errors = torch.tensor([-3.0, 0.01, 0.5])
    wide = distances(Weighting("huber", 1e4, huber_schedule="constant"), errors)
    narrow = distances(Weighting("smooth_l1", 1e-6, huber_schedule="constant"), errors)
    torch.testing.assert_close(wide, errors.square())
    torch.testing.assert_close(narrow, 2 * errors.abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("schedule", "first", "last"), [("snr", 0.1 + 0.9 * 0.75**2, 0.1), ("exponential", 1, 0.178)])
def test_huber_schedules_fall_towards_the_noise(schedule: Any, first: float, last: float) -> None:
    """At t = 0 the SNR is 9 and t / T = 0; at t = 3 the SNR is 0 and t / T = 3 / 4."""
    errors = torch.full((4, 1), 100.0)  # far beyond c, so that the loss is 2c·(100 − c)
    cost = Weighting("huber", 0.1, huber_schedule=schedule).distances(errors, NoisePath(ALPHAS, "epsilon"), FOUR)
    expected = [2 * c * (100 - c) for c in (first, last)]
    assert [cost[0].item(), cost[3].item()] == pytest.approx(expected, rel=2e-3)
    assert (cost.flatten().diff() < 0).all()


# Masks


def test_a_mask_of_ones_is_no_mask() -> None:
    values = torch.rand(3, 4, 8, 8)
    torch.testing.assert_close(
        masked_mean(values, torch.ones(3, 1, 8, 8)), masked_mean(values, None), rtol=1e-6, atol=0
    )


def test_a_mask_weighs_pixels_and_divides_by_its_sum() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 100.0]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    mask = torch.tensor([1.0, 0.5, 0.5, 0.0]).view(1, 1, 2, 2)
    assert masked_mean(values, mask).item() == pytest.approx((1 + 1.5 + 2.5) / 2)
    assert masked_mean(values, torch.zeros(1, 1, 2, 2)).item() == 0.0


def test_masked_pixels_have_no_gradient_at_all() -> None:
    mask = torch.ones(4, 1, 8, 8)
    mask[:, :, 2:5, 3:] = 0
    batch = random_batch(mask=mask)
    answer = torch.randn(4, 4, 8, 8, requires_grad=True)
    denoising_errors(Scripted(NoisePath(ALPHAS, "epsilon"), answer), batch, torch.empty(0)).sum().backward()
    assert answer.grad is not None
    assert torch.equal(answer.grad != 0, mask.bool().expand(4, 4, 8, 8))


# The predicted prior


def test_the_predicted_prior_is_the_distance_from_what_the_model_said_untouched() -> None:
    batch, conditioning = random_batch(mask=torch.zeros(4, 1, 8, 8)), torch.ones(4, 1, 1)
    untouched = torch.randn(4, 4, 8, 8, requires_grad=True)
    now = (untouched + 0.5).detach().requires_grad_()
    model = Scripted(NoisePath(ALPHAS, "v_prediction"), now)
    errors = predicted_prior_errors(model, batch, conditioning, untouched)
    torch.testing.assert_close(errors, torch.full((4,), 0.25))
    assert model.conditioning is conditioning
    errors.sum().backward()
    assert now.grad is not None and untouched.grad is None, "the untouched model learns nothing"


# On the lab model


@cache
def lab() -> StableDiffusion:
    return load_model("lab", torch.device("cpu"), torch.float32)


@pytest.fixture
def adapted() -> Iterator[StableDiffusion]:
    """The lab with an adapter that does something."""
    model = lab()
    inject(model.denoiser, resolve(model.denoiser, ["attention"], rank=4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for key, parameter in adapter_parameters(model.denoiser).items():
            if key.endswith("up"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    yield model
    remove(model.denoiser)


def gradients(model: StableDiffusion, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Of the mean over all batches, accumulated."""
    parameters = adapter_parameters(model.denoiser)
    for parameter in parameters.values():
        parameter.grad = None
    for batch in batches:
        errors = denoising_errors(model, batch, model.encode_text(batch.captions), Weighting(snr_gamma=5.0))
        (errors.mean() / len(batches)).backward()
    return {key: parameter.grad for key, parameter in parameters.items() if parameter.grad is not None}


def assert_equal_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys() and len(expected) > 8
    largest = max(grad.abs().max().item() for grad in expected.values())
    for key, grad in expected.items():
        torch.testing.assert_close(actual[key], grad, rtol=0, atol=tolerance * largest)


def lab_batch() -> Batch:
    shape = tuple(lab().encode_pictures(torch.zeros(1, 3, 64, 64)).mean.shape[1:])
    return random_batch(2, shape)


def sample(batch: Batch, index: int) -> Batch:
    row = slice(index, index + 1)
    return Batch(batch.latents[row], batch.noise[row], batch.mixed[row], batch.times[row], batch.captions[row])


def test_accumulated_gradients_are_those_of_the_big_batch(adapted: StableDiffusion) -> None:
    batch = lab_batch()
    whole = gradients(adapted, [batch])
    parts = gradients(adapted, [sample(batch, 0), sample(batch, 1)])
    assert_equal_gradients(parts, whole, 1e-5)


def test_checkpointing_changes_no_gradient(adapted: StableDiffusion) -> None:
    batch, calls = lab_batch(), Counter[str]()
    plain = gradients(adapted, [batch])
    first = next(iter(injected(adapted.denoiser).values()))
    hook = first.register_forward_hook(lambda *_: calls.update(["forward"]))
    adapted.enable_gradient_checkpointing()
    try:
        assert_equal_gradients(gradients(adapted, [batch]), plain, 1e-6)
    finally:
        hook.remove()
        adapted.denoiser.disable_gradient_checkpointing()
    assert calls["forward"] == 2, "its activations were computed again"
