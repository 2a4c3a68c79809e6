"""`loractl interpolate`: the job's keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from loractl.job import spec_from_options
from loractl_interpolate.spec import InterpolateSpec

NAMES = {"a": "A", "b": "B", "sample.prompts": "--prompt", "sample.seeds": "--seed"}


def interpolate(
    a: Annotated[Path, Argument(help="the adapter's file at 0", show_default=False)],
    b: Annotated[Path, Argument(help="the adapter's file at 1", show_default=False)],
    steps: Annotated[int | None, Option(help="how many adapters, evenly from 0 to 1 (default: 5)")] = None,
    at: Annotated[str | None, Option(help="or where: 0,0.25,1")] = None,
    mode: Annotated[str | None, Option(help="linear, or slerp along the arc (default: linear)")] = None,
    rename: Annotated[
        list[str] | None, Option(help="another name for a learned token of the second adapter: <s1>=<dog>; repeatable")
    ] = None,
    model: Annotated[str | None, Option(help='draws a contact sheet: "lab", a diffusers folder or a hub id')] = None,
    prompt: Annotated[list[str] | None, Option(help="what the contact sheet shows; may be given several times")] = None,
    seed: Annotated[list[int] | None, Option(help="of its pictures; may be given several times")] = None,
    format: Annotated[
        str | None, Option(help="diffusers, kohya or cloneofsimo; by default that of the first adapter")
    ] = None,
    dtype: Annotated[str | None, Option(help="fp16, bf16 or fp32; by default the wider of the two")] = None,
    device: Annotated[str | None, Option(help="where the arithmetic is done: cpu (default) or cuda")] = None,
    name: Annotated[str, Option(help="names the folder")] = "interpolation",
    out: Annotated[Path | None, Option(help="the folder to write")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> InterpolateSpec:
    """Make a series of adapters from one to another."""
    values = {
        "a": a,
        "b": b,
        "steps": steps,
        "at": None if at is None else _numbers(at),
        "mode": mode,
        "rename": dict(map(_pair, rename)) if rename else None,
        "model": model,
        "sample.prompts": prompt or None,
        "sample.seeds": seed or None,
        "memory.device": device,
        "name": name,
        "output.format": format,
        "output.dtype": dtype,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(InterpolateSpec, values, NAMES)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise BadParameter(f'"{text}" is no list of numbers like 0,0.25,1', param_hint="--at") from None


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise BadParameter(f'"{text}" is not like <s1>=<dog>', param_hint="--rename")
    return old, new
