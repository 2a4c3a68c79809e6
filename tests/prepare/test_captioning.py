"""Which caption a picture has, and what is said of where it came from."""

import subprocess
import sys
from pathlib import Path

import pytest

from loractl.errors import InputError
from loractl.prepare.caption_rules import Rules
from loractl.prepare.captioning import LONGEST, Caption, Source, Wording, own_caption, ruled
from loractl.prepare.reading import Unreadable

PLAIN: tuple[Source, ...] = ("sidecar", "filename", "template")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return tmp_path / "a_red-car_02.jpg"


def test_the_first_source_with_a_text_counts(picture: Path) -> None:
    assert own_caption(picture, Wording(PLAIN)) == Caption("a red car", "filename")
    picture.with_suffix(".txt").write_text(" \n", encoding="utf-8")
    assert own_caption(picture, Wording(PLAIN)) == Caption("a red car", "filename")
    picture.with_suffix(".txt").write_bytes(b"\xef\xbb\xbfmy car,\r\nin  red\n")
    assert own_caption(picture, Wording(PLAIN)) == Caption("my car, in red", "sidecar")
    assert own_caption(picture, Wording(("template",), "{name}!")) == Caption("a red car!", "template")


def test_both_endings_of_caption_files_are_known(picture: Path) -> None:
    picture.with_suffix(".caption").write_text("kohya's", encoding="utf-8")
    assert own_caption(picture, Wording(("sidecar",))) == Caption("kohya's", "sidecar")
    picture.with_suffix(".txt").write_text("mine", encoding="utf-8")
    assert own_caption(picture, Wording(("sidecar",))) == Caption("mine", "sidecar")


def test_the_captioner_is_asked_for_what_nothing_before_it_has(picture: Path) -> None:
    wording = Wording(("sidecar", "captioner", "filename"))
    assert own_caption(picture, wording) is None
    picture.with_suffix(".txt").write_text("mine", encoding="utf-8")
    assert own_caption(picture, wording) == Caption("mine", "sidecar")


def test_a_picture_may_have_nothing(picture: Path) -> None:
    assert own_caption(picture.with_name("IMG_0001.JPG"), Wording(("sidecar", "filename"))) == Caption("", "nothing")


def test_templates_know_the_rules_words(picture: Path) -> None:
    wording = Wording(("template",), rules=Rules(trigger="sks", class_word="car"))
    assert own_caption(picture, wording) == Caption("a photo of sks car", "template")
    with pytest.raises(InputError, match="has another field"):
        own_caption(picture, Wording(("template",), "{nmae}"))


def test_rules_change_the_text_and_not_its_origin() -> None:
    wording = Wording(rules=Rules(trigger="sks", where="class", class_word="car"))
    assert ruled(Caption("a red car", "captioner lab"), wording) == Caption("a red sks", "captioner lab")


def test_caption_files_that_can_not_be_used_are_told(picture: Path, tmp_path: Path) -> None:
    sidecar = picture.with_suffix(".txt")
    sidecar.write_bytes(b"caf\xe9")
    with pytest.raises(Unreadable, match=r"a_red-car_02\.txt is not UTF-8 text: save it as UTF-8"):
        own_caption(picture, Wording(PLAIN))
    sidecar.write_bytes(b"a" * (LONGEST + 1))
    with pytest.raises(Unreadable, match="has more than 100,000 bytes"):
        own_caption(picture, Wording(PLAIN))
    sidecar.unlink()
    (tmp_path / "elsewhere").write_text("a secret", encoding="utf-8")
    sidecar.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unreadable, match="is a link"):
        own_caption(picture, Wording(PLAIN))


def test_workers_need_no_torch() -> None:
    modules = ("batches", "caption_models", "caption_rules", "captioning", "mask_models", "masks", "pretrained")
    code = "".join(f"import loractl.prepare.{name}\n" for name in modules) + "import loractl_captioners, sys\n"
    subprocess.run(
        [sys.executable, "-c", f"{code}assert not {{'torch', 'transformers'}} & {{*sys.modules}}"], check=True
    )
