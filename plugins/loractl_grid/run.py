"""Carries out a grid job: renders what is missing of its pictures, then makes them into tables and a page."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from loractl.device import require_determinism
from loractl.events import Emit, Progress, Wrote
from loractl.method import Outcome
from loractl.runs.loading import load_for_pictures
from loractl.sample.axes import draw_table
from loractl.sample.origin import origin
from loractl.sample.page import page
from loractl.sample.picture import is_made, said, save_png, settings_texts, shrunk
from loractl.sample.schedule import Schedule, Use
from loractl.sample.session import Session
from loractl.sample.stack import changed_networks
from loractl.sample.task import sampler_label
from loractl.sections.schedules import ScheduleSection, parsed
from loractl.specs import stems
from loractl_grid.shots import BATCH, Shot, Uses, Worn, axes, batches, plan
from loractl_grid.spec import FILES, GridSpec

SMALLEST = 128  # pixels of a picture in a table


class Wardrobe:
    """The adapters on a model, taken up and dropped only where a picture needs others."""

    def __init__(self, session: Session, allow_pickle: bool) -> None:
        self.session, self.allow_pickle = session, allow_pickle
        self.worn: dict[str, Path] = {}
        self.changing: set[str] = set()  # those that change a network; others have learned tokens alone
        self.hashes: dict[Path, str] = {}

    def wear(self, uses: Uses) -> None:
        files = {f"adapter{number}": use.file for number, use in enumerate(uses)}
        if files != self.worn:
            for name in self.worn:
                self.session.drop(name)
            self.worn, self.changing = {}, set()
            for name, file in files.items():
                self._put_on(name, file)
        self.session.set_weights({name: _use(use) for name, use in zip(self.worn, uses, strict=True)})

    def weights(self, uses: Uses) -> dict[str, float]:
        """Of the worn files that change a network, by their names."""
        named = zip(self.worn, stems(use.file for use in uses), uses, strict=True)
        return {stem: use.weight for name, stem, use in named if name in self.changing}

    def _put_on(self, name: str, file: Path) -> None:
        adapter = self.session.add(name, file, allow_pickle=self.allow_pickle)
        self.worn[name] = file
        if changed_networks(adapter):
            self.changing.add(name)
        with file.open("rb") as content:
            self.hashes[file] = hashlib.file_digest(content, "sha256").hexdigest()


def run(spec: GridSpec, emit: Emit) -> Outcome:
    require_determinism()
    model = load_for_pictures(spec.model, spec.memory)
    shots = plan(spec, model)
    with Session(model, spec.memory.engine) as session:
        made = make_pictures(spec, session, shots, emit)
    files = write_tables(spec, shots)
    files["page"] = write_page(spec, shots)
    for name, file in files.items():
        emit(Wrote(file, "page" if name == "page" else "table"))
    return Outcome(files, {"pictures": len(shots), "made": made})


def make_pictures(spec: GridSpec, session: Session, shots: Sequence[Shot], emit: Emit) -> int:
    """Renders and writes what is not there yet, or all of it where the job overwrites; returns how many pictures that
    were.
    """
    wardrobe, groups = Wardrobe(session, spec.allow_pickle), batches(shots)
    for group in groups:
        wardrobe.wear(group[0].uses)  # a file that does not fit is found before the first picture is made
    done, total, made = 0, sum(shot.request.steps for shot in shots), 0
    for group in groups:
        wardrobe.wear(group[0].uses)
        texts = {shot: settings(spec, wardrobe, shot) for shot in group}
        missing = {shot for shot in group if spec.output.overwrite or not is_made(shot.file, texts[shot])}
        if missing:
            wanted = [shot.request for shot in group]
            pictures = session.render(wanted, BATCH, _reporter(emit, done, total))
            for shot, picture in zip(group, pictures, strict=True):
                if shot in missing:
                    emit(Wrote(save_png(shot.file, picture, texts[shot]), "picture"))
        made += len(missing)
        done += sum(shot.request.steps for shot in group)
        emit(Progress("sample", done, total))
    return made


def settings(spec: GridSpec, wardrobe: Wardrobe, shot: Shot) -> dict[str, str]:
    """The texts of a picture's file: an adapter counts by its content, since a file may change under its name."""
    if spec.output.metadata == "minimal":
        return spec.provenance()
    model = wardrobe.session.model
    details: dict[str, object] = {
        "files": [_told(use, wardrobe.hashes[use.file]) for use in shot.uses],
        "revision": spec.model.revision,
        "precision": str(model.dtype).removeprefix("torch."),
    }
    if spec.memory.quantize != "none":
        details["quantize"] = spec.memory.quantize
    if files := origin(spec.model.source, spec.model.config):
        details["model_files"] = files
    scheduler = sampler_label(model.scheduler)
    return settings_texts(shot.request, spec.model.source, wardrobe.weights(shot.uses), scheduler, details=details)


def write_tables(spec: GridSpec, shots: Sequence[Shot]) -> dict[str, Path]:
    """A table for each place on z."""
    x, y, z = axes(spec)
    size = len(x.labels) * len(y.labels)
    files = {}
    for place in range(len(z.labels)):
        here = shots[place * size : (place + 1) * size]
        cell = max(SMALLEST, *here[0].request.shape)
        name = f"table-z{place + 1}"
        drawn = draw_table(x, y, [shrunk(shot.file, cell) for shot in here], z.says(place), cell)
        files[name] = save_png(spec.destination() / f"{name}.png", drawn)
    return files


def write_page(spec: GridSpec, shots: Sequence[Shot]) -> Path:
    file = spec.destination() / "grid.html"
    facts = {} if spec.output.metadata == "minimal" else common(spec, shots[0])
    shown = page(spec.name, facts, axes(spec), [shot.file.read_bytes() for shot in shots])
    file.write_text(shown, encoding="utf-8")
    return file


def common(spec: GridSpec, shot: Shot) -> dict[str, object]:
    """What is the same in all pictures, by its name; without folders, since the page may be published."""
    source, kinds = Path(spec.model.source), spec.grid.kinds
    facts = {"model": source.name if source.is_absolute() else spec.model.source, **said(shot.request)}
    vary = "weight" in kinds and not kinds & FILES
    facts["adapters"] = ", ".join(use.path.stem + f" {use.weight:g}" * (not vary) for use in spec.adapters)
    return {name: value for name, value in facts.items() if value != "" and name not in kinds}


def _use(worn: Worn) -> Use:
    """As a session takes it."""
    if not worn.schedule:
        return Use(worn.weight)
    section = ScheduleSection.model_validate(parsed(worn.schedule))
    return Use(worn.weight, Schedule(section.points, section.over, section.shape))


def _told(worn: Worn, sha256: str) -> dict[str, str | float]:
    told: dict[str, str | float] = {"name": worn.file.name, "weight": worn.weight, "sha256": sha256}
    return told | ({"schedule": worn.schedule} if worn.schedule else {})


def _reporter(emit: Emit, done: int, total: int) -> Callable[[int, int], None]:
    return lambda steps, _: emit(Progress("sample", done + steps, total))
