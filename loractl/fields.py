"""The fields of a spec by their dotted names, and what a type is called in words."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loractl.lines import KeyPath
from loractl.specs import ModelSection

_WORDS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    dict: ("a table", "tables"),
}


def members(annotation: Any) -> tuple[Any, ...]:
    """The types a value may have: a union's members one by one, without None and annotations."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(member for part in get_args(annotation) for member in members(part))
    return () if annotation is NoneType else (annotation,)


def section(annotation: Any) -> type[BaseModel] | None:
    """The section among the types of a field, if there is one."""
    return next((kind for kind in members(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def fields(spec: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field, in the order of the spec; a section comes before its own fields."""
    for name, field in spec.model_fields.items():
        yield prefix + name, field
        if inner := section(field.annotation):
            yield from fields(inner, f"{prefix}{name}.")


def type_at(annotation: Any, path: KeyPath) -> Any:
    """The type expected at `path` below a value of type `annotation`; None where nothing is."""
    if not path:
        return annotation
    inside = (_inside(member, path[0]) for member in members(annotation))
    return next((found for kind in inside if kind is not None and (found := type_at(kind, path[1:])) is not None), None)


def _inside(kind: Any, key: str | int) -> Any:
    if isinstance(key, int):
        return get_args(kind)[0] if get_origin(kind) in (tuple, list) else None
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    known = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return known[key].annotation if key in known else None


def words(annotation: Any, plural: bool = False) -> str:
    """What a person should write for a type: "a whole number", 'one of "a", "b"', "a list of paths or a table"."""
    return " or ".join(dict.fromkeys(_word(kind, plural) for kind in members(annotation)))


def _word(kind: Any, plural: bool) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        listed = ", ".join(json.dumps(part) for part in parts)
        return listed if plural or len(parts) == 1 else f"one of {listed}"
    if origin in (tuple, list):
        fixed = origin is tuple and parts[-1] is not Ellipsis
        return f"a list of {f'{len(parts)} ' if fixed else ''}{words(parts[0], plural=True)}"
    if origin is dict or section(kind):
        return _WORDS[dict][plural]
    return _WORDS.get(kind, ("a value", "values"))[plural]


def rebase(value: Any, annotation: Any, folder: Path) -> Any:
    """`value` with its relative paths made absolute from `folder`; the type says which texts are paths."""
    if isinstance(value, dict):
        if section(annotation) is ModelSection and "source" in value:
            value = value | {
                key: _rebase_source(value[key], folder) for key in ("source", "config") if value.get(key) is not None
            }
        return {key: rebase(item, type_at(annotation, (key,)), folder) for key, item in value.items()}
    if isinstance(value, list):
        return [rebase(item, type_at(annotation, (index,)), folder) for index, item in enumerate(value)]
    if section(annotation) is ModelSection:
        return _rebase_source(value, folder)
    is_path = isinstance(value, str) and value and Path in members(annotation)
    return str(folder / Path(value).expanduser()) if is_path else value


def _rebase_source(source: Any, folder: Path) -> Any:
    """A model is a folder where there is one, or where nothing else can be meant; anything else is a name."""
    is_path = isinstance(source, str) and (source.startswith((".", "~")) or (source and (folder / source).exists()))
    return str(folder / Path(source).expanduser()) if is_path and source != "lab" else source
