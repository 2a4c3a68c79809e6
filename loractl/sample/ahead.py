"""Work that is done while the denoiser goes on: in a second stream of a GPU, or in one thread beside it on a CPU."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Work = Callable[[], Tensors]


class Pending(Protocol):
    def result(self) -> Tensors:
        """What the work gave, to be used from now on; raises what the work raised."""


class Aside(Protocol):
    def begin(self, work: Work) -> Pending: ...

    def close(self) -> None:
        """After all work that has begun has ended."""


def aside(device: torch.device, wanted: bool | None = None) -> Aside | None:
    """Where work is done aside; None says nowhere, which is the choice on a CPU none of whose cores is left idle."""
    if wanted is None:
        wanted = device.type != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1)
    if not wanted:
        return None
    return Thread() if device.type == "cpu" else Stream(device)


class Thread:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "loractl-prefetch")

    def begin(self, work: Work) -> "Future[Tensors]":
        return self._pool.submit(work)

    def close(self) -> None:
        self._pool.shutdown()


class Stream:
    """The host gives the work to the device at once; the device does it beside what the main stream is told next."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.Stream(device=device)

    def begin(self, work: Work) -> "OnStream":
        main = torch.accelerator.current_stream(self._device)
        self._stream.wait_stream(main)  # what the work reads may still be under way there
        torch.accelerator.set_stream(self._stream)
        try:
            made = work()
        finally:
            torch.accelerator.set_stream(main)
        return OnStream(made, self._stream.record_event(), self._device)

    def close(self) -> None:
        torch.accelerator.current_stream(self._device).wait_stream(self._stream)


@dataclass(frozen=True)
class OnStream:
    made: Tensors
    done: torch.Event
    device: torch.device

    def result(self) -> Tensors:
        main = torch.accelerator.current_stream(self.device)
        main.wait_event(self.done)
        for tensor in self.made.values():
            tensor.record_stream(main)  # its memory is not given away before the main stream has read it
        return self.made
