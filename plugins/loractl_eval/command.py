"""`loractl eval`: the job's most used keys as options."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from loractl.job import adapter_use, spec_from_options
from loractl_eval.spec import EvalSpec

NAMES = {
    "prompts": "PROMPTS",
    "class_prompts": "--class-prompt",
    "adapters": "--adapter",
    "encoders": "--encoder",
    "sample.steps": "--steps",
}


def evaluate(
    prompts: Annotated[list[str], Argument(help="what the pictures show; each may be in quotes", show_default=False)],
    model: Annotated[str, Option(help='"lab", a diffusers folder or a hub id')] = "lab",
    adapter: Annotated[list[str] | None, Option(help="FILE or FILE=WEIGHT; may be given several times")] = None,
    held_out: Annotated[Path | None, Option(help="pictures of the subject that were not trained on")] = None,
    training: Annotated[Path | None, Option(help="the pictures that were")] = None,
    class_prompt: Annotated[list[str] | None, Option(help="the class without the subject; repeatable")] = None,
    encoder: Annotated[list[str] | None, Option(help="a hub id or a folder; may be given several times")] = None,
    samples: Annotated[int | None, Option(help="pictures for each score")] = None,
    steps: Annotated[int | None, Option(help="denoising steps")] = None,
    seed: Annotated[int | None, Option(help="of the first picture; the others count on")] = None,
    fail_below: Annotated[
        list[str] | None, Option(help="SCORE=VALUE: exit code 8 when the score is below; repeatable")
    ] = None,
    name: Annotated[str, Option(help="names the output's folder")] = "scores",
    out: Annotated[Path | None, Option(help="the output's folder")] = None,
    overwrite: Annotated[bool | None, Option("--overwrite", help="replace files that are already there")] = None,
) -> EvalSpec:
    """Score a model with adapters."""
    values = {
        "prompts": prompts,
        "model": model,
        "adapters": [adapter_use(text) for text in adapter] if adapter else None,
        "held_out": held_out,
        "training": training,
        "class_prompts": class_prompt or None,
        "encoders": encoder or None,
        "samples": samples,
        "sample.steps": steps,
        "seed": seed,
        "fail_below": dict(map(_limit, fail_below)) if fail_below else None,
        "name": name,
        "output.path": out,
        "output.overwrite": overwrite,
    }
    return spec_from_options(EvalSpec, values, NAMES)


def _limit(text: str) -> tuple[str, float]:
    score, _, value = text.partition("=")
    try:
        return score, float(value)
    except ValueError:
        raise BadParameter(f'"{text}" is not like subject_fidelity=0.8', param_hint="--fail-below") from None
