"""A network of two groups whose every step is drawn anew, small enough to train in a test."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loractl.events import Event
from loractl.train.loop import Group, Plan, Training, fit
from loractl.train.optim import make_optimizer
from loractl.train.streams import stream

OPTIMIZERS = ["adamw", "adafactor", "prodigy", "schedulefree-adamw", "lion"]
STARTS = {
    name: torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(("first", "last"))
}


def ignore(_: Event) -> None:
    pass


def phases(step: int) -> frozenset[str]:
    """The first group, then both, then the last."""
    return frozenset({"first"} if step < 5 else {"first", "last"} if step < 11 else {"last"})


class Network:
    """Two groups of parameters whose loss has fresh dropout and pictures in every step."""

    def __init__(self, plan: Plan, optimizer: str = "adamw", lr: float = 0.05) -> None:
        self.weights = {name: nn.Parameter(start.clone()) for name, start in STARTS.items()}
        groups = [Group(name, [weight], lr) for name, weight in self.weights.items()]
        self.training = Training(groups, make_optimizer(groups, optimizer), plan)
        self.lines: list[str] = []

    def loss(self, step: int, part: int) -> Tensor:
        drawn = torch.randn(3, 3, generator=stream(1, "x", step, part))
        kept = torch.rand(4, generator=stream(1, "dropout", step, part)) > 0.3
        hidden = torch.tanh(self.weights["first"] @ drawn) * kept[:, None]
        return ((self.weights["last"].T @ hidden).sum(1) - drawn.sum(0)).square().mean()

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        self.lines.append(json.dumps({"step": step, **numbers}))

    def fit(self, stop_after: int | None = None) -> None:
        def after_step(done: int) -> None:
            if done == stop_after:
                self.stored = self.training.state()
                raise KeyboardInterrupt

        fit(self.training, self.loss, ignore, after_step, on_numbers=self.note)

    def everything(self) -> dict[str, Tensor]:
        return self.training.state()[0]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
