"""`loractl merge`: the job's most used keys as options."""

import re
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from loractl.job import spec_from_options
from loractl_merge.spec import MergeSpec

NAMES = {"adapters": "ADAPTERS", "algorithm": "--method", "learn.pictures": "--learn"}
_RENAME = re.compile(r"(?P<number>\d{1,4}):(?P<old>[^=]+)=(?P<new>[^=]+)")


def merge(
    adapters: Annotated[list[Path], Argument(help="the adapters' files", show_default=False)],
    alpha: Annotated[float | None, Option(help="of two adapters: alpha · first + (1 − alpha) · second")] = None,
    weights: Annotated[str | None, Option(help="one for each, 0.7,0.3,-0.2; else 1/n of n adapters")] = None,
    method: Annotated[
        str | None, Option(help="sum, slerp, karcher, stock, ties, dare, prune or breadcrumbs (default: sum)")
    ] = None,
    rename: Annotated[
        list[str] | None,
        Option(help="another name for a learned token: 2:<s1>=<dog> of the second adapter; repeatable"),
    ] = None,
    density: Annotated[float | None, Option(help="share of entries that ties to breadcrumbs keep")] = None,
    rank: Annotated[int | None, Option(help="the result's rank at most; by default the sum of the ranks")] = None,
    energy: Annotated[float | None, Option(help="share of each module's squared norm that is kept")] = None,
    ratio: Annotated[float | None, Option(help="singular values below this share of the largest go")] = None,
    budget_mb: Annotated[float | None, Option(help="megabytes that all factors may take")] = None,
    seed: Annotated[int | None, Option(help="of what dare drops")] = None,
    format: Annotated[
        str | None, Option(help="diffusers, kohya or cloneofsimo; by default that of the first adapter")
    ] = None,
    dtype: Annotated[str | None, Option(help="fp16, bf16 or fp32; by default the widest of any adapter")] = None,
    learn: Annotated[
        Path | None, Option(help="find the weights: pictures of what the merged adapter should make, with --prompt")
    ] = None,
    prompt: Annotated[str | None, Option(help="of learn: the pictures' caption")] = None,
    model: Annotated[str | None, Option(help='of learn: "lab" (default), a diffusers folder or a hub id')] = None,
    keep: Annotated[
        list[str] | None, Option(help="of learn: an adapter's own prompt; once for each adapter, in order")
    ] = None,
    per_block: Annotated[bool | None, Option("--per-block", help="of learn: a weight for each block")] = None,
    steps: Annotated[int | None, Option(help="of learn: optimizer steps")] = None,
    device: Annotated[str | None, Option(help="where the arithmetic is done: cpu (default) or cuda")] = None,
    name: Annotated[str, Option(help="names the file")] = "merged",
    out: Annotated[Path | None, Option(help="the file to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace it if it is there")] = None,
) -> MergeSpec:
    """Merge adapters into one."""
    values = {
        "adapters": _inputs(adapters, weights, rename or []),
        "alpha": alpha,
        "algorithm": method,
        "density": density,
        "rank": rank,
        "energy": energy,
        "ratio": ratio,
        "budget_mb": budget_mb,
        "seed": seed,
        "learn.pictures": learn,
        "learn.prompt": prompt,
        "learn.model": model or ("lab" if learn else None),
        "learn.keep": keep or None,
        "learn.per_block": per_block,
        "learn.steps": steps,
        "memory.device": device,
        "name": name,
        "output.format": format,
        "output.dtype": dtype,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(MergeSpec, values, NAMES)


def _inputs(adapters: list[Path], weights: str | None, renames: list[str]) -> list[dict[str, Any]]:
    """The job's table of adapters."""
    inputs: list[dict[str, Any]] = [{"path": path} for path in adapters]
    if weights is not None:
        numbers = _numbers(weights)
        if len(numbers) != len(adapters):
            raise BadParameter(f"{len(numbers)} weights for {len(adapters)} adapters", param_hint="--weights")
        inputs = [{**each, "weight": weight} for each, weight in zip(inputs, numbers, strict=True)]
    for text in renames:
        found = _RENAME.fullmatch(text)
        if found is None or not 1 <= int(found["number"]) <= len(inputs):
            raise BadParameter(f'"{text}" is not like 2:<s1>=<dog> for adapter 2', param_hint="--rename")
        inputs[int(found["number"]) - 1].setdefault("rename", {})[found["old"]] = found["new"]
    return inputs


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise BadParameter(f'"{text}" is no list of numbers like 0.7,0.3', param_hint="--weights") from None
