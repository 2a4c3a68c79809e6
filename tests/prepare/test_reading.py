"""Files as people have them, and as attackers make them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from loractl.errors import InputError
from loractl.prepare import kinds
from loractl.prepare.reading import Photo, Unreadable, members, read_photo

HOSTILE = Path(__file__).parents[1] / "data" / "hostile-images"
PLENTY = 10_000_000

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


def read(path: Path, **options: object) -> Photo:
    return read_photo(path, **{"max_pixels": PLENTY, **options})  # type: ignore[arg-type]


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read(path)
    return str(caught.value)


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_pictures_are_put_upright(tmp_path: Path, format: str, orientation: int) -> None:
    upright = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    turns = [None, 0, 3, 1, 5, 2, 6, 4]  # what a camera held that way has done to the picture
    turn = turns[orientation - 1]
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", format, exif=exif)
    photo = read(tmp_path / "a")
    assert photo.size == upright.size
    assert photo.image.tobytes() == upright.tobytes()


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpegs_are_decoded_no_larger_than_needed(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((1603, 1200)).save(tmp_path / "a.jpg", exif=exif)
    photo = read(tmp_path / "a.jpg", target=300)
    sizes = ((401, 300), (1603, 1200)) if orientation == 1 else ((300, 401), (1200, 1603))
    assert (photo.image.size, photo.size) == sizes
    assert photo.scale == pytest.approx(0.25, rel=0.01)
    assert photo.notes == ("reduced 1/4 while decoding",)
    assert read(tmp_path / "a.jpg", target=301).scale == pytest.approx(0.5, rel=0.01)
    assert read(tmp_path / "a.jpg", target=5000).scale == 1


RAMP = np.linspace(0, 1, 256)


@pytest.mark.parametrize(
    ("name", "values", "note"),
    [
        ("a.png", np.rint(RAMP * 65535).astype(np.uint16), "16-bit"),
        ("a.tif", np.rint(RAMP * 65535).astype(np.uint16), "16-bit"),
        ("a.tif", np.rint(RAMP * 65535).astype(">u2"), "16-bit"),
        ("a.tif", RAMP.astype(np.float32), "float"),
        ("a.tif", (RAMP * 700 - 100).astype(np.float32), "float, scaled to its range"),
        ("a.tif", (RAMP * 2**30).astype(np.int32), "32-bit, scaled to its range"),
    ],
)
def test_depths_are_scaled_whole(tmp_path: Path, name: str, values: np.ndarray, note: str) -> None:
    Image.fromarray(values[None].repeat(3, axis=0)).save(tmp_path / name)
    photo = read(tmp_path / name)
    assert photo.notes == (note,)
    assert np.abs(np.asarray(photo.image, int)[0, :, 0] - np.arange(256)).max() <= 1


def test_values_that_are_no_numbers_do_no_harm(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 0.5, np.inf]], np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").image.getpixel((1, 0)) == (128, 128, 128)


def half_clear(mode: str) -> Image.Image:
    """Red; the left half is fully transparent."""
    picture = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (4, 0, 8, 4))
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "webp"), ("RGBA", "gif")]
)
def test_alpha_is_kept_and_can_be_laid_on_a_color(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    half_clear(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    photo = read(path)
    assert photo.alpha is not None
    assert (photo.alpha.getpixel((0, 0)), photo.alpha.getpixel((7, 0))) == (0, 255)
    laid = read(path, background=(0, 255, 0))
    assert laid.alpha is not None
    assert laid.image.getpixel((0, 0)) == (0, 255, 0)
    assert laid.image.getpixel((7, 0)) == photo.image.getpixel((7, 0))


def test_what_is_opaque_has_no_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), "red").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").alpha is None


def test_inks_become_light(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    photo = read(tmp_path / "a.jpg")
    assert photo.notes == ("CMYK converted",)
    assert np.abs(np.asarray(photo.image, int) - (254, 0, 0)).max() < 8


def test_profiles_are_converted_and_broken_ones_told(tmp_path: Path) -> None:
    with Image.open(HOSTILE / "frame_size.mpo") as file:
        profile, picture = file.info["icc_profile"], file.convert("RGB")
    picture.save(tmp_path / "wide.png", icc_profile=profile)
    picture.save(tmp_path / "broken.png", icc_profile=profile[:200])
    picture.convert("L").save(tmp_path / "gray.png", icc_profile=profile)
    wide, broken = read(tmp_path / "wide.png"), read(tmp_path / "broken.png")
    assert wide.notes == ("ICC profile converted",)
    assert 1 < np.abs(np.asarray(wide.image, int) - np.asarray(picture, int)).max() < 128
    assert broken.notes == ("broken ICC profile ignored",)
    assert broken.image.tobytes() == picture.tobytes()
    assert read(tmp_path / "gray.png").notes == ("ICC profile of other colors ignored",)


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    photo = read(tmp_path / "a.gif")
    assert photo.notes == ("first frame of several",)
    assert photo.image.getpixel((0, 0)) == (255, 0, 0)


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


def test_members_are_all_there_in_natural_order(tmp_path: Path) -> None:
    names = ["10.jpg", "2.JPG", "b/1.png", "a.txt", ".DS_Store", "._2.JPG", "__MACOSX/x.png", ".git/y.png", "Thumbs.db"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = members(tmp_path)
    assert sorted(member.name for member in found) == sorted(names)
    assert [member.name for member in found if member.ignored is None] == ["2.JPG", "10.jpg", "b/1.png"]
    reasons = {member.name: member.ignored for member in found}
    assert reasons["a.txt"] == "a sidecar (.txt)"
    assert reasons["._2.JPG"] == reasons["__MACOSX/x.png"] == "macOS keeps its own data here"
    assert (reasons[".DS_Store"], reasons[".git/y.png"]) == ("a system's file", "hidden")
    assert all(member.path == tmp_path / member.name for member in found)


def test_links_and_pipes_are_not_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a.png").touch()
    (root / "file.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    found = {member.name: member.ignored for member in members(root)}
    assert found.pop("pipe.png") == "not a regular file"
    assert found == dict.fromkeys(["file.png", "folder", "loop"], "a link: put the file itself here")


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    (member,) = members(tmp_path)
    assert member.ignored == "its name is not UTF-8: rename it"
    member.name.encode()


def test_a_single_file_and_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert [member.name for member in members(tmp_path / "a.jpg")] == ["a.jpg"]
    with pytest.raises(InputError, match="there is no folder"):
        members(tmp_path / "nowhere")


def test_a_hopper_of_each_orientation_is_the_same_one() -> None:
    """Real files of other people: JPEGs with EXIF data for each way of holding a camera."""
    photos = [read(HOSTILE / f"hopper_orientation_{number}.jpg").image for number in range(2, 9)]
    first = np.asarray(ImageOps.grayscale(photos[0]), float)
    for photo in photos[1:]:
        assert np.abs(np.asarray(ImageOps.grayscale(photo), float) - first).mean() < 6
