"""Jobs: TOML files and options become one validated spec, and a spec becomes TOML again.

A job is a stack of layers (what the file extends, the file, `--set`, other options); the upper layer wins, key by key.
Each value remembers where it was written, so that an error can say `job.toml:12`. Validation goes through JSON: arrays
become tuples and texts paths, yet the text "4" is not a number.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from loractl.errors import InputError, JobError, did_you_mean
from loractl.fields import rebase
from loractl.lines import KeyPath, key_lines
from loractl.method import Method
from loractl.problems import Place, sentences
from loractl.specs import Spec, default_job_name
from loractl.template import toml_value

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Layer:
    """Values from one place, as plain JSON; `folder` is where relative paths among them start."""

    values: dict[str, Any]
    places: dict[KeyPath, Place]
    folder: Path


def read_job(file: Path, methods: Mapping[str, Method[Any]], over: Sequence[Layer] = ()) -> Spec:
    """The spec that a job file describes, with the layers `over` laid on top; `method` picks its class.

    Raises JobError with all problems at once, InputError where the file is missing or no text.
    """
    job, folder = Place(str(file), 0), file.absolute().parent
    layers = [_layer({"name": default_job_name(file)}, job, folder), *_file_layers(file, ()), *over]
    return _build(_spec_class(layers, methods, job), layers, job, folder)


def _build(spec: type[S], layers: Sequence[Layer], job: Place, folder: Path) -> S:
    """The spec that the layers make together; problems that no value caused are told of `job`."""
    values: dict[str, Any] = {}
    places: dict[KeyPath, Place] = {}
    for layer in layers:
        tables = {path for path, value in _walk(values) if isinstance(value, dict)}
        values = _merge(values, rebase(layer.values, spec, layer.folder))
        # An option sets a key of a table; the table itself stays where the file has it.
        places |= {path: place for path, place in layer.places.items() if place.line is not None or path not in tables}
    try:
        return spec.model_validate_json(json.dumps(values), strict=True, context={"base": folder})
    except ValidationError as failure:
        raise JobError(*sentences(failure, spec, values, places, job)) from None


def named_method(file: Path) -> str | None:
    """The method that a job file names itself. JobError or InputError where it can't be read."""
    method = _file_layer(file).values.get("method")
    return method if isinstance(method, str) else None


def adapter_use(text: str) -> dict[str, str | float]:
    """FILE or FILE=WEIGHT, as the job's table. What follows the last = is a weight only if it is a number."""
    path, equals, weight = text.rpartition("=")
    try:
        return {"path": path, "weight": float(weight)} if equals else {"path": text}
    except ValueError:
        return {"path": text}


def spec_from_options(spec: type[S], values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> S:
    """What a method's command returns: the spec made of options given by dotted name; None means not given.

    Errors name the option: `--alpha` for "alpha", `--out` for "output.path", or what `names` says for it.
    """
    spoken = {key: f"--{key.rpartition('.')[2].replace('_', '-')}" for key in values}
    spoken |= {"output.path": "--out", **(names or {})}
    layers = [option(spoken[key], key, value) for key, value in values.items() if value is not None]
    return _build(spec, layers, Place("the command line", 0), Path.cwd())


def option(name: str, key: str, value: Any) -> Layer:
    """One value from the command line, for a dotted key; its relative paths start at the current folder."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return _layer(value, Place(name), Path.cwd())


def override(assignment: str) -> Layer:
    """`--set a.b=c`: the value is read as TOML where it is TOML, else as text."""
    place = Place(f"--set {assignment}")
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise JobError(place.says("", "should be KEY=VALUE, for example train.steps=400"))
    for text in (f"{key} = {value}", f"{key} = {toml_value(value)}"):
        try:
            return _layer(tomllib.loads(text), place, Path.cwd())
        except tomllib.TOMLDecodeError:
            continue
    raise JobError(place.says("", f'"{key}" is not a key'))


def dump_job(spec: Spec) -> str:
    """The job as TOML with every default filled in; reading it again gives an equal spec."""
    return tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True))


def _layer(values: Mapping[str, Any], place: Place, folder: Path) -> Layer:
    """Values that all come from one place; dates and paths become texts, as in JSON."""
    plain = json.loads(json.dumps(values, default=str))
    return Layer(plain, {path: place for path, _ in _walk(plain)}, folder)


def _walk(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value below a table or an array, with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key), item
        yield from _walk(item, (*path, key))


def _file_layers(file: Path, above: tuple[Path, ...]) -> list[Layer]:
    """The layers of a job file and of those it extends, the base first."""
    layer = _file_layer(file)
    base = layer.values.pop("extends", None)
    if base is None:
        return [layer]
    place, chain = layer.places[("extends",)], (*above, file.resolve())
    if not isinstance(base, str):
        raise JobError(place.says("extends", "expected the path of a job file"))
    path = file.parent / Path(base).expanduser()
    if path.resolve() in chain:
        raise JobError(place.says("extends", f"{base} extends this file in its turn"))
    if not path.is_file():
        raise JobError(place.says("extends", f"there is no file {path}"))
    return [*_file_layers(path, chain), layer]


def _file_layer(file: Path) -> Layer:
    text = _read_text(file)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(_syntax(file, text, str(error))) from None
    places = {path: Place(str(file), line) for path, line in key_lines(text).items()}
    return Layer(json.loads(json.dumps(values, default=str)), places, file.absolute().parent)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no job file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be read as a text file: {error}") from None


def _syntax(file: Path, text: str, message: str) -> str:
    """A syntax error of TOML, as place and sentence."""
    found = re.search(r"\(at line (\d+)", message)
    line = int(found.group(1)) if found else text.count("\n") + 1
    reason = re.sub(r" \(at .*\)$", "", message)
    again = "this key is already there" if reason.startswith("Cannot overwrite") else reason[:1].lower() + reason[1:]
    return f"{file}:{line}: {again}"


def _spec_class(layers: Sequence[Layer], methods: Mapping[str, Method[Any]], job: Place) -> type[Spec]:
    given = [layer for layer in layers if "method" in layer.values]
    if not given:
        raise JobError(job.says("method", f"missing: which method runs the job; {did_you_mean('', methods)}"))
    name, place = given[-1].values["method"], given[-1].places[("method",)]
    if not isinstance(name, str) or name not in methods:
        problem = f"there is no method {json.dumps(name)}; {did_you_mean(str(name), methods)}"
        raise JobError(place.says("method", problem))
    return methods[name].spec


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged; anything else of `top` replaces what `base` has."""
    both = {key for key in base.keys() & top.keys() if isinstance(base[key], dict) and isinstance(top[key], dict)}
    return {**base, **top, **{key: _merge(base[key], top[key]) for key in both}}
