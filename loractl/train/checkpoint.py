"""Checkpoints that are there whole or not at all, whatever kills the run or the machine while one is written.

    folder/step-000250/{state.safetensors, state.json, manifest.json}
    folder/latest                                                      names the one written last

A checkpoint is written and synced in a hidden folder, its manifest (sizes and SHA-256) last; one rename brings it to
light; then `latest` moves; only then older ones go.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from loractl.errors import DiskFullError, InputError
from loractl.formats.safefile import read_tensors, replacing, write_tensors

TENSORS, VALUES, MANIFEST, LATEST = "state.safetensors", "state.json", "manifest.json", "latest"
HEADROOM = 64 * 2**20  # bytes that a checkpoint leaves free, for metrics, samples and everybody else


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    step: int,
    keep: int = 4,
    spare: Collection[Path] = (),
) -> Path:
    """Writes the checkpoint of a step; then all go but the `keep` newest (at least 1) and those in `spare`, and so do
    those of later steps, which belong to a run that was taken back.

    Raises DiskFullError, and leaves the checkpoints that were there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    require_room(folder, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    final = folder / f"step-{step:06d}"
    with _temporary(final) as temporary:
        _write(temporary, tensors, values)
        _publish(temporary, final)
    for path in checkpoints(folder):
        if _step(path) > step and path not in spare:
            _remove(path)
    prune(folder, keep, {final, *spare})
    return final


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values of a checkpoint; InputError when it is broken."""
    if problems := verify(path):
        raise InputError(f"{path} is not a whole checkpoint ({'; '.join(problems)}): go on from another one")
    values: dict[str, Any] = json.loads((path / VALUES).read_bytes())
    return read_tensors(path / TENSORS)[0], values


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `latest` names or, if that one is broken, the newest whole one; None when there is none at
    all. Raises InputError when all are broken.
    """
    latest = folder / LATEST
    name = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    found = sorted(checkpoints(folder), key=lambda path: (path.name == name, _step(path)), reverse=True)
    problems = []
    for path in found:
        wrong = verify(path)
        if not wrong:
            return path
        problems.append(f"{path.name}: {'; '.join(wrong)}")
    if problems:
        raise InputError(f"no checkpoint in {folder} is whole ({', '.join(problems)}): start over with --overwrite")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, whole or not, the oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=_step)


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint; nothing when every file has the bytes that were written."""
    try:
        manifest = dict(json.loads((path / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError):
        return [f"{MANIFEST} cannot be read"]
    problems = []
    for name in (TENSORS, VALUES):
        try:
            if manifest.get(name) != _entry(path / name):
                problems.append(f"{name} is not as it was written")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
    return problems


def prune(folder: Path, keep: int, spare: Collection[Path] = ()) -> None:
    """Removes all checkpoints but the `keep` newest (at least 1) and those in `spare`."""
    for path in checkpoints(folder)[:-keep]:
        if path not in spare:
            _remove(path)


def require_room(folder: Path, needed: int) -> None:
    """Raises DiskFullError unless the folder's disk has room for `needed` bytes, and for HEADROOM beside them."""
    free = shutil.disk_usage(folder).free
    if free < needed + HEADROOM:
        raise DiskFullError(
            f"{folder} has {free:,} bytes free and a checkpoint needs {needed:,} and {HEADROOM:,} to spare: make room "
            "and run the job again; the last checkpoint is untouched"
        )


def _write(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """The three files, each synced, and their folder synced after each."""
    write_tensors(folder / TENSORS, tensors, {})
    _write_json(folder / VALUES, values)
    _write_json(folder / MANIFEST, {name: _entry(folder / name) for name in (TENSORS, VALUES)})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(values, indent=1, sort_keys=True).encode())


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def _publish(temporary: Path, final: Path) -> None:
    """Makes the folder the checkpoint `final`, and `latest` name it."""
    if not final.exists() or verify(final) or (final / MANIFEST).read_bytes() != (temporary / MANIFEST).read_bytes():
        if final.exists():
            _remove(final)
        temporary.rename(final)
        _sync(final.parent)
    with replacing(final.parent / LATEST, overwrite=True) as file:
        file.write(f"{final.name}\n".encode())


@contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final`, gone at the end. Raises DiskFullError when the disk fills up inside."""
    temporary = _hidden(final)
    try:
        temporary.mkdir()
        yield temporary
    except (OSError, DiskFullError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"the disk is full, so {final} was not written: make room and run the job again; the last checkpoint is "
            "untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _remove(path: Path) -> None:
    """Takes a checkpoint away at once, then deletes it."""
    hidden = path.rename(_hidden(path))
    shutil.rmtree(hidden, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what runs left that died while they wrote; a folder has one run at a time."""
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _sync(folder: Path) -> None:
    """Makes a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step(path: Path) -> int:
    return int(path.name[5:])
