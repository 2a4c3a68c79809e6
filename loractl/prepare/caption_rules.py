"""What is done to a caption's text, rule by rule. Every rule is a pure function from text to text, and none loses the
trigger word. Tags are what stands between commas; two are the same whatever their case, underscores and spaces.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from string import Formatter
from typing import Literal

from loractl.errors import InputError

FIELDS = ("trigger", "class", "name")  # of a template

_STAMP = r"( ?(at |e|wa)?\d+)"  # a counter, a date or a time
_CAMERA = re.compile(
    rf"((img|dsc[fn]?|pxl|dji|mvimg|p|screenshot){_STAMP}*|(mg(?= \d{{4}})|gopr|image|signal|whatsapp image){_STAMP}+)"
    r"( hdr| mp| burst ?\d+| pano| [ap]m| copy| \(\d+\))*",
    re.IGNORECASE,
)
_FIRST = re.compile(r"^((0\d*|\d{5,}) )+")  # counters and seeds, but not the 3 of three dogs
_LAST = re.compile(r"( ?\(\d+\)| copy|(^| )\d+)+$", re.IGNORECASE)


@dataclass(frozen=True)
class Rules:
    """In the order in which they are applied; what is empty or None does nothing."""

    trigger: str = ""
    where: Literal["front", "class"] = "front"
    class_word: str = ""
    drop: tuple[str, ...] = ()
    replace: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    suffix: str = ""
    unique: bool = True
    longest: int | None = None

    def apply(self, text: str) -> str:
        text = one_line(text)
        if self.trigger:
            text = put_trigger(text, self.trigger, self.class_word if self.where == "class" else "")
        if self.drop or self.replace:
            text = map_tags(text, {**self.replace, **dict.fromkeys(self.drop, "")}, keep=self.trigger)
        text = surround(text, self.prefix, self.suffix)
        if self.unique:
            text = unique_tags(text)
        return text if self.longest is None else shorten(text, self.longest, keep=self.trigger)


def one_line(text: str) -> str:
    return " ".join(text.split())


def words_of(name: str) -> str:
    """A file's name as words: dog_in_the-park_03.jpg → dog in the park. A counter is no word, nor what a camera or
    messenger writes: IMG_1234.jpg → nothing.
    """
    words = one_line(re.sub(r"[\s_.+-]+", " ", PurePosixPath(name).stem))
    if _CAMERA.fullmatch(words):
        return ""
    return _LAST.sub("", _FIRST.sub("", words)).strip()


def fill_template(template: str, *, trigger: str = "", class_word: str = "", name: str = "") -> str:
    """The template with {trigger}, {class} and {name} filled in; what is empty leaves no double space.

    Raises InputError when it has another field.
    """
    try:
        fields = {tuple(each) for _, *each in Formatter().parse(template) if each[0] is not None}
    except ValueError as error:
        raise InputError(f"the caption template {template!r} is broken ({error}): mend its braces") from None
    if not fields <= {(name, "", None) for name in FIELDS}:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise InputError(f"the caption template {template!r} has another field than {known}: remove it")
    return one_line(template.format_map({"trigger": trigger, "class": class_word, "name": name}))


def put_trigger(text: str, trigger: str, class_word: str = "") -> str:
    """The text with the trigger word in the place of the class word, wherever that stands as a word of its own, and at
    the front where it does not. The trigger is written as given, at the start of a sentence too, since learned tokens
    are matched as written. A text that has it keeps it where it is.
    """
    for words in filter(None, (trigger, class_word)):
        if has_words(text, words):
            return _whole(words).sub(lambda _: trigger, text)
    return f"{trigger}, {text}" if text else trigger


def has_words(text: str, words: str) -> bool:
    return _whole(words).search(text) is not None


def _whole(words: str) -> re.Pattern[str]:
    """Finds words whatever their case, but not inside of longer ones: dog, not dogs or hot-dog."""
    inner = r"\s+".join(map(re.escape, words.split()))
    return re.compile(rf"(?<![\w-]){inner}(?![\w-])", re.IGNORECASE)


def tags_of(text: str) -> list[str]:
    return [tag for part in text.split(",") if (tag := part.strip())]


def map_tags(text: str, tags: Mapping[str, str], keep: str = "") -> str:
    """The text with tags replaced, or left out where they map to nothing. A tag that has `keep` in it is not touched,
    nor is a text that has none of the tags.
    """
    table = {_key(tag): new for tag, new in tags.items()}
    found = tags_of(text)
    mapped = [tag if keep and has_words(tag, keep) else table.get(_key(tag), tag) for tag in found]
    return text if mapped == found else ", ".join(filter(None, mapped))


def unique_tags(text: str) -> str:
    """The first of each tag."""
    found = tags_of(text)
    first = {_key(tag): tag for tag in reversed(found)}
    return text if len(first) == len(found) else ", ".join(dict.fromkeys(first[_key(tag)] for tag in found))


def _key(tag: str) -> str:
    return one_line(tag.replace("_", " ")).casefold()


def surround(text: str, prefix: str, suffix: str) -> str:
    """Joined by spaces, which a suffix that begins with a comma or a period does without."""
    if not prefix and not suffix:
        return text
    space = "" if suffix.lstrip().startswith((",", ".", ";", ":", "!", "?")) else " "
    return one_line(f"{prefix} {text}{space}{suffix.lstrip()}").strip(" ,")


def shorten(text: str, longest: int, keep: str = "") -> str:
    """At most `longest` characters: whole tags where that leaves half of the room filled, else whole words. Should
    `keep` be cut away, it comes to the front.
    """
    if len(text) <= longest:
        return text
    short = _cut(text, longest)
    is_lost = keep and has_words(text, keep) and not has_words(short, keep)
    return _cut(f"{keep}, {text}", longest) if is_lost else short


def _cut(text: str, longest: int) -> str:
    room = text[: longest + 1]
    comma, space = room.rfind(","), room.rfind(" ")
    end = comma if comma >= longest / 2 else space if space > 0 else longest
    return room[:end].rstrip(" ,;:-")
