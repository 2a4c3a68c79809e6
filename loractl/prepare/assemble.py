"""A whole run of ppim: from a folder of files to a training set, its table, its page and its sheets."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from loractl.data.metadata import NAME as METADATA
from loractl.errors import InputError
from loractl.events import Emit, Facts, Note, Progress, Wrote
from loractl.prepare import table
from loractl.prepare.captioning import Caption, own_captions
from loractl.prepare.judging import judged, monotony
from loractl.prepare.layouts import named, texts
from loractl.prepare.networks import captioned, masked
from loractl.prepare.on_ray import on_ray
from loractl.prepare.page import page
from loractl.prepare.plan import Plan, survey
from loractl.prepare.process import Done, Task, died, process
from loractl.prepare.sheet import sheets
from loractl.prepare.table import Row
from loractl.prepare.workers import alone, here, in_processes
from loractl.prepare.write import STAGE, Folder

PAGE = "page.html"
JOURNAL = f"{STAGE}/journal.jsonl"  # the rows of a run that has not come to its end
_TOLD = 20  # warnings about single files

Record = Callable[[Row], None]


def prepare(plan: Plan, emit: Emit) -> tuple[dict[str, Path], dict[str, float]]:
    """Carries out a plan: the files of the result by what they are, and numbers.

    InputError where the output's folder has another's files in the way, or where a picture fails and none may.
    """
    known = table.read_rows(plan.out / table.NAME, plan.out / JOURNAL)
    work = survey(plan, known)
    with _journal(plan) as record:
        done = {each.row.source: each for each in _carried_out(plan, work.tasks, record, emit)}
        ignored = {row.source: row for row in work.ignored}
        rows = [ignored.get(name) or done[name].row for name in work.order]
        pictures = {task.name: task.path for task in work.tasks if done[task.name].row.outputs}
        own, troubles = own_captions(pictures, work.given, plan.wording)
        rows = judged(rows, troubles, plan.near_duplicates, plan.recipe.keep_failing)
        _tell(plan, rows, emit)
        rows = _with_networks(plan, own, rows, record, emit)
    made = sum(each.fresh for each in done.values())
    numbers: dict[str, float] = {**table.summary(rows), "prepared": made, "unchanged": len(done) - made}
    ready = named(rows, plan.layout)
    if plan.dry_run:
        emit(Facts("plan", {row.source: outcome(row) for row in ready}))
        return {}, numbers
    return _publish(plan, rows, ready, emit), numbers


def outcome(row: Row) -> str:
    """What becomes of a file, in one line."""
    if row.status != "kept":
        return "; ".join([f"{row.status}: {row.reason}", *row.failing])
    made = (f"{output.file} ({output.size[0]} × {output.size[1]}) {output.caption}".strip() for output in row.outputs)
    return "; ".join([*made, *row.failing])


@contextmanager
def _journal(plan: Plan) -> Iterator[Record]:
    """Takes down each row as it comes, for the next run should this one be stopped; a dry run takes down nothing."""
    if plan.dry_run:
        yield lambda _: None
        return
    path = plan.out / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def record(row: Row) -> None:
            file.write(table.lines([row]))
            file.flush()

        yield record


def _carried_out(plan: Plan, tasks: Sequence[Task], record: Record, emit: Emit) -> Iterator[Done]:
    """What comes of the tasks, as it comes."""
    work = partial(process, recipe=plan.recipe, out=plan.out, write=not plan.dry_run)
    for number, done in enumerate(_executed(plan, work, tasks), 1):
        if done.fresh:
            record(done.row)
        emit(Progress("files", number, len(tasks)))
        yield done


def _executed(plan: Plan, work: Callable[[Task], Done], tasks: Sequence[Task]) -> Iterable[Done]:
    place = plan.workplace
    if place.executor == "ray":
        return on_ray(work, tasks, lambda task: alone(work, task, died, place.memory_mb))
    if place.workers == 0:
        return here(work, tasks)
    return in_processes(work, tasks, died, place.workers, place.memory_mb)


def _tell(plan: Plan, rows: Sequence[Row], emit: Emit) -> None:
    """Warns of what is wrong with single files and with all together; InputError where none may fail."""
    bad = [row for row in rows if row.status == "unreadable" or row.failing]
    told = [f"{row.source}: {'; '.join([row.reason] * (row.status == 'unreadable') + [*row.failing])}" for row in bad]
    more = [f"and {len(told) - _TOLD} more, see {table.NAME}"] if len(told) > _TOLD else []
    failing = [row for row in rows if row.failing]
    if plan.refuse_failing and failing:
        raise InputError(
            f"{len(failing)} pictures fail a check: mend or remove them, or set check.on_fail to report or skip:\n"
            + "\n".join([*told[:_TOLD], *more])
        )
    warnings = [*told[:_TOLD], *more, *filter(None, [monotony(rows, plan.min_variety)])]
    for text in warnings:
        emit(Note(text, "warning"))


def _with_networks(
    plan: Plan, own: Mapping[str, Caption | None], rows: Sequence[Row], record: Record, emit: Emit
) -> list[Row]:
    """Masks and captions. A dry run has no pictures that a network could see."""

    def report(stage: str, done: int, total: int, row: Row) -> None:
        record(row)
        emit(Progress(stage, done, total))

    if plan.masker is not None and not plan.dry_run:
        rows = masked(rows, plan.masker, plan.recipe.masking, plan.out, partial(report, "masks"))
    captioner = None if plan.dry_run else plan.captioner
    return captioned(rows, own, plan.wording, captioner, plan.out, partial(report, "captions"))


def _publish(plan: Plan, rows: Sequence[Row], ready: Sequence[Row], emit: Emit) -> dict[str, Path]:
    """Gives the files their names and writes what tells of them. `ready` are the rows with the final names."""
    present = {name: now for before, after in zip(rows, ready, strict=True) for name, now in _moves(before, after)}
    told = texts(ready, plan.layout) | {table.NAME: table.lines(ready)}
    contents = {name: text.encode() for name, text in told.items()}

    def locate(name: str) -> Path:
        return plan.out / present.get(name, name)

    if plan.page:
        contents[PAGE] = page(plan.title, ready, locate).encode()
    if plan.sheet:
        present |= _sheets(plan, ready, locate)
    folder = Folder(plan.out, plan.overwrite)
    for name in folder.publish(present, contents):
        emit(
            Note(f"{name} was changed since ppim wrote it, and stays, though it belongs to the set no more", "warning")
        )
    folder.clean([name for row in ready for name in row.files()])
    listed = {"metadata": METADATA, "table": table.NAME, "page": PAGE, "sheet": "sheet.png"}
    files = {what: plan.out / name for what, name in listed.items() if name in {*contents, *present}}
    for what, path in files.items():
        emit(Wrote(path, what))
    return files


def _moves(before: Row, after: Row) -> Iterator[tuple[str, str]]:
    """The files of a row that are part of the set: their final names, and what they are called now."""
    for now, then in zip(before.outputs, after.outputs, strict=True) if after.status == "kept" else ():
        yield from zip(then.files(), now.files(), strict=True)


def _sheets(plan: Plan, ready: Sequence[Row], locate: Callable[[str], Path]) -> dict[str, str]:
    """Draws the sheets into the stage, one at a time, since they are large; their names, and where they are."""
    found = {}
    for number, sheet in enumerate(sheets(ready, locate), 1):
        name = f"sheet{f'-{number}' if number > 1 else ''}.png"
        found[name] = f"{STAGE}/{name}"
        sheet.save(plan.out / found[name], "PNG")
    return found
