"""The commands that are always there. Each returns a spec to carry out or a report to print, and does nothing else."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.json_schema import models_json_schema
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from loractl.cli.display import bars, number
from loractl.cli.many import Many, errands
from loractl.cli.plan import lines, planned, read_for
from loractl.errors import InputError, JobError, did_you_mean
from loractl.fields import fields
from loractl.job import Layer, option, override, read_job
from loractl.method import Method
from loractl.plugins import Plugins
from loractl.specs import Spec
from loractl.template import template


@dataclass(frozen=True)
class Report:
    """An answer, for a person and for a program."""

    shown: RenderableType
    data: Mapping[str, Any]


JobFile = Annotated[Path, typer.Argument(metavar="JOB.toml", help="the job file")]
JobFiles = Annotated[
    list[Path], typer.Argument(metavar="JOB.toml...", help="the job file, or several: none stops the others")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="changes one key of the job; may be repeated")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="where the result goes")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a result that is already there")]
MaxTime = Annotated[
    str | None,
    typer.Option("--max-time", metavar="TIME", help="stop at a checkpoint after this long: 90s, 15m, 2h or 1h30m"),
]
Executor = Annotated[
    str | None,
    typer.Option("--executor", metavar="NAME", help="where several jobs run: local, one after the other, or ray"),
]
Retries = Annotated[int, typer.Option("--retries", min=0, help="how often a job whose process died is started again")]
Gpus = Annotated[float | None, typer.Option("--gpus", min=0, help="GPUs of each job on a Ray cluster")]
MethodName = Annotated[str, typer.Argument(metavar="METHOD", help="a name that `loractl methods` lists")]
OneMethod = Annotated[str | None, typer.Argument(metavar="METHOD", help="one method; all by default")]
NewFile = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="write the job there, not to stdout")]
AdapterFile = Annotated[Path, typer.Argument(metavar="FILE", help="an adapter's file")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read .pt and .bin files as well: their tensors alone, never code")
]
AllModules = Annotated[bool, typer.Option("--modules", help="list every module with rank, alpha, shape and norm")]
GpuName = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help='the GPU to plan for, such as "RTX 4090"; by default the one present'),
]
ForProgram = Annotated[
    str | None,
    typer.Option("--for", metavar="PROGRAM", help="what becomes of each key in comfyui, a1111, forge or diffusers"),
]

LIMIT = "train.max_minutes"  # what --max-time sets


class Commands:
    """The built-in commands over the plugins that are loaded; each is named as it is called."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def run(
        self,
        jobs: JobFiles,
        set_: Overrides = None,
        out: Out = None,
        overwrite: Overwrite = False,
        max_time: MaxTime = None,
        executor: Executor = None,
        retries: Retries = 1,
        gpus: Gpus = None,
    ) -> Spec | Many:
        """Carry out job files; training that was interrupted goes on from its last checkpoint."""
        specs, problems = [], list[str]()
        for job in jobs:
            try:
                specs.append(self._read(job, _layers(set_, out, overwrite), max_time))
            except JobError as error:
                problems += error.problems
        if problems:
            raise JobError(*problems)
        return (
            specs[0]
            if len(specs) == 1 and executor is None
            else Many(errands(specs), executor or "local", retries, gpus)
        )

    def _read(self, job: Path, layers: list[Layer], max_time: str | None) -> Spec:
        spec = read_job(job, self.plugins.methods, layers)
        if max_time is None:
            return spec
        if LIMIT not in dict(fields(type(spec))):
            raise JobError(f"--max-time: the method {spec.method} can't go on from where it was stopped: leave it out")
        return read_job(job, self.plugins.methods, [*layers, option("--max-time", LIMIT, minutes(max_time))])

    def check(self, job: JobFile, set_: Overrides = None, out: Out = None) -> Report:
        """Validate a job file and say what would run."""
        spec = read_job(job, self.plugins.methods, _layers(set_, out, False))
        target = None if spec.writes_nothing else str(spec.destination())
        state = " (already there)" if spec.is_done() else ""
        data = {"ok": True, "method": spec.method, "name": spec.name, "output": target, "there": bool(state)}
        return Report(f"ok: {spec.method} would write {target or 'nothing'}{state}", data)

    def plan(self, job: JobFile, set_: Overrides = None, gpu: GpuName = None) -> Report:
        """Tell what a training job takes (parameters, file size, memory, time), without loading its model."""
        told = planned(read_for(gpu, job, self.plugins.methods, _layers(set_, None, False)), gpu)
        return Report(lines(told), told)

    def methods(self) -> Report:
        """List the methods and where they come from."""
        table = Table("method", "what it does", "from", "command", box=None, pad_edge=False)
        rows = [_describe(method, self.plugins.sources[method.name]) for method in self.plugins.methods.values()]
        for row in rows:
            table.add_row(row["name"], row["summary"], row["distribution"], "yes" if row["command"] else "no")
        return Report(table, {"methods": rows})

    def schema(self, method: OneMethod = None) -> Report:
        """Print the JSON Schema of job files, for editors."""
        chosen = [self._method(method)] if method else list(self.plugins.methods.values())
        schema = _schema([each.spec for each in chosen])
        return Report(json.dumps(schema, indent=2, ensure_ascii=False), schema)

    def new(self, method: MethodName, out: NewFile = None) -> Report:
        """Print a job file to start from, every key explained."""
        text = template(self._method(method).spec)
        if out is None:
            return Report(text.rstrip("\n"), {"template": text})
        if out.exists():
            raise InputError(f"{out} is already there: choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        return Report(f"wrote {out}", {"file": str(out)})

    def show(
        self,
        file: AdapterFile,
        modules: AllModules = False,
        for_: ForProgram = None,
        allow_pickle: AllowPickle = False,
    ) -> Report:
        """Say what an adapter file holds, or what another program makes of it."""
        from loractl.formats import report  # the one command that needs torch

        if for_ is not None:
            told = report.prospects(file, for_, allow_pickle)
            return Report(_prospects(told), told)
        found: dict[str, Any] = report.describe(file, modules, allow_pickle)
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in found.items():
            text = bars(value) if name == "blocks" else _cell(value)
            table.add_row(name.replace("_", " "), Text(text, overflow="fold"))
        return Report(table, found)

    def _method(self, name: str) -> Method[Any]:
        if name not in self.plugins.methods:
            raise JobError(f'there is no method "{name}"; {did_you_mean(name, self.plugins.methods)}')
        return self.plugins.methods[name]


def _layers(overrides: list[str] | None, out: Path | None, overwrite: bool) -> list[Layer]:
    layers = [override(assignment) for assignment in overrides or ()]
    if out is not None:
        layers.append(option("--out", "output.path", out))
    return [*layers, option("--overwrite", "output.overwrite", True)] if overwrite else layers


def minutes(text: str) -> float:
    """1h30m → 90.0. Raises JobError for anything but hours, minutes and seconds, in this order."""
    found = re.fullmatch(r"(?=.)(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text, re.ASCII)
    if found is None:
        raise JobError(f'--max-time: should be like 90s, 15m, 2h or 1h30m, found the text "{text}"')
    hours, whole, seconds = (int(part or 0) for part in found.groups())
    return 60 * hours + whole + seconds / 60


def _describe(method: Method[Any], source: str) -> dict[str, Any]:
    has_command = method.command is not None
    return {"name": method.name, "summary": method.summary, "distribution": source, "command": has_command}


def _schema(specs: list[type[Spec]]) -> dict[str, Any]:
    """One JSON Schema: the spec's own, or any of several that share their definitions."""
    if len(specs) == 1:
        return specs[0].model_json_schema()
    references, shared = models_json_schema([(spec, "validation") for spec in specs])
    return {"anyOf": list(references.values()), **shared}


def _prospects(told: Mapping[str, Any]) -> str:
    """A program's groups of keys, each under its fate, with three examples."""
    lines = [f"{told['program']} ({told['version']}): {told['file']}"]
    for group in told["groups"]:
        source = f" [{group['source']}]" if group["source"] else ""
        lines.append(f"{group['fate']}: {group['count']:,} keys; {group['reason']}{source}")
        lines += [f"    {key}" for key in group["keys"][:3]]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value in a table: a mapping one item a line, everything else on one."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_brief(item)}" for key, item in value.items()) or "none"
    return _brief(value)


def _brief(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_brief(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_brief, value)) or "none"
    return number(value)
