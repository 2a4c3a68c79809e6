"""What the files of a training set are called, in each layout, and the texts that come with them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import PurePosixPath

from loractl.data.metadata import NAME as METADATA
from loractl.prepare.original import CAPTIONS
from loractl.prepare.table import Output, Row, json_line

_UNFIT = re.compile(r'[\x00-\x1f<>:"|?*\\]')  # in names on some system


@dataclass(frozen=True)
class Layout:
    """How files are named: `style` is a key of `STYLES`; `folder` is kohya's, less its repeats."""

    style: str = "imagefolder"
    suffix: str = ".png"
    folder: str = "subject"
    repeats: int = 10
    sidecars: bool = False


def named(rows: Sequence[Row], layout: Layout) -> list[Row]:
    """The rows with the final names of what they keep."""
    names = STYLES[layout.style](rows, layout)
    return [_renamed(row, names) if row.status == "kept" else row for row in rows]


def _renamed(row: Row, names: Iterator[tuple[str, str]]) -> Row:
    outputs = []
    for output, (file, mask) in zip(row.outputs, names, strict=False):
        outputs.append(replace(output, file=file, mask=mask if output.mask else None))
    return replace(row, outputs=tuple(outputs))


def _by_name(rows: Sequence[Row], layout: Layout, folder: str) -> Iterator[tuple[str, str]]:
    """Every picture under its source's name, below `folder`; what would have the same one gets a number."""
    taken = set[str]()
    for row in rows:
        stem = _UNFIT.sub("_", str(PurePosixPath(row.source).with_suffix("")))
        for _ in row.outputs if row.status == "kept" else ():
            names = (f"{stem}{f'-{number}' if number > 1 else ''}" for number in count(1))
            name = next(name for name in names if name.casefold() not in taken)
            taken.add(name.casefold())
            yield f"{folder}/{name}{layout.suffix}", f"masks/{name}.png"


def _imagefolder(rows: Sequence[Row], layout: Layout) -> Iterator[tuple[str, str]]:
    return _by_name(rows, layout, "images")


def _kohya(rows: Sequence[Row], layout: Layout) -> Iterator[tuple[str, str]]:
    """Its folders are flat: what was in a folder of the source has that in its name."""
    flat = [replace(row, source=row.source.replace("/", "-")) for row in rows]
    return _by_name(flat, layout, f"{layout.repeats}_{_UNFIT.sub('_', layout.folder).replace('/', '-')}")


def _original(rows: Sequence[Row], layout: Layout) -> Iterator[tuple[str, str]]:  # noqa: ARG001  # as the others
    for number, _ in enumerate(output for row in rows if row.status == "kept" for output in row.outputs):
        yield f"{number}.src.jpg", f"{number}.mask.png"


STYLES: Mapping[str, Callable[[Sequence[Row], Layout], Iterator[tuple[str, str]]]] = {
    "imagefolder": _imagefolder,
    "kohya": _kohya,
    "original": _original,
}


def texts(rows: Sequence[Row], layout: Layout) -> dict[str, str]:
    """The text files of a set whose rows are named, by name."""
    pictures = [(row, output) for row in rows if row.status == "kept" for output in row.outputs]
    found = {METADATA: "".join(json_line(entry(row, output)) for row, output in pictures)}
    if layout.style == "original":
        found[CAPTIONS] = "".join(f"{output.caption}\n" for _, output in pictures)
    if layout.style == "kohya" or layout.sidecars:
        captioned = (output for _, output in pictures if output.caption)
        found |= {str(PurePosixPath(output.file).with_suffix(".txt")): f"{output.caption}\n" for output in captioned}
    return found


def entry(row: Row, output: Output) -> dict[str, object]:
    """A line of metadata.jsonl, as Hugging Face's imagefolder and `data.path` read it, with our columns."""
    return {
        "file_name": output.file,
        "text": output.caption or None,
        "source": row.source,
        "sha256": row.sha256,
        "crop": output.crop,
        "size": output.size,
        "flips": [change for change in output.changes if "flip" in change or "mirror" in change],
        "changes": output.changes,
        "scores": row.numbers(),
        "verdict": row.failing,
        "mask": output.mask,
        "caption_origin": output.caption_origin,
    }
