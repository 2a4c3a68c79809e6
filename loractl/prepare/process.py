"""Prepares one file: reads, measures, judges, crops, resizes, varies and encodes it. This is what worker processes do.

What becomes of a file follows from its content and a recipe, never from its neighbors. Its pictures are left in the
stage of the output's folder; what goes back is a small record.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from loractl.errors import LoractlError
from loractl.prepare import masks
from loractl.prepare.augment import Augmentation, Flip, Jitter, Rotation
from loractl.prepare.checks import Limits, verdicts
from loractl.prepare.cutting import Crop, Cutting, crops, unfound
from loractl.prepare.kinds import formats
from loractl.prepare.measures import SIDE, measure
from loractl.prepare.reading import Color, Passing, Photo, Unreadable, read_photo
from loractl.prepare.resizing import Light, resize
from loractl.prepare.saliency import saliency
from loractl.prepare.seeds import between, seed_for
from loractl.prepare.table import Output, Row
from loractl.prepare.write import STAGE, SUFFIXES, digest, encode, is_intact, write_whole

VERSION = 1  # goes up when the same file and recipe would give other pictures
THUMBNAIL = 256  # pixels of its longer side


@dataclass(frozen=True)
class Copies:
    """Changed copies of each picture: so many, mirrored or not, turned and recolored by at most so much."""

    count: int = 0
    flip: bool = True
    degrees: float = 0.0
    jitter: float = 0.0


@dataclass(frozen=True)
class Masking:
    """Masks that need no network: "given" are files. Their edges are softened by `feather` pixels."""

    source: Literal["given", "alpha", "saliency", "network"] = "given"
    feather: float = 0.0
    invert: bool = False

    def finish(self, mask: Image.Image) -> Image.Image:
        return masks.finish(mask, feather=self.feather, invert=self.invert)


@dataclass(frozen=True)
class Recipe:
    """All that the pictures of a file follow from, beside its content and its mask's."""

    seed: int = 42
    max_pixels: int = 200_000_000
    background: Color | None = (255, 255, 255)
    limits: Limits = field(default_factory=Limits)
    keep_failing: bool = True
    cutting: Cutting = field(default_factory=Cutting)
    light: Light = "gamma"
    copies: Copies = Copies()
    masking: Masking = Masking()
    format: str = "png"
    quality: int = 95

    def key(self, sha256: str, mask: str) -> str:
        """A hash of all of this, of both contents and of what can be read here."""
        told = {"version": VERSION, "sha256": sha256, "mask": mask, "formats": formats(), **asdict(self)}
        return digest(json.dumps(told, sort_keys=True).encode())


@dataclass(frozen=True)
class Task:
    """One file to prepare, with its mask, and what the table had of it before."""

    path: Path
    name: str
    mask: Path | None = None
    known: Row | None = None


@dataclass(frozen=True)
class Done:
    """A task's row; `fresh` is False where it is the one of before."""

    row: Row
    fresh: bool = True


def process(task: Task, recipe: Recipe, out: Path, write: bool = True) -> Done:
    """The row of a file, whatever the file holds. Raises only what concerns the whole run, as that the disk is full."""
    row = Row(task.name, "unreadable")
    try:
        sha256 = file_digest(task.path)
        row = replace(row, sha256=sha256, key=recipe.key(sha256, file_digest(task.mask) if task.mask else ""))
        if task.known is not None and is_current(task.known, row.key, out):
            return Done(task.known, fresh=False)
        return Done(Bench(recipe, row, out, write).prepared(task))
    except Passing as error:
        return Done(replace(row, reason=str(error), key=""))
    except Unreadable as error:
        return Done(replace(row, reason=str(error)))
    except LoractlError:
        raise
    except MemoryError:
        return Done(replace(row, reason="it takes more memory than a worker has: make it smaller", key=""))
    except (ArithmeticError, IndexError, ValueError, OSError) as error:  # an odd picture shall not cost the others
        return Done(replace(row, reason=f"it can't be prepared: {type(error).__name__}: {error}", key=""))


def died(task: Task) -> Done:
    """The row of a file whose worker was killed; it is tried again by the next run."""
    reason = "its worker process died, as when memory runs out: make it smaller, or lower read.max_megapixels"
    return Done(Row(task.name, "unreadable", reason))


def file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Unreadable(f"it can't be opened: {error.strerror}") from None


def is_current(known: Row, key: str, out: Path) -> bool:
    """Whether a row of before says what would be said again, and its files are there."""
    files = {name: sha for output in known.outputs for name, sha in output.files().items()}
    is_there = not known.thumbnail or (out / known.thumbnail).is_file()
    return known.key == key and is_there and all(is_intact(out / name, sha) for name, sha in files.items())


class Bench:
    """Where one file is prepared: `row` grows to what becomes of it."""

    def __init__(self, recipe: Recipe, row: Row, out: Path, write: bool) -> None:
        self.recipe, self.row, self.out, self.write = recipe, row, out, write
        self.stem = f"{STAGE}/{digest(f'{row.source}/{row.key}'.encode())[:24]}"
        self.troubles: list[str] = []

    def prepared(self, task: Task) -> Row:
        recipe = self.recipe
        target = max(SIDE, recipe.cutting.target)
        photo = read_photo(task.path, max_pixels=recipe.max_pixels, target=target, background=recipe.background)
        found = measure(photo)
        verdict, mask = verdicts(found, recipe.limits), self._mask(photo, task.mask)
        cut = crops(photo, recipe.cutting, mask, recipe.seed, self.row.sha256)
        notes = (*photo.notes, *unfound(photo, recipe.cutting, mask))
        if not cut:
            self.troubles.append("no crop: each would cut a face, or the picture is smaller than any bucket")
        verdict = (*verdict, *self.troubles)
        is_kept = bool(cut) and (recipe.keep_failing or not verdict)
        outputs = tuple(self._outputs(photo, mask, cut)) if is_kept else ()
        thumbnail = self._save(f"{self.stem}.jpg", self._thumbnail(photo.image))
        status: Literal["kept", "skipped"] = "kept" if is_kept else "skipped"
        reason = "" if is_kept else "it fails a check"
        row = replace(self.row, status=status, reason=reason, size=photo.size, notes=notes, scores=asdict(found))
        return replace(row, verdict=verdict, outputs=outputs, thumbnail=thumbnail)

    def _mask(self, photo: Photo, file: Path | None) -> Image.Image | None:
        """As large as the photo was decoded; one that can't be used is a trouble of the picture's, and the row has no
        key where the next run may be able to.
        """
        source = self.recipe.masking.source
        if source == "alpha":
            return photo.alpha
        if source == "saliency":
            return masks.from_values(saliency(photo.image), photo.image.size)
        try:
            return masks.from_file(file, photo, max_pixels=self.recipe.max_pixels) if file else None
        except Unreadable as error:
            self.troubles.append(f"mask: {error}")
            self.row = replace(self.row, key="") if isinstance(error, Passing) else self.row
            return None

    def _outputs(self, photo: Photo, mask: Image.Image | None, cut: Sequence[Crop]) -> Iterator[Output]:
        """Every crop and its copies, written to the stage."""
        number = 0
        for index, crop in enumerate(cut):
            image = resize(photo.image, crop.size, self.recipe.light, crop.box)
            cover = None if mask is None else self.recipe.masking.finish(resize(mask, crop.size, box=crop.box))
            for changes in ((), *self._changes(index)):
                shown, shown_mask = image, cover
                for change in changes:
                    shown, shown_mask = change.apply(shown, shown_mask)
                told = tuple(change.describe() for change in changes)
                yield self._output(number, shown, shown_mask, crop, told)
                number += 1

    def _output(
        self, number: int, image: Image.Image, mask: Image.Image | None, crop: Crop, changes: tuple[str, ...]
    ) -> Output:
        recipe, stem = self.recipe, f"{self.stem}-{number}"
        data = encode(image, recipe.format, recipe.quality)
        file = self._save(f"{stem}{SUFFIXES[recipe.format]}", data)
        output = Output(file, digest(data), crop.original, image.size, changes)
        if mask is None or recipe.masking.source == "network":
            return output
        covered = encode(mask, "png", recipe.quality)
        return replace(output, mask=self._save(f"{stem}.mask.png", covered), mask_sha256=digest(covered))

    def _changes(self, index: int) -> list[tuple[Augmentation, ...]]:
        """What happens to each copy of a crop; no two are the same, and none is the picture itself."""
        found: dict[tuple[str, ...], tuple[Augmentation, ...]] = {}
        for copy in range(self.recipe.copies.count):
            changes = tuple(self._drawn(f"crop {index} copy {copy}"))
            if changes:
                found.setdefault(tuple(change.describe() for change in changes), changes)
        return list(found.values())

    def _drawn(self, what: str) -> Iterator[Augmentation]:
        copies = self.recipe.copies
        draw = seed_for(self.recipe.seed, self.row.sha256, f"{what} flip")
        if copies.flip and (not (copies.degrees or copies.jitter) or between(draw, 1, 0, 1)[0] < 0.5):
            yield Flip()
        if copies.degrees:
            yield Rotation(seed_for(self.recipe.seed, self.row.sha256, f"{what} rotation"), copies.degrees)
        if copies.jitter:
            yield Jitter(seed_for(self.recipe.seed, self.row.sha256, f"{what} jitter"), copies.jitter)

    def _thumbnail(self, image: Image.Image) -> bytes:
        scale = min(1.0, THUMBNAIL / max(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
        return encode(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.5), "jpeg", 75)

    def _save(self, name: str, data: bytes) -> str:
        """The name, under which the data is kept unless nothing shall be written."""
        if self.write:
            write_whole(self.out / name, data)
        return name
