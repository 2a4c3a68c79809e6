"""The output's folder: names are exchanged safely, and what is another's is never touched."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from loractl.errors import InputError
from loractl.prepare.write import STAGE, Folder, encode, write_whole


def put(root: Path, **files: str) -> None:
    for name, text in files.items():
        write_whole(root / name, text.encode())


def publish(root: Path, files: dict[str, str], overwrite: bool = False) -> list[str]:
    return Folder(root, overwrite).publish(files, {})


def texts(root: Path) -> dict[str, str]:
    """Every file that a person sees."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {name: path.read_text() for path in found if not (name := path.relative_to(root).as_posix()).startswith(".")}


def test_names_are_exchanged(tmp_path: Path) -> None:
    put(tmp_path, **{f"{STAGE}/{name}": name for name in "abc"})
    publish(tmp_path, {"x/0": f"{STAGE}/a", "x/1": f"{STAGE}/b", "x/2": f"{STAGE}/c"})
    assert texts(tmp_path) == {"x/0": "a", "x/1": "b", "x/2": "c"}
    publish(tmp_path, {"x/0": "x/1", "x/1": "x/2", "x/2": "x/0"})
    assert texts(tmp_path) == {"x/0": "b", "x/1": "c", "x/2": "a"}


def test_a_name_that_is_given_away_is_filled_again_by_an_equal_file(tmp_path: Path) -> None:
    put(tmp_path, **{f"{STAGE}/a": "same", f"{STAGE}/b": "same"})
    publish(tmp_path, {"x/0": f"{STAGE}/a"})
    publish(tmp_path, {"x/0": f"{STAGE}/b", "x/1": "x/0"})
    assert texts(tmp_path) == {"x/0": "same", "x/1": "same"}


def test_what_was_ours_goes_and_what_is_not_stays(tmp_path: Path) -> None:
    put(tmp_path, **{f"{STAGE}/a": "a", f"{STAGE}/b": "b", "images/theirs": "theirs"})
    publish(tmp_path, {"images/a": f"{STAGE}/a", "apart/b": f"{STAGE}/b"})
    assert publish(tmp_path, {}) == []
    assert texts(tmp_path) == {"images/theirs": "theirs"}
    assert not (tmp_path / "apart").exists(), "an empty folder of ours goes as well"


def test_what_somebody_has_changed_stays_and_is_told(tmp_path: Path) -> None:
    put(tmp_path, **{f"{STAGE}/a": "a"})
    publish(tmp_path, {"images/a": f"{STAGE}/a"})
    put(tmp_path, **{"images/a": "retouched"})
    assert publish(tmp_path, {}) == ["images/a"]
    assert texts(tmp_path) == {"images/a": "retouched"}


@pytest.mark.parametrize("kind", ["never ours", "changed"])
def test_nothing_of_anothers_is_replaced_unasked(tmp_path: Path, kind: str) -> None:
    put(tmp_path, **{f"{STAGE}/a": "a", f"{STAGE}/b": "b", f"{STAGE}/new": "new"})
    if kind == "changed":
        publish(tmp_path, {"images/b": f"{STAGE}/b"})
    put(tmp_path, **{"images/b": "theirs"})
    wanted = {"images/a": f"{STAGE}/a", "images/b": f"{STAGE}/new"}
    with pytest.raises(
        InputError, match=r"1 files that ppim did not write, or that were changed since: .*:\nimages/b$"
    ):
        publish(tmp_path, wanted)
    assert texts(tmp_path) == {"images/b": "theirs"}, "nothing has moved"
    publish(tmp_path, wanted, overwrite=True)
    assert texts(tmp_path) == {"images/a": "a", "images/b": "new"}


def test_a_run_that_was_killed_does_not_take_its_files_for_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, **{f"{STAGE}/a": "a", f"{STAGE}/b": "b"})
    moved = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "images/b":
            raise KeyboardInterrupt
        return moved(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        publish(tmp_path, {"images/a": f"{STAGE}/a", "images/b": f"{STAGE}/b"})
    assert texts(tmp_path) == {"images/a": "a"}
    put(tmp_path, **{f"{STAGE}/a": "a", f"{STAGE}/b": "b"})  # both are made again
    publish(tmp_path, {"images/a": f"{STAGE}/a", "images/b": f"{STAGE}/b"})
    assert texts(tmp_path) == {"images/a": "a", "images/b": "b"}


def test_what_is_as_it_was_is_not_written_again(tmp_path: Path) -> None:
    Folder(tmp_path).publish({}, {"table": b"rows"})
    stamp = (tmp_path / "table").stat().st_mtime_ns
    Folder(tmp_path).publish({}, {"table": b"rows"})
    assert (tmp_path / "table").stat().st_mtime_ns == stamp


def test_png_keeps_every_pixel_and_jpeg_its_colors() -> None:
    picture = Image.new("RGB", (16, 16), (200, 30, 90))
    picture.putpixel((3, 3), (0, 255, 0))
    for format, worst in (("png", 0), ("jpeg", 60)):
        again = Image.open(BytesIO(encode(picture, format, 95)))
        assert again.format == format.upper()
        assert max(abs(a - b) for a, b in zip(again.getpixel((3, 3)), (0, 255, 0), strict=True)) <= worst
