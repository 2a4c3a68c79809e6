"""The loss against values worked out by hand."""

import pytest
import torch

from loractl.errors import MismatchError
from loractl.families.prediction import NoisePath
from loractl.train.loss import with_prior

ALPHAS = torch.tensor([0.9, 0.5, 0.2, 0.0])  # the last is zero terminal SNR


def test_prior_is_added_to_the_subjects_mean() -> None:
    errors = torch.tensor([1.0, 3.0, 10.0, 20.0])
    assert with_prior(errors, subjects=2, weight=0.5).item() == pytest.approx(2.0 + 0.5 * 15.0)


def test_without_class_pictures_the_loss_is_the_mean() -> None:
    assert with_prior(torch.tensor([1.0, 3.0]), subjects=2, weight=9.0).item() == 2.0


@pytest.mark.parametrize(
    ("predicts", "expected"),
    [
        ("epsilon", [5 / 9, 1.0, 1.0, 1.0]),
        ("v_prediction", [5 / 10, 1 / 2, 0.25 / 1.25, 0.0]),
        ("sample", [5, 1, 0.25, 0]),
    ],
)
def test_min_snr_weights(predicts: str, expected: list[float]) -> None:
    weights = NoisePath(ALPHAS, predicts).min_snr_weights(torch.arange(4), gamma=5.0)  # SNR: 9, 1, 1/4, 0
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_targets_follow_their_definitions() -> None:
    x, noise, t = torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([2])
    path = NoisePath(ALPHAS, "v_prediction")
    assert path.add_noise(x, noise, t).item() == pytest.approx(0.2**0.5 * 2 + 0.8**0.5 * 1)
    assert path.target(x, noise, t).item() == pytest.approx(0.2**0.5 * 1 - 0.8**0.5 * 2)
    assert NoisePath(ALPHAS, "epsilon").target(x, noise, t).item() == 1.0
    assert NoisePath(ALPHAS, "sample").target(x, noise, t).item() == 2.0


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_noise_path_agrees_with_diffusers(predicts: str) -> None:
    from diffusers import DDIMScheduler

    from loractl.families.prediction import noise_path

    scheduler = DDIMScheduler(prediction_type=predicts, rescale_betas_zero_snr=predicts == "v_prediction")
    path, t = noise_path(scheduler), torch.tensor([0, 500, 999])
    x, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(path.add_noise(x, noise, t), scheduler.add_noise(x, noise, t))
    if predicts == "v_prediction":
        torch.testing.assert_close(path.target(x, noise, t), scheduler.get_velocity(x, noise, t))


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(MismatchError, match="flow"):
        NoisePath(ALPHAS, "flow_prediction")
