"""Writes pictures: the settings that made them inside the file, a name that says what they are, sheets of many."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from loractl.sample.denoise import Request

MARGIN = 8
LABEL = 14  # pixels of a label's text


def save_png(path: Path, picture: Image.Image, texts: Mapping[str, str] | None = None) -> Path:
    """Writes under a temporary name and renames; `texts` become the file's text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in (texts or {}).items():
        info.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, "PNG", pnginfo=info)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def settings_texts(request: Request, model: str, adapters: Mapping[str, float], scheduler: str) -> dict[str, str]:
    """Text chunks for a PNG: "parameters" in the form that A1111 and its kin read, and everything as JSON in
    "loractl".
    """
    prompt = " ".join([request.prompt, *(f"<lora:{name}:{weight:g}>" for name, weight in adapters.items())])
    facts = f"Steps: {request.steps}, Sampler: {scheduler}, CFG scale: {request.guidance:g}, Seed: {request.seed}, "
    facts += f"Size: {request.size}x{request.size}, Model: {model}"
    everything = {**vars(request), "model": model, "adapters": dict(adapters), "scheduler": scheduler}
    return {
        "parameters": f"{prompt}\nNegative prompt: {request.negative}\n{facts}",
        "loractl": json.dumps(everything, sort_keys=True),
    }


def file_name(index: int, request: Request) -> str:
    """0003-a-red-critter-on-the-beach-s42.png: the same for the same job."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:48]
    return f"{index:04d}-{slug or 'picture'}-s{request.seed}.png"


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 128) -> Image.Image:
    """Rows of pictures under their labels, each picture brought to `cell` pixels."""
    columns = max(len(pictures) for _, pictures in rows)
    height = LABEL + MARGIN + cell + MARGIN
    whole = Image.new("RGB", (MARGIN + columns * (cell + MARGIN), MARGIN + len(rows) * height), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(LABEL)
    for row, (label, pictures) in enumerate(rows):
        top = MARGIN + row * height
        pen.text((MARGIN, top), label, fill="black", font=font)
        for column, picture in enumerate(pictures):
            resample = Image.Resampling.NEAREST if picture.width < cell else Image.Resampling.LANCZOS
            place = (MARGIN + column * (cell + MARGIN), top + LABEL + MARGIN // 2)
            whole.paste(picture.resize((cell, cell), resample), place)
    return whole
