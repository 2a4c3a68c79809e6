"""The training loop's own promises."""

import pytest
import torch
from torch import Tensor, nn

from loractl.errors import NumericsError
from loractl.events import Event, Progress
from loractl.train.loop import Group, Plan, fit, make_optimizer

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def train(plan: Plan, batch: int, events: list[Event] | None = None, lr: float = 0.1) -> tuple[Tensor, list[float]]:
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = make_optimizer([Group([weight], lr)], (0.9, 0.999), 0.0, 1e-8)

    def loss(_: int, part: int) -> Tensor:
        rows = slice(part * batch, (part + 1) * batch)
        return (X[rows] @ weight - Y[rows]).square().mean()

    losses = fit(optimizer, loss, plan, (events if events is not None else []).append)
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
    train(Plan(steps=5), batch=8, events=events)
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(i, 5) for i in range(1, 6)]


def test_warm_up_starts_slowly() -> None:
    slow, _ = train(Plan(steps=1, schedule="constant_with_warmup", warmup_steps=10), batch=8)
    assert torch.equal(slow, torch.zeros(3, dtype=torch.float64))  # diffusers' first step of a warm-up has rate 0


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([Group([weight], 0.1)], (0.9, 0.999), 0.0, 1e-8)
    with pytest.raises(NumericsError, match="step 3: the loss is nan"):
        fit(
            optimizer,
            lambda step, _: weight.sum() * (float("nan") if step == 2 else 1.0),
            Plan(steps=5),
            lambda _: None,
        )
    assert torch.isfinite(weight).all()
