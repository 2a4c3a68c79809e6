"""What a run of ppim does: its settings as frozen values, and the tasks that they make of a folder's files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loractl.prepare.captioning import Wording
from loractl.prepare.layouts import Layout
from loractl.prepare.masks import file_for, mask_files
from loractl.prepare.networks import Network
from loractl.prepare.original import Given, masks_of, read_original
from loractl.prepare.process import Recipe, Task
from loractl.prepare.reading import Member, members
from loractl.prepare.table import Row


@dataclass(frozen=True)
class Workplace:
    """How and where tasks are carried out; 0 workers: in this very process."""

    workers: int = 1
    memory_mb: int | None = None
    executor: Literal["processes", "ray"] = "processes"


@dataclass(frozen=True)
class Plan:
    """A whole run. `masks` is a folder of masks; `masker` and `captioner` are networks."""

    title: str
    source: Path
    out: Path
    recipe: Recipe
    layout: Layout = field(default_factory=Layout)
    wording: Wording = field(default_factory=Wording)
    masks: Path | None = None
    masker: Network | None = None
    captioner: Network | None = None
    near_duplicates: bool = True
    min_variety: float = 0.0
    refuse_failing: bool = False
    workplace: Workplace = Workplace()
    page: bool = True
    sheet: bool = True
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Work:
    """What a folder holds: the tasks, the files that are passed over, in order, and what the original layout has for
    a picture.
    """

    tasks: Sequence[Task]
    ignored: Sequence[Row]
    order: Sequence[str]
    given: Mapping[str, Given]


def survey(plan: Plan, known: Mapping[str, Row]) -> Work:
    """Every file of the source becomes a task, or a row that says why not."""
    found = members(plan.source)
    given, masks = read_original(plan.source, found), mask_files(plan.masks) if plan.masks else {}
    reasons = dict(_reasons(found, given, masks))
    tasks = [
        Task(member.path, member.name, _mask(member, given, masks), known.get(member.name))
        for member in found
        if member.name not in reasons
    ]
    ignored = [Row(name, "ignored", reason) for name, reason in reasons.items()]
    return Work(tasks, ignored, [member.name for member in found], given)


def _reasons(
    found: Sequence[Member], given: Mapping[str, Given], masks: Mapping[str, Path]
) -> Iterator[tuple[str, str]]:
    """The files that are passed over, and why."""
    apart = {path: f"the mask of {name}" for name, path in masks_of(found).items()}
    apart |= dict.fromkeys(masks.values(), "a mask")
    for member in found:
        strange = "no part of the original layout, which this folder has" if given and member.name not in given else ""
        if reason := member.ignored or apart.get(member.path) or strange:
            yield member.name, reason


def _mask(member: Member, given: Mapping[str, Given], masks: Mapping[str, Path]) -> Path | None:
    own = given.get(member.name)
    return file_for(member.name, masks) or (own.mask if own else None)
