"""What `loractl show` says: what a file is for, how large its updates are, what other programs make of its keys."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loractl.errors import InputError
from loractl.formats import describe as describe_file
from loractl.formats import load
from loractl.formats.bases import base_version
from loractl.formats.pickles import is_pickle, read_pickle
from loractl.formats.programs import PROGRAMS, foresee, verdict
from loractl.formats.safefile import read_header
from loractl.tensors.adapter import Adapter
from loractl.tensors.algebra import norm
from loractl.tensors.threads import one_thread

# A text encoder is one block; of a denoiser it is a path's first two words, and the number behind them.
_BLOCK = re.compile(r"text_encoder(_\d)?|\w+\.(\w+_blocks\.\d+|\w+)")


@one_thread()
def describe(path: Path, with_modules: bool = False, allow_pickle: bool = False) -> dict[str, Any]:
    """All that `inspect` says, with the base model and ‖ΔW‖ (Frobenius), of what is understood and of each block.

    A file of no known format is described too: its keys are all unknown.
    """
    loaded = load(path, allow_pickle=allow_pickle, any_format=True)
    found, adapter = describe_file(loaded), loaded.contents.adapter(loaded.source.metadata)
    norms = {name: norm(low) for name, low in adapter.modules.items()}
    found["notes"] += _damage(norms)
    first = {key: found.pop(key) for key in ("kind", "format")}
    sizes = {"norm": math.hypot(*norms.values()), "blocks": blocks(norms)} if norms else {}
    said = {**first, "base": base_version(adapter), **found, **sizes}
    return {**said, "modules": _modules(adapter, norms)} if with_modules else said


def prospects(path: Path, name: str, allow_pickle: bool = False) -> dict[str, Any]:
    """What the program called `name` does with every key of the file; InputError when no program is called so."""
    if name not in PROGRAMS:
        raise InputError(f"nothing is known of the program {name}: choose one of {', '.join(PROGRAMS)}")
    program = PROGRAMS[name]
    keys = read_pickle(path)[0] if allow_pickle and is_pickle(path) else read_header(path).entries
    groups = foresee(program, keys)
    told = [{**group._asdict(), "count": len(group.keys)} for group in groups]
    return {"program": name, "version": program.version, "file": verdict(program, groups), "groups": told}


def blocks(norms: Mapping[str, float]) -> dict[str, float]:
    """Block → ‖ΔW‖ of all its modules, in the order in which pictures pass through."""
    members: dict[str, list[float]] = defaultdict(list)
    for path, size in norms.items():
        found = _BLOCK.match(path)
        members[found[0] if found else path].append(size)
    return {block: math.hypot(*members[block]) for block in sorted(members, key=_place)}


def _damage(norms: Mapping[str, float]) -> list[str]:
    """What to say of modules whose numbers are not all finite."""
    broken = [path for path, size in norms.items() if not math.isfinite(size)]
    if not broken:
        return []
    return [f"{len(broken)} modules are not finite, the first is {broken[0]}: fetch the file again or make it again"]


def _place(block: str) -> tuple[int, str, int]:
    """Text encoders, then the way in, the middle, the way out; numbers as numbers."""
    name, _, number = block.rpartition(".") if block[-1].isdigit() and "." in block else (block, "", "0")
    ways = ("text_encoder", "unet.conv_in", "unet.down_blocks", "unet.mid_block", "unet.up_blocks")
    way = next((place for place, start in enumerate(ways) if name.startswith(start)), len(ways))
    return way, name, int(number)


def _modules(adapter: Adapter, norms: Mapping[str, float]) -> dict[str, Any]:
    return {
        path: {"rank": low.rank, "alpha": low.alpha, "shape": list(low.shape), "norm": norms[path]}
        for path, low in adapter.modules.items()
    }
