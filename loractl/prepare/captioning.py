"""Where a picture's caption comes from. What it says afterwards is the rules' work, in `caption_rules`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from loractl.prepare.caption_rules import Rules, fill_template, one_line, words_of
from loractl.prepare.original import Given
from loractl.prepare.reading import Unreadable

Source = Literal["sidecar", "captioner", "template", "filename"]
SIDECARS = (".txt", ".caption")  # the first that is there counts
LONGEST = 100_000  # bytes of a sidecar; more is no caption


@dataclass(frozen=True)
class Caption:
    """`origin`: a `Source`, "captioner NAME", or "nothing" where no source had any text."""

    text: str
    origin: str


@dataclass(frozen=True)
class Wording:
    """The sources in order of preference, and what they are told. `rules` come after any of them."""

    sources: Sequence[Source] = ("sidecar", "filename")
    template: str = "a photo of {trigger} {class}"
    rules: Rules = field(default_factory=Rules)


def own_caption(picture: Path, wording: Wording) -> Caption | None:
    """The picture's first caption; None where the captioner has to be asked, since nothing before it has a text.

    Raises Unreadable where there is a caption file that can't be used, InputError for a broken template.
    """
    for source in wording.sources:
        if source == "captioner":
            return None
        if text := _SOURCES[source](picture, wording):
            return Caption(text, source)
    return Caption("", "nothing")


def own_captions(
    pictures: Mapping[str, Path], given: Mapping[str, Given], wording: Wording
) -> tuple[dict[str, Caption | None], dict[str, str]]:
    """What each picture has of its own, and what is wrong with the caption files that can't be used, by name; `given`
    has the captions of the original layout.
    """
    found: dict[str, Caption | None] = {}
    troubles: dict[str, str] = {}
    for name, picture in pictures.items():
        try:
            found[name] = _given(given.get(name, Given()), wording) or own_caption(picture, wording)
        except Unreadable as error:
            found[name], troubles[name] = Caption("", "nothing"), str(error)
    return found, troubles


def _given(given: Given, wording: Wording) -> Caption | None:
    return Caption(given.caption, "sidecar") if given.caption and "sidecar" in wording.sources else None


def ruled(caption: Caption, wording: Wording) -> Caption:
    """The caption as it is written, its origin unchanged."""
    return replace(caption, text=wording.rules.apply(caption.text))


def _sidecar(picture: Path, wording: Wording) -> str:  # noqa: ARG001  # every source has the same form
    found = [path for suffix in SIDECARS if (path := picture.with_suffix(suffix)).is_file() or path.is_symlink()]
    return one_line(_read(found[0])) if found else ""


def _read(path: Path) -> str:
    if path.is_symlink():
        raise Unreadable(f"its caption file {path.name} is a link: put the file itself there")
    if path.stat().st_size > LONGEST:
        raise Unreadable(f"its caption file {path.name} has more than {LONGEST:,} bytes: shorten it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable(f"its caption file {path.name} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise Unreadable(f"its caption file {path.name} can't be read: {error.strerror}") from None


def _template(picture: Path, wording: Wording) -> str:
    rules = wording.rules
    name = words_of(picture.name)
    return fill_template(wording.template, trigger=rules.trigger, class_word=rules.class_word, name=name)


def _filename(picture: Path, wording: Wording) -> str:  # noqa: ARG001  # as above
    return words_of(picture.name)


_SOURCES: Mapping[str, Callable[[Path, Wording], str]] = {
    "sidecar": _sidecar,
    "template": _template,
    "filename": _filename,
}
