"""What people and programs are told of scores."""

import json
from pathlib import Path

from PIL import Image

from loractl.evaluate.report import COLUMNS, photograph_row, prompt_rows, table, write_scores
from loractl.evaluate.scores import Score

SCORES = {"class_drift": Score(0.5, 0.4, 0.61, 8, 0.125), "diversity": Score(0.25, 0.2, 0.3, 8)}


def test_a_table_tells_value_interval_and_chance() -> None:
    assert table(SCORES) == {
        "class_drift": "0.500 (0.400 to 0.610; 0.125 by chance)",
        "diversity": "0.250 (0.200 to 0.300)",
    }


def test_the_file_holds_every_number(tmp_path: Path) -> None:
    file = write_scores(tmp_path / "deep" / "scores.json", SCORES, {"model": "lab"})
    said = json.loads(file.read_text(encoding="utf-8"))
    assert said["model"] == "lab" and {name: Score(**each) for name, each in said["scores"].items()} == SCORES
    assert [path.name for path in file.parent.iterdir()] == ["scores.json"], "no temporary file stays"


def test_a_row_holds_pictures_of_its_own_prompt() -> None:
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(20)]
    rows = prompt_rows(["a", "b"] * 10, pictures)
    assert [(prompt, len(row)) for prompt, row in rows] == [("a", COLUMNS), ("b", COLUMNS)]
    assert [picture.getpixel((0, 0)) for picture in rows[1][1]] == [(i, 0, 0) for i in range(1, 2 * COLUMNS, 2)]


def test_photographs_become_squares(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "wide.png")
    label, row = photograph_row("held out", [tmp_path / "wide.png"] * 20, 16)
    assert label == "held out" and [picture.size for picture in row] == [(16, 16)] * COLUMNS
