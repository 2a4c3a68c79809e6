"""Holds the claims about training against the lab: `python bench/claims.py [--workers 2] [--steps 150]`.

Every method trains three subjects that the lab's model has never seen, with three seeds, for the same number of steps.
The learning rates are chosen first, on a fourth subject. Each run is a process of its own on one thread; finished
runs are kept in bench/results/claims.jsonl and not repeated.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl.lab.subjects import main as draw_subject

RESULTS = Path(__file__).parent / "results"
KEPT = RESULTS / "claims.jsonl"
SUBJECTS = ("subject2", "subject3", "subject4")
SEEDS = (1, 2, 3)
TUNED_ON = ("subject", 1)
SCORES = ("subject_fidelity", "prompt_fidelity", "class_drift")

RARE, CLASS, LEARNT = "a picture of a sks critter", "a picture of a critter", "a picture of a <rex> critter"
COMMON = (
    "model=lab",
    "train.batch_size=4",
    "eval.samples=40",
    "sample.at_start=false",
    "sample.seeds=[0]",
    f"subject.class_prompt={CLASS}",
)
WIDE = 'adapter.targets=["extended", "ff.net.2", "proj_in", "proj_out"]'
DREAMBOOTH = ("method=dreambooth", f"subject.prompt={RARE}", WIDE)
TOKEN = ("embedding.token=<rex>", "embedding.init=critter", f"subject.prompt={LEARNT}")
PIVOTAL = ("method=pti", *TOKEN, WIDE)

METHODS: Mapping[str, tuple[str, ...]] = {
    "naive full fine-tuning": ("method=dreambooth", f"subject.prompt={RARE}", "adapter.kind=full", "prior.weight=0.0"),
    "DreamBooth, no prior": (*DREAMBOOTH, "prior.weight=0.0"),
    "DreamBooth, class images": DREAMBOOTH,
    "DreamBooth, predicted prior": (*DREAMBOOTH, "prior.source=prediction"),
    "textual inversion": ("method=ti", *TOKEN),
    "pivotal tuning, sequential": (*PIVOTAL, "phases.mode=sequential"),
    "pivotal tuning, alternating": (*PIVOTAL, "phases.mode=alternating"),
    "pivotal tuning, joint": (*PIVOTAL, "phases.mode=joint", "phases.token_share=1.0"),
}
WITH_CLASS_IMAGES = [name for name in METHODS if name == "DreamBooth, class images" or "pivotal" in name]
LR = tuple(f"train.lr={rate}" for rate in ("5e-5", "2e-4", "5e-4", "1e-3", "2e-3"))
TOKEN_LR = tuple(f"embedding.lr={rate}" for rate in ("5e-3", "2e-2", "5e-2"))
FROM_RARE = ("embedding.init=sks", "embedding.vectors=1")  # starts as DreamBooth's rare word, and not as the class
# Among these the tuning chooses for a method and its variants, on one subject and one seed that the table has not.
CANDIDATES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "naive full fine-tuning": tuple((lr,) for lr in LR[:3]),
    "DreamBooth, class images": tuple((lr,) for lr in LR[3:]),
    "textual inversion": tuple((lr,) for lr in TOKEN_LR),
    "pivotal tuning, joint": ((TOKEN_LR[1], LR[3]), (TOKEN_LR[1], LR[4]), (TOKEN_LR[1], LR[4], *FROM_RARE)),
}


@dataclass(frozen=True)
class Run:
    method: str
    subject: str
    seed: int
    steps: int
    rates: tuple[str, ...]

    @property
    def key(self) -> list[Any]:
        return [self.method, self.subject, self.seed, self.steps, list(self.rates)]


# Running


def carry_out(run: Run, work: Path) -> dict[str, Any]:
    """The run's numbers, from a process of its own."""
    out = work / "-".join(str(part) for part in run.key).replace("/", "-").replace(" ", "-")
    settings = [*COMMON, *METHODS[run.method], *run.rates, f"seed={run.seed}", f"train.steps={run.steps}"]
    settings += [f"data.path={work / run.subject}", f"output.path={out}"]
    if run.method in WITH_CLASS_IMAGES:
        settings.append(f"prior.images={work / 'class'}")
    job = work / f"{out.name}.toml"
    job.write_text("")
    command = [sys.executable, "-m", "loractl", "--json", "run", str(job)]
    command += [word for setting in settings for word in ("--set", setting)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        raise SystemExit(f"{run.key} failed: {events[-1:] or done.stderr[-2000:]}")
    finished = events[-1]
    sizes = [size(Path(path)) for name, path in finished["files"].items() if is_result(name)]
    numbers = {**finished["numbers"], "bytes": max(sizes), "seconds": time.monotonic() - began}
    return {"key": run.key, "numbers": numbers}


def is_result(name: str) -> bool:
    """Of an adapter kohya's file, which has its tokens too."""
    return name in ("kohya", "unet") or name.endswith("(learned_embeds)")


def size(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def carry_out_all(runs: Iterable[Run], workers: int) -> dict[str, dict[str, float]]:
    """Numbers by key; what is in the file of finished runs is taken from there."""
    kept = {json.dumps(each["key"]): each["numbers"] for each in map(json.loads, read_lines(KEPT))}
    waiting = [run for run in dict.fromkeys(runs) if json.dumps(run.key) not in kept]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        work = Path(folder)
        for subject in {run.subject for run in waiting}:
            draw_subject(work / subject, subject)
        if waiting:  # so that no two runs make the class pictures at once
            carry_out(Run(WITH_CLASS_IMAGES[0], waiting[0].subject, 0, 1, ()), work)
        for number, result in enumerate(pool.map(lambda run: carry_out(run, work), waiting), 1):
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            kept[json.dumps(result["key"])] = result["numbers"]
            print(f"{number}/{len(waiting)}", result["key"], result["numbers"], file=sys.stderr, flush=True)
    return kept


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


# Choosing rates, and the table


def tuning(steps: int) -> list[Run]:
    return [Run(method, *TUNED_ON, steps, rates) for method, several in CANDIDATES.items() for rates in several]


def chosen(kept: Mapping[str, Mapping[str, float]], steps: int) -> dict[str, tuple[str, ...]]:
    """Each method's settings: those, of its tuned variant, with the highest product of subject and prompt fidelity."""

    def worth(run: Run) -> float:
        numbers = kept[json.dumps(run.key)]
        return numbers["subject_fidelity"] * numbers["prompt_fidelity"]

    runs = tuning(steps)
    best = {name: max((run for run in runs if run.method == name), key=worth).rates for name in CANDIDATES}
    first_word = {name.split()[0]: rates for name, rates in best.items()}
    return {method: first_word[method.split()[0]] for method in METHODS}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval of Student's t."""
    t = {2: 12.71, 3: 4.303, 6: 2.571, 9: 2.306}.get(len(values), 2.0)
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def table(results: Mapping[str, Sequence[Mapping[str, float]]], rates: Mapping[str, tuple[str, ...]]) -> list[str]:
    head = ("method", "subject fidelity", "prompt fidelity", "class drift", "parameters", "file", "seconds", "rates")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, runs in results.items():
        cells = ["{:.3f} ± {:.3f}".format(*interval([run[score] for run in runs])) for score in SCORES]
        first = runs[0]
        cells += [f"{int(first['trainable_parameters']):,}", f"{first['bytes'] / 1000:,.1f} kB"]
        cells += [f"{statistics.fmean([run['seconds'] for run in runs]):.0f}", ", ".join(rates[method])]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return lines


def claims(results: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Each claim of the project's list of capabilities, with the numbers and "met" or "not met"."""

    def mean(method: str, score: str) -> float:
        return statistics.fmean([run[score] for run in results[method]])

    naive, dreambooth = "naive full fine-tuning", "DreamBooth, class images"
    ours, theirs = mean(dreambooth, "subject_fidelity"), mean(naive, "subject_fidelity")
    share = mean(dreambooth, "trainable_parameters") / mean(naive, "trainable_parameters")
    forgets = mean(dreambooth, "class_drift"), mean(naive, "class_drift")
    pivotal = max((name for name in METHODS if "pivotal" in name), key=lambda name: mean(name, "subject_fidelity"))
    parts = max(mean(dreambooth, "subject_fidelity"), mean("textual inversion", "subject_fidelity"))
    gain = mean(pivotal, "subject_fidelity") / parts - 1
    better = max((dreambooth, "textual inversion"), key=lambda name: mean(name, "subject_fidelity"))
    pairs = zip(results[pivotal], results[better], strict=True)  # the same subject and seed
    ahead, by = interval([one["subject_fidelity"] - other["subject_fidelity"] for one, other in pairs])
    drifts = mean(pivotal, "class_drift"), mean(dreambooth, "class_drift")
    rows = [
        (
            "DreamBooth: subject fidelity 40 to 60 % above naive fine-tuning",
            f"{ours / theirs - 1:+.0%}",
            ours >= 1.4 * theirs,
        ),
        ("at most a tenth of the parameters", f"{share:.1%}", share <= 0.1),
        ("less forgetting (class drift)", "{:.3f} against {:.3f}".format(*forgets), forgets[0] < forgets[1]),
        (
            f"pivotal tuning ({pivotal.split(', ')[1]}) 15 to 25 % above the better of its parts",
            f"{gain:+.1%}",
            gain >= 0.15,
        ),
        ("pivotal tuning beats both of its parts, beyond chance", f"{ahead:+.3f} ± {by:.3f} in pairs", ahead > by),
        ("pivotal tuning forgets less than DreamBooth", "{:.3f} against {:.3f}".format(*drifts), drifts[0] < drifts[1]),
    ]
    return [f"- {claim}: {found}, {'met' if met else 'not met'}" for claim, found, met in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    steps, workers = arguments.steps, arguments.workers
    rates = chosen(carry_out_all(tuning(steps), workers), steps)
    runs = {
        method: [Run(method, subject, seed, steps, rates[method]) for subject in SUBJECTS for seed in SEEDS]
        for method in METHODS
    }
    kept = carry_out_all([run for several in runs.values() for run in several], workers)
    results = {method: [kept[json.dumps(run.key)] for run in several] for method, several in runs.items()}
    print(f"{len(SUBJECTS)} subjects × {len(SEEDS)} seeds, {steps} steps of 4 pictures each; mean ± 95 % interval\n")
    print("\n".join([*table(results, rates), "", *claims(results)]))


if __name__ == "__main__":
    main()
