"""Numbers and sizes as a person lists them: "1..4" is 1, 2, 3, 4; "0:1:0.25" goes from 0 to 1 by 0.25; 768x512."""

import re
from collections.abc import Iterator
from decimal import Decimal

NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"
PART = re.compile(rf"({NUMBER})(?:\.\.({NUMBER})|:({NUMBER}):({NUMBER}))?", re.ASCII)
LONGEST = 1000


def numbers(text: str) -> tuple[int | float, ...]:
    """All numbers of a text, in order; a range has both its ends where a step meets the second.

    In decimal arithmetic, so that the fourth of 0:1:0.1 is 0.3. Raises ValueError for anything else.
    """
    return tuple(number for part in text.split(",") for number in _expanded(part.strip()))


def _expanded(part: str) -> Iterator[int | float]:
    found = PART.fullmatch(part)
    if not found:
        raise ValueError(f'"{part}" is neither a number nor a range such as 1..4 or 0:1:0.25')
    first, to, until, by = found.groups()
    start, end, step = Decimal(first), Decimal(to or until or first), Decimal(by or 1)
    steps = int((end - start) / step) if step and (end - start) * step >= 0 else -1
    if not 0 <= steps < LONGEST:
        raise ValueError(f'"{part}" has {"more than 1000 numbers" if steps > 0 else "no numbers: mind the step"}')
    yield from (_plain(start + index * step) for index in range(steps + 1))


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)


def sides(said: int | str) -> int | str:
    """A square by the side it has, whichever way it is said."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(said))
    if found is None:
        raise ValueError(f'"{said}" is no size: give pixels, as 512, or 768x512 for width and height')
    width, height = found[1], found[2] or found[1]
    return int(width) if width == height else f"{width}x{height}"
