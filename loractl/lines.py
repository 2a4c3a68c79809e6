"""Which line of a TOML text each key stands on: tomllib reads the values, this reads the places.

The text is known to be valid, so the scanner only has to recognize tokens and count lines.
"""

import re
import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''(?P<text>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\])*"|'[^']*')'''
    r"""|(?P<skip>[ \t\r]+|#[^\n]*)|(?P<mark>[\[\]{}=,.\n])|(?P<bare>[^\s\[\]{}=,.#"']+)""",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Key path → line, counted from 1, for every key and every element of an array, in the order of the text."""
    return _Scanner(text).document()


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "skip":
            yield match.group(), line
        line += match.group().count("\n")
    yield "", line


class _Scanner:
    """A recursive descent over the tokens; `lines` grows as keys are met."""

    def __init__(self, text: str) -> None:
        self.tokens = list(_tokens(text))
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.last: dict[KeyPath, int] = {}  # array of tables → index of its newest element

    def peek(self) -> str:
        return self.tokens[self.at][0]

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][0]

    def past(self, *marks: str) -> str:
        """The next token after any of `marks`."""
        while self.peek() in marks:
            self.at += 1
        return self.peek()

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self.past("\n"):
            if self.peek() == "[":
                table = self.header()
            else:
                self.pair(table)
        return self.lines

    def header(self) -> KeyPath:
        """[a.b] or [[a.b]]: the path of the table that begins here."""
        line = self.tokens[self.at][1]
        self.take()
        many = self.peek() == "["
        self.past("[")
        *parents, name = self.key()
        self.past("]")
        path: KeyPath = (*self.resolve(tuple(parents), line), name)
        self.lines.setdefault(path, line)
        if many:
            self.last[path] = self.last.get(path, -1) + 1
        if path in self.last:
            path = (*path, self.last[path])
            self.lines.setdefault(path, line)
        return path

    def resolve(self, names: KeyPath, line: int, table: KeyPath = ()) -> KeyPath:
        """The path of dotted `names` below `table`; an array of tables stands for its newest element."""
        for name in names:
            table = (*table, name)
            self.lines.setdefault(table, line)
            if table in self.last:
                table = (*table, self.last[table])
        return table

    def key(self) -> list[str]:
        """A dotted key: bare and quoted parts up to `=` or `]`."""
        parts = []
        while self.peek() not in ("=", "]"):
            token = self.take()
            if token != ".":
                parts.append(unquote(token))
        return parts

    def pair(self, table: KeyPath) -> None:
        line = self.tokens[self.at][1]
        *parents, name = self.key()
        self.take()
        path = (*self.resolve(tuple(parents), line, table), name)
        self.lines[path] = line
        self.value(path)

    def value(self, path: KeyPath) -> None:
        if self.peek() == "[":
            self.array(path)
        elif self.peek() == "{":
            self.inline_table(path)
        else:
            while self.peek() not in ("\n", ",", "]", "}", ""):
                self.at += 1

    def array(self, path: KeyPath) -> None:
        self.take()
        index = 0
        while self.past("\n", ",") != "]":
            self.lines[(*path, index)] = self.tokens[self.at][1]
            self.value((*path, index))
            index += 1
        self.take()

    def inline_table(self, path: KeyPath) -> None:
        self.take()
        while self.past("\n", ",") != "}":
            self.pair(path)
        self.take()


def unquote(part: str) -> str:
    """One part of a dotted key, as TOML means it: quotes and escapes taken off."""
    return next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part
