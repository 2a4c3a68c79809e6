"""kohya's format (sd-scripts), which A1111, Forge and ComfyUI read: `lora_unet_down_blocks_0_…_to_q.lora_down.weight`.

A module has `lora_down.weight` (r, in, *k), `lora_up.weight` (out, r, *1) and `alpha` (), without which alpha = rank,
or the parts of a LyCORIS update; the difference of a bias is `diff_b`, of a norm `w_norm` and `b_norm`. The dots of its
path are underscores. Stable Diffusion 1 and 2 have diffusers' names, the others their makers'. Learned tokens may be
bundled: `bundle_emb.<token>.string_to_param.*`, `.clip_l`, `.clip_g`, `.t5`; some files have them alone.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from loractl.errors import MismatchError
from loractl.formats.bases import BASES, base_version, family
from loractl.formats.embeddings import bundled, in_bundle
from loractl.formats.modules import Contents, Place, Source, Token, cut, gather
from loractl.formats.names import canonical, flatten, nested, unflatten
from loractl.formats.natives import Native, find, find_own, fuse, fuse_vectors, natives
from loractl.formats.safefile import hash_of
from loractl.formats.sgm import from_flat_sgm, to_sgm
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

KEY = re.compile(r"(lora_(unet|te\d?|prior_unet)|lycoris)_\w+\.[\w.]+")
OWNED = re.compile(
    r"ss_network_(module|dim|alpha|args)|ss_output_name|sshs_.*"
    r"|modelspec\.(sai_model_spec|implementation|title|architecture|resolution|hash_sha256)"
)

# Component → prefix, for each family of base models. T5 is Stable Diffusion 3's third text encoder and Flux's second.
_PREFIXES = {
    "sd": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sdxl": {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    "sd3": {
        "transformer": "lora_unet_",
        "text_encoder": "lora_te1_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    },
    "flux": {"transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"},
}
_NOT_HERE = "save the adapter in the diffusers format"


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(KEY.fullmatch(key) for key in shapes) or (bool(shapes) and all(map(bundled, shapes)))


def read(source: Source) -> Contents:
    """The modules of a file, found by name among its model's paths or else by the words that such names are made of."""
    known = {name: Native((canonical(path),)) for path in source.paths if (name := _flat_known(path))}
    t5 = _t5(source.tensors)
    find_any = cache(_find)  # each name is that of several keys

    def locate(key: str) -> Place | Token | None:
        if token := bundled(key, t5):
            return token
        place = cut(key)
        module = (known.get(place[0]) or find_any(place[0], t5)) if place else None
        return Place(module, place[1]) if place and module else None

    return gather(source.tensors, locate)


def write(adapter: Adapter, dtype: torch.dtype, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    base = family(adapter)
    if base is None:
        raise MismatchError(f"kohya's names depend on the base model, and nothing tells which it is: {_NOT_HERE}")
    tensors: dict[str, Tensor] = in_bundle(adapter.tokens, dtype)
    updates = _with_one_alpha(adapter.modules) if base in ("sd", "sdxl") else adapter.modules
    written = {
        flat: fuse(module, {path: updates[path] for path in module.paths if path in updates})
        for flat, module in _named(updates, base).items()
    }
    for flat, low in written.items():
        saved = low.to(dtype)
        tensors[f"{flat}.lora_down.weight"] = saved.down
        tensors[f"{flat}.lora_up.weight"] = saved.up
        tensors[f"{flat}.alpha"] = torch.tensor(low.alpha, dtype=torch.float32)
    for path, magnitude in adapter.magnitudes.items():
        tensors[f"{_flat(path, base)}.dora_scale"] = magnitude.to(dtype)
    tensors |= {key: vector.to(dtype) for key, vector in _vectors(adapter, base)}
    metadata = {
        **adapter.metadata,
        **_description(adapter, written.values(), name),
        "sshs_model_hash": hash_of(tensors),
    }
    return tensors, metadata


def _t5(keys: Collection[str]) -> str:
    """The component of T5: Flux's second text encoder, Stable Diffusion 3's third. Tokens alone are of Flux where none
    is for the second CLIP.
    """
    named = any("double_blocks" in key or "single_" in key for key in keys)
    tokens_alone = all(map(bundled, keys)) and not any(key.endswith(".clip_g") for key in keys)
    return "text_encoder_2" if named or tokens_alone else "text_encoder_3"


def _find(name: str, t5: str) -> Native | None:
    """The module that a name with its prefix means, in whatever model; `t5` is the component of lora_te3."""
    for prefix, finders in _FINDERS.items():
        if name.startswith(prefix):
            flat = name.removeprefix(prefix)
            return next((found for finder in finders if (found := finder(flat, t5))), None)
    return None


def _flat_known(path: str) -> str | None:
    """The name of a module in a model of any kind whose components are called as in Stable Diffusion or Flux."""
    component, _, module = nested(path).partition(".")
    prefix = (_PREFIXES["sd"] | _PREFIXES["sdxl"] | {"transformer": "lora_transformer_"}).get(component)
    return f"{prefix}{flatten(module)}" if prefix else None


def _words(network: str, component: str) -> Callable[[str, str], Native | None]:
    """A finder of names made of a network's words."""

    def finder(flat: str, _t5: str) -> Native | None:
        module = unflatten(network, flat)
        return Native((canonical(f"{component}.{module}"),)) if module else None

    return finder


def _native(flat: str, _t5: str) -> Native | None:
    return find(flat, flat=True)


def _own(flat: str, _t5: str) -> Native | None:
    return find_own(flat, flat=True)


def _sgm(flat: str, _t5: str) -> Native | None:
    module = from_flat_sgm(flat)
    return Native((f"unet.{module}",)) if module else None


def _third(flat: str, t5: str) -> Native | None:
    return _words("t5", t5)(flat, t5)


_UNET = _words("unet", "unet")
_FINDERS: Mapping[str, tuple[Callable[[str, str], Native | None], ...]] = {
    "lora_unet_": (_native, _sgm, _own, _UNET),
    "lora_transformer_": (_own, _native),
    "lora_te_": (_words("clip", "text_encoder"),),
    "lora_te1_": (_words("clip", "text_encoder"),),
    "lora_te2_": (_words("clip", "text_encoder_2"), _words("t5", "text_encoder_2")),
    "lora_te3_": (_third,),
    "lycoris_": (_native, _sgm, _own, _UNET, _words("clip", "text_encoder")),
}


def _named(paths: Iterable[str], base: str) -> dict[str, Native]:
    """Name → module, with parts of a native module joined."""
    own: list[str] = []
    rest: list[str] = []
    for path in paths:
        (own if path.startswith("transformer.") and base in ("sd3", "flux") else rest).append(path)
    named = {}
    for name, module in natives(own, base).items() if own else ():
        if module is None:
            raise MismatchError(f"kohya's format has no name for {name}: {_NOT_HERE}")
        named[f"lora_unet_{flatten(name)}"] = module
    for path in rest:
        flat = _flat(path, base)
        if flat in named:
            raise MismatchError(f"two modules would be called {flat}: {_NOT_HERE}")
        named[flat] = Native((path,))
    return named


def _vectors(adapter: Adapter, base: str) -> Iterator[tuple[str, Tensor]]:
    """Key and difference of each bias and norm. A bias that stands by a norm's weight is `b_norm`, else `diff_b`."""
    weights, biases = (
        {path.removesuffix(end): vector for path, vector in adapter.vectors.items() if path.endswith(end)}
        for end in (".weight", ".bias")
    )
    for vectors, part in ((weights, "w_norm"), (biases, "diff_b")):
        for flat, module in _named(vectors, base).items():
            path = module.paths[0]
            width = adapter.modules[path].shape[1] if path in adapter.modules else None
            parts = {path: vectors[path] for path in module.paths if path in vectors}
            key = "b_norm" if part == "diff_b" and path in weights else part
            yield f"{flat}.{key}", fuse_vectors(module, parts, width)


def _flat(path: str, base: str) -> str:
    component, _, module = nested(path).partition(".")
    native = to_sgm(module) if base == "sdxl" and component == "unet" else module
    if native is None or component not in _PREFIXES[base] or component == "transformer":
        raise MismatchError(f"kohya's format has no name for {path}: {_NOT_HERE}")
    return f"{_PREFIXES[base][component]}{flatten(native)}"


def _with_one_alpha(modules: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same updates with one alpha for each component, the usual; what another differs by goes into its `up`.

    diffusers (0.42) takes a UNet's file with different alphas without a word and gives most modules a wrong scale.
    """
    # Zero counts for nothing: no factor turns it into another alpha.
    alphas: dict[str, Counter[float]] = {}
    for path, low in modules.items():
        alphas.setdefault(path.partition(".")[0], Counter())[low.alpha] += low.alpha != 0
    common = {component: max(counts, key=lambda alpha: (counts[alpha], alpha)) for component, counts in alphas.items()}
    return {path: _rescaled(low, common[path.partition(".")[0]]) for path, low in modules.items()}


def _rescaled(low: LowRank, alpha: float) -> LowRank:
    if low.alpha == alpha:
        return low
    up = low.up.to(torch.promote_types(low.up.dtype, torch.float32))
    return replace(low, up=up * (low.alpha / alpha), alpha=alpha)


def _description(adapter: Adapter, written: Iterable[LowRank], name: str) -> dict[str, str]:
    version = base_version(adapter)
    base = BASES.get(version or "")
    known = {"ss_base_model_version": version} if version else {}
    if base:
        known["ss_v2"] = str("v2" in base.architecture)
        known["modelspec.architecture"] = f"{base.architecture}/lora"
        known["modelspec.resolution"] = f"{base.size}x{base.size}"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _shared({low.rank for low in written}),
        "ss_network_alpha": _shared({low.alpha for low in written}),
        "ss_network_args": "{}",
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": base.implementation if base else BASES["sd_v1"].implementation,
        "modelspec.title": name,
        **known,
    }


def _shared(values: set[int] | set[float]) -> str:
    """The one value of all modules, or the word that sd-scripts writes when they differ."""
    return str(next(iter(values))) if len(values) == 1 else "Dynamic"
