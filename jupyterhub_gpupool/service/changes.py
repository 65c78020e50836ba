"""What a change of a limit would do, asked before it is made.  Pure, over one view of the pool."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .. import fairness
from ..ledger import Snapshot, Touched, preview
from ..model import Limit


@dataclass(frozen=True, slots=True)
class Change:
    """A limit now and then, and whom the change touches."""

    scope: str
    before: Limit | None
    after: Limit | None
    touched: tuple[Touched, ...] = ()
    """Who would be over a limit and is not over now."""
    relieved: tuple[str, ...] = ()
    """Scopes that are over a limit now and would not be any more."""
    notes: tuple[str, ...] = ()
    """What is probably a slip, and is no error since it may become right later."""


def foresee(
    snapshot: Snapshot, scope: str, limit: Limit | None, slugs: Collection[str] | None, *, back: bool = False
) -> Change:
    """Look ahead: this limit (None: none) in force for a scope, in the pool as it is now.

    ``slugs`` are the profiles that there are (None: not known).  Raises ValueError, with the sum, when more
    would be guaranteed than the pool has and this limit has a part in it; on the way ``back`` to what is
    configured that is noted.
    """
    changed = {key: value for key, value in snapshot.limits.items() if key != scope}
    notes: list[str] = []
    if limit is not None:
        changed[scope] = limit
        notes = [*fairness.warnings({scope: limit}, None, slugs, snapshot.now), *_nobody(snapshot, scope)]
    part = limit is not None and fairness.changes_guarantees(scope, limit)
    if part and snapshot.devices:  # before the first inventory nobody knows how much there is
        try:
            fairness.check_shares(changed, float(len(snapshot.devices)), snapshot.now)
        except ValueError as problem:
            if not back:
                raise
            notes.append(str(problem))
    then = fairness.over_limits(fairness.tally(snapshot.holds, changed), changed)
    return Change(
        scope=scope,
        before=snapshot.limits.get(scope),
        after=limit,
        touched=preview(snapshot, scope, limit),
        relieved=tuple(sorted(set(snapshot.over) - set(then))),
        notes=tuple(notes),
    )


def _nobody(snapshot: Snapshot, scope: str) -> list[str]:
    """A name that may be misspelled: the service knows no names but of those who hold or wait."""
    kind, _, name = scope.partition(":")
    if kind == "group" and not any(name in lease.groups for lease in snapshot.leases):
        return [f"Nobody of a group {name} has a session or a request now; check how it is written."]
    if kind == "user" and name != "*" and not any(name == lease.user for lease in snapshot.leases):
        return [f"Nobody called {name} has a session or a request now; check how it is written."]
    return []
