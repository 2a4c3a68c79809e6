"""Adapters whose weights change along a run, on a UNet of 17.5 M parameters: time per step over the plain model's.

    nice python bench/schedules.py [--steps 20] [--rounds 9] [--device auto] [--write]

Side by side: both engines of loractl, its own choice, and diffusers' `pipe.set_adapters` before each step that changes
something; 2 and 8 adapters of rank 4, weights that change at every step and in 4 segments. All sides make the same
picture, which is checked. Every round runs all sides in turn, each twice: a first run, with nothing composed or
injected yet, and one more. What is timed is the denoising loop alone, composing included, and a ratio is of a side's
time to the plain model's mean in the same round: the median over the rounds is given, with the quartiles. All sides
run once before the rounds, so what a process pays for its very first memory, which later runs use again, is in none.

On a CPU the time is CPU time of one thread, which a busy machine disturbs less than others, and what is prefetched in a
second thread counts in full; on a GPU it is the clock's. `--write` keeps what is printed in bench/results.
"""

import argparse
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from loractl.device import pick_device
from loractl.families.pipeline import load_model
from loractl.formats import save_adapter
from loractl.inject.targets import resolve
from loractl.sample.adapted import requests
from loractl.sample.denoise import Turns, render_batch
from loractl.sample.schedule import Moment, Schedule, Use
from loractl.sample.session import Session
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

RESULTS = Path(__file__).parent / "results"
RANK, SIZE = 4, 128  # pixels, of which the lab's autoencoder makes 32 × 32 latents
CHANNELS = (96, 160, 240)
SEGMENTS = Schedule(tuple((i / 4, 0.4 + 0.2 * i) for i in range(4)))
LINE = Schedule(((0.0, 0.4), (1.0, 1.0)), shape="linear")
CASES = {"4 segments": (SEGMENTS, 1.05), "every step": (LINE, 1.15)}
ENGINES: Any = ("composed", "branch", "auto")
PROMPT = "a red critter in the snow"
Model = Any
Picture = Image.Image


def make_model(device: torch.device) -> Model:
    """The lab with a larger UNet of random weights."""
    model = load_model("lab", device, torch.float32)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**model.pipeline.unet.config, "block_out_channels": CHANNELS})
    model.pipeline.unet = unet.to(device).eval().requires_grad_(False)
    return model


def make_adapter(model: Model, seed: int) -> Adapter:
    rng, modules = torch.Generator().manual_seed(seed), {}
    for path in resolve(model.denoiser, ["attention"], RANK):
        out, *inner = model.denoiser.get_parameter(f"{path}.weight").shape
        down, up = torch.randn(RANK, *inner, generator=rng) / 50, torch.randn(out, RANK, generator=rng) / 5
        modules[f"unet.{path}"] = LowRank(down, up, RANK)
    return Adapter(modules)


class Watch:
    """Times the denoising loop of a model's pipeline: from the last reading of a prompt to the end of the last step."""

    def __init__(self, model: Model) -> None:
        self.began = self.ended = 0.0
        self._device = model.device
        model.pipeline.text_encoder.register_forward_hook(self._begin)

    def _begin(self, *_: object) -> None:
        self.began = self._now()

    def step(self, done: int, total: int) -> None:
        if done == total:
            self.ended = self._now()

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Side:
    """`renew` makes the next run a first one, with nothing kept from those before."""

    run: Callable[[], Picture]
    watch: Watch
    renew: Callable[[], object] = lambda: None
    ratios: dict[str, list[float]] = field(default_factory=lambda: {"first": [], "again": []})

    def seconds(self) -> float:
        self.run()
        return self.watch.seconds


def ours(model: Model, engine: Any, adapters: Sequence[Adapter], schedule: Schedule, steps: int) -> Side:
    session, watch = Session(model, engine), Watch(model)

    def renew() -> None:
        for number, adapter in enumerate(adapters):
            if session.runs:
                session.drop(f"a{number}")
            session.add(f"a{number}", adapter, Use(share(number), schedule))

    def run() -> Picture:
        return session.generate(PROMPT, steps=steps, size=SIZE, on_step=watch.step)[0]

    renew()
    return Side(run, watch, renew)


def share(number: int) -> float:
    """An adapter's weight; they differ, as in use."""
    return 1 / (number + 1)


def theirs(model: Model, adapters: Sequence[Adapter], schedule: Schedule, steps: int) -> Side:
    """set_adapters ahead of every step at which the weights differ from those of the step before."""
    names, watch = [f"a{number}" for number in range(len(adapters))], Watch(model)
    with TemporaryDirectory() as folder:
        for name, adapter in zip(names, adapters, strict=True):
            file = Path(folder, f"{name}.safetensors")
            save_adapter(file, adapter, "diffusers", dtype=torch.float32, name=name)
            model.pipeline.load_lora_weights(folder, weight_name=file.name, adapter_name=name)
    now = [0.0]

    def ahead(turn: int) -> None:
        factor = schedule.at(Moment(turn, steps, 0.0))
        if factor != now[0]:
            model.pipeline.set_adapters(names, [share(number) * factor for number in range(len(names))])
            now[0] = factor

    def run() -> Picture:
        turns = Turns(ahead)
        wanted = requests(model, [PROMPT], [0], steps, None, SIZE, "")

        def at_end(turn: int, of: int) -> None:
            turns.turn = turn
            watch.step(turn, of)

        with turns.watching(model.denoiser):
            return render_batch(model.pipeline, wanted, at_end)[0]

    return Side(run, watch)


def compare(count: int, case: str, steps: int, rounds: int, device: torch.device) -> list[str]:
    """The lines about one case."""
    schedule, goal = CASES[case]
    adapters = [make_adapter(make_model(device), seed) for seed in range(count)]
    plain = ours(make_model(device), "auto", [], schedule, steps)
    sides = {name: ours(make_model(device), name, adapters, schedule, steps) for name in ENGINES}
    sides["set_adapters"] = theirs(make_model(device), adapters, schedule, steps)
    pictures = {name: np.asarray(side.run(), int) for name, side in sides.items()}
    worst = max(np.abs(pictures[name] - pictures["set_adapters"]).max() for name in ENGINES)
    plain.run()
    base = [measure(plain, sides) / steps for _ in range(rounds)]
    lines = [f"{count} adapters, {case}: plain {1000 * statistics.median(base):.1f} ms a step, {worst}/255 apart"]
    for name, side in sides.items():
        lines.append(f"  {name:13}" + "".join(f"  {kind} {summary(each)}" for kind, each in side.ratios.items()))
    return [*lines, *(f"  {line}" for line in verdicts(sides, goal))]


def measure(plain: Side, sides: dict[str, Side]) -> float:
    """One round of all sides; returns the plain model's seconds."""
    times = {name: {"first": 0.0, "again": 0.0} for name in sides}
    base = []
    for kind in ("first", "again"):
        base.append(plain.seconds())
        for name, side in sides.items():
            if kind == "first":
                side.renew()
            times[name][kind] = side.seconds()
    for name, side in sides.items():
        for kind, seconds in times[name].items():
            side.ratios[kind].append(seconds / statistics.fmean(base))
    return statistics.fmean(base)


def summary(ratios: Sequence[float]) -> str:
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def verdicts(sides: dict[str, Side], goal: float) -> list[str]:
    """What was to be reached, by the first runs, which compose everything."""
    own, other = (statistics.median(sides[name].ratios["first"]) for name in ("auto", "set_adapters"))
    aims = {f"at most {goal} of the plain model": own <= goal, "not slower than set_adapters": own <= other}
    return [f"{'met' if met else 'MISSED'}: {aim}" for aim, met in aims.items()]


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else None
    name = found[1].strip() if found else platform.processor() or "cpu"
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--write", action="store_true", help="keep what is printed in bench/results")
    asked = parser.parse_args()
    device, lines = pick_device(asked.device), list[str]()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of peft, that there are several adapters

    def say(*more: str) -> None:
        lines.extend(more)
        print("\n".join(more), flush=True)

    parameters = sum(each.numel() for each in make_model(device).denoiser.parameters())
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    say(f"{machine(device)}, torch {torch.__version__}, UNet of {parameters / 1e6:.1f} M{load}")
    say(f"{asked.steps} steps, {asked.rounds} rounds; time of the loop over the plain model's, median (quartiles)")
    for count in (2, 8):
        for case in CASES:
            say(*compare(count, case, asked.steps, asked.rounds, device))
    if asked.write:
        name = re.sub(r"[^a-z0-9]+", "-", machine(device).lower()).strip("-")
        (RESULTS / f"schedules-{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
