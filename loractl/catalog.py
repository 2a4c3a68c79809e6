"""Which class knows which base models: names alone, so that nothing heavy is imported before a model is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FamilyPlace:
    """`name` is a pipeline's class as model_index.json has it, `place` the "module:Class" of the family that knows it,
    a `loractl.families.family.Family`.
    """

    name: str
    place: str


BUILT_IN: Mapping[str, str] = {
    "StableDiffusionPipeline": "loractl.families.sd:StableDiffusion",
    "StableDiffusionInpaintPipeline": "loractl.families.sd:StableDiffusion",
    "StableDiffusionXLPipeline": "loractl.families.sdxl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "loractl.families.sd3:StableDiffusion3",
    "FluxPipeline": "loractl.families.flux:Flux",
    "Flux2KleinPipeline": "loractl.families.flux2:Flux2Klein",
    "QwenImagePipeline": "loractl.families.qwen_image:QwenImage",
    "ZImagePipeline": "loractl.families.z_image:ZImage",
    "SanaPipeline": "loractl.families.sana:Sana",
    "Lumina2Pipeline": "loractl.families.lumina2:Lumina2",
}
_offered: dict[str, str] = {}


def offer_families(places: Iterable[FamilyPlace]) -> None:
    """What plugins know, in place of what they offered before; over a built-in family theirs goes first."""
    _offered.clear()
    _offered.update({each.name: each.place for each in places})


def families() -> dict[str, str]:
    """Pipeline → "module:Class"."""
    return {**BUILT_IN, **_offered}
