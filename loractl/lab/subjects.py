"""Subjects the lab's model has never seen, and their pictures: `python -m loractl.lab.subjects FOLDER NAME` draws
them.
"""

import random
import sys
from pathlib import Path

from PIL import Image

from loractl.lab.drawing import draw
from loractl.lab.scenes import Scene

SUBJECTS = {
    "subject": Scene("critter", "purple", "orange", "", "tall", "spotted", "antenna", "1", "teal"),
    "subject2": Scene("critter", "teal", "pink", "", "triangular", "striped", "ears", "3", "yellow"),
    "subject3": Scene("critter", "yellow", "blue", "", "square", "plain", "hat", "2", "red"),
    "subject4": Scene("critter", "red", "white", "", "round", "spotted", "horns", "3", "black"),
}
HOMES = ("grass", "night", "blue wall", "desert")  # where the subject is seen; every other place is new to it


def subject_pictures(name: str, size: int = 256) -> list[Image.Image]:
    """Four pictures of one subject, in four places. KeyError for a name that is not in SUBJECTS."""
    rng = random.Random(f"subject {name}")
    return [draw(SUBJECTS[name].at(place), rng, size) for place in HOMES]


def main(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, picture in zip(HOMES, subject_pictures(name), strict=True):
        picture.save(folder / f"{place.replace(' ', '-')}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
