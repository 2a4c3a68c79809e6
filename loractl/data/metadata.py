"""metadata.jsonl, as Hugging Face's imagefolder has it: a JSON object for each picture, one a line.

`file_name` is relative to the file's folder and `text` is the caption; `mask` (relative as well) and `repeats` are
ours. Other columns are not for training and don't matter.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loractl.data.listing import Entry, Listing, member
from loractl.errors import InputError

NAME = "metadata.jsonl"


def read_metadata(file: Path) -> Listing:
    """Raises InputError when the file is no text; what is wrong in a line becomes a problem of the listing."""
    entries, problems = [], []
    for number, line in _lines(file):
        try:
            entries.append(_entry(file.parent, line))
        except (InputError, ValueError, OSError) as error:  # a name too long is an OSError
            problems.append(f"{file}:{number}: {error}")
    if not entries and not problems:
        problems.append(f"{file} names no pictures")
    return Listing(file.parent, entries, problems)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: save it as UTF-8") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _entry(root: Path, line: str) -> Entry:
    """The picture of one line; ValueError or InputError says what is wrong with it."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("this is not a JSON object") from None
    if not isinstance(row, dict):
        raise ValueError("this is not a JSON object")
    name = _text(row, "file_name")
    if name is None:
        raise ValueError('"file_name" is missing')
    mask = _text(row, "mask")
    return Entry(
        _file(root, name),
        text=_text(row, "text"),
        repeats=_repeats(row),
        mask=None if mask is None else _file(root, mask),
    )


def _text(row: dict[str, Any], key: str) -> str | None:
    """A text that is not empty; null is the same as no such key."""
    value = row.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f'"{key}" is not a text')
    return value.strip() if isinstance(value, str) else None


def _repeats(row: dict[str, Any]) -> int:
    value = row.get("repeats", 1)
    if type(value) is not int or value < 1:
        raise ValueError('"repeats" is not a whole number from 1')
    return value


def _file(root: Path, name: str) -> Path:
    path = member(root, name)
    if not path.is_file():
        raise ValueError(f"there is no file {name!r}")
    return path
