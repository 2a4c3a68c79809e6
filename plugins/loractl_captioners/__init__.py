"""The captioners that come with loractl: image-to-text models of transformers, and the lab's reader."""

from collections.abc import Sequence

from loractl.captioner import Captioner, CaptionerSettings, Write
from loractl.hookspecs import hookimpl


def load_transformers(settings: CaptionerSettings) -> Write:
    from loractl_captioners.run import load_transformers

    return load_transformers(settings)


def load_lab(settings: CaptionerSettings) -> Write:  # noqa: ARG001  # the reader has nothing to be set
    from loractl_captioners.run import load_lab

    return load_lab()


@hookimpl
def register_captioners() -> Sequence[Captioner]:
    return [
        Captioner("transformers", "BLIP, BLIP-2, Florence-2 or Qwen-VL by hub id or path.", load_transformers),
        Captioner("lab", "Reads the drawings of the built-in lab, in the lab's own words.", load_lab),
    ]
