"""The training examples of a data set: each picture with its caption, its repeats and its mask."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loractl.data.captions import read_caption
from loractl.data.images import BadPicture, find_pictures, kinds, only_pictures, read_picture
from loractl.data.kohya import class_folders, read_config
from loractl.data.listing import Entry, Listing
from loractl.data.masks import check_mask
from loractl.data.metadata import NAME, read_metadata
from loractl.errors import InputError

_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Example:
    """A picture to learn from. It comes `repeats` times in an epoch."""

    path: Path
    caption: str
    repeats: int = 1
    mask: Path | None = None


def read_examples(
    path: Path | str,
    captions: str,
    prompt: str,
    *,
    template: str | None = None,
    repeats: int = 1,
    masks: Path | None = None,
    settings: Mapping[str, object] | None = None,
) -> list[Example]:
    """The examples of a data set, in the order of their names or of its file.

    path: a folder with pictures in it or below, one picture, a glob, a metadata.jsonl or a folder that has one, a
    folder of kohya's "10_sks dog" folders, or kohya's dataset TOML, whose settings must be those of the job, which
    `settings` tells (see kohya.py). captions, prompt and template: see `read_caption`; a kohya class stands in for
    the prompt except under "prompt". repeats: on top of what the set itself says. masks: a folder with a mask for
    each picture, of the same name whatever the ending; it may lie inside the set.
    Raises InputError with all problems at once.
    """
    listing = _listing(Path(path), masks, settings or {})
    problems = list(listing.problems)
    found = _masks(listing, masks, problems)
    examples = []
    for entry, mask in zip(listing.entries, found, strict=True):
        stand_in = prompt if captions == "prompt" else entry.prompt or prompt
        try:
            caption = read_caption(
                entry.path, captions, stand_in, text=entry.text, template=template, suffix=entry.suffix
            )
            examples.append(Example(entry.path, caption, entry.repeats * repeats, mask))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return examples


def survey_examples(examples: Sequence[Example]) -> tuple[list[Example], list[BadPicture]]:
    """Decodes every picture and its mask once: the examples that can be used, and the pictures that can't."""
    good, bad = [], []
    for example in examples:
        try:
            picture = read_picture(example.path)
            if example.mask is not None:
                check_mask(example.mask, picture.size)
            good.append(example)
        except InputError as error:
            bad.append(BadPicture(example.path, str(error).removeprefix(f"{example.path} can't be read: ")))
    return good, bad


def _listing(path: Path, masks: Path | None, settings: Mapping[str, object]) -> Listing:
    if path.is_dir():
        return read_metadata(path / NAME) if (path / NAME).is_file() else _folder(path, masks)
    if path.is_file():
        match path.suffix.lower():
            case ".jsonl":
                return read_metadata(path)
            case ".toml":
                return read_config(path, settings)
        return Listing(path.parent, [Entry(path)])
    if _MAGIC.search(str(path)):
        return _glob(path)
    raise InputError(f"there is no file or folder {path}: check the path")


def _folder(path: Path, masks: Path | None) -> Listing:
    pictures = find_pictures(path, masks)
    return Listing(path, class_folders(path, pictures) or [Entry(picture) for picture in pictures])


def _glob(path: Path) -> Listing:
    first = next(i for i, part in enumerate(path.parts) if _MAGIC.search(part))
    root = Path(*path.parts[:first])
    try:
        pictures = only_pictures(root, root.glob("/".join(path.parts[first:])))
    except ValueError as error:  # "a**"
        raise InputError(f"{path} is not a pattern: {error}") from None
    problems = [] if pictures else [f"{path} matches no pictures ({kinds()})"]
    return Listing(root, [Entry(picture) for picture in pictures], problems)


def _masks(listing: Listing, folder: Path | None, problems: list[str]) -> list[Path | None]:
    """Each picture's mask: the set's own, or the one of its name in the folder."""
    if folder is None:
        return [entry.mask for entry in listing.entries]
    masks = {mask.relative_to(folder).with_suffix(""): mask for mask in find_pictures(folder)}
    found = [entry.mask or _mask(listing.root, entry.path, masks) for entry in listing.entries]
    missing = [entry.path for entry, mask in zip(listing.entries, found, strict=True) if mask is None]
    problems += [f"{path} has no mask in {folder}: add one named {path.stem}.png" for path in missing]
    return found


def _mask(root: Path, picture: Path, masks: Mapping[Path, Path]) -> Path | None:
    """The mask of the same place below its folder, or else of the same name."""
    return masks.get(picture.relative_to(root).with_suffix("")) or masks.get(Path(picture.stem))
