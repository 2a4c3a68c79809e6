"""Adapters whose weights change along a run, on a UNet of 17 M parameters: CPU time per step over the plain model's.

    nice python bench/schedules.py [STEPS] [ROUNDS]

Side by side: both engines of loractl, its own choice, and diffusers' `pipe.set_adapters` before each step that changes
something; 2 and 8 adapters of rank 4, weights that change at every step and in 4 segments. All sides make the same
picture, which is checked. Every round runs all sides in turn, each twice: a first run, with nothing composed or
injected yet, and one more. A side's ratios, first and again, are of its median over the plain model's. On one thread,
in CPU seconds, which a busy machine disturbs less than others; its load is printed.
"""

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from loractl.families.pipeline import load_model
from loractl.families.sd import StableDiffusion
from loractl.formats import save_adapter
from loractl.inject.targets import resolve
from loractl.sample.adapted import requests
from loractl.sample.denoise import Turns, render_batch
from loractl.sample.schedule import Moment, Schedule, Use
from loractl.sample.session import Session
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

RANK, SIZE = 4, 128  # pixels, of which the lab's autoencoder makes 32 × 32 latents
CHANNELS = (96, 160, 240)
SEGMENTS = Schedule(tuple((i / 4, 0.4 + 0.2 * i) for i in range(4)))
LINE = Schedule(((0.0, 0.4), (1.0, 1.0)), shape="linear")
CASES = {"4 segments": (SEGMENTS, 1.05), "every step": (LINE, 1.15)}
PROMPT = "a red critter in the snow"
Picture = Image.Image


@dataclass(frozen=True)
class Side:
    """`renew` makes the next run a first one, with nothing kept from those before."""

    run: Callable[[], Picture]
    renew: Callable[[], object] = lambda: None


def make_model() -> StableDiffusion:
    """The lab with a larger UNet of random weights."""
    model = load_model("lab", torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**model.pipeline.unet.config, "block_out_channels": CHANNELS})
    model.pipeline.unet = unet.eval().requires_grad_(False)
    return model


def make_adapter(model: StableDiffusion, seed: int) -> Adapter:
    rng, modules = torch.Generator().manual_seed(seed), {}
    for path in resolve(model.denoiser, ["attention"], RANK):
        out, *inner = model.denoiser.get_parameter(f"{path}.weight").shape
        down, up = torch.randn(RANK, *inner, generator=rng) / 50, torch.randn(out, RANK, generator=rng) / 5
        modules[f"unet.{path}"] = LowRank(down, up, RANK)
    return Adapter(modules)


def ours(engine: Any, adapters: list[Adapter], schedule: Schedule, steps: int) -> Side:
    session = Session(make_model(), engine)
    for number, adapter in enumerate(adapters):
        session.add(f"a{number}", adapter, Use(share(number), schedule))

    def renew() -> None:
        for number, adapter in enumerate(adapters):
            session.drop(f"a{number}")
            session.add(f"a{number}", adapter, Use(share(number), schedule))

    return Side(lambda: session.generate(PROMPT, steps=steps, size=SIZE)[0], renew)


def share(number: int) -> float:
    """An adapter's weight; they differ, as in use."""
    return 1 / (number + 1)


def theirs(folder: Path, adapters: list[Adapter], schedule: Schedule, steps: int) -> Side:
    """set_adapters ahead of every step at which the weights differ from those of the step before."""
    model = make_model()
    names = [f"a{number}" for number in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        save_adapter(folder / f"{name}.safetensors", adapter, "diffusers", dtype=torch.float32, name=name)
        model.pipeline.load_lora_weights(str(folder / f"{name}.safetensors"), adapter_name=name)
    now = [0.0]

    def ahead(turn: int) -> None:
        factor = schedule.at(Moment(turn, steps, 0.0))
        if factor != now[0]:
            model.pipeline.set_adapters(names, [share(number) * factor for number in range(len(names))])
            now[0] = factor

    return Side(lambda: watched(model, steps, ahead))


def watched(model: StableDiffusion, steps: int, ahead: Callable[[int], None]) -> Picture:
    turns = Turns(ahead)
    wanted = requests(model, [PROMPT], [0], steps, None, SIZE, "")

    def at_end(turn: int, _: int) -> None:
        turns.turn = turn

    with turns.watching(model.denoiser):
        return render_batch(model.pipeline, wanted, at_end)[0]


def compare(count: int, case: str, steps: int, rounds: int, folder: Path) -> None:
    schedule, goal = CASES[case]
    adapters = [make_adapter(make_model(), seed) for seed in range(count)]
    sides: dict[str, Side] = {"plain": ours("auto", [], schedule, steps)}
    sides |= {name: ours(name, adapters, schedule, steps) for name in ("composed", "branch", "auto")}
    sides["set_adapters"] = theirs(folder, adapters, schedule, steps)
    pictures = {name: np.asarray(side.run(), int) for name, side in sides.items()}
    worst = max(np.abs(pictures[name] - pictures["set_adapters"]).max() for name in ("composed", "branch", "auto"))
    first: dict[str, list[float]] = {name: [] for name in sides}
    again: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side.renew()
            first[name].append(seconds(side))
            again[name].append(seconds(side))
    plain = statistics.median([*first["plain"], *again["plain"]])
    print(
        f"{count} adapters, {case}: plain {1000 * plain / steps:.0f} ms a step, goal {goal}; pictures {worst}/255 apart"
    )
    for name in [*sides][1:]:
        ratios = (statistics.median(times[name]) / plain for times in (first, again))
        print(f"  {name:14}" + "".join(f"{ratio:8.3f}" for ratio in ratios), flush=True)


def seconds(side: Side) -> float:
    """CPU time of one run."""
    began = time.process_time()
    side.run()
    return time.process_time() - began


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = [int(word) for word in sys.argv[1:]]
    steps, rounds = (*chosen, *(20, 5)[len(chosen) :])
    unet = make_model().denoiser
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    warnings.simplefilter("ignore")  # of peft, that there are several adapters
    print(f"UNet of {parameters / 1e6:.1f} M, {steps} steps, {rounds} rounds, load average {os.getloadavg()[0]:.1f}")
    for count in (2, 8):
        for case in CASES:
            with TemporaryDirectory() as scratch:
                compare(count, case, steps, rounds, Path(scratch))
