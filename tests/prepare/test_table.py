"""The table can be read again, whatever texts are in it, and names and layouts are as programs expect them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loractl.data.examples import read_examples
from loractl.prepare.layouts import Layout, named, texts
from loractl.prepare.original import masks_of, read_original
from loractl.prepare.reading import members
from loractl.prepare.table import Output, Row, lines, read_rows, summary

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


def row(source: str, count: int = 1, mask: bool = False, caption: str = "a dog") -> Row:
    files = [(f".ppim/{source}-{number}.png", f".ppim/{source}-{number}.mask.png") for number in range(count)]
    outputs = [Output(file, "", (0, 0, 4, 4), (4, 4), (), cover if mask else None) for file, cover in files]
    return Row(source, "kept", size=(4, 4), outputs=tuple(replace(each, caption=caption) for each in outputs))


@settings(max_examples=40, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_rows_are_read_as_they_were_written(folder: Path, name: str, a: str, b: str) -> None:
    whole = replace(row(name, 2, True, a), verdict=(a, b), notes=(b,), scores={"blur": 1.5, "look": a})
    rows = [whole, Row(f"{name}2", "ignored", b)]
    (folder / "table.jsonl").write_text(lines(rows), encoding="utf-8")
    assert len(lines(rows).splitlines()) == 2
    assert [*read_rows(folder / "table.jsonl").values()] == rows


def test_a_torn_line_is_left_out_and_the_later_file_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(lines([Row("1", "kept"), Row("2", "kept")]) + lines([Row("3", "kept")])[:20] + "\n[]\n{}\n")
    second.write_text(lines([Row("2", "skipped", "why")]))
    found = read_rows(first, second, tmp_path / "missing")
    assert {name: each.status for name, each in found.items()} == {"1": "kept", "2": "skipped"}


def test_the_summary_counts_every_file_and_every_reason() -> None:
    rows = [row("a", 2), replace(row("b"), verdict=("blurred: 3 < 20",)), replace(row("c"), status="skipped", twin="a")]
    told = summary([*rows, Row("d", "unreadable", "why"), Row("e", "ignored", "why")])
    assert told == {
        **{"files": 5, "kept": 2, "skipped": 1, "unreadable": 1, "ignored": 1, "pictures": 3},
        **{"failing: blurred": 1, "failing: near-duplicate": 1},
    }


def names(rows: list[Row], **layout: object) -> list[str]:
    return [output.file for each in named(rows, Layout(**layout)) for output in each.outputs]  # type: ignore[arg-type]


def test_pictures_keep_their_names_and_no_two_are_the_same() -> None:
    rows = [row("a.jpg", 2), row("a.PNG"), row("A.gif"), row("in/b c.jpg"), row('x:"y".png')]
    found = names(rows)
    assert found == [
        *(
            "images/a.png",
            "images/a-2.png",
            "images/a-3.png",
            "images/A-4.png",
            "images/in/b c.png",
            "images/x__y_.png",
        ),
    ]
    assert names(rows, style="kohya", folder="sks dog", suffix=".jpg")[-2] == "10_sks dog/in-b c.jpg"
    assert names(rows, style="original") == [f"{number}.src.jpg" for number in range(6)]
    assert names([replace(row("a.jpg"), status="skipped")]) == [".ppim/a.jpg-0.png"], "what is left out has no name"


def write_set(root: Path, layout: Layout) -> list[Row]:
    """Two pictures with masks, in a layout."""
    rows = named([row("a.jpg", 1, True, "one, sks"), row("b.jpg", 1, True, "two")], layout)
    for each in rows:
        for output in each.outputs:
            for name, color in ((output.file, "red"), (str(output.mask), "white")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), color).save(root / name)
    for name, text in texts(rows, layout).items():
        (root / name).write_text(text, encoding="utf-8")
    return rows


@pytest.mark.parametrize("style", ["imagefolder", "kohya", "original"])
def test_every_layout_is_read_by_a_training_job(tmp_path: Path, style: str) -> None:
    rows = write_set(tmp_path, Layout(style))
    examples = read_examples(tmp_path, "auto", "")
    assert [(example.caption, example.path, example.mask) for example in examples] == [
        (output.caption, tmp_path / output.file, tmp_path / str(output.mask))
        for each in rows
        for output in each.outputs
    ]


def test_kohyas_programs_find_folders_and_captions(tmp_path: Path) -> None:
    write_set(tmp_path, Layout("kohya", folder="sks dog", repeats=3))
    (tmp_path / "metadata.jsonl").unlink()  # they don't know it
    examples = read_examples(tmp_path, "sidecar", "", masks=tmp_path / "masks")
    assert {(each.caption, each.repeats, each.path.parent.name) for each in examples} == {
        *(("one, sks", 3, "3_sks dog"), ("two", 3, "3_sks dog"))
    }


def test_the_original_layout_is_read_as_it_is_written(tmp_path: Path) -> None:
    write_set(tmp_path, Layout("original"))
    assert (tmp_path / "caption.txt").read_text() == "one, sks\ntwo\n"
    found = members(tmp_path)
    given = read_original(tmp_path, found)
    assert {name: (each.caption, each.mask) for name, each in given.items()} == {
        "0.src.jpg": ("one, sks", tmp_path / "0.mask.png"),
        "1.src.jpg": ("two", tmp_path / "1.mask.png"),
    }
    assert masks_of(found) == {"0.src.jpg": tmp_path / "0.mask.png", "1.src.jpg": tmp_path / "1.mask.png"}


@pytest.mark.parametrize(
    ("numbers", "captions"),
    [
        ((0, 1, 2), ("zero", "one", "two")),
        ((0, 2), ("zero", "two")),
        ((3, 7, 9), ("zero", "one", "two")),
        ((2, 10), ("two", "")),
        ((0, 1, 2, 3), ("zero", "one", "two", "")),
    ],
)
def test_captions_of_the_original_layout_stay_with_their_pictures(
    tmp_path: Path, numbers: tuple[int, ...], captions: tuple[str, ...]
) -> None:
    (tmp_path / "caption.txt").write_text("zero\none\ntwo\n")
    for number in numbers:
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.src.jpg")
    given = read_original(tmp_path, members(tmp_path))
    assert {name: each.caption for name, each in given.items()} == {
        f"{number}.src.jpg": caption for number, caption in zip(numbers, captions, strict=True)
    }


def test_another_layout_has_nothing_of_the_original(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "caption.txt").write_text("not about a\n")
    assert read_original(tmp_path, members(tmp_path)) == {}


def test_metadata_has_our_columns_beside_those_of_hugging_face() -> None:
    (line,) = texts(named([row("a.jpg")], Layout()), Layout())["metadata.jsonl"].splitlines()
    assert [*json.loads(line)] == [
        *("file_name", "text", "source", "sha256", "crop", "size", "flips", "changes", "scores", "verdict", "mask"),
        "caption_origin",
    ]
