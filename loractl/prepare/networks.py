"""Masks and captions by networks: batch by batch, in the program's own process, over the pictures that were written."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from loractl.prepare.batches import Batches
from loractl.prepare.captioning import Caption, Wording, ruled
from loractl.prepare.process import Masking
from loractl.prepare.table import Output, Row
from loractl.prepare.write import STAGE, digest, encode, write_whole

Answers = Callable[[Sequence[Image.Image]], Sequence[Any]]
Report = Callable[[int, int, Row], None]  # pictures done, of how many, and the row that has grown


@dataclass(frozen=True)
class Network:
    """A model that sees pictures in batches. `load` is called once there is a picture for it; its answers follow from
    the picture and from what is `told`.
    """

    name: str
    load: Callable[[], Answers]
    told: Mapping[str, Any]
    batch_size: int = 8

    def key(self, picture: str) -> str:
        """What the answer for a picture of this hash follows from."""
        return digest(json.dumps({"name": self.name, "picture": picture, **self.told}, sort_keys=True).encode())


@dataclass(frozen=True)
class _Place:
    """Where an output stands among the rows."""

    row: int
    output: int


def masked(rows: Sequence[Row], network: Network, masking: Masking, root: Path, report: Report) -> list[Row]:
    """The rows with a mask for every picture that is kept."""
    told = replace(network, told={**network.told, "feather": masking.feather, "invert": masking.invert})

    def put(output: Output, mask: Image.Image) -> Output:
        data = encode(masking.finish(mask), "png", 95)
        name = f"{STAGE}/{digest(f'{output.file}/{output.sha256}'.encode())[:24]}.mask.png"
        write_whole(root / name, data)
        return replace(output, mask=name, mask_sha256=digest(data), mask_key=told.key(output.sha256))

    lacking = _lacking(rows, lambda output: output.mask_key != told.key(output.sha256))
    return _answered(rows, lacking, told, root, put, report)


def captioned(
    rows: Sequence[Row],
    own: Mapping[str, Caption | None],
    wording: Wording,
    network: Network | None,
    root: Path,
    report: Report,
) -> list[Row]:
    """The rows with a caption for every picture that is kept: the `own` of its source, or the captioner's where that is
    None.
    """
    asked = [number for number, row in enumerate(rows) if row.status == "kept" and own[row.source] is None]
    if network is not None:
        lacking = _lacking(rows, lambda output: output.described_key != network.key(output.sha256), asked)
        rows = _answered(rows, lacking, network, root, _describing(network), report)
    origin = f"captioner {network.name}" if network else ""
    return [_worded(row, own.get(row.source), origin, wording) for row in rows]


def _describing(network: Network) -> Callable[[Output, str], Output]:
    def put(output: Output, text: str) -> Output:
        return replace(output, described=text, described_key=network.key(output.sha256))

    return put


def _worded(row: Row, caption: Caption | None, origin: str, wording: Wording) -> Row:
    """The row with the captions that the rules make of what was found."""
    outputs = []
    for output in row.outputs if row.status == "kept" else ():
        found = ruled(caption or Caption(output.described, origin), wording)
        outputs.append(replace(output, caption=found.text, caption_origin=found.origin))
    return replace(row, outputs=tuple(outputs)) if outputs else row


def _lacking(rows: Sequence[Row], lacks: Callable[[Output], bool], asked: Iterable[int] | None = None) -> list[_Place]:
    """The pictures that are kept and lack an answer."""
    numbers = range(len(rows)) if asked is None else asked
    return [
        _Place(number, place)
        for number in numbers
        if rows[number].status == "kept"
        for place, output in enumerate(rows[number].outputs)
        if lacks(output)
    ]


def _answered(
    rows: Sequence[Row],
    lacking: Sequence[_Place],
    network: Network,
    root: Path,
    put: Callable[[Output, Any], Output],
    report: Report,
) -> list[Row]:
    """The rows with what the network says of each picture; it is loaded only if there is one."""
    found = list(rows)
    ask = Batches(network.load(), network.batch_size) if lacking else None
    for start in range(0, len(lacking), network.batch_size):
        places = lacking[start : start + network.batch_size]
        pictures = [_opened(root / found[place.row].outputs[place.output].file) for place in places]
        for done, (place, answer) in enumerate(zip(places, ask(pictures) if ask else (), strict=True), start + 1):
            outputs = list(found[place.row].outputs)
            outputs[place.output] = put(outputs[place.output], answer)
            found[place.row] = replace(found[place.row], outputs=tuple(outputs))
            report(done, len(lacking), found[place.row])
    return found


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")
