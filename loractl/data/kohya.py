"""Training data as kohya's sd-scripts lay it out: folders named "10_sks dog", and the TOML file of --dataset_config.

In the file, [[datasets.subsets]] overrides [[datasets]], which overrides [general]. Of its keys `image_dir`,
`num_repeats`, `class_tokens` and `caption_extension` describe the pictures. The others are settings that a job has as
well: they may be there where the job says the same, and are errors elsewhere, so that none is passed over in silence.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl.data.images import only_pictures
from loractl.data.listing import Entry, Listing, member
from loractl.errors import InputError

_FOLDER = re.compile(r"(\d{1,3})_(.+)")  # three digits at most: 2024_rome is a year
_EXTENSION = re.compile(r"(\.[^./\\\0]+)+")

# kohya's key → the job's, where both mean the same.
_SAME = {
    "alpha_mask": "data.alpha_masks",
    "batch_size": "train.batch_size",
    "caption_dropout_rate": "data.caption_dropout",
    "caption_tag_dropout_rate": "data.tag_dropout",
    "enable_bucket": "data.buckets",
    "flip_aug": "data.flip",
    "keep_tokens": "data.keep_tags",
    "resolution": "data.resolution",
    "shuffle_caption": "data.shuffle_tags",
}
# kohya's keys whose values the job spells otherwise: the job's key, and what it says there.
_SPELT: Mapping[str, tuple[str, Mapping[Any, Any]]] = {
    "bucket_no_upscale": ("data.upscale", {False: True, True: False}),
    "random_crop": ("data.crop", {False: "center", True: "random"}),
}
# Values that ask for nothing, of keys that are honored with no other value.
_NOTHING: Mapping[str, Any] = {
    "bucket_reso_steps": 64,
    "caption_dropout_every_n_epochs": 0,
    "color_aug": False,
    "enable_wildcard": False,
    "is_reg": False,
    "network_multiplier": 1.0,
    "token_warmup_min": 1,
    "token_warmup_step": 0,
}
# What describes the pictures, and whether a value of it is possible.
_OWN: Mapping[str, Callable[[Any], bool]] = {
    "caption_extension": lambda value: isinstance(value, str) and _EXTENSION.fullmatch(value) is not None,
    "class_tokens": lambda value: isinstance(value, str),
    "image_dir": lambda value: isinstance(value, str) and value != "",
    "num_repeats": lambda value: type(value) is int and value >= 1,
}


def class_folders(root: Path, pictures: Sequence[Path]) -> list[Entry] | None:
    """The pictures with the repeats and the class of their folders, if each lies below one named "10_sks dog"."""
    entries = []
    for picture in pictures:
        folder, *rest = picture.relative_to(root).parts
        name = _FOLDER.fullmatch(folder)
        if not rest or name is None or int(name[1]) == 0:
            return None
        entries.append(Entry(picture, prompt=name[2], repeats=int(name[1])))
    return entries


def read_config(file: Path, settings: Mapping[str, object]) -> Listing:
    """The pictures of a dataset TOML, whose paths are relative to its folder and stay below it. `settings` is what
    the job says, by dotted key: {"data.flip": False, …}.
    """
    config = _parse(file)
    listing = [_subset(file, subset, settings) for subset in _subsets(file, config)]
    entries = [entry for found, _ in listing for entry in found]
    problems = dict.fromkeys(problem for _, found in listing for problem in found)  # a key of [general] is told once
    if not entries and not problems:
        problems = {f"{file} names no pictures: it has no [[datasets.subsets]]": None}
    return Listing(file.parent, entries, list(problems))


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror}): check the path") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise InputError(f"{file} is not a TOML file: {error}") from None


def _subsets(file: Path, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every subset with all that holds for it."""
    general, datasets = config.pop("general", {}), config.pop("datasets", [])
    if config:
        raise InputError(f"{file}: a dataset file has [general] and [[datasets]], not {', '.join(sorted(config))}")
    if not isinstance(general, dict) or not _is_tables(datasets):
        raise InputError(f"{file}: write [general] and [[datasets]] as tables")
    for dataset in datasets:
        subsets = dataset.pop("subsets", [])
        if not _is_tables(subsets):
            raise InputError(f"{file}: write [[datasets.subsets]] as tables")
        yield from ({**general, **dataset, **subset} for subset in subsets)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _subset(file: Path, subset: dict[str, Any], settings: Mapping[str, object]) -> tuple[list[Entry], list[str]]:
    """The pictures of a subset, and all that is wrong with it."""
    problems = [
        f"{file}: {problem}" for key, value in subset.items() if (problem := _problem(key, value, settings)) is not None
    ]
    if "image_dir" not in subset:
        problems.append(f"{file}: a subset has no image_dir: name the folder of its pictures")
    if problems:
        return [], problems
    try:
        pictures = _pictures(file.parent, subset["image_dir"])
    except InputError as error:
        return [], [f"{file}: {error}"]
    suffix = subset.get("caption_extension", ".caption")
    return [
        Entry(picture, prompt=subset.get("class_tokens"), repeats=subset.get("num_repeats", 1), suffix=suffix)
        for picture in pictures
    ], []


def _pictures(root: Path, image_dir: str) -> list[Path]:
    """The pictures right in a folder: kohya does not look deeper."""
    folder = member(root, image_dir)
    if not folder.is_dir():
        raise InputError(f"image_dir {image_dir!r} is not a folder in {root}")
    pictures = only_pictures(folder, folder.iterdir())
    if not pictures:
        raise InputError(f"image_dir {image_dir!r} holds no pictures")
    for picture in pictures:
        member(root, str(Path(image_dir, picture.name)))
    return pictures


def _problem(key: str, value: Any, settings: Mapping[str, object]) -> str | None:
    """What is wrong with a key and its value, if anything."""
    said = json.dumps(value, default=str)
    if key in _OWN:
        return None if _OWN[key](value) else f"{key} = {said} is not possible"
    if key in _NOTHING and value == _NOTHING[key]:
        return None
    wanted = _in_job(key, value)
    if wanted is None or wanted.key not in settings:
        return f"{key} = {said} can't be honored: remove it"
    if wanted.value == settings[wanted.key]:
        return None
    there, here = json.dumps(settings[wanted.key], default=str), json.dumps(wanted.value, default=str)
    return f"{key} = {said}, but the job has {wanted.key} = {there}: remove it, or set {wanted.key} = {here}"


@dataclass(frozen=True)
class _Setting:
    """A key of the job and the value that a kohya key asks it to have."""

    key: str
    value: Any


def _in_job(key: str, value: Any) -> _Setting | None:
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # resolution = [512, 512]
    if key in _SAME:
        return _Setting(_SAME[key], value)
    name, values = _SPELT.get(key, ("", {}))
    return _Setting(name, values[value]) if isinstance(value, bool) and values else None
