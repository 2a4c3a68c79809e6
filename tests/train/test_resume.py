"""What a training hands to its checkpoint, and takes back from it."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.errors import MismatchError
from loractl.train.loop import Group, Plan, Training, fit
from loractl.train.optim import make_optimizer
from tests.train.network import OPTIMIZERS, STARTS, Network, ignore, phases, same


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop_after", [4, 7, 14])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(optimizer: str, stop_after: int) -> None:
    same_rates = optimizer in ("prodigy", "schedulefree-adamw")  # which have no schedule, and Prodigy one rate for all
    schedule = "constant" if same_rates else "cosine"
    plan = Plan(20, grad_accum=2, schedule=schedule, warmup_steps=2, active=phases, ema=0.9)
    whole, killed, resumed = (Network(plan, optimizer) for _ in range(3))
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        killed.fit(stop_after)
    tensors, values = killed.stored
    resumed.training.restore(tensors, json.loads(json.dumps(values)))
    resumed.fit()
    assert same(whole.everything(), resumed.everything())
    assert whole.training.state()[1] == resumed.training.state()[1]
    assert whole.lines == killed.lines + resumed.lines and len(whole.lines) == 20
    with whole.training.averaged(), resumed.training.averaged():
        assert same(whole.weights, resumed.weights)


def test_a_state_is_a_copy() -> None:
    network = Network(Plan(6, ema=0.9))
    with pytest.raises(KeyboardInterrupt):
        network.fit(stop_after=3)
    tensors, values = network.stored
    before, losses = {name: tensor.clone() for name, tensor in tensors.items()}, list(values["losses"])
    network.training.restore(tensors, values)
    network.fit()
    assert same(before, tensors) and values["losses"] == losses and len(network.training.losses) == 6


def test_a_rate_changed_before_going_on_takes_effect_and_moments_stay() -> None:
    plan = Plan(6)
    slow, still = Network(plan), Network(plan, lr=0.0)
    with pytest.raises(KeyboardInterrupt):
        slow.fit(stop_after=3)
    still.training.restore(*slow.stored)
    moments = still.everything()["state.last.0.exp_avg"].clone()
    still.fit()
    assert torch.equal(still.everything()["parameter.last.0"], slow.stored[0]["parameter.last.0"])
    assert torch.equal(moments, slow.stored[0]["state.last.0.exp_avg"]) and bool(moments.any())


def test_groups_of_one_name_keep_apart() -> None:
    def training() -> Training:
        groups = [Group("encoder", [nn.Parameter(torch.full((2,), 1.0 + i))], 0.1) for i in range(2)]
        return Training(groups, make_optimizer(groups, "adamw"), Plan(3))

    one, other = training(), training()
    fit(one, lambda *_: sum(p.square().sum() for p in one.parameters), ignore)  # type: ignore[arg-type, return-value]
    other.restore(*one.state())
    assert [torch.equal(p, q) for p, q in zip(one.parameters, other.parameters, strict=True)] == [True, True]
    assert not torch.equal(*one.parameters)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameter.first.0": torch.zeros(4, 2)}, r"parameter.first.0 is \[4, 2\] float32 there and \[4, 3\] float32"),
        ({"parameter.first.0": torch.zeros(4, 3).half()}, "float16 there"),
        ({"parameter.first.1": torch.zeros(1)}, "parameter.first.1 is .* there and missing here"),
        ({"parameter.last.0": None}, "parameter.last.0 is missing there"),
        ({"average.last.0": None}, "average.last.0 is missing there"),
    ],
)
def test_a_state_of_other_parameters_is_refused(changed: dict[str, Tensor | None], message: str) -> None:
    network = Network(Plan(6, ema=0.9))
    tensors, values = network.training.state()
    other = {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}
    with pytest.raises(MismatchError, match=message):
        network.training.restore(other, values)


def test_averages_follow_their_formula_and_leave_the_weights_as_they_were() -> None:
    network = Network(Plan(30, ema=0.6))
    average = STARTS["last"].clone()

    def after_step(done: int) -> None:
        nonlocal average
        decay = min(0.6, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * network.weights["last"].detach()

    fit(network.training, network.loss, ignore, after_step)
    before = {name: weight.detach().clone() for name, weight in network.weights.items()}
    with network.training.averaged():
        torch.testing.assert_close(network.weights["last"].detach(), average)
        assert not torch.equal(network.weights["last"], before["last"])
    assert same(network.weights, before)


def test_without_averages_nothing_is_swapped() -> None:
    network = Network(Plan(3))
    network.fit()
    with network.training.averaged():
        assert network.weights["last"].detach().equal(network.everything()["parameter.last.0"])


class Hoarder(torch.optim.SGD):
    """Remembers what no checkpoint can hold."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = [parameter.detach().clone()]


def test_an_optimizer_that_cannot_be_kept_is_named() -> None:
    weight = nn.Parameter(torch.ones(2))
    training = Training([Group("all", [weight], 0.1)], Hoarder([weight], 0.1), Plan(1))
    fit(training, lambda *_: weight.square().sum(), ignore)
    with pytest.raises(MismatchError, match="Hoarder remembers more than tensors and numbers"):
        training.state()
