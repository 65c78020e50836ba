"""The limits in force: what is configured, and the admin's edits at run time in the place of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from .. import fairness
from ..errors import Unavailable
from ..model import Limit
from . import rows
from . import schema as t
from .store import Transaction
from .text import sentence
from .transitions import note

EDITED = "edited"
"""Reason of the refusal to write over an edit that was not looked at."""


@dataclass(frozen=True, slots=True)
class LimitRow:
    """The limit of a scope: what is configured, and the edit that stands in its place."""

    scope: str
    configured: Limit | None = None
    edited: Limit | None = None
    actor: str = ""
    """Who edited it last."""
    at: float | None = None
    why: str = ""

    @property
    def effective(self) -> Limit | None:
        """What is in force; None: nothing is."""
        return self.configured if self.edited is None else self.edited

    @property
    def mark(self) -> str:
        """What tells an edit from the next one; empty: there is none."""
        return "" if self.at is None else repr(self.at)


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits in force, and what they make necessary: what nobody limits costs no query."""

    limits: Mapping[str, Limit]
    hours: bool
    """Whether anybody's GPU-hours are limited."""
    profiles: bool
    ages: bool
    queued: bool
    shares: bool
    """Whether anything is guaranteed at some time."""
    strict: frozenset[str]
    """Groups whose limit counts every session of a member."""

    @classmethod
    def of(cls, limits: Mapping[str, Limit]) -> Rules:
        """Look at the limits once."""
        all_of_them = limits.values()
        return cls(
            limits=limits,
            hours=any(limit.gpu_hours is not None for limit in all_of_them),
            profiles=any(limit.profiles is not None for limit in all_of_them),
            ages=any(limit.max_age is not None for limit in all_of_them),
            queued=any(limit.queued is not None for limit in all_of_them),
            shares=any(map(_guarantees, all_of_them)),
            strict=frozenset(scope[6:] for scope, limit in limits.items() if limit.strict),
        )

    def own_hours(self, user: str) -> bool:
        """Whether a budget is this person's own."""
        return fairness.user_limit(user, self.limits).gpu_hours is not None

    def guaranteed(self, now: float) -> dict[str, float]:
        """GPU-equivalents that are guaranteed to each group now."""
        return fairness.guarantees(self.limits, now) if self.shares else {}


def in_force(conn: Connection, configured: Mapping[str, Limit]) -> dict[str, Limit]:
    """The limits by scope as they hold now."""
    return {**configured, **_edits(conn)}


def _edits(conn: Connection) -> dict[str, Limit]:
    found = conn.execute(select(t.limits.c.scope, t.limits.c.caps))
    return {row.scope: fairness.read_limit(row.scope, rows.load(row.caps)) for row in found}


def read(conn: Connection, configured: Mapping[str, Limit]) -> dict[str, LimitRow]:
    """Every scope that is configured or edited, by name."""
    found = {scope: LimitRow(scope, limit) for scope, limit in configured.items()}
    for row in conn.execute(select(t.limits)):
        limit = fairness.read_limit(row.scope, rows.load(row.caps))
        found[row.scope] = LimitRow(row.scope, configured.get(row.scope), limit, row.actor, row.at, row.why)
    return dict(sorted(found.items()))


def check_seen(tx: Transaction, scope: str, seen: str | None) -> None:
    """Raise Unavailable (``edited``, 409) when the edit of a scope has not this mark; None: any will do."""
    if seen is None:
        return
    row = tx.run(select(t.limits.c.at, t.limits.c.actor).where(t.limits.c.scope == scope)).one_or_none()
    if seen != ("" if row is None else repr(row.at)):
        who = "somebody who cleared it" if row is None else row.actor
        raise Unavailable(
            f"The limit {scope} was edited in the meantime, by {who}.", reason=EDITED, status=409
        )


def edit(
    tx: Transaction,
    scope: str,
    keys: Mapping[str, Any],
    configured: Mapping[str, Limit],
    actor: str,
    why: str,
) -> None:
    """Put a limit in the place of the configured one, whole.

    Raises ValueError with a sentence for what is no limit, and where more would be guaranteed than there is.
    """
    limit = fairness.read_limit(scope, keys)
    if fairness.changes_guarantees(scope, limit):
        check_shares(tx.conn, {**in_force(tx.conn, configured), scope: limit}, tx.now)
    tx.run(delete(t.limits).where(t.limits.c.scope == scope))
    text, why = rows.dump(fairness.write_limit(limit)), sentence(why)
    tx.run(insert(t.limits).values(scope=scope, caps=text, actor=actor[:255], at=tx.now, why=why))
    _changed(tx, actor, f"{scope}: {text}", why)


def clear(tx: Transaction, scope: str, configured: Mapping[str, Limit], actor: str, why: str) -> None:
    """Let the configured limit of a scope hold again.

    Raises ValueError with a sentence for what is no scope, and where more would be guaranteed than there is.
    """
    fairness.check_scope(scope)
    if tx.run(delete(t.limits).where(t.limits.c.scope == scope)).rowcount:
        now = configured.get(scope)
        if now is not None and fairness.changes_guarantees(scope, now):
            # Another edit may have taken its room.
            check_shares(tx.conn, in_force(tx.conn, configured), tx.now)
        text = "no limit" if now is None else rows.dump(fairness.write_limit(now))
        _changed(tx, actor, f"{scope}: as configured, {text}", sentence(why))


def _guarantees(limit: Limit) -> bool:
    """Whether anything is guaranteed by it at some time."""
    return bool(limit.guaranteed_gpus or limit.reservations)


def _changed(tx: Transaction, actor: str, what: str, why: str) -> None:
    tx.run(update(t.pool).values(limits_version=t.pool.c.limits_version + 1))
    tx.limits_version += 1  # what this transaction still grants is granted by the limits as they are now
    note(tx, actor[:255], "limit", f"{what} ({why})" if why else what)


def check_shares(conn: Connection, limits: Mapping[str, Limit], now: float) -> None:
    """Raise ValueError when more is guaranteed than the pool has; before the first inventory nobody knows."""
    size = int(
        conn.execute(
            select(func.count()).select_from(t.devices).where(t.devices.c.forgotten == 0)
        ).scalar_one()
    )
    if size:
        fairness.check_shares(limits, size, now)
