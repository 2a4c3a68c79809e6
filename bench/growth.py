"""How time and memory grow: with pictures, rank, adapters at inference and subjects in a fleet.

    python bench/growth.py [KIND ...] [--rounds 3] [--quick]

Every point is a real job on the lab model in a process of its own. For pictures the time is that of reading and
encoding all of them and of four steps; for rank and subjects that of one step; for adapters that of eight pictures.
Memory is the process's greatest, its libraries included. The exponent p of time ~ nᵖ is fitted to all points by least
squares on logarithms; `end` is that of the last two points alone, where what does not grow weighs least. Nothing should
be worse than linear. Run it on an idle machine: it uses all its cores.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MOST = 1.1  # an exponent that still counts as linear, given noise
TRAINING = """
model = "lab"
subject.prompt = "a picture of a sks critter"
sample = {{ steps = 1, seeds = [0], at_start = false }}
eval.encoders = []
output.path = "{folder}/out"
train = {{ steps = {steps}, batch_size = 4, lr = 1e-4 }}
"""


def pictures(count: int, folder: Path) -> float:
    write_pictures(folder / "data", count)
    text = TRAINING.format(folder=folder, steps=4)
    return whole(folder, f'method = "dreambooth"\n{text}data.path = "{folder}/data"\n')


def rank(value: int, folder: Path) -> float:
    write_pictures(folder / "data", 4)
    text = TRAINING.format(folder=folder, steps=12)
    return step(folder, f'method = "dreambooth"\n{text}data.path = "{folder}/data"\nadapter.rank = {value}\n')


def subjects(count: int, folder: Path) -> float:
    write_pictures(folder / "data", 4)
    text = f'method = "fleet"\n{TRAINING.format(folder=folder, steps=6)}'
    for number in range(count):
        text += f'[[subjects]]\nname = "s{number}"\nseed = {number}\ndata.path = "{folder}/data"\n'
    return step(folder, text)


def adapters(count: int, folder: Path) -> float:
    import torch

    from loractl.families.pipeline import load_model
    from loractl.formats import save_adapter
    from loractl.inject.targets import resolve
    from loractl.tensors.adapter import Adapter
    from loractl.tensors.lowrank import LowRank

    unet = load_model("lab", torch.device("cpu"), torch.float32).denoiser
    text = f'method = "infer"\nmodel = "lab"\noutput.path = "{folder}/out"\n'
    text += 'sample = { prompts = ["a critter in the snow"], seeds = [0, 1, 2, 3, 4, 5, 6, 7] }\n'
    for number in range(count):
        modules = {}
        for path in resolve(unet, ["attention"], 8):
            out, *inner = unet.get_parameter(f"{path}.weight").shape
            modules[f"unet.{path}"] = LowRank(torch.randn(8, *inner) / 50, torch.randn(out, 8) / 50, 8)
        save_adapter(folder / f"{number}.safetensors", Adapter(modules), "diffusers", name="bench")
        text += f'[[adapters]]\npath = "{folder}/{number}.safetensors"\nweight = {1 / count}\n'
    return whole(folder, text)


def write_pictures(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    for index, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(folder / f"{index:05d}.png")


def carry_out(folder: Path, text: str, emit: Callable[[Any], None]) -> None:
    import loractl_dreambooth
    import loractl_fleet
    import loractl_infer

    from loractl.job import read_job

    plugins = (loractl_dreambooth, loractl_fleet, loractl_infer)
    methods = {each.name: each for plugin in plugins for each in plugin.register_methods()}
    (folder / "job.toml").write_text(text, encoding="utf-8")
    spec: Any = read_job(folder / "job.toml", methods)
    methods[spec.method].run(spec, emit)


def whole(folder: Path, text: str) -> float:
    """Seconds of a job, without the imports."""
    from diffusers import StableDiffusionPipeline  # noqa: F401  # paid before the clock starts

    import loractl.runs.training
    import loractl.sample.session  # noqa: F401  # likewise

    began = time.perf_counter()
    carry_out(folder, text, lambda _: None)
    return time.perf_counter() - began


def step(folder: Path, text: str) -> float:
    """Seconds of one training step, the first not counted."""
    seen: list[tuple[int, float]] = []

    def hear(event: Any) -> None:
        if getattr(event, "stage", "") == "train":
            seen.append((event.done, time.perf_counter()))

    carry_out(folder, text, hear)
    (first, began), (last, ended) = seen[0], seen[-1]
    return (ended - began) / (last - first)


KINDS: dict[str, tuple[Callable[[int, Path], float], Sequence[int]]] = {
    "pictures": (pictures, (4, 40, 400, 4000)),
    "rank": (rank, (1, 4, 16, 64, 128)),
    "adapters": (adapters, (1, 2, 4, 8, 16, 32)),
    "subjects": (subjects, (1, 2, 4, 8, 16, 32, 64)),
}


def point(kind: str, value: int) -> tuple[float, float]:
    """Seconds and megabytes."""
    with TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--part", kind, str(value), scratch]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return float(printed.split()[-1]), usage.ru_maxrss / 1000


def slope(values: Sequence[int], found: Sequence[float]) -> float:
    """The exponent of found ~ valuesᵖ."""
    return statistics.linear_regression([math.log(value) for value in values], [math.log(each) for each in found]).slope


def grow(kind: str, values: Sequence[int], rounds: int) -> None:
    print(f"{kind:10}{'time':>12}{'memory':>12}")
    times, memories = [], []
    for value in values:
        seconds, megabytes = zip(*(point(kind, value) for _ in range(rounds)), strict=True)
        times.append(statistics.median(seconds))
        memories.append(statistics.median(megabytes))
        print(f"{value:<10}{times[-1]:10.3f} s{memories[-1]:9.0f} MB", flush=True)
    end = slope(values[-2:], times[-2:])
    words = f"time ~ n^{slope(values, times):.2f}, end n^{end:.2f}; memory ~ n^{slope(values, memories):.2f}"
    print(f"{words}; not worse than linear: {'met' if end <= MOST else 'NOT met'}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(KINDS[sys.argv[2]][0](int(sys.argv[3]), Path(sys.argv[4])))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of the first two points")
    chosen = parser.parse_args()
    print(f"lab model, load average {os.getloadavg()[0]:.1f}\n", flush=True)
    for name in chosen.kinds or KINDS:
        grow(name, KINDS[name][1][:2] if chosen.quick else KINDS[name][1], 1 if chosen.quick else chosen.rounds)
