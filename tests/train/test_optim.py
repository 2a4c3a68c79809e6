"""Optimizers by name: each learns, each group keeps its own rate, and what can't be had is said in a sentence."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.errors import InputError
from loractl.train.lion import Lion
from loractl.train.loop import Group
from loractl.train.optim import make_optimizer

SCALES = torch.tensor([1.0, 2.0, 0.5])
RATES = {
    "adamw": 0.1,
    "adamw8bit": 0.1,
    "adafactor": 0.1,
    "prodigy": 1.0,
    "schedulefree-adamw": 0.1,
    "lion": 0.05,
    "torch.optim.SGD": 0.1,
}


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def quadratic(weight: Tensor) -> Tensor:
    return (SCALES * (weight - 1)).square().sum()


@pytest.mark.parametrize("name", RATES)
def test_each_lowers_a_quadratic(name: str) -> None:
    weight = parameter(3.0, -2.0, 0.0)
    optimizer: Any = make_optimizer([Group("all", [weight], RATES[name])], name, weight_decay=0.0)
    getattr(optimizer, "train", lambda: None)()
    start = quadratic(weight).item()
    for _ in range(60):
        optimizer.zero_grad()
        quadratic(weight).backward()
        optimizer.step()
    getattr(optimizer, "eval", lambda: None)()
    assert quadratic(weight).item() < 0.1 * start


@pytest.mark.parametrize("name", [name for name in RATES if name != "prodigy"])
def test_groups_come_one_to_one_with_their_rates_and_decays(name: str) -> None:
    groups = [
        Group("unet", [parameter(1.0), parameter(2.0)], 1e-3),
        Group("tokens", [parameter(3.0)], 5e-3, weight_decay=0.0),
    ]
    optimizer = make_optimizer(groups, name, weight_decay=0.3, options={"weight_decay": 0.3} if "." in name else {})
    for group, made in zip(groups, optimizer.param_groups, strict=True):
        assert all(a is b for a, b in zip(made["params"], group.parameters, strict=True))
        assert made["lr"] == group.lr
    assert [made["weight_decay"] for made in optimizer.param_groups] == [0.3, 0.0]


def test_common_settings_arrive_and_options_override_them() -> None:
    made = make_optimizer([Group("all", [parameter(1.0)], 1e-3)], "adamw", betas=(0.8, 0.95), eps=1e-6)
    assert isinstance(made, torch.optim.AdamW)
    assert {key: made.defaults[key] for key in ("betas", "eps", "weight_decay", "fused", "amsgrad")} == {
        "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 1e-2, "fused": True, "amsgrad": False,
    }  # fmt: skip
    options = {"amsgrad": True, "betas": (0.7, 0.9)}
    made = make_optimizer([Group("all", [parameter(1.0)], 1e-3)], "adamw", options=options)
    assert made.defaults["amsgrad"] and made.defaults["betas"] == (0.7, 0.9)


def test_a_class_by_its_path_keeps_its_own_defaults() -> None:
    made = make_optimizer([Group("all", [parameter(1.0)], 0.5)], "torch.optim.RMSprop", options={"momentum": 0.9})
    assert type(made) is torch.optim.RMSprop
    assert (made.defaults["momentum"], made.defaults["weight_decay"]) == (0.9, 0)


def test_lora_s_up_moves_though_it_starts_at_zero() -> None:
    """Adafactor that scales its rate by a parameter's size would hardly move it."""
    up = parameter(0.0, 0.0)
    optimizer = make_optimizer([Group("all", [up], 1e-2)], "adafactor", weight_decay=0.0)
    up.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert up.detach().abs().min() > 1e-3


@pytest.mark.parametrize("name", ["adamw", "schedulefree-adamw", "prodigy", "lion"])
def test_betas_are_the_optimizers_own_unless_said(name: str) -> None:
    """0.9 and 0.999; Chen et al. 2023, algorithm 2, has 0.9 and 0.99."""
    groups = [Group("all", [parameter(1.0)], 1e-3)]
    assert make_optimizer(groups, name).defaults["betas"] == (0.9, 0.99 if name == "lion" else 0.999)
    assert make_optimizer(groups, name, betas=(0.8, 0.9)).defaults["betas"] == (0.8, 0.9)


def test_lion_follows_its_algorithm() -> None:
    """Chen et al. 2023, algorithm 2, line by line, for parameters of several shapes, one of which rests at times."""
    torch.manual_seed(0)
    rate, decay, (beta1, beta2) = 0.01, 0.1, (0.9, 0.99)
    weights = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((5,), (3, 4), (2, 3, 3, 3))]
    optimizer = Lion(weights, rate, (beta1, beta2), decay)
    thetas = [weight.detach().clone() for weight in weights]
    momenta = [torch.zeros_like(theta) for theta in thetas]
    for step in range(6):
        for i, weight in enumerate(weights):
            weight.grad = None if i == 1 and step % 2 else torch.randn_like(weight)
            if weight.grad is not None:
                update = torch.sign(beta1 * momenta[i] + (1 - beta1) * weight.grad)
                thetas[i] = thetas[i] - rate * (update + decay * thetas[i])
                momenta[i] = beta2 * momenta[i] + (1 - beta2) * weight.grad
        optimizer.step()
        for weight, theta in zip(weights, thetas, strict=True):
            torch.testing.assert_close(weight.detach(), theta, rtol=0, atol=1e-12)
    assert {optimizer.state[weight]["momentum"].shape for weight in weights} == {theta.shape for theta in thetas}


def test_lion_moves_many_parameters_in_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def add(parameters: list[Tensor], *_: Any, **__: Any) -> None:
        calls.append(len(parameters))

    monkeypatch.setattr(torch, "_foreach_add_", add)
    weights = [parameter(1.0) for _ in range(50)]
    for weight in weights:
        weight.grad = torch.ones(1)
    Lion(weights).step()
    assert calls == [50]


# What can't be had


def refused(name: str, options: dict[str, Any] | None = None, rates: tuple[float, ...] = (1e-3,)) -> str:
    groups = [Group("group", [parameter(1.0)], rate) for rate in rates]
    with pytest.raises(InputError) as error:
        make_optimizer(groups, name, options=options or {})
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("prodigy", "prodigyopt", "prodigy"),
        ("schedulefree-adamw", "schedulefree", "schedulefree"),
        ("adamw8bit", "bitsandbytes", "8bit"),
    ],
)
def test_a_missing_package_names_what_to_install(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
    monkeypatch.setitem(sys.modules, f"{package}.optim", None)
    message = refused(name)
    assert f"needs the package {package}" in message and f"pip install 'loractl[{extra}]'" in message


def test_an_unknown_name_brings_the_nearest() -> None:
    assert "did you mean adamw?" in refused("adamww")
    assert "prodigy" in refused("zzz")
    assert "install nowhere" in refused("nowhere.Optimizer")
    assert "torch.nn.Linear is not an optimizer" in refused("torch.nn.Linear")
    assert "torch.optim.Adamm is not an optimizer" in refused("torch.optim.Adamm")


def test_options_that_the_class_does_not_take_are_named() -> None:
    assert "adamw does not take betaz, lr: its options are betas, eps," in refused("adamw", {"betaz": 1, "lr": 1})
    assert "refuses its settings" in refused("torch.optim.SGD", {"momentum": -1.0})


def test_prodigy_has_one_rate() -> None:
    assert "prodigy finds one rate for all" in refused("prodigy", rates=(1.0, 0.5))
