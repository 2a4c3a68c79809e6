"""The learning rate of every step, worked out before the first."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import nn

from loractl.errors import JobError


def rates(lr: float, schedule: str, warmup_steps: int, learns: Sequence[bool]) -> list[float | None]:
    """The rate in each step, None where the group rests. The schedule runs over the learning steps alone, so that each
    of several phases warms up and decays as a run of its own.
    """
    if not any(learns):
        return [None] * len(learns)
    factor = schedule_factor(schedule, warmup_steps, sum(learns), lr)
    done = accumulate(learns, initial=0)
    return [lr * factor(k) if on else None for on, k in zip(learns, done, strict=False)]


def schedule_factor(schedule: str, warmup_steps: int, steps: int, lr: float) -> Callable[[int], float]:
    """What the rate is multiplied with in step k of `steps`, as diffusers' schedule of that name has it."""
    from diffusers.optimization import get_scheduler

    nobody = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    try:
        made = get_scheduler(schedule, nobody, num_warmup_steps=warmup_steps, num_training_steps=steps)
    except ValueError as error:  # "polynomial" ends at 1e-7, and so must start above
        raise JobError(f'schedule.name = "{schedule}" cannot be had with a rate of {lr:g}: {error}') from error
    factor: Callable[[int], float] = made.lr_lambdas[0]
    return factor
