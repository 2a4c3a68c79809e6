"""A page that shows every file with its crop boxes, masks, captions, scores and verdict: one HTML file, no network."""

import base64
import json
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from loractl.prepare.table import Output, Row, kind

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "{{data}}"
PICTURES = 2000  # at about 15 KB each; files beyond them are told without a picture
MASK_SIDE = 128

Locate = Callable[[str], Path]  # the name of a file → where it is now


def page(title: str, rows: Iterable[Row], locate: Locate) -> str:
    """The HTML; `locate` says where a thumbnail or a mask is. All texts travel as JSON, in which no tag can begin."""
    files = [_file(row, locate if number < PICTURES else None) for number, row in enumerate(rows)]
    data = json.dumps({"title": title, "files": files}).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, data)


def _file(row: Row, locate: Locate | None) -> dict[str, Any]:
    """What the page says of a file, without pictures where nothing locates them; crops are fractions of the whole."""
    size = {"size": " × ".join(map(str, row.size))} if all(row.size) else {}
    scores = {name: f"{value:.4g}" for name, value in row.numbers().items() if name not in ("width", "height")}
    notes = {"notes": ", ".join(row.notes)} if row.notes else {}
    return {
        "source": row.source,
        "status": row.status,
        "reason": row.reason,
        "verdict": row.failing,
        "kinds": list(dict.fromkeys([row.status, *map(kind, row.failing)])),
        "scores": {**size, **scores, **notes},
        "thumbnail": _uri("image/jpeg", locate(row.thumbnail).read_bytes()) if locate and row.thumbnail else "",
        "pictures": [_picture(row, output, locate) for output in row.outputs],
    }


def _picture(row: Row, output: Output, locate: Locate | None) -> dict[str, Any]:
    """Changed copies have no mask here: it would not lie on the whole."""
    (width, height), (left, top, right, bottom) = row.size, output.crop
    return {
        "file": output.file,
        "crop": [left / width, top / height, right / width, bottom / height],
        "size": output.size,
        "changes": output.changes,
        "mask": _mask(locate(output.mask)) if locate and output.mask and not output.changes else "",
        "caption": output.caption,
        "origin": output.caption_origin,
    }


def _mask(path: Path) -> str:
    """A mask, small."""
    file = BytesIO()
    with Image.open(path) as mask:
        small = mask.convert("L")
        small.thumbnail((MASK_SIDE, MASK_SIDE))
    small.save(file, "PNG")
    return _uri("image/png", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
