"""Tables that fit a terminal: columns shrink, and what is too long goes on in the next line.  Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column; ``least`` is how narrow it may become (0: it never shrinks)."""

    title: str
    least: int = 0
    right: bool = False


def width(text: str) -> int:
    """How many places a text takes on a terminal: wide letters two, marks over others none."""
    return sum(_places(letter) for letter in text)


def _places(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def wrapped(text: str, places: int) -> list[str]:
    """The text in lines of so many places, broken at a space where there is one."""
    lines = []
    while width(text) > places:
        end = _end(text, places)
        space = text.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, text] if text or not lines else lines


def _end(text: str, places: int) -> int:
    """How many letters fit, one at least."""
    used = 0
    for n, letter in enumerate(text):
        used += _places(letter)
        if used > places:
            return max(1, n)
    return len(text)


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], total: int) -> Iterator[str]:
    """Head and rows, none of them wider than ``total`` as long as the columns may shrink."""
    table = [[column.title for column in columns], *rows]
    sizes = [max(width(row[n]) for row in table) for n in range(len(columns))]
    while sum(sizes) + len(GAP) * (len(columns) - 1) > total:
        widest = max(range(len(columns)), key=lambda n: sizes[n] if columns[n].least else 0)
        if not columns[widest].least or sizes[widest] <= columns[widest].least:
            break
        sizes[widest] -= 1
    for row in table:
        parts = [wrapped(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for n in range(max(map(len, parts))):
            cells = [part[n] if n < len(part) else "" for part in parts]
            line = GAP.join(map(_padded, cells, sizes, columns))
            yield line.rstrip()


def _padded(cell: str, size: int, column: Column) -> str:
    space = " " * (size - width(cell))
    return space + cell if column.right else cell + space
