"""Whether an interrupted run may go on under a job that was changed meanwhile, judged key by key."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

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
    "memory.phases",
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
