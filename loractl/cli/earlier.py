"""What an earlier run left where a job would write: the result of this job, or of another."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from loractl.errors import LoractlError
from loractl.job import read_job
from loractl.lines import KeyPath
from loractl.method import Method
from loractl.problems import dotted
from loractl.specs import Spec

# They say where, for how long and who hears of it, not what is made.
IMMATERIAL = {("output", "path"), ("output", "overwrite"), ("train", "max_minutes"), ("log", "trackers")}


def changes(spec: Spec, methods: Mapping[str, Method[Any]]) -> list[str] | None:
    """How the job differs from the one recorded beside the result, as "train.steps: 3 → 4"; None without a record."""
    try:
        before, now = _leaves(read_job(spec.record(), methods)), _leaves(spec)
    except LoractlError:  # missing, or written by a version or a plugin that is not here
        return None
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key) and key not in IMMATERIAL]
    return [f"{dotted(key)}: {_shown(before, key)} → {_shown(now, key)}" for key in keys]


def _leaves(spec: Spec) -> dict[KeyPath, Any]:
    return dict(_walk(spec.model_dump(mode="json", exclude_none=True)))


def _walk(table: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _walk(value, (*path, key))
        else:
            yield (*path, key), value


def _shown(values: Mapping[KeyPath, Any], key: KeyPath) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"
