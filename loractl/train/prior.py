"""Class pictures for prior preservation: generated with the untouched model, up to a count, and reused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from loractl.data.images import find_pictures
from loractl.errors import InputError, MismatchError
from loractl.sample.denoise import Request
from loractl.sample.picture import save_png

ORIGIN = "origin.json"


def class_pictures(
    folder: Path, requests: Sequence[Request], model: str, make: Callable[[Sequence[Request]], list[Image.Image]]
) -> list[Path]:
    """One picture for each request, those that the folder lacks made by `make`; pictures a person put there count
    first.

    The folder remembers what its pictures show and which model made them: MismatchError if that is not what is
    asked for.
    """
    origin: dict[str, object] = {"model": model, "prompts": sorted({request.prompt for request in requests})}
    _check_origin(folder, origin)
    there = _pictures(folder)
    missing = requests[len(there) :]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
        for request, picture in zip(missing, make(missing), strict=True):
            save_png(folder / f"class-{request.seed:05d}.png", picture)
    return _pictures(folder)[: len(requests)]


def _pictures(folder: Path) -> list[Path]:
    try:
        return find_pictures(folder)
    except InputError:
        return []


def _check_origin(folder: Path, origin: dict[str, object]) -> None:
    file = folder / ORIGIN
    if file.exists() and (found := json.loads(file.read_text(encoding="utf-8"))) != origin:
        raise MismatchError(
            f"the class pictures in {folder} show {found.get('prompts')} by {found.get('model')}, not "
            f"{origin['prompts']} by {origin['model']}: name another folder in prior.images, or delete this one"
        )
