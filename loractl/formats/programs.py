"""What other programs do with the keys of an adapter file: load, ignore, or refuse the whole file because of them.

The rules are data, read off the programs' own sources, each with the place where it stands there. They take it for
granted that the program runs the base model that the adapter was made for. A key that no rule tells of is "unknown".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Fate = Literal["loaded", "ignored", "refused", "unknown"]


class Rule(NamedTuple):
    """What becomes of the keys that match `pattern` as a whole; of several rules the first counts.

    A rule is for files without a key that matches `unless`.
    """

    pattern: str
    fate: Fate
    reason: str
    source: str
    unless: str = r"(?!)"


class Program(NamedTuple):
    """Its rules, and what they were read in. With more ignored keys than `patience`, it leaves the file alone."""

    version: str
    rules: tuple[Rule, ...]
    patience: int | None = None


class Group(NamedTuple):
    """Keys that share a fate for one reason."""

    fate: Fate
    reason: str
    source: str
    keys: list[str]


_LORA = r"(lora_(up|down|mid)\.weight|alpha)"
_DORA = r"dora_scale"
_LYCORIS = r"(hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)|diff(_b)?|[wb]_norm|[ab][12]\.weight)"
_PEFT = r"lora_[AB]\.weight"
_CLIP_LAYER = r"text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
_CLIP_PATH = r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
_UNET = (
    r"lora_unet_(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|input_blocks|middle_block"
    r"|output_blocks)_?\w*"
)
_NATIVE = r"lora_unet_(joint_blocks|double_blocks|single_blocks)_\w+"
_SIMO = r"(unet|text_encoder):\d+:(up|down)"
_TOKEN = r"<[^<>]+>"
_BUNDLE = r"bundle_emb\..+"

_COMFY_UNET = "comfy/lora.py, model_lora_keys_unet"
_COMFY_CLIP = "comfy/lora.py, model_lora_keys_clip"
_COMFY_LOAD = "comfy/lora.py, load_lora"
_COMFY_PARTS = "comfy/weight_adapter"
_FORGE = "packages_3rdparty/comfyui_lora_collection/lora.py"
_A1111 = "extensions-builtin/Lora/networks.py, load_network"
_DIFFUSERS = "loaders/lora_pipeline.py, lora_state_dict"
_CHECK = "loaders/lora_pipeline.py, load_lora_weights"
_CONVERT = "loaders/lora_conversion_utils.py, _convert_non_diffusers_lora_to_diffusers"
_INFER = "utils/state_dict_utils.py, convert_state_dict_to_diffusers"

_NO_MODULE = "no module of the model is called so"
_KOHYA = "kohya's names"
_ATTENTION = "attention of a UNet is known by its old names (…processor.to_q) only"


def _from_comfy(unet: str, clip: str, parts: str) -> tuple[Rule, ...]:
    """What ComfyUI and Forge, which has taken its loader from there, have in common."""
    part = rf"\.({_LORA}|{_DORA})"
    return (
        Rule(rf"({_UNET}|{_NATIVE}){part}", "loaded", _KOHYA, unet),
        Rule(rf"lora_te[12]?_({_CLIP_LAYER}){part}", "loaded", f"{_KOHYA} of a CLIP", clip),
        Rule(rf"lora_te[12]_text_projection{part}", "loaded", f"{_KOHYA} of a CLIP's projection", clip),
        Rule(rf"({_UNET}|{_NATIVE}|lora_te[12]?_{_CLIP_LAYER})\.{_LYCORIS}", "loaded", "LyCORIS", parts),
        Rule(rf"diffusion_model\.[\w.]+\.({_PEFT}|{_LORA}|{_DORA})", "loaded", "the model's own names", unet),
        Rule(rf"text_encoder(_2)?\.{_CLIP_PATH}\.({_PEFT}|lora_linear_layer\.(up|down)\.weight)", "loaded",
             "diffusers' names of a CLIP", clip),
        Rule(r"(unet\.)?[\w.]+\.processor\.to_(q|k|v|out)_lora\.(up|down)\.weight", "loaded",
             "diffusers' old names of attention", unet),
        Rule(rf"unet\.[\w.]+\.to_(q|k|v|out\.0)\.{_PEFT}", "ignored", _ATTENTION, unet),
        Rule(rf"unet\.(down_blocks|mid_block|up_blocks)\.[\w.]+\.{_PEFT}", "loaded",
             "diffusers' names, which have no to_q and its like", unet),
        Rule(rf"{_UNET}\.(on_input|weight)", "ignored", "IA3 is not known", parts),
        Rule(_BUNDLE, "ignored", "tokens in an adapter's file are not looked for", parts),
        Rule(rf"{_SIMO}|{_TOKEN}", "ignored", _NO_MODULE, unet),
    )  # fmt: skip


def _without_out_proj(encoder: str) -> tuple[Rule, ...]:
    """diffusers gives attention in kohya's text encoders its old names, and expects these only where it sees out_proj.

    Files of Flux go another way.
    """
    part = r"\.(lora_(up|down)\.weight|alpha)"
    seen = rf"{encoder}_\w+_out_proj\..+|lora_unet_(double|single)_blocks_.+"
    return (
        Rule(rf"{encoder}_\w+{part}", "refused", "a text encoder that has neither out_proj nor mlp: convert the file",
             _INFER, unless=rf"{seen}|{encoder}_\w+_mlp_.+"),
        Rule(rf"{encoder}_\w+_[qkv]_proj{part}", "ignored", "a text encoder that has no out_proj: convert the file",
             _INFER, unless=seen),
    )  # fmt: skip


PROGRAMS: Mapping[str, Program] = {
    "comfyui": Program(
        "comfyanonymous/ComfyUI, summer of 2025",
        (
            *_from_comfy(_COMFY_UNET, _COMFY_CLIP, _COMFY_PARTS),
            Rule(rf"lora_te[123]_encoder_block_\w+\.({_LORA}|{_DORA})", "loaded", f"{_KOHYA} of a T5", _COMFY_CLIP),
            Rule(rf"lora_transformer_\w+\.({_LORA}|{_DORA})", "loaded", "OneTrainer's names", _COMFY_UNET),
            Rule(rf"transformer\.[\w.]+\.({_PEFT}|alpha)", "loaded", "diffusers' names", _COMFY_UNET),
            Rule(rf"lycoris_\w+\.({_LYCORIS}|{_LORA}|{_DORA})", "loaded", "SimpleTuner's names", _COMFY_UNET),
        ),
    ),
    "forge": Program(
        "lllyasviel/stable-diffusion-webui-forge, 2024",
        (
            *_from_comfy(_FORGE, _FORGE, _FORGE),
            Rule(rf"transformer\.(single_)?transformer_blocks\.[\w.]+\.{_PEFT}", "loaded", "diffusers' names of Flux",
                 _FORGE),
        ),
        patience=12,  # extensions-builtin/sd_forge_lora/networks.py, load_lora_for_models
    ),
    "a1111": Program(
        "AUTOMATIC1111/stable-diffusion-webui 1.10",
        (
            Rule(_BUNDLE, "loaded", "tokens in the file become embeddings", _A1111),
            Rule(rf"({_UNET}|lora_te[12]?_{_CLIP_LAYER})\.({_LORA}|{_DORA}|{_LYCORIS})", "loaded", _KOHYA, _A1111),
            Rule(rf"({_NATIVE}|lora_transformer_\w+|lycoris_\w+)\.[\w.]+", "ignored", _NO_MODULE, _A1111),
            Rule(r"(unet|text_encoder(_2)?|diffusion_model)\.[\w.]+", "ignored",
                 "names with dots are cut at the first, and no module is called by what is left", _A1111),
            Rule(rf"{_SIMO}|{_TOKEN}", "ignored", _NO_MODULE, _A1111),
        ),
    ),
    "diffusers": Program(
        "huggingface/diffusers 0.42",
        (
            Rule(r".*dora_scale.*", "ignored", "kohya's DoRA becomes plain LoRA", _DIFFUSERS),
            *_without_out_proj("lora_te1?"),
            *_without_out_proj("lora_te2"),
            Rule(rf"({_UNET}|lora_te[12]?_\w+)\.(lora_(up|down)\.weight|alpha)", "loaded", _KOHYA, _CONVERT),
            Rule(rf"({_UNET}|lora_te[12]?_\w+)\..+", "refused", "of kohya's parts, only up, down and alpha are known",
                 _CONVERT),
            Rule(r"lora_unet_(double|single)_blocks_\w+\.(lora_(up|down)\.weight|alpha)", "loaded", "kohya's Flux",
                 "loaders/lora_pipeline.py, FluxLoraLoaderMixin"),
            Rule(rf"(unet|transformer|text_encoder(_2)?)\.[\w.]+\.({_PEFT}|lora_magnitude_vector(\.weight)?)", "loaded",
                 "its own names", _CHECK),
            Rule(r"(unet|text_encoder(_2)?)\.[\w.]*lora[\w.]*\.(up|down)\.weight", "loaded", "its old names", _CHECK),
            Rule(rf"{_BUNDLE}|{_SIMO}|{_TOKEN}|(unet|text_encoder)\.(?!.*lora).+", "refused",
                 "every key must have the word lora in it", _CHECK),
        ),
    ),
}  # fmt: skip


def foresee(program: Program, keys: Iterable[str]) -> list[Group]:
    """Every key's fate, those of one reason together, in the order of the rules."""
    found = sorted(keys)
    untold = Rule("", "unknown", "no rule tells of them", "")
    rules = [rule for rule in program.rules if not any(re.fullmatch(rule.unless, key) for key in found)]
    groups: dict[Rule, list[str]] = {rule: [] for rule in (*rules, untold)}
    for key in found:
        groups[next((rule for rule in rules if re.fullmatch(rule.pattern, key)), untold)].append(key)
    return [Group(rule.fate, rule.reason, rule.source, told) for rule, told in groups.items() if told]


def verdict(program: Program, groups: Iterable[Group]) -> str:
    """What becomes of the file: "refused", or which fates its keys have."""
    counts: dict[Fate, int] = {}
    for group in groups:
        counts[group.fate] = counts.get(group.fate, 0) + len(group.keys)
    if counts.get("refused"):
        return "refused as a whole"
    if program.patience is not None and counts.get("ignored", 0) > program.patience:
        return f"refused as a whole: more than {program.patience} keys would be ignored"
    return ", ".join(f"{count} {fate}" for fate, count in counts.items())
