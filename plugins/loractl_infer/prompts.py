"""Weights in prompts, as users of A1111 write them: "a red critter <lora:face:0.8>"."""

import re
from dataclasses import dataclass
from math import isfinite

_TAG = re.compile(r"<lora:([^<>]*)>")


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and the weights that adapters have for it: name → weight."""

    text: str
    weights: tuple[tuple[str, float], ...] = ()


def parse_prompt(written: str) -> Prompt:
    """A name may have colons but no weight may follow another; without a weight it is 1.

    ValueError for a weight that is no number, or an adapter that is named twice.
    """
    weights: dict[str, float] = {}
    for tag in _TAG.findall(written):
        name, colon, number = tag.rpartition(":")
        name, weight = (name, _number(number, tag)) if colon else (tag, 1.0)
        if not name or name in weights:
            raise ValueError(f"<lora:{tag}> should be like <lora:name:0.8>, each name once in a prompt")
        weights[name] = weight
    text = " ".join(_TAG.sub(" ", written).split()) if weights else written
    return Prompt(text, tuple(weights.items()))


def _number(text: str, tag: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if not isfinite(weight):
        raise ValueError(f"<lora:{tag}> should be like <lora:name:0.8>, and {text!r} is no number")
    return weight


def spoken(token: str, text: str) -> bool:
    """Whether a learned token is in a text: as a whole word, unless it is in < >."""
    word = re.escape(token) if token.startswith("<") else rf"(?<!\w){re.escape(token)}(?!\w)"
    return re.search(word, text) is not None
