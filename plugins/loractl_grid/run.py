"""Carries out a grid job: renders what is missing of its pictures, then makes them into tables and a page."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from loractl.device import pick_device, pick_dtype, require_determinism
from loractl.events import Emit, Progress, Wrote
from loractl.families.pipeline import load_model
from loractl.families.sd import StableDiffusion
from loractl.inject.inject import set_weight
from loractl.method import Outcome
from loractl.sample.adapted import apply, remove_all
from loractl.sample.axes import draw_table
from loractl.sample.denoise import render
from loractl.sample.page import page
from loractl.sample.picture import save_png, settings_texts
from loractl_grid.shots import BATCH, Shot, Uses, axes, batches, plan
from loractl_grid.spec import FILES, GridSpec

SMALLEST = 128  # pixels of a picture in a table


class Wardrobe:
    """The adapters on a model, changed only where a picture needs others."""

    def __init__(self, model: StableDiffusion, allow_pickle: bool) -> None:
        self.model, self.allow_pickle = model, allow_pickle
        self.files: tuple[Path, ...] = ()
        self.parts: list[list[str]] = []  # the networks that each of the files adapts
        self.hashes: dict[Path, str] = {}

    def wear(self, uses: Uses) -> None:
        files = tuple(file for file, _ in uses)
        if files != self.files:
            remove_all(self.model)
            self.parts = [self._put_on(number, file) for number, file in enumerate(files)]
            self.files = files
        for number, (_, weight) in enumerate(uses):
            for part in self.parts[number]:
                set_weight(self.model.components[part], weight, f"adapter{number}")

    def weights(self, uses: Uses) -> dict[str, float]:
        """Of the worn files that adapt a network, by their names; others have learned tokens alone."""
        return {file.stem: weight for parts, (file, weight) in zip(self.parts, uses, strict=True) if parts}

    def _put_on(self, number: int, file: Path) -> list[str]:
        adapter = apply(self.model, file, f"adapter{number}", allow_pickle=self.allow_pickle)
        with file.open("rb") as content:
            self.hashes[file] = hashlib.file_digest(content, "sha256").hexdigest()
        return adapter.components()


def run(spec: GridSpec, emit: Emit) -> Outcome:
    require_determinism()
    device = pick_device(spec.memory.device)
    model = load_model(spec.model.source, device, pick_dtype(spec.memory.precision, device), spec.model.revision)
    shots = plan(spec, model)
    made = make_pictures(spec, model, shots, emit)
    files = write_tables(spec, shots)
    files["page"] = write_page(spec, shots)
    for name, file in files.items():
        emit(Wrote(file, "page" if name == "page" else "table"))
    return Outcome(files, {"pictures": len(shots), "made": made})


def make_pictures(spec: GridSpec, model: StableDiffusion, shots: Sequence[Shot], emit: Emit) -> int:
    """Renders and writes what is not there yet; returns how many pictures that were."""
    wardrobe, groups = Wardrobe(model, spec.allow_pickle), batches(shots)
    for group in groups:
        wardrobe.wear(group[0].uses)  # a file that does not fit is found before the first picture is made
    done, total, made = 0, sum(shot.request.steps for shot in shots), 0
    for group in groups:
        wardrobe.wear(group[0].uses)
        texts = {shot: settings(spec, wardrobe, shot) for shot in group}
        missing = {shot for shot in group if not is_made(shot.file, texts[shot])}
        if missing:
            wanted = [shot.request for shot in group]
            pictures = render(model.pipeline, wanted, BATCH, _reporter(emit, done, total))
            for shot, picture in zip(group, pictures, strict=True):
                if shot in missing:
                    emit(Wrote(save_png(shot.file, picture, texts[shot]), "picture"))
        made += len(missing)
        done += sum(shot.request.steps for shot in group)
        emit(Progress("sample", done, total))
    return made


def settings(spec: GridSpec, wardrobe: Wardrobe, shot: Shot) -> dict[str, str]:
    """The texts of a picture's file: an adapter counts by its content, since a file may change under its name."""
    scheduler = type(wardrobe.model.scheduler).__name__
    texts = settings_texts(shot.request, spec.model.source, wardrobe.weights(shot.uses), scheduler)
    told = {
        "files": [{"name": file.name, "weight": w, "sha256": wardrobe.hashes[file]} for file, w in shot.uses],
        "revision": spec.model.revision,
        "precision": str(wardrobe.model.dtype).removeprefix("torch."),
    }
    return texts | {"loractl": json.dumps(json.loads(texts["loractl"]) | told, sort_keys=True)}


def is_made(file: Path, texts: Mapping[str, str]) -> bool:
    """Whether the file is a whole picture of these very settings."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.info.get("loractl") == texts["loractl"]
    except (OSError, SyntaxError):  # what Pillow raises for no picture, and for a broken PNG
        return False


def write_tables(spec: GridSpec, shots: Sequence[Shot]) -> dict[str, Path]:
    """A table for each place on z."""
    x, y, z = axes(spec)
    size = len(x.labels) * len(y.labels)
    files = {}
    for place in range(len(z.labels)):
        pictures = [Image.open(shot.file) for shot in shots[place * size : (place + 1) * size]]
        name = f"table-z{place + 1}"
        drawn = draw_table(x, y, pictures, z.says(place), max(SMALLEST, pictures[0].width))
        files[name] = save_png(spec.destination() / f"{name}.png", drawn)
    return files


def write_page(spec: GridSpec, shots: Sequence[Shot]) -> Path:
    file = spec.destination() / "grid.html"
    shown = page(spec.name, common(spec, shots[0]), axes(spec), [shot.file.read_bytes() for shot in shots])
    file.write_text(shown, encoding="utf-8")
    return file


def common(spec: GridSpec, shot: Shot) -> dict[str, object]:
    """What is the same in all pictures, by its name; without folders, since the page may be published."""
    source, kinds = Path(spec.model.source), spec.grid.kinds
    facts = {"model": source.name if source.is_absolute() else spec.model.source, **vars(shot.request)}
    vary = "weight" in kinds and not kinds & FILES
    facts["adapters"] = ", ".join(use.path.stem + f" {use.weight:g}" * (not vary) for use in spec.adapters)
    return {name: value for name, value in facts.items() if value != "" and name not in kinds}


def _reporter(emit: Emit, done: int, total: int) -> Callable[[int, int], None]:
    return lambda steps, _: emit(Progress("sample", done + steps, total))
