"""The command line: builds the Typer app and carries out what a command returns."""

import contextlib
import gc
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

import loractl
from loractl.cli.commands import Commands, Report
from loractl.cli.display import Display, JsonLines, write_json
from loractl.cli.earlier import changes, require_own_record
from loractl.cli.failures import advising, fail
from loractl.cli.many import Many, as_json, is_warning, line, sentences, table, worst
from loractl.errors import InputError, JobError, ScoreError, Terminated
from loractl.events import Finished, Note, Progress, Started
from loractl.job import dump_job
from loractl.launch import launched
from loractl.method import Outcome
from loractl.plugins import BUILT_IN_COMMANDS, Plugins, load_plugins
from loractl.specs import Spec

GLOBAL_OPTIONS = ("--json", "--quiet", "--print-job", "--version")
FEWER_COLLECTIONS = (50_000, 20, 20)
"""Importing torch makes objects that all stay; to look for garbage among them every 700 took a tenth of that time."""


@dataclass(frozen=True)
class Answer:
    """What a command returned, and how the person wants it carried out."""

    value: Spec | Many | Report
    json: bool
    quiet: bool
    print_job: bool


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `loractl` command; always leaves with an exit code."""
    given = hoist(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in takewhile(GLOBAL_OPTIONS.__contains__, given)
    gc.set_threshold(*FEWER_COLLECTIONS)
    with terminable():
        try:
            plugins = load_plugins()
            answer = build(plugins)(list(given), prog_name="loractl", standalone_mode=False)
            code = respond(answer, plugins) if isinstance(answer, Answer) else 0
        except BaseException as error:
            code = fail(error, as_json)
    sys.exit(code)


def hoist(arguments: Sequence[str]) -> list[str]:
    """The global options moved to the front, so that they may stand after the command as well."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front = [word for word in arguments[:end] if word in GLOBAL_OPTIONS]
    return [*dict.fromkeys(front), *(word for word in arguments[:end] if word not in GLOBAL_OPTIONS), *arguments[end:]]


def build(plugins: Plugins) -> typer.Typer:
    """The whole command line: the built-in commands and one for each method that brings one."""
    app = typer.Typer(
        epilog="The options above may also stand after the command.",
        result_callback=_answer,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback(help=loractl.__doc__)(_options)
    commands = Commands(plugins)
    for name in BUILT_IN_COMMANDS:
        app.command(name)(getattr(commands, name))
    for method in plugins.methods.values():
        if method.command is not None:
            app.command(method.name, help=method.summary)(method.command)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(f"loractl {loractl.__version__}")
        raise typer.Exit


def _options(
    json: Annotated[bool, typer.Option("--json", help="Print events and results as JSON lines on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings and errors only.")] = False,
    print_job: Annotated[
        bool, typer.Option("--print-job", help="Print the job as TOML instead of running it.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Declares the global options; `_answer` receives them."""


def _answer(value: Spec | Many | Report, json: bool, quiet: bool, print_job: bool, version: bool) -> Answer:  # noqa: ARG001
    return Answer(value, json, quiet, print_job)


def respond(answer: Answer, plugins: Plugins) -> int:
    """Prints a report or a job, or carries out the job; returns the exit code."""
    report = answer.value
    if isinstance(report, Spec) and answer.print_job:
        report = Report(dump_job(report).rstrip("\n"), {"job": report.model_dump(mode="json", exclude_none=True)})
    if isinstance(report, Many):
        return carry_out_all(report, answer)
    if isinstance(report, Spec):
        with listening(plugins, answer):
            execute(report, plugins)
    elif answer.json:
        write_json(sys.stdout, report.data)
    else:
        text = Text(report.shown) if isinstance(report.shown, str) else report.shown
        Console().print(text, soft_wrap=True, highlight=False)
    return 0


def carry_out_all(many: Many, answer: Answer) -> int:
    """Runs several jobs: their progress and warnings, a line as each ends and all that went wrong in it, one table, and
    the highest exit code.
    """
    if answer.print_job:
        raise JobError("--print-job prints one job: name one")
    results, display = [], Display(Console(stderr=True), answer.quiet)

    def hear(name: str, event: Mapping[str, Any]) -> None:
        if answer.json:
            write_json(sys.stdout, {"job": name, **event})
        elif event.get("event") == Progress.kind:
            told = {key: value for key, value in event.items() if key != "event"}
            display.on_event(Progress(**{**told, "stage": f"{name}: {told['stage']}"}))
        elif is_warning(event):
            display.on_event(Note(f"{name}: {event['text']}", "warning"))

    for result in many.results(hear):
        results.append(result)
        if not answer.quiet:
            display.say(line(result))
        for problem in () if answer.json else sentences(result):
            display.error(problem)
    display.close()
    if answer.json:
        write_json(sys.stdout, {"event": "results", "jobs": [as_json(result) for result in results]})
    else:
        Console().print(Text(table(results)), soft_wrap=True, highlight=False)
    return worst(results)


def execute(spec: Spec, plugins: Plugins) -> Outcome:
    """Runs a job and writes it, resolved, beside its result; judges before torch is imported a result that is there."""
    spec = spec.resolved()
    launch = launched()
    if launch:
        require_shareable(spec, launch.size)
    if spec.is_done() and not spec.output.overwrite:
        return keep(spec, plugins)
    require_own_record(spec)
    if launch and launch.index:  # the first of them tells and writes
        with advising(type(spec)):
            return plugins.methods[spec.method].run(spec, lambda _: None)
    plugins.emit(Started(spec.model_dump(mode="json", exclude_none=True), spec.record().parent))
    if spec.resumes:
        spec.record().unlink(missing_ok=True)  # while it is overwritten a result is not done
    try:
        with advising(type(spec)):
            outcome = plugins.methods[spec.method].run(spec, plugins.emit)
    except ScoreError:  # the result is there all the same
        write_record(spec)
        raise
    write_record(spec)
    plugins.emit(Finished(outcome.files, outcome.numbers))
    return outcome


def require_shareable(spec: Spec, processes: int) -> None:
    try:
        spec.require_shareable(processes)
    except ValueError as error:
        raise JobError(str(error)) from error


def keep(spec: Spec, plugins: Plugins) -> Outcome:
    """Leaves the result that is there alone: a method that resumes has nothing to add to its own, any other refuses.

    ScoreError where the job asks for better scores than its result has, whatever it asked for when that was made.
    """
    changed = changes(spec, plugins.methods)
    low = spec.shortfalls() if changed == [] else []
    if changed == [] and (spec.resumes or low):
        plugins.emit(Note(f"already done: {spec.destination()}"))
        if low:
            raise ScoreError("; ".join(low))
        return Outcome()
    more = f"; and {len(changed) - 3} more" if changed and len(changed) > 3 else ""
    other = f", made by another job ({'; '.join(changed[:3])}{more})" if changed else ""
    raise InputError(f"{spec.result()} is already there{other}: choose another --out, or replace it with --overwrite")


def write_record(spec: Spec) -> None:
    """Writes the resolved job beside the result."""
    if not spec.writes_nothing:
        write_whole(spec.record(), dump_job(spec))


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once: it is there with all its text or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def listening(plugins: Plugins, answer: Answer) -> Iterator[None]:
    """Shows events while a job runs, in the first of several processes; with --json nothing else can reach stdout."""
    launch = launched()
    if launch and launch.index:
        yield
        return
    if answer.json:
        plugins.add_listener(JsonLines(sys.stdout))
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    display = Display(Console(stderr=True), answer.quiet)
    plugins.add_listener(display)
    try:
        yield
    finally:
        display.close()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
