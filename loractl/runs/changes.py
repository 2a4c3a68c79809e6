"""Whether an interrupted run may go on under a job that was changed meanwhile, judged key by key."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from loractl.errors import InputError, MismatchError
from loractl.events import Emit, Note
from loractl.runs.recipe import Cook
from loractl.sections import TrainingSpec
from loractl.specs import first_problem
from loractl.train.checkpoint import latest_checkpoint, load_checkpoint

Checkpoint = tuple[dict[str, Any], dict[str, Any]]  # tensors and values

# A key stands for all keys below it. What is in neither list would make another run of what was done: refused.
ACCEPTED = (
    "name",
    "train.steps",
    "train.max_minutes",
    "sample",
    "eval",
    "checkpoint",
    "log",
    "output",
    "memory.device",
    "memory.processes",
    "memory.phases",
    "memory.text_encoders",
    "memory.cache_latents",
    "memory.cache_folder",
    "memory.gradient_checkpointing",
)
WARNED = (
    "train.lr",
    "train.text_encoder_lr",
    "train.up_lr_ratio",
    "train.max_grad_norm",
    "train.text_encoder_steps",
    "embedding.lr",
    "schedule",
    "optimizer.betas",
    "optimizer.weight_decay",
    "optimizer.eps",
    "optimizer.options",
)


def last_checkpoint(spec: TrainingSpec, data: str, cook: Cook, emit: Emit) -> Checkpoint | None:
    """The one to go on from, if there is one and the job allows it; `data` is the hash of the job's pictures."""
    path = latest_checkpoint(spec.checkpoints())
    if path is None:
        return None
    if spec.checkpoint.resume == "never":
        raise InputError(
            f"{spec.destination()} holds an interrupted run: choose another --out, allow checkpoint.resume = "
            '"auto", or start over with --overwrite'
        )
    tensors, values = load_checkpoint(path)
    for change in require_same_steps(values, spec, data, cook):
        emit(Note(f"the interrupted run goes on with a change: {change}", "warning"))
    return tensors, values


def require_same_steps(checkpoint: Mapping[str, Any], spec: TrainingSpec, data: str, cook: Cook) -> list[str]:
    """The changes since a checkpoint that a person should know of. MismatchError when the job or its pictures changed
    so that the steps done would have been others.
    """
    job = json.loads(json.dumps(dumped(spec)))
    refused, warned = judge(checkpoint["job"], job)
    if checkpoint["data"] != data:
        refused.append("the training pictures, masks or captions are not those of the interrupted run")
    if checkpoint["step"] > spec.train.steps:
        refused.append(f"train.steps: {spec.train.steps} are asked for and {checkpoint['step']} are done")
    before, now = cook(_as_it_was(spec, checkpoint["job"], job)), cook(spec)
    if not refused and any(before.active(s) != now.active(s) for s in range(checkpoint["step"])):
        refused.append("the change of train.steps moves the phases of steps that are done")
    if refused:
        raise MismatchError(
            f"{spec.destination()} holds an interrupted run of another job; undo these changes, choose another --out, "
            "or start over with --overwrite:\n" + "\n".join(refused)
        )
    return warned


def _as_it_was(spec: TrainingSpec, before: Mapping[str, Any], now: Mapping[str, Any]) -> TrainingSpec:
    """The job of a checkpoint; what may be changed freely is as it is now, since the files that it named may be gone.

    MismatchError for a job that is refused by now.
    """
    free = [section for section in ACCEPTED if "." not in section]
    kept = {key: value for key, value in before.items() if key not in free}
    try:
        job = kept | {key: now[key] for key in free if key in now}
        return type(spec).model_validate_json(json.dumps(job))
    except ValidationError as error:
        raise MismatchError(
            f"{spec.destination()} holds an interrupted run of a job that is refused now ({first_problem(error)}): "
            "choose another --out, or start over with --overwrite"
        ) from error


def dumped(spec: TrainingSpec) -> dict[str, Any]:
    """The job as checkpoints keep it."""
    return spec.model_dump(mode="json", exclude_none=True)


def judge(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The changes that forbid going on, and those a person should know of; each as "key: old → new"."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    refused: list[str] = []
    warned: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or _under(key, ACCEPTED):
            continue
        text = f"{key}: {_shown(old, key)} → {_shown(new, key)}"
        (warned if _under(key, WARNED) else refused).append(text)
    return refused, warned


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        elif item is not None:
            yield f"{prefix}{key}", item


def _under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"
