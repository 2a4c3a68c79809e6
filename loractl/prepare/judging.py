"""What is said of a picture once all are there: broken caption files, near-duplicates, whether the backgrounds vary."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loractl.prepare.duplicates import groups, twins, variety
from loractl.prepare.table import Row

FEWEST = 3  # pictures whose variety is judged
TROUBLE = "caption: "  # how a verdict begins that is about a caption


def judged(rows: Sequence[Row], troubles: Mapping[str, str], compare: bool, keep_failing: bool) -> list[Row]:
    """The rows, each near-duplicate with the picture that it is one of: the largest of its group, then the first. Those
    that are not to be kept are skipped; their files stay in the stage, in case the other one goes.

    troubles: what is wrong with a picture's caption file, by source.
    """
    fresh = [_told(_unjudged(row), troubles.get(row.source, ""), keep_failing) for row in rows]
    found = [number for number, row in enumerate(fresh) if row.outputs and row.status == "kept" and compare]
    for group in _alike([str(fresh[number].scores["look"]) for number in found]):
        members = [found[index] for index in group]
        best = max(members, key=lambda number: (fresh[number].size[0] * fresh[number].size[1], -number))
        for number in members:
            if number != best:
                fresh[number] = _twin(fresh[number], fresh[best].source, keep_failing)
    return fresh


def _unjudged(row: Row) -> Row:
    """The row as `process` made it: what was said of its caption or of others may have been in an earlier run."""
    verdict = tuple(reason for reason in row.verdict if not reason.startswith(TROUBLE))
    return replace(row, status="kept", reason="", twin="", verdict=verdict) if row.outputs else row


def _told(row: Row, trouble: str, keep_failing: bool) -> Row:
    return _failing(replace(row, verdict=(*row.verdict, f"{TROUBLE}{trouble}")), keep_failing) if trouble else row


def _twin(row: Row, other: str, keep_failing: bool) -> Row:
    return _failing(replace(row, twin=other), keep_failing)


def _failing(row: Row, keep_failing: bool) -> Row:
    return row if keep_failing else replace(row, status="skipped", reason="it fails a check")


def _alike(looks: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of near-duplicates, by index. Equal looks are not compared, which makes many copies as quick as few."""
    places: dict[str, list[int]] = {}
    for index, look in enumerate(looks):
        places.setdefault(look, []).append(index)
    distinct = list(places)
    alike = groups(len(distinct), twins(distinct))
    alone = {*range(len(distinct))} - {index for group in alike for index in group}
    together = [*alike, *((index,) for index in sorted(alone))]
    found = (tuple(sorted(place for index in group for place in places[distinct[index]])) for group in together)
    return [group for group in found if len(group) > 1]


def monotony(rows: Sequence[Row], least: float) -> str | None:
    """A warning where the backgrounds of what is kept are too much alike: a model learns them with the subject."""
    looks = [str(row.scores["look"]) for row in rows if row.status == "kept"]
    found = variety(looks) if len(looks) >= FEWEST and least > 0 else least
    if found >= least:
        return None
    return (
        f"the backgrounds of these pictures are much alike (variety {found:.2f} < {least:g}) and will be learnt with "
        "the subject: add pictures from other places"
    )
