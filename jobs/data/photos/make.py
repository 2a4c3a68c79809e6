"""Draws a folder as people have it, good pictures and bad ones: `python jobs/data/photos/make.py`."""

import random
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

from loractl.lab.drawing import draw
from loractl.lab.subjects import SUBJECTS

FOLDER, SIDE = Path(__file__).parent, 288
ORIENTATION = 0x0112  # the EXIF tag; 6: the camera was held upright


def picture(place: str) -> Image.Image:
    return draw(SUBJECTS["subject2"].at(place), random.Random(f"photos {place}"), SIDE)


def letterboxed(shown: Image.Image) -> Image.Image:
    """With black bars above and below."""
    wide = Image.new("RGB", (SIDE, SIDE))
    wide.paste(shown.crop((0, 40, SIDE, SIDE - 8)), (0, 24))
    return wide


exif = Image.Exif()
exif[ORIENTATION] = 6
picture("beach").transpose(Image.Transpose.ROTATE_90).save(FOLDER / "IMG_0001.JPG", quality=90, exif=exif)
picture("grass").save(FOLDER / "in_the-grass.jpg", quality=90)
ImageOps.mirror(picture("grass")).resize((260, 260)).save(FOLDER / "in_the-grass (copy).jpg", quality=60)
picture("snow").save(FOLDER / "snow.png", optimize=True)
(FOLDER / "snow.txt").write_text("a critter in the snow\n", encoding="utf-8")
letterboxed(picture("desert")).save(FOLDER / "desert.webp", quality=85)
picture("night").filter(ImageFilter.GaussianBlur(6)).save(FOLDER / "night.jpg", quality=90)
(FOLDER / "cut off.jpg").write_bytes((FOLDER / "in_the-grass.jpg").read_bytes()[:5000])
(FOLDER / "from the web.jpg").write_text("<!doctype html>\n<title>404</title>\n", encoding="utf-8")
