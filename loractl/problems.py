"""What is wrong with a job: Pydantic's errors as one sentence each, with the place and the nearest right name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from loractl.fields import fields, section, type_at, words
from loractl.lines import KeyPath

# Names from other trainers; one is offered only where the spec at hand has the field.
ALIASES = {
    "learning_rate": "train.lr",
    "unet_lr": "train.lr",
    "text_encoder_lr": "train.text_encoder_lr",
    "max_train_steps": "train.steps",
    "num_train_steps": "train.steps",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.grad_accum",
    "max_grad_norm": "train.max_grad_norm",
    "min_snr_gamma": "train.snr_gamma",
    "network_dim": "adapter.rank",
    "lora_rank": "adapter.rank",
    "network_alpha": "adapter.alpha",
    "lora_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "train_text_encoder": "adapter.text_encoder",
    "instance_prompt": "subject.prompt",
    "class_prompt": "subject.class_prompt",
    "instance_data_dir": "data.path",
    "train_data_dir": "data.path",
    "class_data_dir": "prior.images",
    "num_class_images": "prior.num_images",
    "prior_loss_weight": "prior.weight",
    "resolution": "data.resolution",
    "random_flip": "data.flip",
    "caption_dropout_rate": "data.caption_dropout",
    "pretrained_model_name_or_path": "model",
    "base_model": "model",
    "output_dir": "output.path",
    "output.dir": "output.path",
    "output_name": "name",
    "optimizer_type": "optimizer.name",
    "lr_scheduler": "schedule.name",
    "lr_warmup_steps": "schedule.warmup_steps",
    "mixed_precision": "memory.precision",
    "gradient_checkpointing": "memory.gradient_checkpointing",
    "validation_prompt": "sample.prompts",
    "guidance_scale": "sample.guidance",
    "num_inference_steps": "sample.steps",
    "num_vectors": "embedding.vectors",
    "placeholder_token": "embedding.token",
    "initializer_token": "embedding.init",
    "network_dropout": "adapter.dropout",
    "rank_dropout": "adapter.rank_dropout",
    "module_dropout": "adapter.module_dropout",
    "scale_weight_norms": "adapter.max_norm",
    "loraplus_lr_ratio": "train.up_lr_ratio",
    "ema_decay": "train.ema",
    "loss_type": "loss.kind",
    "huber_c": "loss.huber_c",
    "noise_offset": "noise.offset",
    "multires_noise_discount": "noise.pyramid",
    "ip_noise_gamma": "noise.perturbation",
    "zero_terminal_snr": "noise.zero_terminal_snr",
    "min_timestep": "noise.low",
    "max_timestep": "noise.high",
    "enable_bucket": "data.buckets",
    "flip_aug": "data.flip",
    "random_crop": "data.crop",
    "shuffle_caption": "data.shuffle_tags",
    "keep_tokens": "data.keep_tags",
    "num_repeats": "data.repeats",
    "alpha_mask": "data.alpha_masks",
    "optimizer_args": "optimizer.options",
    "checkpointing_steps": "checkpoint.every",
    "save_every_n_steps": "checkpoint.every",
    "checkpoints_total_limit": "checkpoint.keep",
    "sample_every_n_steps": "sample.every",
    "report_to": "log.trackers",
    "log_with": "log.trackers",
    "cache_latents_to_disk": "memory.cache_folder",
}


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file (0: somewhere in it), or an option, which has no line."""

    where: str
    line: int | None = None

    def says(self, key: str, problem: str) -> str:
        """The whole sentence; the key may be empty."""
        where = f"{self.where}:{self.line}" if self.line else self.where
        return f"{where}: {key}: {problem}" if key else f"{where}: {problem}"


@dataclass(frozen=True)
class _Trouble:
    """One of Pydantic's errors: `path` as a person wrote it, `union` the field whose alternatives were all tried."""

    path: KeyPath
    union: KeyPath | None
    error: Any


def sentences(
    failure: ValidationError,
    spec: type[BaseModel],
    values: Mapping[str, Any],
    places: Mapping[KeyPath, Place],
    job: Place,
) -> list[str]:
    """All problems of a job, file by file, in the order of the lines; `job` is the place of what is nowhere."""
    files = list(dict.fromkeys(place.where for place in places.values()))
    found = []
    for trouble in _settle([_locate(error, values) for error in failure.errors(include_url=False)]):
        for path, problem in _explain(trouble, spec, values):
            place = next((places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in places), job)
            order = files.index(place.where) if place.where in files else -1
            # An option speaks for the key it sets, but not for one that is missing beside it.
            key = "" if place.line is None and path in places else dotted(path)
            found.append((order, place.line or 0, place.says(key, problem)))
    return list(dict.fromkeys(text for *_, text in sorted(found, key=lambda item: item[:2])))


def dotted(path: KeyPath) -> str:
    """A path of keys as TOML writes it: train.lr, adapter.targets."*.to_q", seeds[2]."""
    text = ""
    for part in path:
        bare = isinstance(part, str) and re.fullmatch(r"[A-Za-z0-9_-]+", part)
        text += f"[{part}]" if isinstance(part, int) else f".{part if bare else json.dumps(part, ensure_ascii=False)}"
    return text.removeprefix(".")


def _locate(error: Any, values: Any) -> _Trouble:
    """Follows Pydantic's location through the values; what isn't there names a member of a union."""
    path: KeyPath = ()
    union = None
    for part in error["loc"]:
        if part in (values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()):
            path, values = (*path, part), values[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            union = path
    return _Trouble((*path, error["loc"][-1]) if error["type"] == "missing" else path, union, error)


def _settle(troubles: Sequence[_Trouble]) -> list[_Trouble]:
    """Leaves what a person can mend: of a union's alternatives the one that got furthest, of a list its wrong items."""
    lists = {trouble.path[:-1] for trouble in troubles}
    troubles = [each for each in troubles if each.error["type"] != "too_short" or each.path not in lists]
    furthest: dict[KeyPath, int] = {}
    for trouble in troubles:
        if trouble.union is not None:
            furthest[trouble.union] = max(furthest.get(trouble.union, 0), len(trouble.path))
    return [trouble for trouble in troubles if trouble.union is None or len(trouble.path) == furthest[trouble.union]]


def _explain(trouble: _Trouble, spec: type[BaseModel], values: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """Path and problem; a missing section is told by the keys it must have."""
    path, kind = trouble.path, trouble.error["type"]
    if kind == "missing":
        inner = section(type_at(spec, path))
        missing = [(*path, name) for name, field in inner.model_fields.items() if field.is_required()] if inner else []
        return [(each, _missing(spec, each)) for each in missing or [path]]
    if kind == "extra_forbidden":
        return [(path, f"unknown key; {_nearest(path, spec)}")]
    return [(path, _wrong(trouble, spec, values))]


def _missing(spec: type[BaseModel], path: KeyPath) -> str:
    owner = section(type_at(spec, path[:-1]))
    description = owner.model_fields[str(path[-1])].description if owner else None
    return f"missing: {description or words(type_at(spec, path))}"


def _wrong(trouble: _Trouble, spec: type[BaseModel], values: Any) -> str:
    """A value of the wrong type, outside its limits, or refused by a rule of the spec."""
    for part in trouble.path:
        values = values[part]
    kind, message = trouble.error["type"], trouble.error["msg"]
    if kind in ("value_error", "assertion_error"):
        return str(trouble.error["ctx"]["error"])
    if kind == "literal_error" or kind.endswith(("_type", "_parsing", "from_float")):
        return f"expected {words(type_at(spec, trouble.path))}, found {_found(values)}{_choice(trouble, spec, values)}"
    return f"{re.sub('^(Input|String|Tuple|List) should', 'should', message)}, found {_found(values)}"


def _choice(trouble: _Trouble, spec: type[BaseModel], value: Any) -> str:
    near = trouble.error["type"] == "literal_error" and isinstance(value, str)
    close = get_close_matches(value, re.findall('"([^"]*)"', words(type_at(spec, trouble.path))), n=1) if near else []
    return f"; did you mean {json.dumps(close[0])}?" if close else ""


def _found(value: Any) -> str:
    """A value in a sentence: the text "4", 0.5, true, a list, a table."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= 60 else f"{text[:57]}…"
    return f"the text {shown}" if isinstance(value, str) else shown


def _nearest(path: KeyPath, spec: type[BaseModel]) -> str:
    """What an unknown key should have been: an alias, a key beside it, or one of a like name elsewhere."""
    names = [name for name, _ in fields(spec)]
    wrong, leaf = dotted(path), str(path[-1])
    beside = section(type_at(spec, path[:-1]))
    siblings = list(beside.model_fields) if beside else []
    alias = ALIASES.get(wrong) or ALIASES.get(leaf)
    if alias in names and alias != wrong:
        return f"did you mean {alias}?"
    if near := get_close_matches(leaf, siblings, n=1, cutoff=0.7):
        return f"did you mean {dotted((*path[:-1], near[0]))}?"
    leaves = [name.rpartition(".")[2] for name in names]
    if same := get_close_matches(leaf, leaves, n=1, cutoff=0.7):
        return f"did you mean {' or '.join(name for name, last in zip(names, leaves, strict=True) if last == same[0])}?"
    if near := get_close_matches(wrong, names, n=1, cutoff=0.8):
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(siblings)}"
