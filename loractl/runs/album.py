"""The sample pictures of a run: before, on the way and after, from the same prompts and seeds."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from loractl.runs.recipe import Recipe
from loractl.runs.studio import Studio
from loractl.sample.grid import headings, progress_grid
from loractl.sample.picture import save_png, sheet
from loractl.sections import TrainingSpec


class Album:
    """Pictures on the way are kept as files, so that a resumed run has those from before the interruption."""

    def __init__(self, spec: TrainingSpec, recipe: Recipe, studio: Studio) -> None:
        self.spec, self.recipe, self.studio = spec, recipe, studio
        self.folder = spec.destination() / "samples"
        self.before: list[Image.Image] = []

    def begin(self) -> None:
        if self.spec.sample.at_start:
            self.before = self._make("samples before")

    def add(self, step: int) -> Path:
        """Makes the pictures of a step; returns a sheet of them."""
        return self.write(step, self._make(f"samples at step {step}"))

    def write(self, step: int, pictures: Sequence[Image.Image]) -> Path:
        """Each picture as a file, and the sheet."""
        name = f"step-{step:06d}"
        for index, picture in enumerate(pictures):
            save_png(self.folder / name / f"{index:02d}.png", picture)
        return save_png(self.folder / f"{name}.png", self._grid([(f"step {step}", pictures)]))

    def finish(self) -> dict[str, Path]:
        """The pictures after training beside those before, and, if some were made on the way, a sheet of all."""
        after, folder = self._make("samples after"), self.spec.destination()
        ends = [("before", self.before)] if self.before else []
        files = {"grid": save_png(folder / "before-after.png", sheet([*ends, ("after", after)]))}
        between = [(f"step {int(path.name[5:])}", _pictures(path)) for path in sorted(self.folder.glob("step-*/"))]
        if between:
            files["progress"] = save_png(folder / "progress.png", self._grid([*between, ("the result", after)]))
        return files

    def _grid(self, rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
        return progress_grid(rows, headings(self.studio.requests(self.spec.sample, self.recipe.prompt)))

    def _make(self, stage: str) -> list[Image.Image]:
        return self.studio.samples(self.spec.sample, self.recipe.prompt, stage)


def _pictures(folder: Path) -> list[Image.Image]:
    return [_picture(path) for path in sorted(folder.glob("*.png"))]


def _picture(path: Path) -> Image.Image:
    """Read at once: a file for each picture of a long run is more than a system leaves open."""
    with Image.open(path) as picture:
        return picture.copy()
