"""Whether a subject and a style are both kept when their adapters are composed: `python bench/composition.py`.

The style hatches what is behind the subject, which the lab's model has never seen; 100 such pictures of other things
teach it to one adapter, four pictures each teach three subjects to three others. The schedule is chosen on one subject
and its seeds, the table is of the other two and other seeds, every row judged alike. Subject fidelity is what the lab's
reader reads; the style score is the share of samples that are hatched, as their spectrum says (`leaning`): which lean
is enough is settled on drawings, and tried on others. Adapters are kept in --work and not trained again.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from loractl.data.images import to_tensor
from loractl.evaluate.intervals import once, percentiles, resampled
from loractl.evaluate.measures import mean
from loractl.families.pipeline import load_model
from loractl.lab.drawing import draw
from loractl.lab.reader import load_reader, read
from loractl.lab.scenes import Scene, describe, sample_training_scene
from loractl.lab.scores import place_prompts, subject_share
from loractl.lab.subjects import SUBJECTS
from loractl.lab.subjects import main as draw_subject
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session

TUNED_ON, SHOWN = "subject4", ("subject2", "subject3")
PROMPT = "a picture of a sks critter"
TARGETS = 'adapter.targets=["extended", "ff.net.2", "proj_in", "proj_out"]'
SHARED = (
    "model=lab",
    "method=dreambooth",
    "eval.encoders=[]",
    "sample.at_start=false",
    "sample.seeds=[0]",
    "train.batch_size=4",
    TARGETS,
)
MARGIN = 0.1

Uses = Mapping[str, Use]
ALONE: Mapping[str, Uses] = {
    "subject alone": {"subject": Use(1.0), "style": Use(0.0)},
    "style alone": {"subject": Use(0.0), "style": Use(1.0)},
}
SUM: Uses = {"subject": Use(1.0), "style": Use(1.0)}


INNERMOST = ("unet.mid_block", "unet.down_blocks.2", "unet.up_blocks.0")


def after_the_subject(at: float, weight: float) -> Uses:
    """The subject alone decides what is where; from this fraction of the run on the style draws it.

    Above its own weight, since the subject's adapter weakens it, and not in the innermost blocks: alone it needs none.
    """
    return {"subject": Use(1.0), "style": Use(weight, Schedule(((0.0, 0.0), (at, 1.0))), dict.fromkeys(INNERMOST, 0.0))}


CANDIDATES = [after_the_subject(at, weight) for at in (0.1, 0.2) for weight in (1.1, 1.25, 1.4)]


# The adapters


def train(out: Path, settings: Sequence[str]) -> Path:
    """The adapter of a job's settings, trained in a process of its own unless it is there."""
    file = out / "adapter.safetensors"
    if not file.exists():
        job = out.with_suffix(".toml")
        job.write_text("")
        words = [word for setting in (*SHARED, *settings, f"output.path={out}") for word in ("--set", setting)]
        command = [sys.executable, "-m", "loractl", "--json", "run", str(job), *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{out.name} failed: {done.stdout.splitlines()[-1:] or done.stderr[-2000:]}")
        trained = Path(json.loads(done.stdout.splitlines()[-1])["files"]["diffusers"])
        trained.rename(file)
    return file


def train_subject(work: Path, name: str, steps: int) -> Path:
    draw_subject(work / f"{name}-pictures", name)
    words = (f"subject.prompt={PROMPT}", "subject.class_prompt=a picture of a critter", f"train.steps={steps}")
    kept = (f"data.path={work / f'{name}-pictures'}", f"prior.images={work / 'class'}", "train.lr=1e-3")
    return train(work / name, (*words, *kept))


def train_style(work: Path, steps: int) -> Path:
    folder, rng = work / "style-pictures", random.Random("hatching")
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(100):
        scene = sample_training_scene(rng)
        draw(scene, rng, 256, hatched=True).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(describe(scene, rng), encoding="utf-8")
    words = ("subject.prompt=a picture", f"train.steps={steps}", "train.lr=1e-3", "adapter.rank=4")
    return train(work / "style", (f"data.path={folder}", *words))


# The judges


def leaning(pictures: Tensor) -> Tensor:
    """How much stronger waves along one diagonal are than those along the other (n,), of three to six to a side.

    Hatching leans to the right; what else is drawn is nearly its own mirror image, and leans to neither side.
    """
    power = torch.fft.fft2(pictures, norm="forward").abs().square().sum(1)  # (n, 64, 64)
    right, left = (power[:, 3:7, across].sum((1, 2)).sqrt() for across in (slice(3, 7), slice(-6, -2)))
    return cast(Tensor, right - left)


def settle(vae: Any, count: int = 200) -> tuple[float, float]:
    """The lean from which on a picture is hatched, halfway between the plain drawing that leans most and the hatched
    one that leans least; and the share of as many other drawings it tells right. All go through the autoencoder.
    """
    rng = random.Random("with and without hatching")
    scenes = [sample_training_scene(rng) for _ in range(2 * count)]
    leans = []
    for hatched in (False, True):
        pictures = to_tensor([draw(scene, rng, 64, hatched) for scene in scenes])
        with torch.inference_mode():
            decoded = [vae.decode(vae.encode(chunk).latents).sample.clamp(-1, 1) for chunk in pictures.split(50)]
        leans.append(leaning(torch.cat(decoded)))
    plain, styled = leans
    bar = float(plain[:count].max() + styled[:count].min()) / 2
    right = torch.cat([plain[count:] <= bar, styled[count:] > bar])
    return bar, float(right.float().mean())


@dataclass(frozen=True)
class Marks:
    """Of samples: the share of the subject's attributes in each, and whether it is hatched, (n,) each."""

    subject: Tensor
    style: Tensor


class Examiner:
    def __init__(self, adapters: Mapping[str, Path], bar: float, count: int) -> None:
        self.session = Session(load_model("lab", torch.device("cpu"), torch.float32))
        for name, path in adapters.items():
            self.session.add(name, path)
        self.bar, self.reader, self.count = bar, load_reader(), count
        self.prompts = [prompt for prompt, _ in place_prompts([PROMPT], 10) for _ in range(count // 10)]

    def marks(self, uses: Uses, subject: Scene, first_seed: int) -> Marks:
        """Samples in the lab's ten places, from the same seeds for all that is compared."""
        self.session.set_weights(uses)
        seeds = range(first_seed, first_seed + self.count // 10)
        pictures = self.session.generate(list(dict.fromkeys(self.prompts)), seeds, steps=25)
        wanted = {name: getattr(subject, name) for name in ("kind", *_ATTRIBUTES)}
        shares = [subject_share(reading, wanted) for reading in read(self.reader, pictures)]
        return Marks(torch.tensor(shares), (leaning(to_tensor(pictures)) > self.bar).float())


_ATTRIBUTES = ("color", "accent", "shape", "pattern", "top", "eyes", "feet")


# Choosing, and the table


def worth(marks: Marks, alone: Mapping[str, Marks]) -> float:
    """How much of both is left, by the one that lost more."""
    kept = float(marks.subject.mean() - alone["subject alone"].subject.mean())
    return min(kept, float(marks.style.mean() - alone["style alone"].style.mean()))


def told(values: Tensor, prompts: Sequence[str]) -> str:
    low, high = percentiles(mean(values)(resampled(prompts)))
    return f"{float(mean(values)(once(len(prompts)))):+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("composition-work"), help="where adapters are kept")
    parser.add_argument("--steps", type=int, default=300, help="of a subject")
    parser.add_argument("--style-steps", type=int, default=500)
    parser.add_argument("--samples", type=int, default=60, help="of each row; a multiple of ten")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work, steps, samples = arguments.work.absolute(), arguments.steps, arguments.samples
    work.mkdir(parents=True, exist_ok=True)
    style = train_style(work, arguments.style_steps)
    files = {name: {"subject": train_subject(work, name, steps), "style": style} for name in (TUNED_ON, *SHOWN)}
    bar, accuracy = settle(load_model("lab", torch.device("cpu"), torch.float32).vae)
    print(f"the judge of style is right on {accuracy:.1%} of held-out drawings (lean above {bar:.3f})", flush=True)
    print(f"chosen on {TUNED_ON}, {samples // 2 // 10 * 10} samples each:", flush=True)
    chosen = choose(Examiner(files[TUNED_ON], bar, samples // 2 // 10 * 10))
    print(f"chosen: {points(chosen)}\n", flush=True)
    rows: dict[str, list[Marks]] = {}
    prompts: list[str] = []
    for name in SHOWN:
        examiner = Examiner(files[name], bar, samples)
        prompts += [f"{name}: {prompt}" for prompt in examiner.prompts]
        for label, uses in {**ALONE, "plain sum": SUM, "schedule": chosen, "neither": NEITHER}.items():
            rows.setdefault(label, []).append(examiner.marks(uses, SUBJECTS[name], first_seed=1000))
    print_table({label: joined(marks) for label, marks in rows.items()}, prompts)


NEITHER: Uses = {"subject": Use(0.0), "style": Use(0.0)}


def choose(examiner: Examiner) -> Uses:
    """Of the candidates the one that keeps most of both."""
    subject = SUBJECTS[TUNED_ON]
    alone = {label: examiner.marks(uses, subject, 0) for label, uses in ALONE.items()}
    worths = []
    for uses in (SUM, *CANDIDATES):
        worths.append(worth(examiner.marks(uses, subject, 0), alone))
        print(f"  {worths[-1]:+.3f}  {points(uses)}", flush=True)
    return CANDIDATES[max(range(len(CANDIDATES)), key=lambda i: worths[i + 1])]


def points(uses: Uses) -> str:
    return "; ".join(
        f"{name} {use.weight:g} @ {', '.join(f'{p:g}:{v:g}' for p, v in use.schedule.points)}"
        + ", less the innermost blocks" * (0.0 in use.layers.values())
        for name, use in uses.items()
    )


def joined(marks: Sequence[Marks]) -> Marks:
    return Marks(torch.cat([each.subject for each in marks]), torch.cat([each.style for each in marks]))


def print_table(rows: Mapping[str, Marks], prompts: Sequence[str]) -> None:
    """Scores and, in pairs over the same prompts and seeds, what is lost against the adapter alone; 95 % intervals over
    prompts and seeds.
    """
    subject, style = rows["subject alone"].subject, rows["style alone"].style
    print("| adapters | subject fidelity | style score | subject, against alone | style, against alone |")
    print("|---|---|---|---|---|")
    for label, marks in rows.items():
        cells = [told(marks.subject, prompts), told(marks.style, prompts)]
        cells += [told(marks.subject - subject, prompts), told(marks.style - style, prompts)]
        print("| " + " | ".join([label, *cells]) + " |")
    lost = {
        label: max(float((subject - m.subject).mean()), float((style - m.style).mean())) for label, m in rows.items()
    }
    print(f"\n- the schedule keeps both within {MARGIN}: {'met' if lost['schedule'] <= MARGIN else 'NOT met'}")
    print(f"- the plain sum loses one by more: {'met' if lost['plain sum'] > MARGIN else 'NOT met'}")


if __name__ == "__main__":
    main()
