"""A family of base models for loractl: a whole plugin to copy."""

from collections.abc import Sequence

from loractl.catalog import FamilyPlace
from loractl.hookspecs import hookimpl


@hookimpl
def register_families() -> Sequence[FamilyPlace]:
    return [FamilyPlace("ChromaPipeline", "loractl_family.chroma:Chroma")]
