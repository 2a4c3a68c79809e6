"""From the tensors of a file to an adapter: parts are brought together, and a module that is not whole is refused."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from loractl.errors import FormatError, MismatchError
from loractl.formats.natives import Native, split, split_vector
from loractl.formats.updates import PARTS, PLAIN, build, foreign
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

_KEY = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, PARTS))})")
_KERNELS = {"conv1": 3, "conv2": 3, "conv": 3, "conv_in": 3, "conv_out": 3, "conv_shortcut": 1}
_DORA = "it is DoRA: infer and grid apply it whole, everything else as the plain LoRA beneath the magnitudes"


class Source(NamedTuple):
    """What a format reads: a file's tensors and metadata, its name without the suffix, and the paths of its model."""

    stem: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    paths: Iterable[str] = ()


class Place(NamedTuple):
    """Where a tensor of a file belongs: a module and the part of it, of PARTS' values."""

    module: Native
    part: str


class Token(NamedTuple):
    """A tensor of a file that is a learned embedding: "text_encoder.<s1>"."""

    path: str


class Foreign(NamedTuple):
    """A module's update that is none of ΔW without the base model: what it is, and the keys of its tensors."""

    reason: str
    keys: list[str]


@dataclass
class Contents:
    """All of a file: what an `Adapter` has, the kind of each module, the modules that an adapter can't have, and the
    keys that are nothing known.
    """

    modules: dict[str, LowRank] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, Foreign] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def adapter(self, metadata: Mapping[str, str]) -> Adapter:
        return Adapter(self.modules, metadata, self.tokens, self.vectors, self.magnitudes, tuple(self.notes))


Locate = Callable[[str], Place | Token | None]
Alpha = Callable[[str, int], float]


def cut(key: str) -> tuple[str, str] | None:
    """The module's name and the part that a key means, or None if it ends like no part of an update."""
    found = _KEY.fullmatch(key)
    return (found[1], PARTS[found[2]]) if found else None


def is_part(key: str) -> bool:
    """Whether a key ends like a part of an update and not like any model's weight."""
    place = cut(key)
    return place is not None and place[1] != PLAIN


def gather(tensors: Mapping[str, Tensor], locate: Locate, alpha: Alpha = lambda _, rank: rank) -> Contents:
    """The modules and tokens whose tensors `locate` finds by key; `alpha` (path, rank) is for those without."""
    contents = Contents()
    found: dict[Native, dict[str, str]] = defaultdict(dict)  # module → part → key
    for key in sorted(tensors):
        place = locate(key)
        if place is None or (isinstance(place, Place) and _is_models(place, found)):
            contents.unknown.append(key)
        elif isinstance(place, Token):
            if place.path in contents.tokens:
                raise FormatError(f"{key} is a second tensor of the token {place.path}: remove one of the two")
            contents.tokens[place.path] = _embeddings(key, tensors[key])
        elif place.part in found[place.module]:
            name = " and ".join(place.module.paths)
            raise FormatError(f"{key} is a second {place.part} of the module {name}: remove one of the two")
        else:
            found[place.module][place.part] = key
    for module, keys in sorted(found.items()):
        parts = {part: _by_output(key, tensors[key]) for part, key in keys.items()}
        if reason := foreign(parts):
            contents.foreign[" and ".join(module.paths)] = Foreign(reason, sorted(keys.values()))
        else:
            _add(contents, module, parts, alpha)
    if contents.magnitudes:
        contents.notes.append(_DORA)
    contents.modules = dict(sorted(contents.modules.items()))
    return contents


def _is_models(place: Place, found: Mapping[Native, Mapping[str, str]]) -> bool:
    """Whether a bare weight is no scaling of IA3, whose `on_input` comes before it."""
    return place.part == PLAIN and "on_input" not in found.get(place.module, {})


def refuse_beyond(adapter: Adapter, form: str, *able: str) -> None:
    """MismatchError when the adapter has what the format `form` cannot hold; `able` are the parts that it can."""
    for part, what in _BEYOND.items():
        held: Mapping[str, object] = getattr(adapter, part)
        if held and part not in able:
            raise MismatchError(f"the format {form!r} has no place for {what} ({min(held)}): choose another format")


_BEYOND = {
    "modules": "modules",
    "tokens": "learned tokens",
    "vectors": "differences of biases and norms",
    "magnitudes": "the magnitudes of DoRA",
}


def _add(contents: Contents, module: Native, parts: dict[str, Tensor], alpha: Alpha) -> None:
    """Adds to the contents what one module of the file holds."""
    name = " and ".join(module.paths)
    if "diff" in parts and parts["diff"].ndim == 1 and "weight" not in parts:
        parts["weight"] = parts.pop("diff")
    vectors = {part: parts.pop(part).flatten() for part in ("bias", "weight") if part in parts}
    magnitude = parts.pop("magnitude", None)
    width = None
    if parts.keys() - {"alpha"} or not vectors:
        kind, low = build(name, parts, lambda rank: alpha(module.paths[0], rank))
        low = _with_kernel(module.paths[0], low)
        width = low.shape[1]
        _add_updates(contents, kind, split(module, low))
        if magnitude is not None:
            contents.magnitudes |= _magnitudes(name, module, magnitude, low)
    for part, vector in vectors.items():
        rows = split_vector(module, vector, width)
        contents.vectors |= {f"{path}.{part}": tensor for path, tensor in rows.items()}


def _with_kernel(path: str, low: LowRank) -> LowRank:
    """The update of a UNet's convolution with its kernel, which LoHa and LoKr files leave flattened."""
    kernel = _KERNELS.get(path.rpartition(".")[2]) if path.startswith("unet.") else None
    if kernel is None or len(low.shape) != 2 or low.shape[1] % kernel**2:
        return low
    down = low.down.reshape(low.rank, -1, kernel, kernel)
    return LowRank(down, low.up[:, :, None, None], low.alpha)


def _add_updates(contents: Contents, kind: str, updates: Mapping[str, LowRank]) -> None:
    for path, low in updates.items():
        if path in contents.modules:
            raise FormatError(f"the module {path} is there twice, alone and in another: remove one of the two")
        contents.modules[path], contents.kinds[path] = low, kind


def _by_output(key: str, tensor: Tensor) -> Tensor:
    """Peft has DoRA's magnitudes by output always, those of a convolution as (1, out, 1, 1): these as (out,)."""
    return tensor.flatten() if "lora_magnitude_vector" in key else tensor


def _magnitudes(name: str, module: Native, magnitude: Tensor, low: LowRank) -> dict[str, Tensor]:
    """DoRA's magnitudes, by output (out, 1, *1), also written (out,), or by input (1, in, *1); of a convolution whose
    update is flattened they have a kernel's 1s all the same.
    """
    ones = [1] * (len(low.shape) - 2)
    by_output, by_input = (low.shape[0], 1, *ones), (1, low.shape[1], *ones)
    if magnitude.shape[:1] == by_output[:1] and magnitude.numel() == by_output[0]:
        return split_vector(module, magnitude.view(by_output), low.shape[1])
    if magnitude.shape[:2] == by_input[:2] and magnitude.numel() == by_input[1]:
        return dict.fromkeys(module.paths, magnitude.view(by_input))
    raise FormatError(
        f"the module {name} has a magnitude {tuple(magnitude.shape)}, which fits neither the outputs nor the inputs of "
        f"its update {tuple(low.shape)}: make the file again"
    )


def _embeddings(key: str, tensor: Tensor) -> Tensor:
    """(n, dim), also of a single vector (dim,)."""
    if tensor.ndim not in (1, 2) or tensor.numel() == 0 or not tensor.is_floating_point():
        raise FormatError(f"{key} is {tuple(tensor.shape)}, which are no embeddings (n, dim): make the file again")
    return tensor.view(-1, tensor.shape[-1])
