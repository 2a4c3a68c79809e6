"""Files as people have them, and as attackers make them: each becomes a picture or has a reason."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loractl.prepare import kinds
from loractl.prepare.reading import Unreadable
from tests.prepare.photos import HOSTILE, read, reason

READ_ALL = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
from loractl.prepare.reading import Unreadable, members, read_photo
for member in members(Path(sys.argv[1])):
    try:
        photo = read_photo(member.path, max_pixels=4_000_000, target=256)
        told = [photo.image.mode, photo.image.size[0], photo.image.size[1]]
    except Unreadable as error:
        told = str(error)
    print(json.dumps([member.name, told]))
"""


@pytest.fixture(scope="module")
def hostile() -> dict[str, list[object] | str]:
    """What becomes of every hostile file, in a process that has half a GiB of addresses and a minute."""
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(HOSTILE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_every_hostile_file_ends_as_a_picture_or_a_reason(hostile: dict[str, list[object] | str]) -> None:
    assert hostile.keys() == {path.name for path in HOSTILE.iterdir()}
    for name, told in hostile.items():
        assert told[0] == "RGB" if isinstance(told, list) else told and "\n" not in told, name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("decompression_bomb.gif", "more than 4 megapixels"),
        ("g4-multi.tiff", "more than 4 megapixels"),
        ("truncated_image.png", "it is broken"),
        ("crash-2020-10-test.tif", "it is broken"),
        ("bmp__b__badbitcount.bmp", "it is broken"),
        ("duplicate_xref_entry.pdf", "PDF document"),
        ("eps__zero_bb.eps", "EPS files are not read: convert it to PNG"),
        ("bc6h.dds", "DDS files are not read: convert it to PNG"),
        ("oom-8ed3316a4109213ca96fb8a256a0bfefdece1461.icns", "ICNS files are not read"),
        ("fli_oob__03r__notes", "it is not a picture"),
        ("hopper.jpg", ["RGB", 128, 128]),
        ("sugarshack_no_data.mpo", ["RGB", 640, 480]),
        ("tiff_strip_cmyk_jpeg.tif", ["RGB", 100, 100]),
        ("avif__rot1mir1.avif", ["RGB", 640, 427]),
        ("g4_orientation_6.tif", ["RGB", 590, 88]),
        ("hopper.webp", ["RGB", 128, 128]),
    ],
)
def test_what_becomes_of_a_hostile_file(hostile: dict[str, object], name: str, said: str | list[object]) -> None:
    told = hostile[name]
    assert said in told if isinstance(told, str) else told == said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jpg", b"", "it is empty"),
        ("a.jpg", b"\n<!DOCTYPE html><html>404</html>", "web page"),
        ("a.jpg", b"<!---->" * 80, "web page"),  # no pattern may go through all ways of reading this
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        ("a.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing"),
        ("a.nef", b"II*\0" + bytes(60), "camera's raw file"),
        ("a.mov", b"\0\0\0\x14ftypqt  ", "a video"),
        ("a.zip", b"PK\x03\x04" + bytes(60), "an archive"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(60), "its JPEG data is broken"),
        ("a.jpg", b"hello", "its JPEG data is broken"),
        ("a", b"hello", "it is not a picture"),
    ],
)
def test_what_is_no_picture_has_a_reason(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in reason(tmp_path / name)


def test_a_missing_plugin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "formats", lambda: kinds.FORMATS)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    assert "loractl[heif]" in reason(tmp_path / "a.heic")
    assert "loractl[jxl]" in reason(tmp_path / "a.jxl")


@pytest.mark.parametrize(("package", "format"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_plugins_are_used_when_there(tmp_path: Path, package: str, format: str) -> None:
    pytest.importorskip(package)
    assert format in kinds.formats()
    Image.new("RGB", (64, 48), (200, 30, 40)).save(tmp_path / "a.PICTURE", format, quality=95)
    photo = read(tmp_path / "a.PICTURE")
    assert (photo.format, photo.size) == (format, (64, 48))
    assert np.abs(np.asarray(photo.image, int) - (200, 30, 40)).max() < 8


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_formats_are_known_by_content(tmp_path: Path, format: str) -> None:
    Image.new("RGB", (40, 30), "navy").save(tmp_path / "picture.DAT", format)
    photo = read(tmp_path / "picture.DAT")
    assert (photo.format, photo.size, photo.scale, photo.notes) == (format, (40, 30), 1.0, ())
    assert np.abs(np.asarray(photo.image, int) - (0, 0, 128)).max() < 8


@pytest.mark.parametrize("backwards", [False, True])
def test_a_reason_does_not_depend_on_what_was_opened_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """Pillow registers a format when one of its files is first opened, and its test of bitmaps fails on short files."""
    Image.init()
    kinds.formats()  # registers its own
    monkeypatch.setattr(Image, "OPEN", dict(sorted(Image.OPEN.items(), reverse=backwards)))
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    assert reason(tmp_path / "a.jpg") == "its JPEG data is broken: its beginning can't be understood"
    (tmp_path / "b").write_bytes(b"BM")
    assert reason(tmp_path / "b") == "its BMP data is broken: its beginning can't be understood"


def test_pixels_are_counted_before_anything_is_decoded(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (100, 100)).save(data, "PNG")
    header_only = data.getvalue()[:60]  # whoever decodes this says that it is truncated
    (tmp_path / "a.png").write_bytes(header_only)
    with pytest.raises(Unreadable, match=r"more than 0.009999 megapixels.*read.max_megapixels"):
        read(tmp_path / "a.png", max_pixels=9_999)
    with pytest.raises(Unreadable, match="it is broken"):
        read(tmp_path / "a.png", max_pixels=10_000)


def test_reading_leaves_the_process_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    bound, descriptors = Image.MAX_IMAGE_PIXELS, len(list(Path("/proc/self/fd").iterdir()))
    reason(HOSTILE / "crash-2020-10-test.tif")
    assert bound == Image.MAX_IMAGE_PIXELS
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
