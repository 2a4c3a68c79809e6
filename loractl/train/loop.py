"""The one training loop. A method says which parameters learn and what the loss of a batch is; nothing else differs.

`Training` is all that one step hands to the next, and so all that a checkpoint keeps. Which groups learn in a step, and
at what rate, follows from the plan and the step alone.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from loractl.errors import JobError, MismatchError, NumericsError
from loractl.events import Emit, Progress
from loractl.train.optimizer_state import options, recall, remembered
from loractl.train.schedule import rates

Loss = Callable[[int, int], Tensor]  # (step, accumulated batch) → scalar
Active = Callable[[int], frozenset[str]]  # step → names of the groups that learn in it
OnNumbers = Callable[[int, Mapping[str, float]], None]  # (steps done, numbers of the last one)
Average = Callable[[Tensor, Sequence[nn.Parameter]], Tensor]  # (loss, parameters) → loss; gradients in place

LOOK_EVERY = {"cpu": 1}  # steps; looking costs nothing on a CPU, and on others it stops the queue of kernels


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate; without a weight decay of their own they have the optimizer's."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    weight_decay: float | None = None


@dataclass(frozen=True)
class Plan:
    """How long, and how the gradient is treated. `schedule` and `warmup_steps` are diffusers' learning-rate schedules,
    for each group over the steps in which it is active; `ema` is the decay of the averaged weights.
    """

    steps: int
    grad_accum: int = 1
    max_grad_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    active: Active | None = None
    ema: float | None = None


class Training:
    """Parameters, the optimizer's state, averages, step and losses. The optimizer's groups are `groups`, in order.

    An optimizer that has modes, as schedule-free ones do, is in its `eval` mode between steps.
    """

    def __init__(self, groups: Sequence[Group], optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.groups, self.optimizer, self.plan = tuple(groups), optimizer, plan
        self.step = 0
        self.losses: list[float] = []
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.settle: Callable[[], None] = _nothing  # brings to the host, and checks, the numbers a GPU still holds
        numbers: defaultdict[str, count[int]] = defaultdict(count)
        self._names = [f"{group.name}.{next(numbers[group.name])}" for group in groups for _ in group.parameters]
        self._made = options(optimizer)
        self.active = plan.active or (lambda _: frozenset(group.name for group in groups))
        self._rates = rate_table(groups, plan)
        self._averages = [] if plan.ema is None else [p.detach().clone() for p in self.parameters]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, on the CPU, and JSON values: a copy, safe to write while training goes on.

        Raises NumericsError rather than return what is not finite.
        """
        self.settle()
        self.require_finite()
        kept = remembered(self.optimizer, self._names, self._made)
        plain = {name: value for name, value in kept.items() if not isinstance(value, Tensor)}
        tensors = self._weights() | {name: tensor for name, tensor in kept.items() if name not in plain}
        try:
            plain = json.loads(json.dumps(plain))
        except TypeError:
            raise MismatchError(
                f"{type(self.optimizer).__name__} remembers more than tensors and numbers, which no checkpoint can "
                "hold: choose another optimizer.name"
            ) from None
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return copies, {"step": self.step, "losses": list(self.losses), "optimizer": plain}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Takes over a `state`, bit for bit, and ignores what else is there; the learning rates stay the groups' own.
        Raises MismatchError when it is the state of other parameters.
        """
        weights = self._weights()
        stored = {name: tensor for name, tensor in tensors.items() if name.startswith(("parameter.", "average."))}
        _require_same(weights, stored)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(stored[name])
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("state.", "group."))}
        recall(self.optimizer, self._names, self._made, kept | values["optimizer"])
        self.step, self.losses = values["step"], list(values["losses"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights; after, the trained ones again, bit for bit. Take no `state`
        inside.
        """
        self.settle()
        if not self._averages:
            yield
            return
        trained = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(trained)

    @contextmanager
    def learning(self, step: int) -> Iterator[list[dict[str, Any]]]:
        """The optimizer's groups that learn in a step, at the rates of the step.

        Inside, the others ask for no gradient and are hidden from the optimizer, which would decay their weights or
        advance their counters.
        """
        everyone = self.optimizer.param_groups
        learning = []
        for group, rate in zip(everyone, self._rates[step], strict=True):
            for parameter in group["params"]:
                parameter.requires_grad_(rate is not None)
            if rate is not None:
                group["lr"] = rate
                learning.append(group)
        self.optimizer.param_groups = learning
        _switch(self.optimizer, "train")
        try:
            yield learning
        finally:
            _switch(self.optimizer, "eval")
            self.optimizer.param_groups = everyone

    def advance(self) -> None:
        """Counts a step and takes its weights into the averages, whose decay starts low to forget the beginning."""
        self.step += 1
        if self.plan.ema is not None:
            decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self._averages, [p.detach() for p in self.parameters], 1 - decay)

    def require_finite(self) -> None:
        """Raises NumericsError when a parameter is not finite."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters])
        if not finite.all():
            name = self._names[finite.tolist().index(False)]
            raise NumericsError(
                f"after step {self.step} the parameter {name} is not finite: lower train.lr; nothing of it was saved"
            )

    def _weights(self) -> dict[str, Tensor]:
        trained = {f"parameter.{name}": weight for name, weight in zip(self._names, self.parameters, strict=True)}
        return trained | {f"average.{name}": weight for name, weight in zip(self._names, self._averages, strict=False)}

    @torch.no_grad()
    def _put(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list[Tensor](self.parameters), list(weights))


def fit(
    training: Training,
    loss: Loss,
    emit: Emit,
    after_step: Callable[[int], None] = lambda _: None,
    project: Callable[[], None] = lambda: None,
    stage: str = "train",
    where: Callable[[int], str] | None = None,
    on_numbers: OnNumbers | None = None,
    average: Average = lambda loss, _: loss,
) -> list[float]:
    """Runs from `training.step` to the plan's end; returns each step's loss.

    `project()` brings the weights back to where they may be after each step, before an average takes them in.
    `after_step(n)` is called when n steps are done and may raise to stop; `on_numbers(n, numbers)` for every step, in
    order. The loss and the gradient's norm are looked at before every step on a CPU and before every tenth on a GPU;
    what `state` returns has been looked at. Raises NumericsError when one is not finite, with `where(step)`, which says
    what the step was made of. `average` makes loss and gradients those of all processes that share the step.
    """
    watch = _Watch(training, emit, stage, where, on_numbers)
    training.settle = watch.look
    every = LOOK_EVERY.get(training.parameters[0].device.type, 10)
    wanted = [parameter.requires_grad for parameter in training.parameters]
    try:
        for step in range(training.step, training.plan.steps):
            with training.learning(step) as groups:
                value, norm = _gradient(groups, loss, step, training.plan, average)
                watch.waiting.append((step, value, norm, groups[0]["lr"]))
                if (step + 1) % every == 0 or step + 1 == training.plan.steps:
                    watch.look()
                training.optimizer.step()
                training.optimizer.zero_grad(set_to_none=True)
            project()
            training.advance()
            after_step(training.step)
        training.require_finite()
    finally:
        for parameter, want in zip(training.parameters, wanted, strict=True):
            parameter.requires_grad_(want)
    return training.losses


def rate_table(groups: Sequence[Group], plan: Plan) -> list[tuple[float | None, ...]]:
    """For each step the learning rate of each group, None where it rests. Raises JobError when all of them do."""
    everyone = frozenset(group.name for group in groups)
    active = [plan.active(step) if plan.active else everyone for step in range(plan.steps)]
    idle = [step for step, names in enumerate(active) if not names & everyone]
    if idle:
        raise JobError(f"nothing learns in step {idle[0] + 1}: let a part learn to the end, or lower train.steps")
    columns = [
        rates(group.lr, plan.schedule, plan.warmup_steps, [group.name in names for names in active]) for group in groups
    ]
    return list(zip(*columns, strict=True))


def _gradient(
    groups: Sequence[dict[str, Any]], loss: Loss, step: int, plan: Plan, average: Average
) -> tuple[Tensor, Tensor]:
    """Backward through each accumulated batch, then clipping: their mean loss, and the norm before clipping."""
    values = []
    for part in range(plan.grad_accum):
        value = loss(step, part) / plan.grad_accum
        value.backward()
        values.append(value.detach())
    parameters = [parameter for group in groups for parameter in group["params"]]
    mean = average(torch.stack(values).sum(), parameters)
    return mean, nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm or float("inf"))


@dataclass
class _Watch:
    """The numbers of the steps not yet looked at: (step, loss, norm, lr)."""

    training: Training
    emit: Emit
    stage: str
    where: Callable[[int], str] | None
    on_numbers: OnNumbers | None
    waiting: list[tuple[int, Tensor, Tensor, float]] = field(default_factory=list)

    def look(self) -> None:
        """Brings the waiting numbers to the host in one go, checks them and hands them on."""
        if not self.waiting:
            return
        pairs = torch.stack([torch.stack([value.float(), norm.float()]) for _, value, norm, _ in self.waiting]).tolist()
        for (step, _, _, lr), (value, norm) in zip(self.waiting, pairs, strict=True):
            self._require_finite(step, value, norm)
            numbers = {"loss": value, "grad_norm": norm, "lr": lr}
            self.training.losses.append(value)
            if self.on_numbers is not None:
                self.on_numbers(step + 1, numbers)
        self.waiting.clear()
        self.emit(Progress(self.stage, step + 1, self.training.plan.steps, numbers))

    def _require_finite(self, step: int, value: float, norm: float) -> None:
        if abs(value) < float("inf") and norm < float("inf"):  # NaN compares false
            return
        origin = f" ({self.where(step)})" if self.where else ""
        raise NumericsError(
            f"step {step + 1}: the loss is {value} and the gradient's norm {norm}{origin}: lower train.lr, or set "
            'memory.precision = "fp32"; nothing of this step was saved'
        )


def _switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Calls `optimizer.train()` or `optimizer.eval()`, if it has such modes."""
    getattr(optimizer, mode, _nothing)()


def _require_same(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    for name in sorted({*here, *there}):
        ours, theirs = _form(here.get(name)), _form(there.get(name))
        if ours != theirs:
            raise MismatchError(
                f"the checkpoint does not fit: {name} is {theirs} there and {ours} here; go on with the job that made "
                "it, or start over with --overwrite"
            )


def _form(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}".replace("torch.", "")


def _nothing() -> None:
    """What an optimizer without modes, and a training without waiting numbers, has to do."""
