"""A training step of ours beside the diffusers + peft recipe and beside a frozen forward and backward pass.

    python bench/train.py [--device auto] [--only NAME ...] [--rounds 5] [--steps 10] [--quick]

The recipe is that of diffusers' examples (add_adapter, AdamW, clip_grad_norm_, the loss read at every step); ours is
`fit`. Model, batch, precision and targets are the same: rank 16 on attention. The frozen side goes backward to the
inputs and steps nothing. Every round builds, warms up and times each side in turn; figures are medians over rounds.

On a CPU: UNets of 0.8 M and 17.5 M in fp32, one thread, CPU seconds, which a busy machine disturbs less than others.
On a GPU: random weights in the shapes of Stable Diffusion 1.5, SDXL and Flux, bf16, plain, with gradient checkpointing
and compiled by block; steps a second, peak memory, and the share of the device's peak arithmetic (MFU).
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from cases import CPU_CASES, GPU_CASES, Case
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from loractl.inject.inject import adapter_parameters, inject
from loractl.inject.targets import resolve
from loractl.train.loop import Group, Plan, Training, fit
from loractl.train.optim import make_optimizer

RANK, LR = 16, 1e-4
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16
GOALS_ON_A_GPU = {"faster than peft": 1.3, "memory": 0.8}
Step = Callable[[int], None]  # takes so many


@dataclass(frozen=True)
class Setting:
    """How the step is computed."""

    device: torch.device
    dtype: torch.dtype
    checkpointing: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        extras = [name for name, on in (("checkpointing", self.checkpointing), ("compiled", self.compiled)) if on]
        return ", ".join(extras) or "plain"


class Cost(NamedTuple):
    seconds: float
    megabytes: float


@dataclass
class Workplace:
    """A model of random weights on its device, and its loss for one batch of random inputs."""

    case: Case
    setting: Setting

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        torch.set_default_dtype(self.setting.dtype)
        try:
            with self.setting.device:
                self.model = self.case.build().requires_grad_(False).eval()
                self.inputs = self.case.inputs()
        finally:
            torch.set_default_dtype(torch.float32)
        if self.setting.checkpointing:
            self.model.enable_gradient_checkpointing()

    def ready(self) -> None:
        """After the layers are what they will be."""
        if self.setting.compiled:
            self.model.compile_repeated_blocks()

    def loss(self) -> Tensor:
        device, dtype = self.setting.device.type, self.setting.dtype
        with torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext():
            out = self.model(**self.inputs, return_dict=False)[0]
        return out.float().square().mean()


def frozen(place: Workplace) -> Step:
    """Forward and backward to the inputs; Flux's blocks need the gradient of both of their streams."""
    place.ready()
    leaves = [value.requires_grad_() for name, value in place.inputs.items() if name in ("sample", "hidden_states")]

    def step(count: int) -> None:
        for _ in range(count):
            place.loss().backward()
            for leaf in leaves:
                leaf.grad = None

    return step


def ours(place: Workplace) -> Step:
    inject(place.model, resolve(place.model, TARGETS, RANK))
    place.ready()
    groups = [Group("denoiser", list(adapter_parameters(place.model).values()), LR)]
    optimizer = make_optimizer(groups, "adamw")

    def step(count: int) -> None:
        fit(Training(groups, optimizer, Plan(count)), lambda *_: place.loss(), lambda _: None)

    return step


def recipe(place: Workplace) -> Step:
    """As examples/dreambooth/train_dreambooth_lora.py steps."""
    from peft import LoraConfig

    place.model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    parameters = [parameter for parameter in place.model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    place.ready()
    optimizer = torch.optim.AdamW(parameters, lr=LR)

    def step(count: int) -> None:
        for _ in range(count):
            loss = place.loss()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.detach().item()

    return step


SIDES: Mapping[str, Callable[[Workplace], Step]] = {"frozen": frozen, "ours": ours, "peft": recipe}


def cost(side: str, case: Case, setting: Setting, steps: int) -> Cost:
    """Of one step, after a warm-up."""
    clean(setting)
    step = SIDES[side](Workplace(case, setting))
    step(3)
    if setting.device.type == "cpu":
        began = time.process_time()
        step(steps)
        return Cost((time.process_time() - began) / steps, 0.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step(steps)
    torch.cuda.synchronize()
    return Cost((time.perf_counter() - began) / steps, torch.cuda.max_memory_allocated() / 1e6)


def clean(setting: Setting) -> None:
    """Nothing of the last side is left."""
    gc.collect()
    torch._dynamo.reset()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def operations(case: Case, setting: Setting) -> int:
    """Floating-point operations of a step of ours; what is computed again for checkpointing does not count."""
    with FlopCounterMode(display=False) as counter:
        ours(Workplace(case, Setting(setting.device, setting.dtype)))(1)
    return counter.get_total_flops()


def compare(name: str, case: Case, setting: Setting, rounds: int, steps: int) -> None:
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, found in costs.items():
            found.append(cost(side, case, setting, steps))
    medians = {side: Cost(*map(statistics.median, zip(*found, strict=True))) for side, found in costs.items()}
    print(f"{name}, {setting}")
    for side, (seconds, megabytes) in medians.items():
        memory = f"{megabytes:10.0f} MB" if megabytes else ""
        ratio = seconds / medians["frozen"].seconds
        print(f"  {side:8}{1000 * seconds:10.2f} ms{1 / seconds:10.2f} steps/s{memory}   {ratio:.3f} of frozen")
    print("  " + "; ".join(verdicts(medians, case, setting)), flush=True)


def verdicts(medians: Mapping[str, Cost], case: Case, setting: Setting) -> Iterator[str]:
    faster = medians["peft"].seconds / medians["ours"].seconds
    if case.goal is not None:
        ratio = medians["ours"].seconds / medians["frozen"].seconds
        yield f"of frozen {ratio:.3f}, target {case.goal}: {met(ratio <= case.goal)}"
        yield f"{faster:.2f} times as fast as peft, target 1: {met(faster >= 1)}"
        return
    memory = medians["ours"].megabytes / medians["peft"].megabytes
    goals = GOALS_ON_A_GPU
    yield f"{faster:.2f} times as fast as peft, aim {goals['faster than peft']}: {met(faster >= 1.3)}"
    yield f"{memory:.2f} of its memory, aim {goals['memory']}: {met(memory <= goals['memory'])}"
    peak = next((peak for part, peak in PEAK.items() if part in torch.cuda.get_device_name()), None)
    if peak:
        yield f"MFU {operations(case, setting) / medians['ours'].seconds / peak:.1%}"


def met(yes: bool) -> str:
    return "met" if yes else "NOT met"


def main(arguments: argparse.Namespace) -> None:
    on_gpu = arguments.device == "cuda" or (arguments.device == "auto" and torch.cuda.is_available())
    if on_gpu:
        device = torch.device("cuda")
        base = Setting(device, torch.bfloat16)
        settings = [base, Setting(device, base.dtype, checkpointing=True), Setting(device, base.dtype, compiled=True)]
        cases, where = GPU_CASES, torch.cuda.get_device_name()
    else:
        torch.set_num_threads(1)
        settings, cases, where = [Setting(torch.device("cpu"), torch.float32)], CPU_CASES, "CPU, 1 thread"
    print(f"{where}, rank {RANK} on attention, load average {os.getloadavg()[0]:.1f}", flush=True)
    for name, case in cases.items():
        for setting in settings:
            if arguments.only and name not in arguments.only:
                continue
            try:
                compare(name, case, setting, arguments.rounds, arguments.steps)
            except torch.OutOfMemoryError:
                print(f"{name}, {setting}: out of memory", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only", nargs="*", help="names of cases, such as SDXL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one round of two steps")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.steps = 1, 2
    sys.exit(main(chosen))
