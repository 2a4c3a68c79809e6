"""What the presets of adapter targets mean in transformers, whose feed-forward layers have many names.

The names are those of a UNet's presets, and each is more than the one before: attention, then the first layer of every
feed-forward, then all of it.
"""

from collections.abc import Mapping
from typing import TypeAlias

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Of the text's own stream, where text and picture attend to each other through layers of their own."""


Patterns: TypeAlias = tuple[str, ...]


def preset_table(attention: Patterns, first: Patterns, rest: Patterns) -> Mapping[str, Patterns]:
    """Preset → patterns."""
    return {
        "attention": attention,
        "attention+geglu": attention + first,
        "extended": attention + first + rest,
    }
