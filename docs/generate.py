"""Writes cli.md, jobs.md and exit-codes.md from the program itself; with --check it only compares."""

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from inspect import cleandoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command

from loractl import errors
from loractl.cli import build
from loractl.errors import LoractlError
from loractl.fields import section, words
from loractl.plugins import Plugins, load_plugins
from loractl.problems import ALIASES
from loractl.template import default_text

FOLDER = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py: change the code, then run `just docs`. -->\n"


def pages() -> dict[str, str]:
    """The generated pages by file name. Only loractl's own plugins are told of, whatever else is installed."""
    own = [point.name for point in entry_points(group="loractl") if point.dist and point.dist.name == "loractl"]
    plugins = load_plugins(own)
    return {"cli.md": cli_page(plugins), "jobs.md": jobs_page(plugins), "exit-codes.md": exit_codes_page()}


def cli_page(plugins: Plugins) -> str:
    """Every command with its arguments and options, as Typer knows them."""
    command: Any = get_command(build(plugins))
    parts = [
        f"# The command line\n\n{MADE}\n{command.help}\n",
        "## Global options\n\nThey may stand before or after the command.\n\n" + parameters(command),
    ]
    for name, each in command.commands.items():
        arguments = " ".join(_argument(param) for param in each.params if param.param_type_name == "argument")
        usage = f"loractl {name} {arguments}".rstrip()
        parts.append(f"## `{usage}`\n\n{cleandoc(each.help)}\n\n{parameters(each)}".rstrip() + "\n")
    return "\n".join(parts)


def parameters(command: Any) -> str:
    rows = [(_name(param), _help(param)) for param in command.params if param.name != "help"]
    return table(("argument or option", "meaning"), rows) if rows else ""


def _argument(param: Any) -> str:
    shown = _spelled(param)
    return shown if param.required else f"[{shown}]"


def _spelled(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return f"{name}..." if param.nargs == -1 else str(name)


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{_spelled(param)}`"
    value = "" if param.is_flag else f" {param.metavar or param.name.rstrip('_').upper()}"
    return f"`{max(param.opts, key=len)}{value}`"


def _help(param: Any) -> str:
    told = [param.help or ""]
    if param.param_type_name == "option" and param.required:
        told.append("(required)")
    if isinstance(param.default, str | int | float) and not isinstance(param.default, bool):
        told.append(f"(default: {param.default})")
    return " ".join(told)


def jobs_page(plugins: Plugins) -> str:
    """Every key of every method's job, with type, default and description."""
    parts = [f"# Job files\n\n{MADE}\n{INTRODUCTION}"]
    for method in plugins.methods.values():
        parts.append(f'## method = "{method.name}"\n\n{method.summary}\n')
        parts += [f"### {title}\n\n{table(HEAD, rows)}" for title, rows in sections(method.spec)]
    aliases = [(f"`{alias}`", f"`{key}`") for alias, key in sorted(ALIASES.items())]
    parts.append(f"## Coming from elsewhere\n\n{ELSEWHERE}\n" + table(("there", "here"), aliases))
    return "\n".join(parts)


HEAD = ("key", "type", "default", "meaning")
INTRODUCTION = """\
A job is a TOML file for `loractl run`; `loractl new METHOD` writes one to start from, and `loractl check JOB.toml`
validates it without loading torch. Unknown keys are errors that name the file, the line and the nearest right name.

- A relative path starts at the folder of the file it is written in, one on the command line at the current folder.
- `extends = "base.toml"` reads another job first; tables are merged and this file wins.
- `--set KEY=VALUE` changes a key for one run; the value is read as TOML where it is TOML, else as text.
- A job that gives no `name` is named after its file.
- The resolved job is written beside the result (`job.toml` in a folder, `NAME.job.toml` beside a file), with every
  default filled in; running it again gives the same result.
"""
ELSEWHERE = "These names are not accepted, but the error that refuses them says which key is meant.\n"


def sections(spec: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows of each table of a job, the root first."""
    nested = {name: inner for name, field in spec.model_fields.items() if (inner := section(field.annotation))}
    rows = [
        (f"`{name}`", words(field.annotation), _default(field), field.description or "")
        for name, field in spec.model_fields.items()
        if name not in nested
    ]
    yield (f"`[{prefix}]`" if prefix else "The root"), rows
    for name, inner in nested.items():
        yield from sections(inner, f"{prefix}.{name}" if prefix else name)


def _default(field: Any) -> str:
    text = default_text(field)
    return "**required**" if field.is_required() else f"`{text}`" if text else "none"


def exit_codes_page() -> str:
    """What each exit code means, from the error classes."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LoractlError)]
    rows = {0: "the job is done"}
    for kind in kinds:
        rows.setdefault(kind.exit_code, kind.meaning)
    rows |= {errors.INTERRUPTED: "interrupted by Ctrl-C", errors.TERMINATED: "terminated by SIGTERM"}
    listed = table(("code", "meaning"), [(str(code), rows[code]) for code in sorted(rows)])
    return f"# Exit codes\n\n{MADE}\n{listed}\n{JSON_NOTE}"


JSON_NOTE = """\
With `--json` a failure is also one line on stdout: `{"event": "error", "exit_code": 2, "problems": ["job.toml:3: …"]}`.
"""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return escaped if text.startswith("`") else escaped.replace("<", "\\<")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    made = pages()
    stale = [name for name, text in made.items() if not _is(FOLDER / name, text)]
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `just docs`")
    for name in stale:
        (FOLDER / name).write_text(made[name], encoding="utf-8")


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
