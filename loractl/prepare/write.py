"""The output's folder: what was put there is known by its hash, and nothing else is ever replaced or removed.

Pictures are made in the hidden folder `.ppim` and moved to their names at the end. `.ppim/made.json` says which files
are ours; it is written before they are, so that a run that was killed never takes its own files for another's.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image

from loractl.errors import DiskFullError, InputError

STAGE = ".ppim"
MADE = f"{STAGE}/made.json"
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHOWN = 10  # files that an error names


def encode(picture: Image.Image, format: str, quality: int) -> bytes:
    """PNG with little effort, which takes a third of the time and a tenth more space; JPEG with whole colors."""
    file = BytesIO()
    options = {"compress_level": 3} if format == "png" else {"quality": quality, "subsampling": 0, "optimize": True}
    picture.save(file, format, **options)
    return file.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file at once: it is there with all its bytes or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"the disk is full, so {path} was not written: make room and try again") from error
        raise InputError(f"{path} can't be written ({error.strerror}): choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_intact(path: Path, sha256: str) -> bool:
    """Whether the file is there with the content of this hash."""
    try:
        return digest(path.read_bytes()) == sha256
    except OSError:
        return False


class Folder:
    """The output's folder; `made` has for each file that is ours the hashes that it may have."""

    def __init__(self, root: Path, overwrite: bool = False) -> None:
        self.root, self.overwrite = root, overwrite
        self.made = _read_made(root / MADE)

    def publish(self, files: Mapping[str, str], contents: Mapping[str, bytes]) -> list[str]:
        """Moves staged files to their names and writes the others; then removes what else was ours. Returns the names
        of files that somebody has changed since: they stay.

        files: the name of each picture, and what it is called now, in the stage or since the last run.
        InputError, before anything has moved, where another's file has one of the names.
        """
        hashes = {name: digest((self.root / now).read_bytes()) for name, now in files.items()}
        hashes |= {name: digest(content) for name, content in contents.items()}
        self._refuse(hashes)
        before = self.made
        self._note({**before, **{name: sorted({*before.get(name, ()), sha}) for name, sha in hashes.items()}})
        needed = {now for name, now in files.items() if now != name}
        there = {name for name in files if name not in needed and is_intact(self.root / name, hashes[name])}
        self._move({now: name for name, now in files.items() if name not in there and now != name})
        for name, content in contents.items():
            if not is_intact(self.root / name, hashes[name]):
                write_whole(self.root / name, content)
        kept = [name for name in sorted(before.keys() - hashes.keys()) if not self._remove(name)]
        self._note({name: [sha] for name, sha in hashes.items()})
        return kept

    def clean(self, needed: Iterable[str]) -> None:
        """Removes from the stage what is not needed by the next run."""
        kept = {self.root / name for name in (*needed, MADE)}
        for path in (self.root / STAGE).iterdir():
            if path not in kept and not path.is_dir():
                path.unlink()

    def _refuse(self, hashes: Mapping[str, str]) -> None:
        """Names that are taken by files which are not as we left them, nor as they shall be."""
        taken = [name for name, sha in sorted(hashes.items()) if not self._may_replace(name, sha)]
        if taken and not self.overwrite:
            more = f"\nand {len(taken) - _SHOWN} more" if len(taken) > _SHOWN else ""
            raise InputError(
                f"{self.root} has {len(taken)} files that ppim did not write, or that were changed since: move them "
                "away, or replace them with --overwrite:\n" + "\n".join(taken[:_SHOWN]) + more
            )

    def _may_replace(self, name: str, sha256: str) -> bool:
        path = self.root / name
        return not os.path.lexists(path) or any(is_intact(path, each) for each in (sha256, *self.made.get(name, ())))

    def _note(self, made: Mapping[str, list[str]]) -> None:
        self.made = dict(made)
        text = json.dumps(self.made, indent=0, sort_keys=True, ensure_ascii=False)
        if not is_intact(self.root / MADE, digest(text.encode())):
            write_whole(self.root / MADE, text.encode())

    def _move(self, moves: Mapping[str, str]) -> None:
        """All at once, in effect: names may be exchanged, so what has one already is moved aside first."""
        aside = {}
        for number, (now, name) in enumerate(moves.items()):
            aside[name] = self.root / STAGE / f"moving-{number}"
            (self.root / now).replace(aside[name])
        for name, path in aside.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(self.root / name)

    def _remove(self, name: str) -> bool:
        """Removes a file of ours, and its folder where that is empty; False where it has been changed."""
        path = self.root / name
        if not os.path.lexists(path):
            return True
        if not any(is_intact(path, sha) for sha in self.made[name]):
            return False
        path.unlink()
        for folder in path.parents:
            if folder == self.root or any(folder.iterdir()):
                break
            folder.rmdir()
        return True


def _read_made(path: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): list(hashes) for name, hashes in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
