"""Where the time of a training step goes: torch.profiler over steps of ours, on the cases of bench/train.py.

    python bench/profile_step.py [CASE] [--side ours] [--device auto] [--steps 5] [--rows 15] [--trace FILE]

First the step by part: forward, backward, clipping, optimizer, and what is left, which is Python between them. Then
the operators that cost most of their own, with how often a step calls them. --trace writes a file for
https://ui.perfetto.dev. CASE is 17.5 M on a CPU and SDXL on a GPU if none is named; --side peft or frozen profiles the
others.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import CPU_CASES, GPU_CASES
from torch.profiler import ProfilerActivity, profile, record_function
from train import SIDES, Setting, Workplace

PARTS = ("forward", "backward", "clip", "optimizer")


def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call as a part of the profile."""

    def inside(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return call(*arguments, **options)

    return inside


def mark_parts(place: Workplace) -> None:
    """Names the parts wherever the sides call them."""
    place.loss = marked("forward", place.loss)  # type: ignore[method-assign]  # so the profile names it
    torch.Tensor.backward = marked("backward", torch.Tensor.backward)  # type: ignore[method-assign]  # so the profile names it
    torch.nn.utils.clip_grad_norm_ = marked("clip", torch.nn.utils.clip_grad_norm_)
    torch.optim.AdamW.step = marked("optimizer", torch.optim.AdamW.step)  # type: ignore[method-assign]  # so the profile names it


def main(arguments: argparse.Namespace) -> None:
    on_gpu = arguments.device == "cuda" or (arguments.device == "auto" and torch.cuda.is_available())
    name = arguments.case or ("SDXL" if on_gpu else "17.5 M")
    setting = Setting(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)
    if not on_gpu:
        torch.set_num_threads(1)
    place = Workplace({**CPU_CASES, **GPU_CASES}[name], setting)
    step = SIDES[arguments.side](place)
    mark_parts(place)
    step(3)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        began = time.perf_counter()
        step(arguments.steps)
        if on_gpu:
            torch.cuda.synchronize()
        whole = (time.perf_counter() - began) / arguments.steps
    report(found.key_averages(), f"{name}, {arguments.side}, {setting.device}", whole, arguments)
    if arguments.trace:
        found.export_chrome_trace(arguments.trace)


def report(events: Any, title: str, whole: float, arguments: argparse.Namespace) -> None:
    """Milliseconds of one step, of the host; on a GPU the operators' own time there beside it."""
    steps = arguments.steps
    print(f"{title}: {1000 * whole:.1f} ms a step, profiler included")
    rest = 1000 * whole
    for part in PARTS:
        spent = sum(event.cpu_time_total for event in events if event.key == part) / 1000 / steps
        rest -= spent
        print(f"  {part:12}{spent:9.2f} ms")
    print(f"  {'the rest':12}{rest:9.2f} ms\n")
    print(f"  {'operator':44}{'host ms':>9}{'device ms':>11}{'calls':>7}")
    rows = [event for event in events if event.key not in PARTS]
    rows.sort(key=lambda event: -(event.self_device_time_total or event.self_cpu_time_total))
    for event in rows[: arguments.rows]:
        host, device = event.self_cpu_time_total / 1000 / steps, event.self_device_time_total / 1000 / steps
        print(f"  {event.key[:43]:44}{host:9.2f}{device:11.2f}{event.count / steps:7.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=[*CPU_CASES, *GPU_CASES])
    parser.add_argument("--side", choices=SIDES, default="ours")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--trace", help="file for the whole trace")
    main(parser.parse_args())
