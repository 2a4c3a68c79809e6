"""What an earlier run left where a job would write: the result of this job, or of another."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from loractl.errors import InputError, LoractlError
from loractl.job import named_method, read_job
from loractl.lines import KeyPath
from loractl.method import Method
from loractl.problems import dotted
from loractl.specs import Spec

# They say where, for how long, who hears of it and what is good enough, not what is made.
IMMATERIAL = {("output", "path"), ("output", "overwrite"), ("train", "max_minutes"), ("log", "trackers")}
LIMITS = "fail_below"  # a table of scores, of the job or of a subject


def changes(spec: Spec, methods: Mapping[str, Method[Any]]) -> list[str] | None:
    """How the job differs from the one recorded beside the result, as "train.steps: 3 → 4"; None without a record."""
    try:
        before, now = _leaves(read_job(spec.record(), methods)), _leaves(spec)
    except LoractlError:  # missing, or written by a version or a plugin that is not here
        return None
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key) and _is_material(key)]
    return [f"{dotted(key)}: {_shown(before, key)} → {_shown(now, key)}" for key in keys]


def require_own_record(spec: Spec) -> None:
    """InputError where the job would be recorded over a file that no run of its method wrote, unless it overwrites."""
    record = spec.record()
    if spec.writes_nothing or spec.output.overwrite or not record.exists():
        return
    try:
        other = named_method(record)
    except LoractlError:
        other = None
    if other != spec.method:
        found = f"a job of another method ({other})" if other else "no job that can be read"
        raise InputError(
            f"{record} is already there and holds {found}: choose another --out, or replace it with --overwrite"
        )


def _is_material(key: KeyPath) -> bool:
    return key not in IMMATERIAL and LIMITS not in key


def _leaves(spec: Spec) -> dict[KeyPath, Any]:
    return dict(_walk(spec.model_dump(mode="json", exclude_none=True)))


def _walk(table: Mapping[str, Any] | list[Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value below a table or an array of tables."""
    for key, value in enumerate(table) if isinstance(table, list) else table.items():
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value)):
            yield from _walk(value, (*path, key))
        else:
            yield (*path, key), value


def _shown(values: Mapping[KeyPath, Any], key: KeyPath) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"
