"""What moved, and when: for each stretch of steps with the same things learning, how far every group went."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from loractl.train.loop import Training


class Trace:
    """`stretches`: {"steps": [first, last + 1], "learning": […], "moved": {group: ‖Δ‖}}, ready for JSON.

    Looks at the parameters only where a stretch ends. Its own state goes into checkpoints, so that the trace of a
    resumed run is that of the uninterrupted one.
    """

    def __init__(self, training: Training) -> None:
        self._groups, self._active, self._total = training.groups, training.active, training.plan.steps
        self.stretches: list[dict[str, Any]] = []
        self._began = 0
        self._before = self._now()

    def after(self, done: int) -> None:
        """Called with the number of steps done; closes the stretch that ends there."""
        if done < self._total and self._active(done) == self._active(done - 1):
            return
        now = self._now()
        moved: dict[str, float] = {}
        for key, parameter in now.items():  # two text encoders make two groups of one name
            name = key.partition("/")[0]
            moved[name] = math.hypot(moved.get(name, 0.0), float((parameter - self._before[key]).norm()))
        learning = sorted(self._active(done - 1))
        self.stretches.append({"steps": [self._began, done], "learning": learning, "moved": moved})
        self._began, self._before = done, now

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"trace.{key}": tensor for key, tensor in self._before.items()}
        return tensors, {"began": self._began, "stretches": self.stretches}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._before = {key: tensors[f"trace.{key}"].to(old.device) for key, old in self._before.items()}
        self._began, self.stretches = values["began"], list(values["stretches"])

    def _now(self) -> dict[str, Tensor]:
        return {
            f"{group.name}/{number}.{i}": parameter.detach().clone()
            for number, group in enumerate(self._groups)
            for i, parameter in enumerate(group.parameters)
        }
