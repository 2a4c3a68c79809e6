"""Which files are read as photographs, and what those are that are not: told by their first bytes, nothing is parsed.

Pillow knows many more formats than photographs come in. Each is another decoder for a hostile file to break, and some
start other programs, so the rest is named and refused.
"""

import re
import struct
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import PurePath

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # MPO, a JPEG with more pictures, is opened as JPEG
PLUGINS = {"HEIF": "pillow_heif.HeifImagePlugin", "JXL": "pillow_jxl"}  # importing one registers it
HEAD = 512  # bytes that tell a file's kind

_HEIC = rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"
_HEIF_HELP = 'it is a HEIC picture: pip install "loractl[heif]"'
_JXL_HELP = 'it is a JPEG XL picture: pip install "loractl[jxl]"'

# What is told apart by content before Pillow is asked; a pattern, and the reason.
_CONTENTS = (
    (rb"version https://git-lfs", "it is a Git LFS pointer, not the picture: fetch it with git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", "it is a web page, not a picture: download it again"),
    (rb"(\xef\xbb\xbf)?\s*<.{0,500}?svg", "it is an SVG drawing, convert it to PNG"),
    (rb"(\xef\xbb\xbf)?\s*<[!?a-z]", "it is a web page or other markup, not a picture: download it again"),
    (rb"%PDF", "it is a PDF document, convert its pages to PNG"),
    (rb"PK\x03\x04|Rar!|7z\xbc\xaf|\x1f\x8b", "it is an archive: unpack it"),
    (rb"....ftyp(qt  |mp4|isom|iso2|avc1|M4V |3gp)|\x1aE\xdf\xa3|RIFF....AVI ", "it is a video: extract its frames"),
)
_RAW = {".cr2", ".cr3", ".nef", ".nrw", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq"}


@cache
def formats() -> tuple[str, ...]:
    """What is read here: HEIC and JPEG XL where their Pillow plugins are installed."""
    return (*FORMATS, *(name for name, module in PLUGINS.items() if _is_there(module)))


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def refusal(head: bytes, name: str) -> str | None:
    """Why a file with these first bytes and this name is not read; None where it may be a photograph."""
    if not head:
        return "it is empty (0 bytes)"
    for pattern, reason in _CONTENTS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return reason
    if PurePath(name).suffix.lower() in _RAW:
        return "it is a camera's raw file: develop it to JPEG or TIFF"
    return _missing_plugin(head)


def _missing_plugin(head: bytes) -> str | None:
    if "HEIF" not in formats() and re.match(_HEIC, head, re.DOTALL):
        return _HEIF_HELP
    if "JXL" not in formats() and head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return _JXL_HELP
    return None


def unknown(head: bytes, name: str) -> str:
    """What to say of a file that none of the formats accepts."""
    kind = _by_content(head) or _by_name(name)
    if kind in formats():
        return f"its {kind} data is broken: its beginning can't be understood"
    return f"{kind} files are not read: convert it to PNG" if kind else "it is not a picture"


def _by_content(head: bytes) -> str | None:
    """What is read here comes first. Pillow's own order is no help: it follows from which files were opened before."""
    Image.init()
    accepting = (name for name, (_, accept) in Image.OPEN.items() if accept is not None and _accepts(accept, head))
    return min(accepting, key=lambda name: (name not in formats(), name), default=None)


def _accepts(accept: Callable[[bytes], bool | str], head: bytes) -> bool:
    """False where Pillow's test fails, as that of bitmaps does on fewer than four bytes."""
    try:
        return accept(head[:16]) is True
    except (IndexError, TypeError, ValueError, struct.error):
        return False


def _by_name(name: str) -> str | None:
    return Image.registered_extensions().get(PurePath(name).suffix.lower())
