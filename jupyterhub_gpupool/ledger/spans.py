"""What the books are kept of: one query over the leases of some days, and one over their idle time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select

from .. import books
from . import schema as t


@dataclass(frozen=True, slots=True)
class Progress:
    """What has happened since a time."""

    now: float
    waits: tuple[float, ...]
    """How long each lease that was granted since then had waited."""
    held: Mapping[str, float]
    """GPU-seconds by the group charged, empty: none."""
    waiting: Mapping[str, float]


_since = select(
    t.leases.c.group,
    t.leases.c.gpus,
    t.leases.c.requested_at,
    t.leases.c.granted_at,
    t.leases.c.closed_at,
).where(or_(t.leases.c.open_key == 1, t.leases.c.closed_at >= bindparam("since")))


def progress(conn: Connection, now: float, since: float) -> Progress:
    """What was granted, held and waited for since a time."""
    waits, held, waiting = [], defaultdict[str, float](float), defaultdict[str, float](float)
    for row in conn.execute(_since, {"since": since}):
        closed = now if row.closed_at is None else row.closed_at
        granted = closed if row.granted_at is None else row.granted_at
        if row.granted_at is not None and since <= row.granted_at < now:
            waits.append(max(0.0, row.granted_at - row.requested_at))
        held[row.group] += row.gpus * max(0.0, closed - max(since, granted))
        waiting[row.group] += row.gpus * max(0.0, granted - max(since, row.requested_at))
    return Progress(now, tuple(waits), held, waiting)


_KEYS: dict[str, Any] = {"user": t.owners.c.name, "group": t.leases.c.group, "profile": t.leases.c.profile}


def usage(
    conn: Connection, now: float, by: str, start: float, end: float, user: str | None
) -> list[books.Entry]:
    """See :meth:`Ledger.usage`."""
    first, last = books.days(start, end)
    key = _KEYS[books.check_by(by)]
    begins, ends = first * books.DAY, (last + 1) * books.DAY
    concerned = [
        t.leases.c.gpus > 0,
        t.leases.c.requested_at < ends,
        or_(t.leases.c.open_key == 1, t.leases.c.closed_at > begins),
    ]
    if user is not None:
        concerned.append(t.owners.c.name == user)
    named = select(
        t.leases.c.id,
        t.leases.c.user,
        key.label("key"),
        t.leases.c.gpus,
        t.leases.c.requested_at,
        t.leases.c.granted_at,
        t.leases.c.closed_at,
    ).join(t.owners, t.owners.c.id == t.leases.c.owner)
    idle: dict[str, dict[int, float]] = defaultdict(dict)
    days = select(t.idle_days).where(t.idle_days.c.day.between(first, last))
    if user is not None:  # who asks for their own books does not have those of everybody read
        days = days.join(t.leases, t.leases.c.id == t.idle_days.c.lease)
        days = days.join(t.owners, t.owners.c.id == t.leases.c.owner).where(t.owners.c.name == user)
    for row in conn.execute(days):
        idle[row.lease][row.day] = row.seconds
    return books.keep(
        (
            books.Account(
                f"{row.user} (deleted)" if row.key is None else row.key,
                row.gpus,
                row.requested_at,
                row.granted_at,
                row.closed_at,
                idle.get(row.id, {}),
            )
            for row in conn.execute(named.where(*concerned))
        ),
        first,
        last,
        now,
    )
