"""The loop that makes the lab's networks: averaged weights, checkpoints, and gradients shared between processes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """How one network is trained: AdamW, 200 steps of warm-up, constant to the middle, then a cosine to 2 % of the
    rate; all of it once more from the step `restart` (warm restarts, Loshchilov & Hutter 2017).
    """

    name: str
    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.0
    restart: int = 0

    def rate(self, step: int) -> float:
        start, end = (self.restart, self.steps) if step >= self.restart else (0, self.restart)
        warm, done = min(1.0, (step - start + 1) / 200), (step - start) / (end - start)
        return self.lr * warm * (1.0 if done < 0.5 else 0.51 + 0.49 * math.cos(math.pi * (done - 0.5) * 2))


def random_stream(stage: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((crc32(stage.encode()) << 24) + step)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The mean over the processes, in one message."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


class Trainer:
    """Runs one stage to its end, resuming from its checkpoint; leaves the averaged weights in the modules."""

    def __init__(self, stage: Stage, modules: Sequence[nn.Module], work: Path) -> None:
        self.stage, self.modules = stage, nn.ModuleList(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, stage.lr, betas=(0.9, 0.98), weight_decay=stage.weight_decay, fused=True
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.file = work / f"{stage.name}.pt"
        self.step = 0
        if self.file.exists():
            self._restore(torch.load(self.file, weights_only=True))

    def run(self, loss: Callable[[torch.Generator], Tensor], report: int = 100, save: int = 1000) -> None:
        started, first, mean = time.monotonic(), self.step, 0.0
        while self.step < self.stage.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.stage.rate(self.step)
            value = loss(random_stream(self.stage.name, self.step))
            self.optimizer.zero_grad()
            value.backward()
            average_gradients(self.parameters)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
            mean += (float(value.detach()) - mean) / min(self.step - first, report)
            if self.step % report == 0 and rank() == 0:
                rate = (self.step - first) / (time.monotonic() - started)
                left = (self.stage.steps - self.step) / rate / 60
                done = f"{self.stage.name} {self.step}/{self.stage.steps}"
                print(f"{done} loss {mean:.4f} {rate:.2f} it/s {left:.0f} min left", flush=True)
            if self.step % save == 0:
                self._save()
        self._save()
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.parameters), self.average)

    def _save(self) -> None:
        if rank() != 0:
            return
        state = {"step": self.step, "modules": self.modules.state_dict(), "average": self.average}
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = list(state["average"])
