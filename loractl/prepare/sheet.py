"""Contact sheets: every picture in small with its crop boxes and mask, and what is said of it below."""

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from loractl.prepare.page import Locate
from loractl.prepare.table import Row

CELL, MARGIN, LABEL = 192, 8, 13  # pixels: of a picture's longer side, between cells, of a line of text
COLUMNS, ROWS = 6, 25  # of one sheet
LINES = 3


def sheets(rows: Sequence[Row], locate: Locate) -> Iterator[Image.Image]:
    """As many sheets as it takes; thumbnails and masks are found by `locate`."""
    shown = [row for row in rows if row.thumbnail]
    for start in range(0, len(shown), COLUMNS * ROWS):
        yield _sheet(shown[start : start + COLUMNS * ROWS], locate)


def _sheet(rows: Sequence[Row], locate: Locate) -> Image.Image:
    columns, lines = min(COLUMNS, len(rows)), -(-len(rows) // COLUMNS)
    wide, high = CELL + MARGIN, CELL + LINES * (LABEL + 2) + MARGIN
    whole = Image.new("RGB", (MARGIN + columns * wide, MARGIN + lines * high), "white")
    for number, row in enumerate(rows):
        left, top = MARGIN + number % COLUMNS * wide, MARGIN + number // COLUMNS * high
        _draw(whole, row, locate, left, top)
    return whole


def _draw(whole: Image.Image, row: Row, locate: Locate, left: int, top: int) -> None:
    """One file: the picture in the middle of its cell, then its name, its caption and its verdict."""
    picture = _marked(row, locate)
    whole.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(LABEL)
    caption = row.outputs[0].caption if row.status == "kept" else ""
    verdict = "; ".join(row.failing) or row.reason or row.status
    mood = "firebrick" if row.failing else "green"
    texts = ((row.source, "black"), (caption or "no caption", "dimgray"), (verdict, mood))
    for line, (text, color) in enumerate(texts):
        place = (left, top + CELL + 2 + line * (LABEL + 2))
        pen.text(place, _fitting(text, font), fill=color, font=font)


def _marked(row: Row, locate: Locate) -> Image.Image:
    """The thumbnail with its crop boxes; what a mask hides is darkened."""
    with Image.open(locate(row.thumbnail)) as file:
        picture = file.convert("RGB")
    picture.thumbnail((CELL, CELL))
    across, down = picture.width / row.size[0], picture.height / row.size[1]
    for output in row.outputs:
        left, top, right, bottom = (
            round(side * scale) for side, scale in zip(output.crop, (across, down, across, down), strict=True)
        )
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        if output.mask is not None and not output.changes:
            with Image.open(locate(output.mask)) as file:
                light = file.convert("L").resize((right - left, bottom - top)).point(lambda value: 64 + value * 3 // 4)
            part = picture.crop((left, top, right, bottom))
            picture.paste(Image.composite(part, Image.new("RGB", part.size), light), (left, top))
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline="yellow")
    return picture


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a text as a cell has room for; characters that the font lacks become ?."""
    plain = " ".join(text.split())[:CELL].encode("latin-1", "replace").decode("latin-1")
    while font.getlength(plain) > CELL:
        plain = f"{plain.rstrip('…')[:-1]}…" if len(plain) > 1 else ""
    return plain
