"""Every key of a TOML text has its line."""

import tomllib
from collections.abc import Iterator
from typing import Any

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from loractl.lines import key_lines
from tests.job.writing import KEYS, VALUES


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_every_key_has_its_line(values: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(values, multiline_strings=multiline)
    lines = key_lines(text)
    assert set(lines) == set(paths(values))
    for path, line in lines.items():
        keys = [key for key in path if isinstance(key, str)]
        if isinstance(path[-1], str):
            assert toml_key(keys[-1]) in text.split("\n")[line - 1]


def toml_key(key: str) -> str:
    return tomli_w.dumps({key: 0}).rpartition(" = ")[0]


GNARLY = '''\
# [not.a.table]
a.b = 1
"dotted.key".c = "x # = ["
[table]   # comment
text = """
[no.table]
x = 1 \\"""
"""
literal = \'\'\'
y = 2\'\'\'
list = [
  1, # one
  [2, "]"],
  { deep = 3, other.deeper = "}" },
]
when = 1979-05-27 07:32:00.5Z
[[rows]]
v = 1
[[rows]]
v = 1.5
[rows.inner]
w = 2
[[rows.more]]
z = 0
[later]
'''


def test_lines_of_a_text_with_everything() -> None:
    lines = key_lines(GNARLY)
    assert set(lines) == set(paths(tomllib.loads(GNARLY)))
    expected = {
        ("a", "b"): 2,
        ("dotted.key", "c"): 3,
        ("table",): 4,
        ("table", "text"): 5,
        ("table", "literal"): 9,
        ("table", "list", 1, 1): 13,
        ("table", "list", 2, "other", "deeper"): 14,
        ("table", "when"): 16,
        ("rows",): 17,
        ("rows", 1): 19,
        ("rows", 1, "v"): 20,
        ("rows", 1, "inner", "w"): 22,
        ("rows", 1, "more", 0, "z"): 24,
        ("later",): 25,
    }
    assert {path: lines[path] for path in expected} == expected
