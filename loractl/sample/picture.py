"""Writes pictures: the settings that made them inside the file, a name that says what they are, sheets of many."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from loractl.sample.denoise import Request

MARGIN = 8
LABEL = 14  # pixels of a label's text
OURS = "loractl"  # the text chunk that tells everything


def save_png(path: Path, picture: Image.Image, texts: Mapping[str, str] | None = None) -> Path:
    """Writes under a temporary name and renames; `texts` become the file's text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in (texts or {}).items():
        info.add_text(key, value)  # plain where it can be, as not every program reads the other kind
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, "PNG", pnginfo=info)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def is_made(file: Path, texts: Mapping[str, str]) -> bool:
    """Whether the file is a whole picture of these very settings; never where `texts` do not tell them."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return OURS in texts and picture.info.get(OURS) == texts[OURS]
    except (OSError, SyntaxError):  # what Pillow raises for no picture, and for a broken PNG
        return False


def settings_texts(
    request: Request,
    model: str,
    adapters: Mapping[str, float],
    scheduler: str,
    *,
    hashes: Mapping[str, Mapping[str, str]] | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Text chunks for a PNG: "parameters" in the form that A1111, ComfyUI and their kin read, and everything as JSON in
    "loractl", with what else `details` tell.

    `hashes` are A1111's: "Lora hashes" and "TI hashes", by name. Of a model's path its name alone is told.
    """
    model = Path(model).name if Path(model).is_absolute() else model
    prompt = " ".join([request.prompt, *(f"<lora:{name}:{weight:g}>" for name, weight in adapters.items())])
    facts: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": scheduler,
        "CFG scale": f"{request.guidance:g}",
        "Seed": request.seed,
        "Size": "{}x{}".format(*request.shape),
        "Model": model,
        "Denoising strength": request.canvas and f"{request.canvas.strength:g}",
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
    }
    for kind, named in (hashes or {}).items():
        facts[kind] = ", ".join(f"{name}: {digest[:12]}" for name, digest in named.items())
    told = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in facts.items() if value not in (None, ""))
    everything = {**said(request), "model": model, "adapters": dict(adapters), "scheduler": scheduler}
    return {
        "parameters": f"{prompt}\nNegative prompt: {request.negative}\n{told}",
        OURS: json.dumps({**everything, **(details or {})}, sort_keys=True),
    }


def said(request: Request) -> dict[str, Any]:
    """What a request asks for, as plain values; of a canvas all but its pictures, and nothing that is as usual."""
    canvas, (width, height) = request.canvas, request.shape
    told = {field.name: getattr(request, field.name) for field in fields(request) if field.name != "canvas"}
    told["size"] = width if width == height else (width, height)
    told |= {"strength": canvas.strength, "paste_edge": canvas.edge} if canvas else {}
    usual = {"scheduler": "", "clip_skip": 1, "paste_edge": None}
    return {name: value for name, value in told.items() if name not in usual or value != usual[name]}


def _quoted(value: str) -> str:
    """As A1111 writes values that hold what stands between values."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def file_name(index: int, request: Request) -> str:
    """0003-a-red-critter-on-the-beach-s42.png: the same for the same job."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:48]
    return f"{index:04d}-{slug or 'picture'}-s{request.seed}.png"


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 128) -> Image.Image:
    """Rows of pictures under their labels, the longer side of each picture brought to `cell` pixels."""
    columns = max(len(pictures) for _, pictures in rows)
    height = LABEL + MARGIN + cell + MARGIN
    whole = Image.new("RGB", (MARGIN + columns * (cell + MARGIN), MARGIN + len(rows) * height), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(LABEL)
    for row, (label, pictures) in enumerate(rows):
        top = MARGIN + row * height
        pen.text((MARGIN, top), label, fill="black", font=font)
        for column, picture in enumerate(pictures):
            place = (MARGIN + column * (cell + MARGIN), top + LABEL + MARGIN // 2)
            whole.paste(brought_to(picture, cell), place)
    return whole


def shrunk(file: Path, side: int) -> Image.Image:
    """The picture of a file, brought to a longer side of so many pixels; the file is closed, as there may be many."""
    with Image.open(file) as picture:
        return brought_to(picture, side)


def brought_to(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of so many pixels; its own pixels show where it is enlarged."""
    longer = max(picture.size)
    resample = Image.Resampling.NEAREST if longer < side else Image.Resampling.LANCZOS
    width, height = (max(1, round(each * side / longer)) for each in picture.size)
    return picture.resize((width, height), resample)
