"""The training loop's own promises."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loractl.errors import JobError, NumericsError
from loractl.events import Event, Progress
from loractl.train.loop import LOOK_EVERY, Group, Plan, Training, fit, rate_table
from loractl.train.optim import make_optimizer
from tests.train.network import OPTIMIZERS, STARTS, Network, ignore, phases, same

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def train(plan: Plan, batch: int, emit: Callable[[Event], None] = ignore) -> tuple[Tensor, list[float]]:
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    groups = [Group("weight", [weight], 0.1)]

    def loss(_: int, part: int) -> Tensor:
        rows = slice(part * batch, (part + 1) * batch)
        return (X[rows] @ weight - Y[rows]).square().mean()

    losses = fit(Training(groups, make_optimizer(groups, "adamw", weight_decay=0.0), plan), loss, emit)
    return weight.detach(), losses


def test_it_learns() -> None:
    weight, losses = train(Plan(steps=300), batch=8)
    assert losses[-1] < 1e-3 < losses[0]
    torch.testing.assert_close(weight, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), atol=0.05, rtol=0)


def test_accumulation_equals_the_big_batch() -> None:
    whole, losses = train(Plan(steps=20), batch=8)
    parts, losses_of_parts = train(Plan(steps=20, grad_accum=4), batch=2)
    torch.testing.assert_close(whole, parts, atol=1e-12, rtol=0)
    assert losses == pytest.approx(losses_of_parts)


def test_progress_is_reported_at_every_step_and_ends_at_the_total() -> None:
    events: list[Event] = []
    train(Plan(steps=5), 8, events.append)
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(i, 5) for i in range(1, 6)]
    assert all(isinstance(e, Progress) and e.numbers["lr"] == 0.1 for e in events)


def test_a_constant_schedule_is_no_schedule_to_the_bit() -> None:
    network, plain = Network(Plan(steps=12, max_grad_norm=None)), Network(Plan(steps=12))
    network.fit()
    optimizer = torch.optim.AdamW(list(plain.weights.values()), lr=0.05, fused=True)
    for step in range(12):
        optimizer.zero_grad()
        plain.loss(step, 0).backward()
        optimizer.step()
    assert same(network.weights, plain.weights)


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine", "polynomial"])
def test_each_phase_has_the_schedule_of_a_run_of_its_own(schedule: str) -> None:
    groups = [Group(name, [], lr) for name, lr in (("first", 1.0), ("last", 0.1))]
    table = rate_table(groups, Plan(20, schedule=schedule, warmup_steps=3, active=phases))
    for column, name in enumerate(("first", "last")):
        own = [step for step in range(20) if name in phases(step)]
        alone = rate_table([groups[column]], Plan(len(own), schedule=schedule, warmup_steps=3))
        assert [(rates[column],) for rates in table if rates[column] is not None] == alone
        assert [step for step in range(20) if table[step][column] is not None] == own
        assert alone[0] == (0.0,) and alone[3] == (groups[column].lr,)  # diffusers' first step of a warm-up has rate 0


def test_the_linear_schedule_falls_to_zero_after_its_warm_up() -> None:
    table = rate_table([Group("all", [], 1.0)], Plan(6, schedule="linear", warmup_steps=2))
    assert [rate for (rate,) in table] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]


def test_a_step_in_which_nothing_learns_is_refused() -> None:
    with pytest.raises(JobError, match="nothing learns in step 5"):
        rate_table([Group("a", [], 1.0)], Plan(8, active=lambda step: frozenset({"a"} if step < 4 else ())))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_a_group_that_never_learns_has_no_rate(schedule: str) -> None:
    groups = [Group(name, [], 1.0) for name in ("always", "never")]
    table = rate_table(groups, Plan(4, schedule=schedule, active=lambda _: frozenset({"always"})))
    assert [rates[1] for rates in table] == [None] * 4 and table[0][0] == 1.0


def test_a_rate_below_the_end_of_its_schedule_is_refused() -> None:
    with pytest.raises(JobError, match="polynomial"):
        rate_table([Group("a", [], 1e-8)], Plan(8, schedule="polynomial"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_group_that_rests_keeps_every_bit(optimizer: str) -> None:
    network = Network(Plan(9, active=lambda step: frozenset({"last"} if 3 <= step < 6 else {"first"})), optimizer)
    seen: list[dict[str, Tensor]] = []

    def loss(step: int, part: int) -> Tensor:
        wanted = {name for name, weight in network.weights.items() if weight.requires_grad}
        assert wanted == ({"last"} if 3 <= step < 6 else {"first"})
        return network.loss(step, part)

    fit(network.training, loss, ignore, lambda _: seen.append(network.everything()))
    of = {name: [{k: v for k, v in each.items() if f".{name}." in k} for each in seen] for name in network.weights}
    assert all(same(of["first"][2], of["first"][step]) for step in (3, 4, 5))
    assert all(same(of["last"][5], of["last"][step]) for step in (6, 7, 8))
    assert torch.equal(of["last"][2]["parameter.last.0"], STARTS["last"])
    assert not torch.equal(of["last"][5]["parameter.last.0"], STARTS["last"])
    assert not torch.equal(of["first"][5]["parameter.first.0"], of["first"][8]["parameter.first.0"])


def test_what_asked_for_a_gradient_does_so_again_after_an_interruption() -> None:
    network = Network(Plan(9, active=lambda _: frozenset({"first"})))
    with pytest.raises(KeyboardInterrupt):
        network.fit(stop_after=2)
    assert all(weight.requires_grad and weight.grad is None for weight in network.weights.values())
    assert len(network.training.optimizer.param_groups) == 2


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    network = Network(Plan(5))
    steps: list[int] = []
    with pytest.raises(NumericsError, match=r"step 3: the loss is nan and .* \(rex.png at time 0.5 of 2\): lower"):
        fit(
            network.training,
            lambda step, part: network.loss(step, part) * (float("nan") if step == 2 else 1.0),
            ignore,
            where=lambda step: f"rex.png at time 0.5 of {step}",
            on_numbers=lambda step, _: steps.append(step),
        )
    assert steps == [1, 2] and network.training.step == 2
    assert all(weight.isfinite().all() for weight in network.weights.values())


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    network = Network(Plan(5))
    with pytest.raises(NumericsError, match=r"step 1: the loss is 0.0 and the gradient's norm (nan|inf)"):
        fit(network.training, lambda *_: (network.weights["last"] * 0).abs().sqrt().sum(), ignore)
    assert torch.equal(network.weights["last"], STARTS["last"])


def test_weights_that_are_not_finite_are_not_saved() -> None:
    network = Network(Plan(5))
    with torch.no_grad():
        network.weights["last"][1, 2] = float("inf")
    with pytest.raises(NumericsError, match=r"the parameter last\.0 is not finite"):
        network.training.state()


def test_a_last_step_that_leaves_the_finite_numbers_is_an_error() -> None:
    network = Network(Plan(1), lr=float("1e39"))
    with pytest.raises(NumericsError, match="after step 1"):
        network.fit()


def test_where_looking_is_rare_the_numbers_still_come_in_order_and_before_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOOK_EVERY, "cpu", 10)
    network, events = Network(Plan(25)), list[Event]()

    def after_step(done: int) -> None:
        if done == 13:
            assert len(network.lines) == 10 and len(network.training.state()[1]["losses"]) == 13

    fit(network.training, network.loss, events.append, after_step, on_numbers=network.note)
    assert [json.loads(line)["step"] for line in network.lines] == list(range(1, 26))
    assert [event.done for event in events if isinstance(event, Progress)] == [10, 13, 20, 25]


def test_where_looking_is_rare_nothing_bad_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOOK_EVERY, "cpu", 10)
    network = Network(Plan(25))

    def after_step(done: int) -> None:
        if done == 5:
            network.training.state()

    with pytest.raises(NumericsError, match="step 3: the loss is nan"):
        fit(network.training, lambda *at: network.loss(*at) * (float("nan") if at[0] == 2 else 1), ignore, after_step)
    assert network.training.step == 5


def test_averages_take_in_weights_that_are_where_they_may_be() -> None:
    """The loss pulls the weight to 5, the projection keeps it below 1: no average may have seen more."""
    weight = nn.Parameter(torch.zeros(1))
    groups = [Group("weight", [weight], 2.0)]
    training = Training(groups, make_optimizer(groups, "adamw"), Plan(20, ema=0.5))

    def project() -> None:
        with torch.no_grad():
            weight.clamp_(max=1.0)

    fit(training, lambda *_: (weight - 5).square().sum(), ignore, project=project)
    with training.averaged():
        assert 0.9 < weight.item() <= 1.0


@pytest.mark.cuda
def test_a_step_never_waits_for_the_gpu() -> None:
    groups = [Group(name, [nn.Parameter(torch.ones(4, device="cuda"))], 0.1) for name in ("first", "last")]
    training = Training(groups, make_optimizer(groups, "adamw"), Plan(9, active=phases, ema=0.9))

    def loss(*_: int) -> Tensor:
        return torch.stack([p.square().mean() for p in training.parameters if p.requires_grad]).sum()

    def after_step(done: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if done < 8 else "default")  # the last step may be looked at

    try:
        fit(training, loss, ignore, after_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
