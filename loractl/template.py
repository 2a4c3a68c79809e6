"""`loractl new`: a job file to start from, made of a method's spec and the descriptions in it."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from loractl.fields import members, section, words

_BLANKS = {str: '""', Path: '""', int: "0", float: "0.0", bool: "false", list: "[]", tuple: "[]", dict: "{}"}


def template(spec: type[BaseModel], prefix: str = "", live: bool = True) -> str:
    """Every key under its description: required ones to fill in, the others commented out with their defaults.

    A section that a job has only when it names it (`live` False) is commented out as a whole.
    """
    nested = {name: inner for name, field in spec.model_fields.items() if (inner := section(field.annotation))}
    text = "".join(_entry(name, field, live) for name, field in spec.model_fields.items() if name not in nested)
    for name, inner in nested.items():
        field = spec.model_fields[name]
        present = live and (field.is_required() or _default(field) is not None)
        text += f"\n{_comment(field)}{'' if present else '#'}[{prefix}{name}]\n"
        text += template(inner, f"{prefix}{name}.", present)
    return text


def toml_value(value: Any) -> str:
    """A value on one line of TOML. JSON is TOML but for tables and the character DEL, which TOML wants escaped."""
    if isinstance(value, dict):
        pairs = (f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def default_text(field: FieldInfo) -> str:
    """A field's default as TOML; empty where it is required or none."""
    default = None if field.is_required() else _default(field)
    return "" if default is None else toml_value(to_jsonable_python(default, exclude_none=True))


def _entry(name: str, field: FieldInfo, live: bool) -> str:
    filled = live and (field.is_required() or name == "method")
    value = default_text(field) or (_blank(field.annotation) if field.is_required() else "")
    return f"{_comment(field)}{'' if filled else '#'}{name} = {value}".rstrip() + "\n"


def _comment(field: FieldInfo) -> str:
    kind = "" if section(field.annotation) else f" ({words(field.annotation)})"
    return f"# {field.description or 'no description'}{kind}\n"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _blank(annotation: Any) -> str:
    kind = members(annotation)[0]
    if get_origin(kind) is Literal:
        return json.dumps(get_args(kind)[0])
    return _BLANKS.get(get_origin(kind) or kind, '""')
