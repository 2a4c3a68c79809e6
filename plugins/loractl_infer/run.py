"""Carries out an inference job: load, take up the adapters, render, write pictures, a contact sheet and a trace."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from PIL import Image

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.events import Emit, Progress, Wrote
from loractl.families.pipeline import load_model
from loractl.formats.safefile import replacing
from loractl.method import Outcome
from loractl.sample.adapted import requests
from loractl.sample.denoise import Request
from loractl.sample.picture import file_name, save_png, settings_texts, sheet
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.sample.trace import plot, stacked, trace, traced
from loractl_infer.spec import InferSpec, ScheduledUse, ScheduleSection


def run(spec: InferSpec, emit: Emit) -> Outcome:
    require_determinism()
    device = pick_device(spec.memory.device)
    model = load_model(spec.model.source, device, pick_dtype(spec.memory.precision, device), spec.model.revision)
    composition = spec.composition
    with Session(model, composition.engine, int(composition.cache_mb * 1e6)) as session:
        easel = Easel(spec, session, emit)
        for name, use in zip(spec.names, spec.adapters, strict=True):
            if session.add(name, use.path, use_of(use), allow_pickle=spec.allow_pickle).modules:
                easel.weights[name] = use.weight
        for request, picture in easel.pictures():
            easel.save(request, picture)
        easel.save_sheet()
        if easel.weights:
            easel.save_trace()
        return Outcome(easel.files, {"pictures": len(easel.made), **easel.counts()})


class Easel:
    """The job's pictures, and what is written of them; `weights` are those of adapters that change the networks."""

    def __init__(self, spec: InferSpec, session: Session, emit: Emit) -> None:
        self.spec, self.session, self.emit = spec, session, emit
        self.weights: dict[str, float] = {}
        self.files: dict[str, Path] = {}
        self.made: list[Image.Image] = []

    def pictures(self) -> Iterator[tuple[Request, Image.Image]]:
        """Prompts in a row that want the same weights are rendered together; `weights` are then those."""
        spec, sample, own = self.spec, self.spec.sample, dict(self.weights)
        settings = (sample.seeds, sample.steps, sample.guidance, sample.size, sample.negative)
        done, total = 0, len(spec.prompts) * len(sample.seeds) * sample.steps
        for said, prompts in groupby(spec.prompts, key=lambda prompt: prompt.weights):
            self.weights = {name: dict(said).get(name, weight) for name, weight in own.items()}
            self.session.set_weights(self.weights)
            wanted = requests(self.session.model, [prompt.text for prompt in prompts], *settings)

            def report(steps: int, _: int, base: int = done) -> None:
                self.emit(Progress("sample", base + steps, total))

            yield from zip(wanted, self.session.render(wanted, on_step=report), strict=True)
            done += len(wanted) * sample.steps

    def save(self, request: Request, picture: Image.Image) -> None:
        scheduler = type(self.session.model.scheduler).__name__
        texts = settings_texts(request, self.spec.model.source, self.weights, scheduler)
        path = self.spec.destination() / file_name(len(self.made), request)
        self.made.append(picture)
        self._wrote(path.stem, save_png(path, picture, texts), "picture")

    def save_sheet(self) -> None:
        per_row = len(self.spec.sample.seeds)
        rows = [
            (prompt, self.made[i * per_row : (i + 1) * per_row]) for i, prompt in enumerate(self.spec.sample.prompts)
        ]
        self._wrote("sheet", save_png(self.spec.destination() / "sheet.png", sheet(rows)), "sheet")

    def save_trace(self) -> None:
        """Which weights the adapters had at which step, in trace.json and trace.png."""
        groups, folder = traced(self.session.runs), self.spec.destination()
        told = [{"pictures": sum(len(run.requests) for run in group), **trace(group[0])} for group in groups]
        with replacing(folder / "trace.json", overwrite=True) as file:
            file.write(json.dumps({"runs": told}, indent=1).encode())
        self._wrote("trace", folder / "trace.json", "trace")
        self._wrote("plot", save_png(folder / "trace.png", stacked([plot(group[0]) for group in groups])), "plot")

    def counts(self) -> Mapping[str, float]:
        """How many different weights the denoiser had, and how many had to be summed."""
        vectors = {tuple(turn.items()) for run in self.session.runs for turn in run.strengths}
        return {"weight_vectors": len(vectors), "compositions": self.session.compositions} if self.weights else {}

    def _wrote(self, key: str, path: Path, what: str) -> None:
        self.files[key] = path
        self.emit(Wrote(path, what))


def use_of(use: ScheduledUse) -> Use:
    layers = {pattern: part if isinstance(part, float) else schedule_of(part) for pattern, part in use.layers.items()}
    return Use(use.weight, schedule_of(use.schedule) if use.schedule else Schedule(), layers)


def schedule_of(section: ScheduleSection) -> Schedule:
    return Schedule(section.points, section.over, section.shape)
