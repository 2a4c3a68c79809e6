"""Where a picture's caption comes from."""

from pathlib import Path

from loractl.errors import InputError


def read_caption(picture: Path, source: str, prompt: str) -> str:
    """The caption of one picture: the prompt itself, the .txt file beside it, or its file name with _ and - as spaces.

    Raises InputError for a missing or empty sidecar.
    """
    if source == "prompt":
        return prompt
    if source == "filename":
        return picture.stem.replace("_", " ").replace("-", " ")
    sidecar = picture.with_suffix(".txt")
    try:
        caption = sidecar.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(
            f'{picture} has no caption file {sidecar.name}: write one, or set data.captions = "prompt"'
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{sidecar} is not UTF-8 text: save it as UTF-8") from None
    if not caption:
        raise InputError(f"{sidecar} is empty: write a caption into it")
    return caption
