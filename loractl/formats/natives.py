"""Stable Diffusion 3 and Flux as their makers name them, which kohya and ComfyUI do too, beside diffusers' names.

A native module may be several of diffusers' modules in one: the rows of its weight are theirs, one after the other
("img_attn.qkv"). In its low-rank form the parts' ranks add up: down is stacked, up is block-diagonal, but rows of
down that several parts have alike are there once, so that what was taken apart is again what it was. Both ways are
exact. The two halves of a modulation of two parts, scale and shift, stand in the other order there.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from loractl.errors import FormatError, MismatchError
from loractl.formats.names import flatten
from loractl.tensors.lowrank import LowRank, factored


class Native(NamedTuple):
    """A module of a file and the modules, by their paths in memory, that it consists of."""

    paths: tuple[str, ...]
    native: bool = False  # whether the weight is laid out as the maker has it


# Native prefix and diffusers' prefix of a block → native name → diffusers' names, in the order of the rows.
Table = Mapping[tuple[str, str], Mapping[str, str]]

_SD3: Table = {
    ("joint_blocks.{}.x_block.", "transformer_blocks.{}."): {
        "attn.qkv": "attn.to_q attn.to_k attn.to_v",
        "attn.proj": "attn.to_out.0",
        "attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
        "attn2.proj": "attn2.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm1.linear",
    },
    ("joint_blocks.{}.context_block.", "transformer_blocks.{}."): {
        "attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
        "attn.proj": "attn.to_add_out",
        "mlp.fc1": "ff_context.net.0.proj",
        "mlp.fc2": "ff_context.net.2",
        "adaLN_modulation.1": "norm1_context.linear",
    },
    ("", ""): {
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    },
}
_FLUX: Table = {
    ("double_blocks.{}.", "transformer_blocks.{}."): {
        "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
        "img_attn.proj": "attn.to_out.0",
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "img_mod.lin": "norm1.linear",
        "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
        "txt_attn.proj": "attn.to_add_out",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
        "txt_mod.lin": "norm1_context.linear",
    },
    ("single_blocks.{}.", "single_transformer_blocks.{}."): {
        "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
        "linear2": "proj_out",
        "modulation.lin": "norm.linear",
    },
    ("", ""): {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    },
}


def _templates(table: Table) -> dict[str, tuple[str, ...]]:
    """Native template → templates of paths in memory, with {} for a block's number."""
    return {
        native + name: tuple(f"transformer.{own}{each}" for each in parts.split())
        for (native, own), names in table.items()
        for name, parts in names.items()
    }


_BY_BASE = {"sd3": _templates(_SD3), "flux": _templates(_FLUX)}
_BY_NATIVE = _BY_BASE["sd3"] | _BY_BASE["flux"]  # what both have means the same in both
_BY_FLAT = {flatten(native): paths for native, paths in _BY_NATIVE.items()}
_OWN = {path.removeprefix("transformer."): (path,) for paths in _BY_NATIVE.values() for path in paths}
_OWN_FLAT = {flatten(name): paths for name, paths in _OWN.items()}
_NATIVE_OF = {
    base: {path: native for native, paths in table.items() for path in paths} for base, table in _BY_BASE.items()
}


def find(name: str, flat: bool = False) -> Native | None:
    """The module that a native name means; `flat` when its dots are underscores."""
    paths = _fill(_BY_FLAT if flat else _BY_NATIVE, name)
    return Native(paths, native=True) if paths else None


def find_own(name: str, flat: bool = False) -> Native | None:
    """The module that diffusers' own name in a transformer means."""
    paths = _fill(_OWN_FLAT if flat else _OWN, name)
    return Native(paths) if paths else None


def natives(paths: Iterable[str], base: str) -> dict[str, Native | None]:
    """Native name → module, for the modules of `base` ("sd3", "flux") that the paths in memory belong to.

    A path that has no native name stands for itself, with None.
    """
    found: dict[str, Native | None] = {}
    for path in paths:
        template, number = _template(path)
        native = _NATIVE_OF[base].get(template) or _NATIVE_OF[base].get(path)
        if native is None:
            found[path] = None
        else:
            parts = tuple(each.replace("{}", number) for each in _BY_BASE[base][native])
            found[native.replace("{}", number)] = Native(parts, native=True)
    return found


def split(native: Native, low: LowRank) -> dict[str, LowRank]:
    """The updates of a native module's parts. Ranks in which a part has only zeros are left out of it, and so is a part
    that has no others, unless all have none.
    """
    if len(native.paths) == 1:
        return {native.paths[0]: _turned(native, low)}
    rows = low.up.split(_sizes(native, low.shape))
    kept = {path: part.flatten(1).any(dim=0) for path, part in zip(native.paths, rows, strict=True)}
    if not any(used.any() for used in kept.values()):
        kept = {path: torch.ones_like(used) for path, used in kept.items()}
    return {
        path: factored(part.flatten(1)[:, kept[path]], low.down[kept[path]], low.scale)
        for path, part in zip(native.paths, rows, strict=True)
        if kept[path].any()
    }


def row_ranges(native: Native, count: int, width: int | None) -> dict[str, tuple[range, ...]]:
    """The rows of a native tensor (count, …) that are each part's, in the part's own order.

    `width` is the module's number of inputs; without it, it is told by how many rows there are.
    """
    if len(native.paths) == 1:
        middle = count // 2
        turned = _is_turned(native, count, width)
        return {native.paths[0]: (range(middle, count), range(middle)) if turned else (range(count),)}
    sizes = _sizes(native, torch.Size([count, width or count // sum(_ratios(native, 1))]))
    ends = itertools.accumulate(sizes)
    return {path: (range(end - size, end),) for path, size, end in zip(native.paths, sizes, ends, strict=True)}


def split_vector(native: Native, vector: Tensor, width: int | None) -> dict[str, Tensor]:
    """A tensor of rows (out, …), shared out among the parts; `width` as in `row_ranges`."""
    ranges = row_ranges(native, len(vector), width)
    return {path: torch.cat([vector[rows.start : rows.stop] for rows in own]) for path, own in ranges.items()}


def fuse_vectors(native: Native, parts: Mapping[str, Tensor], width: int | None) -> Tensor:
    """The tensor of rows of a native module from those of its parts; where one is missing the rows are zero."""
    if len(native.paths) == 1:
        count = len(parts[native.paths[0]])
    else:
        ratios = dict(zip(native.paths, _ratios(native, 1), strict=True))
        count = sum(ratios.values()) * max(len(rows) // ratios[path] for path, rows in parts.items())
    whole = next(iter(parts.values())).new_zeros(count)
    for path, own in row_ranges(native, count, width).items():
        if path in parts and len(parts[path]) != sum(map(len, own)):
            raise MismatchError(
                f"{path} changes a vector of {len(parts[path])} numbers and not {sum(map(len, own))}, so it cannot be "
                "joined with its neighbors: leave it out"
            )
        if path in parts:
            pieces = parts[path].split([len(rows) for rows in own])
            for rows, piece in zip(own, pieces, strict=True):
                whole[rows.start : rows.stop] = piece
    return whole


def fuse(native: Native, parts: Mapping[str, LowRank]) -> LowRank:
    """The update of a native module from those of its parts; one that is missing is zero."""
    if len(native.paths) == 1:
        return _turned(native, parts[native.paths[0]])
    sizes = _fitting(native, {path: part.shape for path, part in parts.items()})
    scale = max((part.scale for part in parts.values()), key=abs) or 1.0
    present = [(path, parts[path]) for path in native.paths if path in parts]
    down, places = _distinct(torch.cat([part.down for _, part in present]))
    places_of = dict(zip((path for path, _ in present), places.split([part.rank for _, part in present]), strict=True))
    up = down.new_zeros(sum(sizes.values()), len(down))
    for rows, path in zip(up.split(list(sizes.values())), sizes, strict=True):
        if path in parts:
            rows.index_add_(1, places_of[path], (parts[path].up * (parts[path].scale / scale)).to(up.dtype))
    return factored(up, down, scale)


def fuse_deltas(native: Native, parts: Mapping[str, Tensor]) -> Tensor:
    """The ΔW of a native module, of several parts or not turned, from theirs; one that is missing is zero."""
    if len(native.paths) == 1:
        return parts[native.paths[0]]
    sizes = _fitting(native, {path: part.shape for path, part in parts.items()})
    first = next(iter(parts.values()))
    return torch.cat([parts.get(path, first.new_zeros(size, first.shape[1])) for path, size in sizes.items()])


def _fitting(native: Native, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """The rows of each part, of those that are missing too; MismatchError where one has another shape."""
    width = next(iter(shapes.values()))[1]
    sizes = dict(zip(native.paths, _ratios(native, width), strict=True))
    for path, shape in shapes.items():
        if shape != (sizes[path], width):
            raise MismatchError(
                f"{path} changes a weight {tuple(shape)} and not {(sizes[path], width)}, so it cannot be joined "
                "with its neighbors as kohya's format has it: save the adapter in the diffusers format"
            )
    return sizes


def _distinct(down: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that differ, in the order in which they come first, and the place of each row among them."""
    raw = down.cpu().contiguous().view(torch.uint8).numpy()
    seen: dict[bytes, int] = {}
    firsts = [seen.setdefault(row.tobytes(), index) for index, row in enumerate(raw)]
    kept = torch.tensor(sorted(seen.values()))
    return down[kept], torch.searchsorted(kept, torch.tensor(firsts)).to(down.device)


def _turned(native: Native, low: LowRank) -> LowRank:
    """Scale and shift change places in a modulation that has no other parts: (2 · width, width)."""
    if len(low.shape) != 2 or not _is_turned(native, low.shape[0], low.shape[1]):
        return low
    return LowRank(low.down, torch.cat(low.up.chunk(2)[::-1]), low.alpha)


def _is_turned(native: Native, count: int, width: int | None) -> bool:
    """Whether a module of `count` outputs and `width` inputs is such a modulation; the last one always is."""
    if not native.native or "norm" not in native.paths[0]:
        return False
    if width is None and "norm1_context" in native.paths[0]:  # in the last block of Stable Diffusion 3 alone
        raise FormatError(f"{native.paths[0]} has a bias alone, whose order its weight would tell: leave it out")
    return native.paths[0].endswith("norm_out.linear") if width is None else count == 2 * width


def _ratios(native: Native, width: int) -> list[int]:
    """The rows of the parts: queries, keys and values have the width, a fourth part four times as many."""
    return [width] * 3 + [4 * width] * (len(native.paths) - 3)


def _sizes(native: Native, shape: torch.Size) -> list[int]:
    """The same of a native weight, whose rows show how large the parts really are."""
    count = len(native.paths)
    sizes = [shape[0] // 3] * 3 if count == 3 else [shape[1]] * 3 + [shape[0] - 3 * shape[1]]
    if len(shape) != 2 or sum(sizes) != shape[0] or min(sizes) <= 0:
        raise FormatError(
            f"a weight {tuple(shape)} does not consist of {' and '.join(native.paths)}: make the file again"
        )
    return sizes


def _fill(table: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...] | None:
    if name in table and "{}" not in name:
        return table[name]
    template, number = _template(name)
    return tuple(path.replace("{}", number) for path in table[template]) if number and template in table else None


def _template(name: str) -> tuple[str, str]:
    """A name with {} for its first number, which in a block is the block's, and that number."""
    found = re.search(r"\d+", name)
    return (f"{name[: found.start()]}{{}}{name[found.end() :]}", found[0]) if found else (name, "")
