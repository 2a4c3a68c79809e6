"""The one training loop. A method says which parameters learn and what the loss of a batch is; nothing else differs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loractl.errors import NumericsError
from loractl.events import Emit, Progress

Loss = Callable[[int, int], Tensor]  # (step, accumulated batch) → scalar


@dataclass(frozen=True)
class Plan:
    """How long, and how the gradient is treated. `schedule` and `warmup_steps` are diffusers' learning-rate
    schedules.
    """

    steps: int
    grad_accum: int = 1
    max_grad_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    lr: float


def make_optimizer(
    groups: Sequence[Group], betas: tuple[float, float], weight_decay: float, eps: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), all parameters in one fused call."""
    settings = [{"params": list(group.parameters), "lr": group.lr} for group in groups if group.parameters]
    return torch.optim.AdamW(settings, betas=betas, weight_decay=weight_decay, eps=eps, fused=True)


def fit(optimizer: torch.optim.Optimizer, loss: Loss, plan: Plan, emit: Emit, stage: str = "train") -> list[float]:
    """Runs `plan.steps` optimizer steps; returns each step's loss.

    The loss and the gradient's norm are looked at on every step on a CPU and on every tenth on a GPU, where looking
    stops the queue of kernels; the last step is always looked at. Raises NumericsError when one is not finite.
    """
    from diffusers.optimization import get_scheduler

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = get_scheduler(plan.schedule, optimizer, plan.warmup_steps, plan.steps)
    every = 1 if parameters[0].device.type == "cpu" else 10
    waiting: list[tuple[int, Tensor, Tensor]] = []
    losses: list[float] = []
    for step in range(plan.steps):
        value = _accumulate(loss, step, plan.grad_accum)
        norm = nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm or float("inf"))
        waiting.append((step, value, norm))
        if len(waiting) == every or step + 1 == plan.steps:
            numbers = _look(waiting, losses)
            waiting.clear()
            emit(Progress(stage, step + 1, plan.steps, {**numbers, "lr": schedule.get_last_lr()[0]}))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def _accumulate(loss: Loss, step: int, times: int) -> Tensor:
    """Backward through each accumulated batch; the mean of their losses, detached."""
    values = []
    for part in range(times):
        value = loss(step, part) / times
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()


def _look(waiting: Sequence[tuple[int, Tensor, Tensor]], losses: list[float]) -> Mapping[str, float]:
    """Brings the waiting numbers to the host in one go and checks them."""
    numbers = torch.stack([torch.stack([value.float(), norm.float()]) for _, value, norm in waiting]).tolist()
    for (step, _, _), (value, norm) in zip(waiting, numbers, strict=True):
        if not (abs(value) < float("inf") and norm < float("inf")):  # NaN compares false
            raise NumericsError(
                f"step {step + 1}: the loss is {value} and the gradient's norm {norm}: lower train.lr, or set "
                'memory.precision = "fp32"; nothing was saved'
            )
        losses.append(value)
    return {"loss": numbers[-1][0], "grad_norm": numbers[-1][1]}
