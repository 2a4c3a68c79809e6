"""Captions: where they come from, and how they vary from step to step."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loractl.data.captions import fill, read_caption, vary
from loractl.errors import InputError

TAGS = "rex, red dog, grass, sun"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_source(tmp_path: Path) -> None:
    picture = tmp_path / "a_red-dog.png"
    assert read_caption(picture, "prompt", "a photo of sks dog") == "a photo of sks dog"
    assert read_caption(picture, "filename", "") == "a red dog"
    assert read_caption(picture, "template", "sks dog", template="{name} by {prompt}") == "a red dog by sks dog"
    assert read_caption(picture, "jsonl", "", text="as listed") == "as listed"
    with pytest.raises(InputError, match=r"a_red-dog\.txt"):
        read_caption(picture, "sidecar", "")
    (tmp_path / "a_red-dog.txt").write_text("  sks dog asleep\n")
    assert read_caption(picture, "sidecar", "") == "sks dog asleep"


def test_auto_takes_the_nearest(tmp_path: Path) -> None:
    picture = tmp_path / "dog.png"
    assert read_caption(picture, "auto", "prompt") == "prompt"
    (tmp_path / "dog.txt").write_text("beside")
    assert read_caption(picture, "auto", "prompt") == "beside"
    assert read_caption(picture, "auto", "prompt", text="listed") == "listed"


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    (tmp_path / "dog.txt").write_text("sks dog", encoding="utf-8-sig")
    assert read_caption(tmp_path / "dog.png", "sidecar", "") == "sks dog"


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    picture = tmp_path / "dog.png"
    with pytest.raises(InputError, match="metadata"):
        read_caption(picture, "jsonl", "prompt")
    (tmp_path / "dog.txt").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        read_caption(picture, "sidecar", "prompt")
    (tmp_path / "dog.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_caption(picture, "auto", "prompt")


@pytest.mark.parametrize("template", ["", "a photo", "{names}", "{name} {0}", "{name!r}", "{name", "{}"])
def test_a_template_has_the_fields_there_are(template: str) -> None:
    with pytest.raises(InputError, match="template"):
        fill(template, "a dog", "sks dog")


def test_nothing_varies_unless_asked() -> None:
    odd = "kept ,exactly,,  as it is "
    assert vary(odd, rng(), shuffle_tags=False, keep_tokens=1, dropout=0.0) == odd


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_shuffled_tags_are_the_same_tags_with_the_kept_ones_in_front(seed: int, keep: int) -> None:
    varied = vary(TAGS, rng(seed), shuffle_tags=True, keep_tokens=keep, dropout=0.0).split(", ")
    assert varied[:keep] == TAGS.split(", ")[:keep]
    assert Counter(varied) == Counter(TAGS.split(", "))


def test_all_orders_come_equally_often() -> None:
    generator = rng()
    seen = Counter(vary("a,b,c,d", generator, shuffle_tags=True, keep_tokens=1, dropout=0.0) for _ in range(1200))
    assert len(seen) == 6 and min(seen.values()) > 140


def test_dropout_takes_captions_and_tags_as_often_as_it_says() -> None:
    generator = rng()
    varied = [
        vary(TAGS, generator, shuffle_tags=False, keep_tokens=1, dropout=0.3, tag_dropout=0.5) for _ in range(1000)
    ]
    whole = [caption.split(", ") for caption in varied if caption]
    assert 250 < 1000 - len(whole) < 350
    assert all(tags[0] == "rex" for tags in whole)
    assert all(0.42 < sum(tag in tags for tags in whole) / len(whole) < 0.58 for tag in ("red dog", "grass", "sun"))
    assert all(tags == sorted(tags, key=TAGS.split(", ").index) for tags in whole)  # the order stays
