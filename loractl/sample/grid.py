"""The progress grid: what each checkpoint of a run draws, one below the other, from the same prompts and seeds."""

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from loractl.sample.denoise import Request
from loractl.sample.picture import LABEL, MARGIN, sheet

LINE = LABEL + 4  # pixels from one line of a heading to the next


def progress_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), cell: int = 128
) -> Image.Image:
    """A row for each checkpoint, the base model's first, under its label ("step 250"); a column for each request,
    under its heading (`headings`), which is broken into lines as wide as a picture.
    """
    body, font = sheet(rows, cell), ImageFont.load_default(LABEL)
    broken = [list(lines_of(heading, font, cell)) for heading in columns]
    top = max((MARGIN + LINE * len(lines) for lines in broken), default=0)
    whole = Image.new("RGB", (body.width, top + body.height), "white")
    whole.paste(body, (0, top))
    pen = ImageDraw.Draw(whole)
    for column, lines in enumerate(broken):
        for row, line in enumerate(lines):
            pen.text((MARGIN + column * (cell + MARGIN), MARGIN + row * LINE), line, fill="black", font=font)
    return whole


def headings(requests: Sequence[Request]) -> list[str]:
    """What tells the columns apart: the prompt and the seed."""
    return [f"{request.prompt} (seed {request.seed})" for request in requests]


def lines_of(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    """The words of a text in lines of at most `width` pixels; a longer word is broken anywhere."""
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
        while font.getlength(line) > width:
            end = next(end for end in range(len(line) - 1, 0, -1) if end == 1 or font.getlength(line[:end]) <= width)
            yield line[:end]
            line = line[end:]
    if line:
        yield line
