"""The findings for a person, and for a program.  Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .model import GROUPS, Finding, Level, Result

WIDTH = 80
MARKS = {Level.OK: "ok", Level.WARNING: "WARNING", Level.ERROR: "ERROR", Level.SKIPPED: "skipped"}
COLOURS = {Level.OK: "32", Level.WARNING: "33", Level.ERROR: "31", Level.SKIPPED: "2"}
"""Of the mark, on a terminal: parameters of the control sequence SGR."""

COLUMN = max(map(len, MARKS.values())) + 2


def lines(findings: Sequence[Finding], *, coloured: bool, clean: Callable[[str], str]) -> Iterator[str]:
    """The report, group by group; ``clean`` makes a text fit for a terminal."""
    for group, title in GROUPS.items():
        members = [one for one in findings if one.check.group == group]
        if members:
            yield title
            for names, result in _merged(members):
                yield from _lines(", ".join(names), result, coloured, clean)
            yield ""
    yield summary(findings)


def _merged(members: Iterable[Finding]) -> list[tuple[list[str], Result]]:
    """Findings with the names of their checks; what was skipped for one reason is one entry, at the end."""
    looked: list[tuple[list[str], Result]] = []
    skipped: dict[Result, list[str]] = {}
    for one in members:
        if one.result.level is Level.SKIPPED:
            skipped.setdefault(one.result, []).append(one.check.id)
        else:
            looked.append(([one.check.id], one.result))
    return looked + [(names, result) for result, names in skipped.items()]


def _lines(names: str, result: Result, coloured: bool, clean: Callable[[str], str]) -> Iterator[str]:
    mark = MARKS[result.level].ljust(COLUMN)
    shown = f"\033[{COLOURS[result.level]}m{mark}\033[0m" if coloured else mark
    first, *more = _wrapped(f"{names}: {clean(result.reason)}")
    yield f"  {shown}{first}"
    for line in more:
        yield f"  {'':{COLUMN}}{line}"
    for line in _wrapped(f"→ {clean(result.fix)}") if result.fix else ():
        yield f"  {'':{COLUMN}}{line}"


def _wrapped(text: str) -> list[str]:
    # A command or a path that is longer than the line stays whole, so that it can be copied.
    return textwrap.wrap(text, WIDTH - COLUMN - 2, break_long_words=False, break_on_hyphens=False) or [""]


def count(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings there are of each level."""
    found = Counter(one.result.level for one in findings)
    return {level.value: found[level] for level in Level}


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    found = count(findings)
    errors, warnings = found["error"], found["warning"]
    words = [f"{errors} error{'s' * (errors != 1)}", f"{warnings} warning{'s' * (warnings != 1)}"]
    return f"{', '.join(words)}, {found['ok']} ok, {found['skipped']} skipped."


def shape(findings: Sequence[Finding], version: str) -> dict[str, Any]:
    """What ``--json`` prints; ids and names stay."""
    return {
        "version": version,
        "checks": [
            {
                "id": one.check.id,
                "group": one.check.group,
                "level": one.result.level.value,
                "reason": one.result.reason,
                "fix": one.result.fix or None,
            }
            for one in findings
        ],
        "summary": count(findings),
    }


def table() -> str:
    """The checks as a table in Markdown, for the documentation."""
    from .model import CHECKS

    order = list(GROUPS)
    rows = [
        f"| `{one.id}` | {GROUPS[one.group]} | {one.about} |"
        for one in sorted(CHECKS.values(), key=lambda one: order.index(one.group))
    ]
    return "\n".join(["| id | part | all is well when |", "| --- | --- | --- |", *rows])
