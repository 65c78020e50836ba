"""Whom a change of a limit would touch: asked before it is made.  Pure, over one view of the pool."""

from __future__ import annotations

from dataclasses import dataclass

from .. import fairness
from ..model import Limit
from .views import Snapshot


@dataclass(frozen=True, slots=True)
class Touched:
    """Whom a change would put over a limit: nobody is ended, but they get nothing more until it fits."""

    scope: str
    users: tuple[str, ...]
    why: str


def preview(snapshot: Snapshot, scope: str, limit: Limit | None) -> tuple[Touched, ...]:
    """Say who would be over their limit with this one in force (None: without one), and is not over now."""
    changed = {key: value for key, value in snapshot.limits.items() if key != scope}
    if limit is not None:
        changed[scope] = limit
    usage = fairness.tally(snapshot.holds, changed)
    found = []
    for over, why in sorted(fairness.over_limits(usage, changed).items()):
        if over not in snapshot.over:
            kind, _, name = over.partition(":")
            users = {
                item.user
                for item in snapshot.holds
                if kind == "pool" or (kind == "user" and item.user == name)
                or (kind == "group" and (item.group == name or (name in item.groups and changed[over].strict)))
            }  # fmt: skip
            found.append(Touched(over, tuple(sorted(users)), why))
    return tuple(found)
