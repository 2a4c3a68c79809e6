"""Reads whatever people have as photographs: the right way round, in 8-bit sRGB, within a bound of pixels.

Every file ends as a `Photo` or as `Unreadable`, whose text is the reason. The bound is checked against the header
before anything is decoded. JPEGs are decoded at a half, a quarter or an eighth where that is large enough.
"""

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from loractl.errors import InputError
from loractl.prepare import kinds
from loractl.prepare.boxes import Size
from loractl.prepare.colors import Notes, lay_on, to_srgb

Color = tuple[int, int, int]

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 are quarter turns
_BITS_PER_SAMPLE = 0x0102  # the TIFF tag
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}  # a TIFF would have to be read to its end to know

_OF_THE_FILE = {None, errno.EINVAL, errno.EOVERFLOW}  # a decoder's own errors, and of seeks to where nothing is

_SYSTEM = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SIDECARS = {".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".xmp", ".aae", ".npz", ".npy", ".safetensors"}
_SIDECARS |= {".toml", ".yaml", ".yml", ".md", ".parquet", ".log", ".py"}


class Unreadable(Exception):  # noqa: N818  # a finding, as often as a failure
    """A file that is no photograph, or a broken one; the text is the reason, one line."""


class Passing(Unreadable):
    """One that the machine failed at, as when memory runs out; another time it may be read."""


@dataclass(frozen=True)
class Photo:
    """A decoded photograph: `image` is "RGB", `alpha` "L", or None where all is opaque. `size` is that of the
    original, upright; `scale` is decoded ÷ original.
    """

    image: Image.Image
    alpha: Image.Image | None
    size: Size
    format: str
    notes: Notes
    scale: float


@dataclass(frozen=True)
class Member:
    """A file below the root; `name` is relative to it, with "/". `ignored` says why it is not looked at."""

    path: Path
    name: str
    ignored: str | None = None


def read_photo(path: Path, *, max_pixels: int, target: int | None = None, background: Color | None = None) -> Photo:
    """The photograph in a file; its first frame, where it has several.

    target: the shortest side that is needed; a JPEG is decoded no larger than that asks for.
    background: what transparency is laid on. Without it, colors stay as the file has them. The alpha is kept anyhow.
    Raises Unreadable, and nothing else, whatever the file holds.
    """
    try:
        with path.open("rb") as file, _quiet(max_pixels):
            head = file.read(kinds.HEAD)
            reason = kinds.refusal(head, path.name)
            if reason:
                raise Unreadable(reason)
            return _decode(path, head, max_pixels, target, background)
    except Unreadable:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(_too_large(max_pixels)) from None
    except MemoryError:
        raise Passing("it does not fit into the memory: make it smaller") from None
    except Exception as error:  # a decoder may raise anything over a broken file
        if _may_pass(error):
            raise Passing(f"it can't be read: {_one_line(error)}") from None
        raise Unreadable(f"it is broken: {_one_line(error)}") from None


def _decode(path: Path, head: bytes, max_pixels: int, target: int | None, background: Color | None) -> Photo:
    try:
        file = Image.open(path, formats=kinds.formats())
    except UnidentifiedImageError:
        raise Unreadable(kinds.unknown(head, path.name)) from None
    with file:
        if file.width * file.height > max_pixels:
            raise Unreadable(_too_large(max_pixels))
        if not file.width * file.height:
            raise Unreadable("it has no pixels")
        header, notes = file.size, _frames(file)
        if target is not None and file.format in {"JPEG", "MPO"}:
            width, height = (max(1, side * target // min(header)) for side in header)
            file.draft(None, (width, height))
        file.load()
        upright, turned, broken = _upright(file)
        image, alpha, changes = to_srgb(upright, _bits(file))
    size = (header[1], header[0]) if turned else header
    image = lay_on(image, alpha, background) if alpha is not None and background is not None else image
    scale = image.width / size[0]
    reduced = (f"reduced 1/{round(1 / scale)} while decoding",) if scale < 1 else ()
    return Photo(image, alpha, size, file.format or "", notes + broken + changes + reduced, scale)


def _too_large(max_pixels: int) -> str:
    return f"it has more than {max_pixels / 1e6:g} megapixels: make it smaller, or raise read.max_megapixels"


def _may_pass(error: Exception) -> bool:
    """Whether the machine failed, and not the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in _OF_THE_FILE)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _frames(file: Image.Image) -> Notes:
    with suppress(Exception):  # what follows the first frame may be broken
        if file.format in _ANIMATED and getattr(file, "is_animated", False):
            return ("first frame of several",)
    return ()


def _bits(file: Image.Image) -> int:
    """How many bits of a deep channel are used; some TIFFs hold 12 in 16."""
    try:
        return int(getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0])
    except (TypeError, ValueError, IndexError):
        return 16


def _upright(file: Image.Image) -> tuple[Image.Image, bool, Notes]:
    """The picture turned as its EXIF data says, and whether its sides have changed places."""
    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
        return ImageOps.exif_transpose(file), orientation in {5, 6, 7, 8}, ()
    except Exception as error:  # as of a decoder
        if _may_pass(error):
            raise
        return file, False, ("broken EXIF ignored",)


@contextmanager
def _quiet(max_pixels: int) -> Iterator[None]:
    """Pillow counts pixels against this bound, of frames too, and neither it nor libtiff and its kin, which write to
    the file descriptor itself, say anything on stderr.
    """
    bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    with warnings.catch_warnings(), _silent_stderr():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = bound


@contextmanager
def _silent_stderr() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def members(root: Path) -> list[Member]:
    """All files below a folder, numbers in their names counted as such; or the one file that `root` is.

    Raises InputError when there is nothing at `root`.
    """
    if root.is_file():
        return [Member(root, root.name)]
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: check the path")
    found = [_member(root, path) for path in _files(root)]
    return sorted(found, key=lambda member: (natural(member.name), member.name))


def natural(name: str) -> list[str | int]:
    """A key that sorts "2.jpg" before "10.jpg"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())]


def _files(root: Path) -> Iterator[Path]:
    """Everything below that is not a folder; links to folders are not followed."""
    for folder, folders, files in os.walk(root, onerror=_fail):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in [*files, *links])


def _fail(error: OSError) -> None:
    raise InputError(f"{error.filename} can't be listed ({error.strerror}): make it readable, or move it away")


def _member(root: Path, path: Path) -> Member:
    name = path.relative_to(root).as_posix()
    shown = os.fsencode(name).decode("utf-8", "replace")
    return Member(path, shown, _ignored(path, name) if shown == name else "its name is not UTF-8: rename it")


def _ignored(path: Path, name: str) -> str | None:
    *folders, last = name.split("/")
    if path.is_symlink():
        return "a link: put the file itself here"
    if not path.is_file():
        return "not a regular file"
    if "__MACOSX" in folders or last.startswith("._"):
        return "macOS keeps its own data here"
    if last.lower() in _SYSTEM:
        return "a system's file"
    if any(part.startswith(".") for part in (*folders, last)):
        return "hidden"
    suffix = Path(last).suffix.lower()
    return f"a sidecar ({suffix})" if suffix in _SIDECARS else None
