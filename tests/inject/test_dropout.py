"""Dropout is a mask on `down`: unbiased, the same in both forms, gone without a trace, and its own seed's alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.inject.dropout import Dropout, end_dropout, set_dropout
from loractl.inject.inject import adapter, adapter_parameters, collect, inject
from loractl.inject.layers import Form
from loractl.inject.targets import Target, resolve

from .models import denoise, disturb, tiny_unet

EACH = [Dropout(input=0.4), Dropout(rank=0.4), Dropout(module=0.4), Dropout(0.2, 0.3, 0.1)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layers(form: Form) -> nn.Module:
    """A linear layer and a convolution, each with a random adapter."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(6, 5), "conv": nn.Conv2d(6, 5, 3)})
    inject(model, {"linear": Target(4, 2.0), "conv": Target(4, 2.0)}, form=form)
    disturb(model)
    return model


def outputs(model: Any) -> Tensor:
    x = torch.randn(3, 6, 8, 8, generator=seeded(3))
    return torch.cat([model["linear"](x.movedim(1, -1)).flatten(), model["conv"](x).flatten()])


@pytest.mark.parametrize("form", ["weight", "branch"])
def test_off_it_leaves_no_trace(form: Form) -> None:
    model = layers(form)
    expected, state, factors = outputs(model), list(model.state_dict()), collect(model)
    set_dropout(adapter(model).values(), Dropout(0.5, 0.5, 0.5), seeded(0))
    assert not torch.equal(outputs(model), expected)
    assert list(model.state_dict()) == state, "a mask is no state"
    assert all(torch.equal(low.down, factors[path].down) for path, low in collect(model).items())
    end_dropout(adapter(model).values())
    assert torch.equal(outputs(model), expected)
    set_dropout(adapter(model).values(), Dropout(), seeded(0))
    assert torch.equal(outputs(model), expected), "chances of 0 leave nothing out"


@pytest.mark.parametrize("dropout", EACH)
def test_both_forms_agree(dropout: Dropout) -> None:
    """Also in their gradients."""
    results = []
    for form in ("weight", "branch"):
        model = layers(form)
        set_dropout(adapter(model).values(), dropout, seeded(1))
        output = outputs(model)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in adapter_parameters(model).values())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", EACH)
def test_the_expectation_is_the_whole_adapter(dropout: Dropout) -> None:
    model = layers("weight")
    generator, count = seeded(2), 1000
    whole = {path: factors.down.detach().clone() for path, factors in adapter(model).items()}
    sums = {path: torch.zeros_like(down) for path, down in whole.items()}
    for _ in range(count):
        set_dropout(adapter(model).values(), dropout, generator)
        for path, factors in adapter(model).items():
            sums[path] += factors.weighted().down.detach()
    for path, down in whole.items():
        assert (sums[path] / count - down).norm() < 0.1 * down.norm()


def test_what_is_left_out_is_what_was_asked_for() -> None:
    model = layers("weight")
    factors = adapter(model)["conv"]

    def gone(dropout: Dropout) -> Tensor:  # (r, in)
        set_dropout(adapter(model).values(), dropout, seeded(4))
        return (factors.weighted().down == 0).all(-1).all(-1)

    by_input, by_rank = gone(Dropout(input=0.5)), gone(Dropout(rank=0.5))
    assert by_input.any() and torch.equal(by_input, by_input[:1].expand(4, 6))
    assert by_rank.any() and torch.equal(by_rank, by_rank[:, :1].expand(4, 6))
    drawn = []
    for seed in range(40):
        set_dropout(adapter(model).values(), Dropout(module=0.5), seeded(seed))
        drawn.append([bool((each.weighted().down == 0).all()) for each in adapter(model).values()])
    assert {tuple(pair) for pair in drawn} == {(a, b) for a in (False, True) for b in (False, True)}


def test_a_step_can_be_made_again_alone() -> None:
    model = tiny_unet()
    inject(model, resolve(model, ["extended"], rank=4), generator=seeded(0))
    disturb(model)
    set_dropout(adapter(model).values(), Dropout(0.1, 0.1, 0.1), seeded(5))
    first = denoise(model)
    torch.rand(7)  # no other randomness matters
    set_dropout(adapter(model).values(), Dropout(0.1, 0.1, 0.1), seeded(6))
    assert not torch.equal(denoise(model), first)
    set_dropout(adapter(model).values(), Dropout(0.1, 0.1, 0.1), seeded(5))
    assert torch.equal(denoise(model), first)
