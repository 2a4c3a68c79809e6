"""The processes that train one adapter together, one for each GPU, and what they tell one another.

Each has the whole model and takes its `Share` of every step's samples; the mean of their gradients makes the step. The
first leads: it alone writes, samples and tells, and the others follow. What they agree upon goes from host to host, so
that no GPU's queue of kernels is stopped for it.
"""

import os
import pickle
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loractl.device import pick_device
from loractl.errors import DeviceError, LoractlError, MismatchError, PluginError
from loractl.launch import Launch, launched
from loractl.train.stopping import Heard

PATIENCE = timedelta(days=30)  # what the leader does alone, class pictures for one, may take hours
LOST = (
    "a process of this run was killed, maybe for want of memory: run the same job again to go on from its last "
    "checkpoint, with fewer memory.processes if it happens again"
)


class Elsewhere(Exception):  # noqa: N818  # it is what it says
    """Another process of the team failed; `error` is what the leader shall raise for it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Team:
    """One process's view of all; as it stands, it is alone."""

    index: int = 0
    size: int = 1
    local: int | None = None  # its number on this machine
    hosts: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        return self.index == 0

    def meet(self, heard: Heard = Heard(), failure: Exception | None = None) -> Heard:
        """Waits for the others; returns what any of them heard. Raises Elsewhere when another failed."""
        told = self._gather((heard, _portable(failure)))
        failures = [_attributed(each, i, self.size) for i, (_, each) in enumerate(told) if each is not None]
        if failures and failure is None:
            raise Elsewhere(failures[0])
        all_heard = [each for each, _ in told]
        return Heard(
            max(each.signal for each in all_heard),
            any(each.late for each in all_heard),
            any(each.checkpoint for each in all_heard),
        )

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Lets the leader through, then the others, who find what it has written."""
        if not self.leads:
            self.meet()
        yield
        if self.leads:
            self.meet()

    def average(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The mean of the processes' losses, and in place of their gradients, by one message.

        A gradient that is missing here counts as zero, and stays missing only where everyone misses it.
        """
        if self.hosts is None:
            return loss
        from accelerate.utils import reduce

        has = loss.new_ones(len(parameters))
        for i, parameter in enumerate(parameters):
            if parameter.grad is None:
                has[i] = 0
        gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        means: Tensor = reduce(torch.cat([loss.view(1), has, *gradients]), "mean")
        mean: Tensor
        mean, has, *gradients = means.split([1, len(parameters), *(p.numel() for p in parameters)])
        for parameter, gradient, share in zip(parameters, gradients, has, strict=True):
            if parameter.grad is not None or share > 0:  # only a missing one makes the host look
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return mean.view_as(loss)

    def require_same(self, step: int, parameters: Sequence[Tensor]) -> None:
        """Raises MismatchError unless all are at one step with the same weights, to the bit."""
        if self.hosts is None:
            return
        found = self._gather((step, checksum(parameters)))
        if len(set(found)) > 1:
            raise MismatchError(
                f"the {self.size} processes start from different weights: let all of them see the same model, pictures "
                "and output folder"
            )

    def part(self, failure: Exception | None = None) -> None:
        """Tells the others of a failure, and waits until the leader has saved what is to be saved: one that left with
        an error before would have its launcher end them all.
        """
        with suppress(Elsewhere):
            if failure is not None:
                self.meet(failure=failure)
            self.meet()

    def _gather(self, value: Any) -> list[Any]:
        """Everyone's value, in order."""
        if self.hosts is None:
            return [value]
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, value, self.hosts)
        except RuntimeError as error:  # the other end of the line is gone
            raise Elsewhere(DeviceError(LOST)) from error
        return found


@contextmanager
def gathered(device: str) -> Iterator[Team]:
    """The team of the processes that were launched. Inside, what one of them fails with ends the others too."""
    launch = launched()
    if launch is None:
        yield Team()
        return
    threads, orderly = torch.get_num_threads(), True
    state = _join(launch, device)
    team = Team(launch.index, launch.size, launch.local, dist.new_group(timeout=PATIENCE, backend="gloo"))
    try:
        yield team
        team.meet()
    except Elsewhere as failure:
        team.part()
        raise failure.error from None
    except Exception as failure:
        team.part(failure)
        raise
    except BaseException:
        orderly = False  # somebody wants to leave at once, and may have left others in the middle of a message
        raise
    finally:
        if orderly or dist.get_backend() == "gloo":
            state.destroy_process_group()
        state._reset_state()
        torch.set_num_threads(threads)


def checksum(tensors: Sequence[Tensor]) -> int:
    """Of all bits, the same on every device."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [tensor.detach().view(kinds[tensor.itemsize]).sum(dtype=torch.int64) for tensor in tensors]
    return hash(tuple(torch.stack(sums).tolist()))


def _join(launch: Launch, device: str) -> Any:
    """accelerate's PartialState: it knows the launchers, and which way of talking a device wants."""
    try:
        from accelerate import PartialState
        from accelerate.utils import check_cuda_p2p_ib_support
    except ImportError as error:
        need = "training in several processes needs the package accelerate: pip install 'loractl[accelerate]'"
        raise PluginError(need) from error
    on_cpu = pick_device(device, launch.local).type == "cpu"
    if not on_cpu and not check_cuda_p2p_ib_support():  # some cards can't talk to one another, and NCCL would hang
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says how many of the processor's cores each of them gets
        return PartialState(cpu=True, backend="gloo") if on_cpu else PartialState()


def _portable(failure: Exception | None) -> Exception | None:
    """What can travel, with its traceback."""
    if failure is None or isinstance(failure, LoractlError):
        return failure
    failure.add_note("".join(traceback.format_exception(failure)))
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        return RuntimeError(f"{type(failure).__name__}: {failure}")
    return failure


def _attributed(failure: Exception, index: int, size: int) -> Exception:
    where = f"process {index + 1} of {size}"
    if isinstance(failure, LoractlError):
        return type(failure)(f"{where}: {failure}")
    failure.add_note(f"in {where}")
    return failure
