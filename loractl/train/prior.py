"""Class pictures for prior preservation: generated with the untouched model, up to a count, and reused."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from loractl.data.images import find_pictures
from loractl.errors import InputError, MismatchError
from loractl.sample.denoise import Request
from loractl.sample.picture import save_png

ORIGIN = "origin.json"


def class_pictures(
    folder: Path,
    requests: Sequence[Request],
    maker: Mapping[str, str],
    make: Callable[[Sequence[Request]], list[Image.Image]],
) -> list[Path]:
    """One picture for each request, those that the folder lacks made by `make`; pictures a person put there count
    first.

    The folder remembers what its pictures show and how they were made, by which `maker` ("model", "scheduler", …):
    MismatchError if that is not what is asked for.
    """
    one = requests[0]
    shown = {"prompts": sorted({request.prompt for request in requests})}
    origin = {**maker, **shown, "steps": one.steps, "guidance": one.guidance, "size": [*one.shape]}
    _check_origin(folder, origin)
    there = _pictures(folder)
    absent = [request for request in requests if not (folder / _name(request)).exists()]
    missing = absent[len(absent) - max(len(requests) - len(there), 0) :]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        if not (there and (folder / ORIGIN).exists()):  # of pictures made before, it says all that is known
            (folder / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
        for request, picture in zip(missing, make(missing), strict=True):
            save_png(folder / _name(request), picture)
    return _pictures(folder)[: len(requests)]


def _name(request: Request) -> str:
    return f"class-{request.seed:05d}.png"


def _pictures(folder: Path) -> list[Path]:
    try:
        return find_pictures(folder)
    except InputError:
        return []


def _check_origin(folder: Path, origin: Mapping[str, object]) -> None:
    """What the folder's file doesn't say, since it is older, may be as it is asked for."""
    file = folder / ORIGIN
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    others = [
        f"{key} {found[key]!r}, not {origin[key]!r}" for key in origin if found.get(key, origin[key]) != origin[key]
    ]
    if others:
        raise MismatchError(
            f"the class pictures in {folder} were made with {', and '.join(others)}: name another folder in "
            "prior.images, or delete this one"
        )
