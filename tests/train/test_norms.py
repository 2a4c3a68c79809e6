"""‖ΔW‖ against the dense product, and the bound on it."""

import torch
from torch import Tensor, nn

from loractl.inject.inject import adapter, inject
from loractl.inject.targets import Target, resolve
from loractl.train.norms import delta_norms, limit_norms
from tests.inject.models import disturb, tiny_unet


def trained() -> nn.Module:
    """A UNet with a random adapter of several ranks and alphas, on linear layers and convolutions."""
    model = tiny_unet()
    targets = resolve(model, {"extended": (4, 2.0), "attn2.to_q": (2, 7.0)}, rank=4)
    inject(model, targets, generator=torch.Generator().manual_seed(0))
    disturb(model)
    return model


def deltas(model: nn.Module) -> list[Tensor]:
    return [factors.weighted().delta().detach().double() for factors in adapter(model).values()]


def test_norms_are_those_of_the_dense_product() -> None:
    model = trained()
    expected = torch.stack([delta.norm() for delta in deltas(model)])
    torch.testing.assert_close(delta_norms(adapter(model).values()), expected, rtol=1e-5, atol=0)
    assert len(expected) > 20


def test_a_fresh_adapter_has_learnt_exactly_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Conv2d(3, 2, 3))
    inject(model, {"0": Target(2, 2.0), "1": Target(2, 1.0)})
    assert delta_norms(adapter(model).values()).tolist() == [0.0, 0.0]
    assert limit_norms(adapter(model).values(), 1.0).item() == 0
    assert not any(factors.down.isnan().any() for factors in adapter(model).values())


def test_the_bound_holds_and_keeps_directions_and_small_ones_as_they_are() -> None:
    model = trained()
    before, norms = deltas(model), delta_norms(adapter(model).values())
    bound = norms.median().item()
    untouched = [factors.down.detach().clone() for factors in adapter(model).values()]
    assert limit_norms(adapter(model).values(), bound).item() == (norms > bound).sum().item() > 5
    torch.testing.assert_close(delta_norms(adapter(model).values()), norms.clamp(max=bound), rtol=1e-6, atol=0)
    rows = zip(deltas(model), before, norms.tolist(), adapter(model).values(), untouched, strict=True)
    for after, delta, norm, factors, down in rows:
        torch.testing.assert_close(after, delta * min(1.0, bound / norm), rtol=1e-4, atol=1e-6)
        assert torch.equal(factors.down, down) == (norm <= bound)


def test_the_factors_still_train() -> None:
    model = trained()
    limit_norms(adapter(model).values(), 1e-3)
    assert all(factors.down.requires_grad and factors.down.is_leaf for factors in adapter(model).values())
