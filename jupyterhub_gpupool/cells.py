"""Numbers of cells: as runs of neighbours, and as the text that rows and markers hold.  Pure."""

from __future__ import annotations

from collections.abc import Iterable


def runs(cells: Iterable[int]) -> list[tuple[int, int]]:
    """Cell numbers as runs of neighbours: (first, last) of each."""
    found: list[tuple[int, int]] = []
    for cell in sorted(cells):
        if found and cell == found[-1][1] + 1:
            found[-1] = (found[-1][0], cell)
        else:
            found.append((cell, cell))
    return found


def ranges(cells: Iterable[int]) -> str:
    """Cell numbers as text: ``0-29,40``."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs(cells))


def cell_numbers(text: str) -> tuple[int, ...]:
    """The inverse of :func:`ranges`.  Raises ValueError for a text that is no list of cells."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)
