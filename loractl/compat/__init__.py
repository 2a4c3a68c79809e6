"""For scripts written for cloneofsimo/lora: its public functions, by their names and signatures, over our own core.

    from loractl.compat import inject_trainable_lora, patch_pipe, tune_lora_scale   # was: from lora_diffusion import …

The calls are the original's and the results what its documentation says: two LoRA add up as Σ wᵢ·ΔWᵢ, a collapse
respects scale and selector, and files of old diffusers versions reach the right modules. docs/coming-from-lora.md has
the differences. New code does better with `loractl.inject` and `loractl.formats`.
"""

from loractl.compat.files import (
    load_safeloras,
    load_safeloras_both,
    load_safeloras_embeds,
    save_safeloras,
    save_safeloras_with_embeds,
)
from loractl.compat.patch import (
    collapse_lora,
    extract_lora_ups_down,
    inject_trainable_lora,
    inject_trainable_lora_extended,
    inspect_lora,
    monkeypatch_add_lora,
    monkeypatch_or_replace_lora,
    monkeypatch_or_replace_lora_extended,
    monkeypatch_remove_lora,
    set_lora_diag,
    tune_lora_scale,
)
from loractl.compat.pipeline import LoRAManager, apply_learned_embed_in_clip, patch_pipe
from loractl.compat.places import (
    DEFAULT_TARGET_REPLACE,
    TEXT_ENCODER_DEFAULT_TARGET_REPLACE,
    TEXT_ENCODER_EXTENDED_TARGET_REPLACE,
    UNET_DEFAULT_TARGET_REPLACE,
    UNET_EXTENDED_TARGET_REPLACE,
)
from loractl.compat.wrappers import LoraInjectedConv2d, LoraInjectedLinear

__all__ = [
    "DEFAULT_TARGET_REPLACE",
    "TEXT_ENCODER_DEFAULT_TARGET_REPLACE",
    "TEXT_ENCODER_EXTENDED_TARGET_REPLACE",
    "UNET_DEFAULT_TARGET_REPLACE",
    "UNET_EXTENDED_TARGET_REPLACE",
    "LoRAManager",
    "LoraInjectedConv2d",
    "LoraInjectedLinear",
    "apply_learned_embed_in_clip",
    "collapse_lora",
    "extract_lora_ups_down",
    "inject_trainable_lora",
    "inject_trainable_lora_extended",
    "inspect_lora",
    "load_safeloras",
    "load_safeloras_both",
    "load_safeloras_embeds",
    "monkeypatch_add_lora",
    "monkeypatch_or_replace_lora",
    "monkeypatch_or_replace_lora_extended",
    "monkeypatch_remove_lora",
    "patch_pipe",
    "save_safeloras",
    "save_safeloras_with_embeds",
    "set_lora_diag",
    "tune_lora_scale",
]
