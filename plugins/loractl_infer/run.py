"""Carries out an inference job: load, take up the adapters, render what is missing, draw a sheet and a trace."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from loractl.device import require_determinism
from loractl.events import Emit, Progress, Wrote
from loractl.formats.safefile import replacing
from loractl.method import Outcome
from loractl.runs.loading import load_for_pictures
from loractl.sample.denoise import pipeline_for
from loractl.sample.picture import is_made, save_png, settings_texts, sheet, shrunk
from loractl.sample.preview import Preview
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.sample.task import sampler_label
from loractl.sample.trace import plot, stacked, trace, traced
from loractl.sections.schedules import ScheduleSection
from loractl_infer.parts import Part, a1111_hashes, details
from loractl_infer.shots import Shot, batches, plan
from loractl_infer.spec import InferSpec, ScheduledUse

CELL = 128  # pixels of a picture in the sheet


def run(spec: InferSpec, emit: Emit) -> Outcome:
    require_determinism()
    model = load_for_pictures(spec.model, spec.memory)
    with Session(model, spec.engine, int(spec.composition.cache_mb * 1e6)) as session:
        easel = Easel(spec, session, emit)
        easel.make()
        easel.save_sheet()
        if session.runs and easel.weights:
            easel.save_trace()
        return Outcome(easel.files, {"pictures": len(easel.shots), "made": easel.made, **easel.counts()})


class Easel:
    """The job's pictures, and what is written of them; `weights` are those of adapters that change the networks."""

    def __init__(self, spec: InferSpec, session: Session, emit: Emit) -> None:
        """Takes up the adapters: one that does not fit is found before the first picture is made."""
        self.spec, self.session, self.emit = spec, session, emit
        self.parts = [self._take_up(name, use) for name, use in zip(spec.names, spec.adapters, strict=True)]
        self.weights = {part.name: part.use.weight for part in self.parts if part.changes}
        self.shots = plan(spec, session.model)
        scheduler = pipeline_for(session.model.pipeline, self.shots[0].request).scheduler
        precision = str(session.model.dtype).removeprefix("torch.")
        self.scheduler, self.details = sampler_label(scheduler), details(spec, self.parts, precision)
        self.texts = {shot.file: self._texts(shot) for shot in self.shots}
        self.files: dict[str, Path] = {shot.file.stem: shot.file for shot in self.shots}
        self.made = 0

    def make(self) -> None:
        """Renders and writes what is not there yet, or all of it where the job overwrites."""
        anew = self.spec.output.overwrite
        missing = {shot.file for shot in self.shots if anew or not is_made(shot.file, self.texts[shot.file])}
        groups = [group for group in batches(self.shots) if any(shot.file in missing for shot in group)]
        done, total = 0, sum(shot.request.steps_run for group in groups for shot in group)
        for group in groups:
            self._render(group, missing, done, total)
            done += sum(shot.request.steps_run for shot in group)

    def save_sheet(self) -> None:
        """All pictures, whenever they were made."""
        per_row = len(self.spec.sample.seeds)
        pictures = [shrunk(shot.file, CELL) for shot in self.shots]
        rows = [pictures[start : start + per_row] for start in range(0, len(pictures), per_row)]
        drawn = sheet(list(zip(self.spec.sample.prompts, rows, strict=True)), CELL)
        self._wrote("sheet", save_png(self.spec.destination() / "sheet.png", drawn), "sheet")

    def save_trace(self) -> None:
        """Which weights the adapters had at which step, of the pictures made this time, in trace.json and trace.png."""
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

    def _take_up(self, name: str, use: ScheduledUse) -> Part:
        adapter = self.session.add(name, use.path, use_of(use), allow_pickle=self.spec.allow_pickle)
        return Part.of(name, use, adapter)

    def _render(self, group: Sequence[Shot], missing: set[Path], done: int, total: int) -> None:
        """Makes the pictures of a group, and writes those that are missing."""
        self.session.set_weights(self._weights(group[0]))
        preview = self._preview(group)

        def report(steps: int, _: int) -> None:
            self.emit(Progress("sample", done + steps, total, {"pictures": self.made}))
            if preview and preview.look(steps // len(group)):
                self._show(preview, group)

        with preview.listening() if preview else nullcontext():
            pictures = list(self.session.render([shot.request for shot in group], len(group), report))
        for shot, picture in zip(group, pictures, strict=True):
            if preview:
                self._wrote(f"preview-{shot.file.stem}", _strip_file(shot), "preview")
            if shot.file in missing:
                self.emit(Wrote(save_png(shot.file, picture, self.texts[shot.file]), "picture"))
                self.made += 1

    def _preview(self, group: Sequence[Shot]) -> Preview | None:
        every = self.spec.sample.preview_every
        if every is None:
            return None
        return Preview(self.session.model, group[0].request.guidance, len(group), every)

    def _show(self, preview: Preview, group: Sequence[Shot]) -> None:
        """Writes the strips as far as they go, each time anew."""
        for shot, strip in zip(group, preview.strips(), strict=True):
            save_png(_strip_file(shot), strip)

    def _weights(self, shot: Shot) -> dict[str, float]:
        """The weights of the job's adapters, less those that the prompt says otherwise."""
        return {name: dict(shot.weights).get(name, weight) for name, weight in self.weights.items()}

    def _texts(self, shot: Shot) -> dict[str, str]:
        if self.spec.output.metadata == "minimal":
            return self.spec.provenance()
        hashes = a1111_hashes(self.parts, (shot.request.prompt, shot.request.negative))
        given = (self.spec.model.source, self._weights(shot), self.scheduler)
        return settings_texts(shot.request, *given, hashes=hashes, details=self.details)

    def _wrote(self, key: str, path: Path, what: str) -> None:
        self.files[key] = path
        self.emit(Wrote(path, what))


def _strip_file(shot: Shot) -> Path:
    return shot.file.parent / "previews" / shot.file.name


def use_of(use: ScheduledUse) -> Use:
    layers = {pattern: part if isinstance(part, float) else schedule_of(part) for pattern, part in use.layers.items()}
    return Use(use.weight, schedule_of(use.schedule) if use.schedule else Schedule(), layers)


def schedule_of(section: ScheduleSection) -> Schedule:
    return Schedule(section.points, section.over, section.shape)
