"""The words of the doctor: what a check says, and how checks are known.  Pure.

A check is a small function over facts that a probe has collected.  What a probe could not learn is
:class:`Unknown`, with the reason; a check that needs it is then skipped with that reason, and not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How grave a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will hurt sooner or later, or is less safe than it could be."""
    ERROR = "error"
    """Something does not work, or sessions, files or the machine are at risk now."""
    SKIPPED = "skipped"
    """Not looked at, for the reason given: it says nothing."""


GROUPS = {
    "gpu": "GPUs and driver",
    "engine": "Container engine",
    "pool": "Pool",
    "hub": "Hub",
    "machine": "Machine",
}
"""The parts of the report, in order."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that could not be learned, and why: a sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed(Unknown):
    """A fact that could not be learned because something is broken that must not be; ``fix`` mends it."""

    fix: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a check says: the reason as a sentence, and the command (or setting) that mends it."""

    level: Level
    reason: str
    fix: str = ""


def ok(reason: str) -> Result:
    """All is well."""
    return Result(Level.OK, reason)


def warning(reason: str, fix: str = "") -> Result:
    """It will hurt; see :class:`Level`."""
    return Result(Level.WARNING, reason, fix)


def error(reason: str, fix: str = "") -> Result:
    """It hurts; see :class:`Level`."""
    return Result(Level.ERROR, reason, fix)


def skipped(reason: str) -> Result:
    """There is nothing to look at here."""
    return Result(Level.SKIPPED, reason)


@dataclass(frozen=True, slots=True)
class Check:
    """A check under its stable id: what it is about, and the function that judges the facts it needs."""

    id: str
    group: str
    about: str
    judge: Callable[..., Result]
    needs: tuple[str, ...]
    """Names of facts: the function's first arguments, in this order."""
    optional: tuple[str, ...] = ()
    """Names of facts that may be Unknown: the arguments after them."""
    reports: str = ""
    """The name of a fact whose failure is this check's error; all others that need it are skipped."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check with its result."""

    check: Check
    result: Result


CHECKS: dict[str, Check] = {}
"""Every check by its id, in the order of the report."""

Judge = Callable[..., Result]


def check(
    name: str, group: str, about: str, *needs: str, optional: tuple[str, ...] = (), reports: str = ""
) -> Callable[[Judge], Judge]:
    """Register a function as a check; see :class:`Check`."""
    if name in CHECKS or group not in GROUPS:
        raise ValueError(f"The check {name!r} is there already, or its group {group!r} is not.")

    def register(judge: Judge) -> Judge:
        CHECKS[name] = Check(name, group, about, judge, needs, optional, reports)
        return judge

    return register


def examine(facts: Any) -> list[Finding]:
    """Run every check on the facts, group by group."""
    order = list(GROUPS)
    found = sorted(CHECKS.values(), key=lambda one: order.index(one.group))
    return [Finding(one, _judge(one, facts)) for one in found]


def _judge(one: Check, facts: Any) -> Result:
    if one.reports and isinstance(broken := getattr(facts, one.reports), Failed):
        return error(broken.why, broken.fix)
    given = [getattr(facts, name) for name in one.needs]
    unknown = next((fact for fact in given if isinstance(fact, Unknown)), None)
    return (
        skipped(unknown.why)
        if unknown
        else one.judge(*given, *(getattr(facts, name) for name in one.optional))
    )


def listed(items: Any, most: int = 5) -> str:
    """Names for a sentence, not too many of them."""
    names = [str(item) for item in items]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
