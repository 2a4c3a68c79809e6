"""Every form in which people have training data, and what is refused of it."""

import json
from pathlib import Path

import pytest

from loractl.data.examples import Example, read_examples, survey_examples
from loractl.errors import InputError
from tests.datasets.photos import save_photo

PROMPT = "a photo of sks dog"


def told(examples: list[Example], root: Path) -> list[tuple[str, str, int]]:
    return [(str(example.path.relative_to(root)), example.caption, example.repeats) for example in examples]


def write_lines(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def problems(path: Path, captions: str = "auto", **options: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_examples(path, captions, PROMPT, **options)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_a_folder_a_picture_and_a_glob(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "deep/c.png", "a.txt.bak"):
        save_photo(tmp_path / name) if name[-3:] != "bak" else (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("a dog in the snow")
    every = [("a.png", PROMPT, 2), ("b.jpg", "a dog in the snow", 2), ("deep/c.png", PROMPT, 2)]
    assert told(read_examples(tmp_path, "auto", PROMPT, repeats=2), tmp_path) == every
    assert told(read_examples(tmp_path / "b.jpg", "prompt", PROMPT), tmp_path) == [("b.jpg", PROMPT, 1)]
    assert told(read_examples(str(tmp_path / "*.png"), "filename", PROMPT), tmp_path) == [("a.png", "a", 1)]
    assert told(read_examples(tmp_path / "**" / "*.png", "filename", PROMPT), tmp_path) == [
        ("a.png", "a", 1),
        ("deep/c.png", "c", 1),
    ]


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "there is no file" in problems(tmp_path / "nowhere")[0]
    assert "matches no pictures" in problems(tmp_path / "*.png")[0]
    assert "holds no pictures" in problems(tmp_path)[0]


def test_a_relative_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_photo(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert [example.path for example in read_examples("photos/*.png", "prompt", PROMPT)] == [Path("photos/a.png")]
    assert [example.path for example in read_examples("*/a.*", "prompt", PROMPT)] == [Path("photos/a.png")]


def test_metadata_of_imagefolder_and_our_columns(tmp_path: Path) -> None:
    for name in ("one.png", "deep/two.png", "unlisted.png", "masks/two.png"):
        save_photo(tmp_path / name)
    file = write_lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "one.png", "text": " a dog ", "width": 24},
        {"file_name": "deep/two.png", "text": None, "repeats": 3, "mask": "masks/two.png"},
    )
    expected = [("one.png", "a dog", 1), ("deep/two.png", PROMPT, 3)]
    assert told(read_examples(file, "auto", PROMPT), tmp_path) == expected
    examples = read_examples(tmp_path, "auto", PROMPT, repeats=2)
    assert [example.repeats for example in examples] == [2, 6]
    assert [example.mask for example in examples] == [None, tmp_path / "masks" / "two.png"]
    assert 'deep/two.png has no "text"' in problems(file, "jsonl")[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "one.png", "text": "a dog"}'),
        ("set.toml", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "."\nclass_tokens = "a dog"'),
    ],
)
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str, text: str) -> None:
    save_photo(tmp_path / "one.png")
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert told(read_examples(tmp_path / name, "auto", PROMPT), tmp_path) == [("one.png", "a dog", 1)]


def test_all_that_is_wrong_in_metadata_is_told_at_once(tmp_path: Path) -> None:
    save_photo(tmp_path / "set" / "good.png")
    save_photo(tmp_path / "outside.png")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "outside.png")
    wrong = [
        {"file_name": "../outside.png"},
        {"file_name": "deep/../good.png"},
        {"file_name": str(tmp_path / "outside.png")},
        {"file_name": "link.png"},
        {"file_name": "good.png", "mask": "../outside.png"},
        {"file_name": "missing.png"},
        {"file_name": "nu\0ll.png"},
        {"file_name": "x" * 300 + ".png"},
        {"text": "nothing"},
        {"file_name": "good.png", "repeats": 0},
        {"file_name": "good.png", "repeats": True},
        {"file_name": "good.png", "text": 3},
        ["good.png"],
    ]
    file = write_lines(tmp_path / "set" / "metadata.jsonl", {"file_name": "good.png"}, *wrong)
    file.write_text(file.read_text() + "\n\n{broken\n")
    found = problems(tmp_path / "set")
    lines = [*range(2, 2 + len(wrong)), 3 + len(wrong)]
    assert [line.removeprefix(f"{file}:").split(":")[0] for line in found] == [str(line) for line in lines]
    assert sum("is not inside" in line for line in found) == 6


def test_kohya_folders(tmp_path: Path) -> None:
    save_photo(tmp_path / "10_sks dog" / "a.png")
    save_photo(tmp_path / "2_sks_cat" / "b.png")
    (tmp_path / "2_sks_cat" / "b.txt").write_text("a cat asleep")
    examples = read_examples(tmp_path, "auto", PROMPT)
    assert told(examples, tmp_path) == [("10_sks dog/a.png", "sks dog", 10), ("2_sks_cat/b.png", "a cat asleep", 2)]
    assert [example.caption for example in read_examples(tmp_path, "prompt", PROMPT)] == [PROMPT] * 2


@pytest.mark.parametrize("other", ["rome/b.png", "2024_rome/b.png", "b.png", "0_cat/b.png", "cat_3/b.png"])
def test_other_folders_are_not_kohyas(tmp_path: Path, other: str) -> None:
    save_photo(tmp_path / "10_sks dog" / "a.png")
    save_photo(tmp_path / other)
    assert [(each.caption, each.repeats) for each in read_examples(tmp_path, "auto", PROMPT)] == [(PROMPT, 1)] * 2


CONFIG = """
[general]
enable_bucket = true
shuffle_caption = true
caption_extension = ".txt"
color_aug = false
[[datasets]]
resolution = [512, 512]
keep_tokens = 1
[[datasets.subsets]]
image_dir = "dogs"
class_tokens = "sks dog"
num_repeats = 10
[[datasets.subsets]]
image_dir = "cats"
caption_extension = ".caption"
random_crop = false
"""
SETTINGS = {
    "data.buckets": True,
    "data.crop": "center",
    "data.flip": False,
    "data.keep_tags": 1,
    "data.resolution": 512,
    "data.shuffle_tags": True,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("dogs/a.png", "dogs/b.png", "dogs/deeper/c.png", "cats/d.png"):
        save_photo(tmp_path / name)
    (tmp_path / "dogs" / "b.txt").write_text("sks dog, grass")
    (tmp_path / "cats" / "d.caption").write_text("a cat")
    file = tmp_path / "dataset.toml"
    file.write_text(CONFIG)
    return file


def test_kohyas_dataset_file(config: Path) -> None:
    examples = read_examples(config, "auto", PROMPT, settings=SETTINGS)
    assert told(examples, config.parent) == [
        ("dogs/a.png", "sks dog", 10),
        ("dogs/b.png", "sks dog, grass", 10),
        ("cats/d.png", "a cat", 1),
    ]


def test_settings_that_the_job_does_not_share_are_told(config: Path) -> None:
    found = problems(config, settings=SETTINGS | {"data.resolution": 768, "data.shuffle_tags": False})
    assert len(found) == 2  # [general] holds for two subsets and is told once
    assert "shuffle_caption = true, but the job has data.shuffle_tags = false" in found[0]
    assert "set data.resolution = 512" in found[1]
    assert {line.split()[1] for line in problems(config)} == {
        "enable_bucket",
        "shuffle_caption",
        "resolution",
        "keep_tokens",
        "random_crop",
    }


@pytest.mark.parametrize(
    "line",
    [
        "is_reg = true",
        'metadata_file = "m.json"',
        "flip_aug = true",
        "num_repeats = 0",
        "num_repeats = true",
    ],
)
def test_keys_that_cannot_be_honored_are_errors(config: Path, line: str) -> None:
    config.write_text(CONFIG + line)
    found = problems(config, settings=SETTINGS)
    assert len(found) == 1 and line in found[0]


@pytest.mark.parametrize("ending", ["txt", ".", "", "/a.txt", "../../a.txt"])
def test_a_caption_extension_is_one(config: Path, ending: str) -> None:
    config.write_text(CONFIG.replace('".caption"', f'"{ending}"'))
    assert "caption_extension" in problems(config, settings=SETTINGS)[0]


@pytest.mark.parametrize("folder", ["../elsewhere", "/", "linked", "nowhere", "empty"])
def test_image_dirs_stay_below_the_file(config: Path, folder: str) -> None:
    (config.parent / "empty").mkdir()
    (config.parent / "linked").symlink_to(config.parent.parent)
    config.write_text(CONFIG.replace('"dogs"', f'"{folder}"'))
    assert len(problems(config, settings=SETTINGS)) == 1


def test_linked_pictures_of_a_dataset_file_stay_below_it(
    config: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (config.parent / "cats" / "e.png").symlink_to(save_photo(tmp_path_factory.mktemp("away") / "e.png"))
    assert "e.png' is not inside" in problems(config, settings=SETTINGS)[0]


@pytest.mark.parametrize("text", ["datasets = 3", "[datasets]", "[[datasets]]\nsubsets = 1", "[x]", "a =", ""])
def test_other_toml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.toml").write_text(text)
    assert "dataset.toml" in problems(tmp_path / "dataset.toml")[0]


def test_a_folder_of_masks_inside_the_set(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.png", "masks/a.png", "masks/deep/b.png"):
        save_photo(tmp_path / name)
    examples = read_examples(tmp_path, "prompt", PROMPT, masks=tmp_path / "masks")
    assert [(each.path.name, each.mask) for each in examples] == [
        ("a.jpg", tmp_path / "masks" / "a.png"),
        ("b.png", tmp_path / "masks" / "deep" / "b.png"),
    ]
    (tmp_path / "masks" / "a.png").unlink()
    assert problems(tmp_path, masks=tmp_path / "masks") == [
        f"{tmp_path / 'a.jpg'} has no mask in {tmp_path / 'masks'}: add one named a.png"
    ]


def test_missing_captions_and_masks_are_told_together(tmp_path: Path) -> None:
    for name in ("set/a.png", "set/b.png", "masks/b.png"):
        save_photo(tmp_path / name)
    assert len(problems(tmp_path / "set", "sidecar", masks=tmp_path / "masks")) == 3


def test_the_survey_looks_at_masks_too(tmp_path: Path) -> None:
    for name, size in {"a.png": (24, 16), "b.png": (24, 16), "mask.png": (24, 16), "small.png": (12, 8)}.items():
        save_photo(tmp_path / name, size)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    good = Example(tmp_path / "a.png", "", mask=tmp_path / "mask.png")
    wrong = [
        Example(tmp_path / "b.png", "", mask=tmp_path / "small.png"),
        Example(tmp_path / "a.png", "", mask=tmp_path / "broken.png"),
        Example(tmp_path / "broken.png", ""),
    ]
    found, bad = survey_examples([good, *wrong])
    assert found == [good]
    assert [picture.path.name for picture in bad] == ["b.png", "a.png", "broken.png"]
    assert "12 × 8" in bad[0].reason and "broken.png" in bad[1].reason and "not a picture" in bad[2].reason
