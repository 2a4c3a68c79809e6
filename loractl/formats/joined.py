"""The modules of an adapter as its file will have them, of which it is that a rank and a size are asked for.

kohya's form has queries, keys and values of Stable Diffusion 3 and Flux in one module; every other module, and all of
them in the other forms, stand for themselves.
"""

from collections.abc import Mapping

from loractl.formats.bases import family
from loractl.formats.natives import Native, fuse, natives, split
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

Modules = Mapping[str, LowRank]


def groups(modules: Modules, metadata: Mapping[str, str], format: str) -> dict[str, Native]:
    """Name → module of the file, for all modules: a native name where several are one, else the path."""
    base = family(Adapter(modules, metadata)) if format == "kohya" else None
    own = [path for path in modules if path.startswith("transformer.")] if base in ("sd3", "flux") else []
    named = natives(own, base).items() if base and own else ()
    several = {name: native for name, native in named if native and len(native.paths) > 1}
    taken = {path for native in several.values() for path in native.paths}
    return several | {path: Native((path,)) for path in modules if path not in taken}


def join(modules: Modules, grouped: Mapping[str, Native]) -> dict[str, LowRank]:
    """The modules of the file; one of which no part is there is left out."""
    own = {name: {path: modules[path] for path in each.paths if path in modules} for name, each in grouped.items()}
    return {name: fuse(grouped[name], parts) for name, parts in own.items() if parts}


def part(joined: Modules, grouped: Mapping[str, Native]) -> dict[str, LowRank]:
    """The modules in memory of those of the file."""
    return {path: low for name, each in joined.items() for path, low in split(grouped[name], each).items()}
