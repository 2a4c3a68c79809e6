"""A page in which a person slides through a table of pictures: one HTML file that needs nothing else, no network."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from loractl.sample.axes import Axis

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "{{data}}"


def page(title: str, facts: Mapping[str, object], axes: tuple[Axis, Axis, Axis], pictures: Sequence[bytes]) -> str:
    """The HTML. `facts` are what all pictures have in common; the pictures are PNG files, in the order of `axes`.

    All texts travel as JSON, in which no tag can begin.
    """
    encoded = [base64.b64encode(picture).decode() for picture in pictures]
    shared = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    data = {"title": title, "facts": shared, "axes": [asdict(axis) for axis in axes], "pictures": encoded}
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, json.dumps(data).replace("<", "\\u003c"))
