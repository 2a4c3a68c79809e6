"""Many subjects together beside as many runs one after the other: seconds in the training loops, same arithmetic.

    python bench/fleet.py [--subjects 8] [--steps 20] [--rounds 3] [--model lab] [--device auto] [--quick]

Both sides are real jobs with prior preservation and the targets of jobs/subject.toml, on pictures that the lab draws. A
loop is timed from its first step to its last as the run itself reports them, so loading, encoding and sampling do not
count; nor does the first step, which warms up. Every round runs both sides, and the ratio is of the medians. The
adapters are compared as well. Run it on an idle machine: it uses all its cores.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import loractl_dreambooth
import loractl_fleet
import torch
from safetensors.torch import load_file

from loractl.events import Event, Progress
from loractl.job import dump_job, read_job
from loractl.lab.subjects import SUBJECTS, subject_pictures
from loractl.method import Outcome

METHODS = {each.name: each for plugin in (loractl_dreambooth, loractl_fleet) for each in plugin.register_methods()}
GOALS = {"cpu": 1.3, "cuda": 3.0}
JOB = """
method = "fleet"
model = "{model}"
subject.prompt = "a picture of a sks critter"
subject.class_prompt = "a picture of a critter"
adapter.targets = ["extended", "ff.net.2", "proj_in", "proj_out"]
train = {{ steps = {steps}, batch_size = 4, lr = 1e-4 }}
prior = {{ images = "{folder}/class", num_images = 8 }}
sample = {{ steps = 1, seeds = [0], at_start = false }}
eval.encoders = []
memory.device = "{device}"
output = {{ path = "{folder}/together", dtype = "fp32", overwrite = true }}
"""


class Clock:
    """Hears a run's events; seconds and steps between the first and the last step that it reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "train":
            self.seen.append((event.done, time.perf_counter()))

    def seconds_a_step(self) -> float:
        (first, began), (last, ended) = self.seen[0], self.seen[-1]
        return (ended - began) / (last - first)


def write_job(folder: Path, arguments: argparse.Namespace) -> Path:
    """The fleet's job, with four pictures for each subject."""
    text = JOB.format(folder=folder, **vars(arguments))
    for number in range(arguments.subjects):
        name = list(SUBJECTS)[number % len(SUBJECTS)]
        home = folder / f"pictures{number}"
        home.mkdir()
        for index, picture in enumerate(subject_pictures(name)):
            picture.save(home / f"{index}.png")
        text += f'\n[[subjects]]\nname = "s{number}"\nseed = {number}\ndata.path = "{home}"\n'
    (folder / "fleet.toml").write_text(text, encoding="utf-8")
    return folder / "fleet.toml"


def solos(folder: Path, spec: Any) -> Iterator[Any]:
    """Each subject's job as it would be alone, with a folder of its own."""
    for subject in spec.subjects:
        solo = spec.solo(subject)
        output = solo.output.model_copy(update={"path": folder / "alone" / solo.name})
        file = folder / f"{solo.name}.toml"
        file.write_text(dump_job(solo.model_copy(update={"output": output})), encoding="utf-8")
        yield read_job(file, METHODS)


def run(spec: Any) -> tuple[Outcome, float]:
    """What a job leaves, and the seconds of a step in its loop."""
    clock = Clock()
    return METHODS[spec.method].run(spec, clock), clock.seconds_a_step()


def apart(together: Outcome, alone: dict[str, Outcome]) -> float:
    """The greatest difference of two entries of the adapters."""
    largest = 0.0
    for name, outcome in alone.items():
        one, other = load_file(outcome.files["diffusers"]), load_file(together.files[f"{name}: diffusers"])
        largest = max(largest, *(float((one[key] - other[key]).abs().max()) for key in one))
    return largest


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    spec: Any = read_job(write_job(folder, arguments), METHODS)
    times: dict[str, list[float]] = {"together": [], "one after the other": []}
    for _ in range(arguments.rounds):
        together, seconds = run(spec)
        times["together"].append(seconds)
        each = {solo.name: run(solo) for solo in solos(folder, spec)}
        times["one after the other"].append(sum(seconds for _, seconds in each.values()))
    for side, found in times.items():
        print(f"{side:20} {1000 * statistics.median(found):9.1f} ms for a step of all subjects  {rounded(found)}")
    ratio = statistics.median(times["one after the other"]) / statistics.median(times["together"])
    goal = GOALS["cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu"]
    print(f"together is {ratio:.2f} times as fast; aim {goal}: {'met' if ratio >= goal else 'NOT met'}")
    print(f"adapters differ by {apart(together, {name: outcome for name, (outcome, _) in each.items()}):.1e} at most")


def rounded(seconds: list[float]) -> list[int]:
    return [round(1000 * each) for each in seconds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="two subjects, three steps, one round")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.subjects, chosen.steps, chosen.rounds = 2, 3, 1
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{chosen.subjects} subjects, {chosen.model}, {name}, load average {os.getloadavg()[0]:.1f}", flush=True)
    with TemporaryDirectory() as scratch:
        compare(Path(scratch), chosen)
