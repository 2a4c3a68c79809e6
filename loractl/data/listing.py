"""What a set of training data says of its pictures, whatever form it has, before their captions are settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loractl.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One picture: the text and the mask that the set itself has for it, the prompt that stands in for the job's,
    and the ending of its caption file.
    """

    path: Path
    text: str | None = None
    prompt: str | None = None
    repeats: int = 1
    mask: Path | None = None
    suffix: str = ".txt"


@dataclass(frozen=True)
class Listing:
    """The pictures of a set below its root, and what is wrong with the set, one line each."""

    root: Path
    entries: Sequence[Entry]
    problems: Sequence[str] = ()


def member(root: Path, name: str) -> Path:
    """The file or folder that a set calls `name`. InputError where that leads out of the root, by `..`, as an
    absolute path or through a link.
    """
    path = root / name
    try:
        is_inside = ".." not in Path(name).parts and path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a null in the name; a loop of links
        is_inside = False
    if not is_inside:
        raise InputError(f"{name!r} is not inside {root}: move it there")
    return path
