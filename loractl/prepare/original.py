"""The layout of cloneofsimo/lora as a source: 0.src.jpg, 0.mask.png, and a line of caption.txt for each picture."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loractl.prepare.reading import Member

CAPTIONS = "caption.txt"
_PICTURE = re.compile(r"(\d+)\.src\.[^.]+")
_MASK = re.compile(r"(\d+)\.mask\.[^.]+")


@dataclass(frozen=True)
class Given:
    """What the layout has for a picture."""

    caption: str = ""
    mask: Path | None = None


def masks_of(members: Sequence[Member]) -> dict[str, Path]:
    """The masks by the names of the pictures that they belong to."""
    masks = {found[1]: member.path for member in members if (found := _MASK.fullmatch(member.name))}
    return {name: masks[number] for name, number in _numbers(members).items() if number in masks}


def read_original(root: Path, members: Sequence[Member]) -> dict[str, Given]:
    """What there is for each picture, by its name; nothing where the folder has another layout.

    As many lines as pictures are in the pictures' order. Where there are more or fewer, as after a picture was removed,
    a picture's line is that of its number.
    """
    numbers = _numbers(members)
    if not numbers:
        return {}
    masks, captions = masks_of(members), dict(enumerate(_captions(root / CAPTIONS)))
    ordered = sorted(numbers, key=lambda name: int(numbers[name]))
    places = range(len(ordered)) if len(captions) == len(ordered) else [int(numbers[name]) for name in ordered]
    return {name: Given(captions.get(at, ""), masks.get(name)) for name, at in zip(ordered, places, strict=True)}


def _numbers(members: Sequence[Member]) -> dict[str, str]:
    found = ((member, _PICTURE.fullmatch(member.name)) for member in members if member.ignored is None)
    return {member.name: match[1] for member, match in found if match}


def _captions(file: Path) -> list[str]:
    if not file.is_file() or file.is_symlink():
        return []
    return [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
