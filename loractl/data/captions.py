"""Where a picture's caption comes from, and how it varies from step to step."""

from pathlib import Path
from string import Formatter

import torch

from loractl.errors import InputError


def read_caption(
    picture: Path,
    source: str,
    prompt: str,
    *,
    text: str | None = None,
    template: str | None = None,
    suffix: str = ".txt",
) -> str:
    """The caption of one picture.

    source: "prompt" itself · "sidecar", the file beside the picture that ends in `suffix` · "filename" with _ and - as
    spaces · "template", in which {name} is the file name so written and {prompt} the prompt · "jsonl", the `text` that
    a metadata.jsonl has for it · "auto", the first there is of text, sidecar and prompt.
    Raises InputError when there is no such caption.
    """
    sidecar = picture.with_suffix(suffix)
    match source:
        case "filename":
            return _name(picture)
        case "template":
            return fill(template or "", _name(picture), prompt)
        case "jsonl":
            return _given(picture, text)
        case "auto" if text is not None:
            return text
        case "sidecar":
            return _sidecar(picture, sidecar)
        case "auto" if sidecar.is_file():
            return _sidecar(picture, sidecar)
    return prompt


def fill(template: str, name: str, prompt: str) -> str:
    """The template with {name} and {prompt} filled in. InputError when it has other fields or none."""
    try:
        fields = {tuple(field) for _, *field in Formatter().parse(template) if field[0] is not None}
    except ValueError as error:
        raise InputError(f"the caption template {template!r} is broken ({error})") from None
    if not fields or not fields <= {("name", "", None), ("prompt", "", None)}:
        raise InputError(f"the caption template {template!r} needs {{name}} or {{prompt}}, and no other {{field}}")
    return template.format(name=name, prompt=prompt)


def vary(
    caption: str,
    generator: torch.Generator,
    *,
    shuffle_tags: bool,
    keep_tokens: int,
    dropout: float,
    tag_dropout: float = 0.0,
) -> str:
    """The caption as one step sees it: empty with probability `dropout`; else its comma-separated tags, of which the
    first `keep_tokens` stay and the others are each left out with probability `tag_dropout`, and shuffled.
    """
    if torch.rand(1, generator=generator).item() < dropout:
        return ""
    if not shuffle_tags and not tag_dropout:
        return caption
    tags = [tag for part in caption.split(",") if (tag := part.strip())]
    kept, others = tags[:keep_tokens], tags[keep_tokens:]
    left = torch.rand(len(others), generator=generator).ge(tag_dropout).tolist()
    order = torch.randperm(len(others), generator=generator).tolist() if shuffle_tags else range(len(others))
    return ", ".join([*kept, *(others[i] for i in order if left[i])])


def _name(picture: Path) -> str:
    return picture.stem.replace("_", " ").replace("-", " ")


def _given(picture: Path, text: str | None) -> str:
    if text is None:
        raise InputError(f'{picture} has no "text" in a metadata.jsonl: add it, or choose another data.captions')
    return text


def _sidecar(picture: Path, sidecar: Path) -> str:
    try:
        caption = sidecar.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise InputError(
            f'{picture} has no caption file {sidecar.name}: write one, or set data.captions = "prompt"'
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{sidecar} is not UTF-8 text: save it as UTF-8") from None
    if not caption:
        raise InputError(f"{sidecar} is empty: write a caption into it")
    return caption
