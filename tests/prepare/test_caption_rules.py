"""Rules for captions: each a table of what it does, and the laws that hold for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractl.errors import InputError
from loractl.prepare.caption_rules import (
    Rules,
    fill_template,
    map_tags,
    one_line,
    put_trigger,
    shorten,
    surround,
    unique_tags,
    words_of,
)

texts = st.text("ab, _-.D", max_size=40).map(one_line)

NAMES = {
    "dog_in_the-park_03.jpg": "dog in the park",
    "holidays/2019/Red car (2).JPG": "Red car",
    "dog.v2.png": "dog v2",
    "dog copy.png": "dog",
    "3 dogs.webp": "3 dogs",
    "0007-cat.png": "cat",
    "00042-3169482-a dog.png": "a dog",
    "noon": "noon",
    "image of a dog.jpg": "image of a dog",
    "p dog.jpg": "p dog",
    "the MG 4 at noon.jpg": "the MG 4 at noon",
    "03.png": "",
}
NO_WORDS = (  # as cameras, phones and messengers write them
    "IMG_1234.jpg",
    "IMG_1234 (1).jpg",
    "IMG_E1234.HEIC",
    "IMG-20230101-WA0001.jpg",
    "IMG_20230101_123456_HDR.jpg",
    "_MG_1234.jpg",
    "DSC00012.JPG",
    "GOPR0123.JPG",
    "PXL_20230101_123456789.MP.jpg",
    "20230101_123456.jpg",
    "image0.jpg",
    "WhatsApp Image 2023-01-01 at 12.00.00.jpeg",
    "Screenshot 2023-01-01 at 12.00.00.png",
    "Screenshot 2023-01-01 at 12.00.00\u202fPM.png",
    "signal-2023-01-01-120000.jpg",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_become_words(name: str) -> None:
    assert words_of(name) == NAMES[name]


@pytest.mark.parametrize("name", NO_WORDS)
def test_names_that_machines_give_have_no_words(name: str) -> None:
    assert words_of(name) == ""


def test_templates_are_filled() -> None:
    assert fill_template("a photo of {trigger} {class}", trigger="sks", class_word="dog") == "a photo of sks dog"
    assert fill_template("a {trigger} {class} at {name}", class_word="dog", name="noon") == "a dog at noon"
    with pytest.raises(InputError, match=r"has another field than \{trigger\}, \{class\}, \{name\}"):
        fill_template("a {style} photo")
    with pytest.raises(InputError, match="is broken"):
        fill_template("a photo of {trigger")


TRIGGERS = [  # text, trigger, class word, result
    ("a dog on grass", "sks", "dog", "a sks on grass"),
    ("Dog on grass", "sks", "dog", "sks on grass"),
    ("a dog and the dog's DOG", "<Rex>", "dog", "a <Rex> and the <Rex>'s <Rex>"),
    ("dogs eat hot-dogs, hot-dog", "sks", "dog", "sks, dogs eat hot-dogs, hot-dog"),
    ("a teddy  bear", "sks", "teddy bear", "a sks"),
    ("a photo of sks dog", "sks dog", "dog", "a photo of sks dog"),
    ("a photo of SKS dog", "sks", "dog", "a photo of sks dog"),
    ("a dog", "sks", "", "sks, a dog"),
    ("a dog", r"s\1", "dog", r"a s\1"),
    ("", "sks", "dog", "sks"),
]


@pytest.mark.parametrize(("text", "trigger", "class_word", "result"), TRIGGERS)
def test_the_trigger_comes_in(text: str, trigger: str, class_word: str, result: str) -> None:
    assert put_trigger(text, trigger, class_word) == result


@given(texts)
def test_the_trigger_comes_in_once(text: str) -> None:
    once = put_trigger(text, "sks", "aD")
    assert "sks" in once
    assert put_trigger(once, "sks", "aD") == once


def test_tags_are_dropped_and_mapped() -> None:
    table = {"Long Hair": "", "1girl": "a girl", "smile": "smiling, happy"}
    assert map_tags("1girl, long_hair,  smile", table) == "a girl, smiling, happy"
    assert map_tags("1girls, very long hair", table) == "1girls, very long hair"
    assert map_tags("long hair of sks, long hair", {**table, "long hair of sks": ""}, keep="sks") == "long hair of sks"


@given(texts)
def test_a_text_without_the_tags_stays_as_it_is(text: str) -> None:
    assert map_tags(text, {"none of these": ""}) == text
    assert surround(text, "", "") == text
    assert Rules(unique=False).apply(text) == text


def test_the_first_of_equal_tags_stays() -> None:
    assert unique_tags("Long hair, smile,long_hair, smile") == "Long hair, smile"
    assert unique_tags("1,000 dogs") == "1,000 dogs"


@given(texts)
def test_unique_tags_are_unique(text: str) -> None:
    assert unique_tags(unique_tags(text)) == unique_tags(text)
    tags = [" ".join(tag.replace("_", " ").split()).casefold() for tag in unique_tags(text).split(",")]
    assert len(set(filter(None, tags))) == len(list(filter(None, tags)))


SURROUNDED = [  # text, prefix, suffix, result
    ("dog", "a photo of", "on grass", "a photo of dog on grass"),
    ("dog", "photo,", ", sharp", "photo, dog, sharp"),
    ("dog", "", ".", "dog."),
    ("", "photo,", "", "photo"),
]


@pytest.mark.parametrize(("text", "prefix", "suffix", "result"), SURROUNDED)
def test_prefix_and_suffix(text: str, prefix: str, suffix: str, result: str) -> None:
    assert surround(text, prefix, suffix) == result


SHORTENED = [  # text, longest, result
    ("a dog", 5, "a dog"),
    ("a dog on grass", 5, "a dog"),
    ("a dog on grass", 8, "a dog on"),
    ("red dog, long grass", 14, "red dog"),
    ("dog, very long grass", 16, "dog, very long"),
    ("abcdefgh", 5, "abcde"),
    ("", 5, ""),
]


@pytest.mark.parametrize(("text", "longest", "result"), SHORTENED)
def test_long_texts_end_at_a_word(text: str, longest: int, result: str) -> None:
    assert shorten(text, longest) == result


@given(texts, texts, st.integers(3, 60))
def test_no_rule_loses_the_trigger(text: str, other: str, longest: int) -> None:
    rules = Rules(
        trigger="sks",
        where="class",
        class_word="aD",
        drop=("a", "sks", other),
        replace={"b": "D"},
        prefix=other,
        suffix=other,
        longest=longest,
    )
    result = rules.apply(text)
    assert "sks" in result
    assert len(result) <= longest


def test_rules_are_applied_in_their_order() -> None:
    rules = Rules(
        trigger="sks", where="class", class_word="dog", drop=("blurry",), replace={"lawn": "grass"}, suffix=", grass"
    )
    assert rules.apply(" a dog,  lawn, blurry\n") == "a sks, grass"
