"""Which base model on this machine a picture is of, told without its folder."""

import hashlib
import json
from pathlib import Path

# Weights, and the configurations of networks, schedulers and tokenizers: of a folder itself and of its components'.
ENDINGS = (".safetensors", ".bin", ".ckpt", "config.json")


def origin(source: str, config: str | None = None) -> str | None:
    """SHA-256 (hex) of the model's path and of its files' names, sizes and times of change, so that another model, or
    one that was written again, has another. None for the built-in model, and for a hub id, which has its revision.
    """
    places = [Path(each) for each in (source, config) if each is not None and Path(each).is_absolute()]
    told = [(str(place), [_state(file, place) for file in _files(place)]) for place in places]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest() if told else None


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = (*place.glob("*"), *place.glob("*/*"))
    return sorted(file for file in found if file.name.endswith(ENDINGS) and file.is_file())


def _state(file: Path, place: Path) -> tuple[str, int, int]:
    found = file.stat()
    return file.relative_to(place).as_posix(), found.st_size, found.st_mtime_ns
