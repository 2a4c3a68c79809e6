"""Many trainings in lockstep: one forward and one backward pass for all, then each its own step.

Each keeps its own plan, optimizer, step and losses, as if it were alone, and so its own checkpoints. The sum of their
losses gives each exactly its own gradient, because no parameter belongs to two of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loractl.errors import NumericsError
from loractl.events import Emit, Progress
from loractl.train.loop import LOOK_EVERY, Training

Turns = Mapping[str, int]  # who takes a step → which of its own
Loss = Callable[[Turns, int], Iterable[Mapping[str, Tensor]]]  # (turns, accumulated batch) → parts of each one's scalar
OnNumbers = Callable[[Mapping[str, tuple[int, Mapping[str, float]]]], None]  # who → (its steps done, numbers)


def fit_together(
    trainings: Mapping[str, Training],
    loss: Loss,
    forget_gradients: Callable[[], None],
    emit: Emit,
    after_step: Callable[[Turns], None] = lambda _: None,
    project: Callable[[str], None] = lambda _: None,
    on_numbers: OnNumbers = lambda _: None,
    where: Callable[[str, int], str] | None = None,
) -> None:
    """Runs each training from its own step to its own plan's end; the shorter ones rest when they are done.

    `loss` goes on after the backward pass through what it gave last. `after_step` is told who took a step and how many
    that makes, and may raise to stop. The rest is as in `fit`.
    """
    watch = _Watch(trainings, emit, on_numbers, where)
    every = LOOK_EVERY.get(next(iter(trainings.values())).parameters[0].device.type, 10)
    for training in trainings.values():
        training.settle = watch.look
    while turns := {name: each.step for name, each in trainings.items() if each.step < each.plan.steps}:
        moving = [trainings[name] for name in turns]
        with ExitStack() as stack:
            groups = {name: stack.enter_context(trainings[name].learning(step)) for name, step in turns.items()}
            numbers = _gradients(trainings, groups, loss, turns)
            watch.waiting.append(numbers)
            ends = any(training.step + 1 == training.plan.steps for training in moving)
            if len(watch.waiting) == every or ends:
                watch.look()
            for training in moving:
                training.optimizer.step()
            forget_gradients()
        for name in turns:
            project(name)
            trainings[name].advance()
        after_step({name: step + 1 for name, step in turns.items()})
    for training in trainings.values():
        training.require_finite()


@dataclass(frozen=True)
class _Numbers:
    """Of one training's step: its mean loss, and its gradient's norm before clipping."""

    step: int
    loss: Tensor
    norm: Tensor
    lr: float


def _gradients(
    trainings: Mapping[str, Training], groups: Mapping[str, list[dict[str, Any]]], loss: Loss, turns: Turns
) -> dict[str, _Numbers]:
    """Backward through all parts of each accumulated batch, then clipping of each training's own gradient."""
    plans = {name: trainings[name].plan for name in turns}
    values: dict[str, list[Tensor]] = {name: [] for name in turns}
    for part in range(max(plan.grad_accum for plan in plans.values())):
        now = {name: step for name, step in turns.items() if part < plans[name].grad_accum}
        for losses in loss(now, part):
            shares = {name: value / plans[name].grad_accum for name, value in losses.items()}
            torch.stack(list(shares.values())).sum().backward()
            for name, share in shares.items():
                values[name].append(share.detach())
    found = {}
    for name, step in turns.items():
        norm = _clip(groups[name], plans[name].max_grad_norm)
        found[name] = _Numbers(step, torch.stack(values[name]).sum(), norm, groups[name][0]["lr"])
    return found


def _clip(groups: Sequence[dict[str, Any]], max_norm: float | None) -> Tensor:
    parameters = [parameter for group in groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))


@dataclass
class _Watch:
    """The numbers that were not yet looked at: of each step of all, each training's."""

    trainings: Mapping[str, Training]
    emit: Emit
    on_numbers: OnNumbers
    where: Callable[[str, int], str] | None
    waiting: list[dict[str, _Numbers]] = field(default_factory=list)

    def look(self) -> None:
        """Brings them to the host in one go, checks them and hands them on."""
        if not self.waiting:
            return
        pairs = [torch.stack([each.loss.float(), each.norm.float()]) for turn in self.waiting for each in turn.values()]
        seen = iter(torch.stack(pairs).tolist())
        for turn in self.waiting:
            told = {name: (each.step + 1, self._told(name, each, *next(seen))) for name, each in turn.items()}
            self.on_numbers(told)
        self.waiting.clear()
        total = max(training.plan.steps for training in self.trainings.values())
        left = max(training.plan.steps - len(training.losses) for training in self.trainings.values())
        losses = [numbers["loss"] for _, numbers in told.values()]
        self.emit(Progress("train", total - left, total, {"loss": sum(losses) / len(losses), "subjects": len(losses)}))

    def _told(self, name: str, each: _Numbers, loss: float, norm: float) -> dict[str, float]:
        if not (abs(loss) < float("inf") and norm < float("inf")):  # NaN compares false
            origin = f" ({self.where(name, each.step)})" if self.where else ""
            raise NumericsError(
                f"{name}, step {each.step + 1}: the loss is {loss} and the gradient's norm {norm}{origin}: lower its "
                'train.lr, or set memory.precision = "fp32"; nothing of this step was saved'
            )
        self.trainings[name].losses.append(loss)
        return {"loss": loss, "grad_norm": norm, "lr": each.lr}
