"""The table: what became of every file of the source, one row each, as JSON lines that the next run reads again."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

NAME = "table.jsonl"

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width and height in pixels
Status = Literal["kept", "skipped", "unreadable", "ignored"]
STATUSES: tuple[Status, ...] = ("kept", "skipped", "unreadable", "ignored")


@dataclass(frozen=True)
class Output:
    """One picture made of a source. Files are relative to the output's folder; `crop` is in pixels of the source, the
    right way round; `changes` say what augmentation did. What a model made has the key that it follows from:
    `described` is what the captioner said, `caption` what the rules made of it.
    """

    file: str
    sha256: str
    crop: Box
    size: Size
    changes: tuple[str, ...] = ()
    mask: str | None = None
    mask_sha256: str = ""
    mask_key: str = ""
    caption: str = ""
    caption_origin: str = ""
    described: str = ""
    described_key: str = ""

    def files(self) -> dict[str, str]:
        """The hashes of the picture and its mask, by name."""
        return {self.file: self.sha256} | ({self.mask: self.mask_sha256} if self.mask else {})


@dataclass(frozen=True)
class Row:
    """One file of the source. `key` is what its outputs follow from: its content and the settings. `scores` are what
    was measured; `verdict` has the checks that it fails, and `twin` the file that it is a near-duplicate of.
    `thumbnail` is a small copy of the whole, for the page.
    """

    source: str
    status: Status
    reason: str = ""
    sha256: str = ""
    key: str = ""
    size: Size = (0, 0)
    notes: tuple[str, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    twin: str = ""
    thumbnail: str = ""
    outputs: tuple[Output, ...] = ()

    @property
    def failing(self) -> tuple[str, ...]:
        """All that speaks against the picture."""
        return (*self.verdict, *([f"near-duplicate: of {self.twin}"] if self.twin else []))

    def files(self) -> list[str]:
        """All that there is of it in the output's folder."""
        own = [self.thumbnail] if self.thumbnail else []
        return own + [name for output in self.outputs for name in output.files()]

    def numbers(self) -> dict[str, float]:
        """The scores that a person can read; the others are for comparing pictures."""
        return {name: value for name, value in self.scores.items() if isinstance(value, int | float) and name != "hash"}


def json_line(value: Any) -> str:
    """One line, for readers too that take U+2028 and its like for the end of one."""
    line = json.dumps(value, ensure_ascii=False)
    return (line if len(line.splitlines()) == 1 else json.dumps(value)) + "\n"


def lines(rows: Iterable[Row]) -> str:
    return "".join(json_line(asdict(row)) for row in rows)


def read_rows(*files: Path) -> dict[str, Row]:
    """The rows by source; of several files the last one counts. What is no row, as the last line of a run that was
    killed, is left out: its file is then prepared again.
    """
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    return {row.source: row for text in texts for row in _rows(text)}


def _rows(text: str) -> Iterator[Row]:
    for line in text.split("\n"):
        try:
            values = _frozen(json.loads(line))
            yield Row(**{**values, "outputs": tuple(Output(**each) for each in values["outputs"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            continue


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def summary(rows: Sequence[Row]) -> dict[str, int]:
    """How many files there are of each kind, and how many fail each check, the most frequent first."""
    counts = Counter[str](row.status for row in rows)
    failed = Counter(kind(reason) for row in rows for reason in row.failing)
    pictures = sum(len(row.outputs) for row in rows if row.status == "kept")
    told = {"files": len(rows), **{str(status): counts[status] for status in STATUSES}, "pictures": pictures}
    return told | {f"failing: {reason}": count for reason, count in failed.most_common()}


def kind(reason: str) -> str:
    """A reason without its numbers: "blurred: 12 < 50" is of the kind "blurred"."""
    return reason.partition(":")[0]
