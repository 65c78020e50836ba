"""Which hub serves the pool: one at a time, and another only when that one is gone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from ..errors import Unavailable
from ..model import State, session_name
from . import schema as t
from .store import Transaction
from .turns import Policy

OTHER_HUB = "other-hub"
"""Reason of the refusal."""


@dataclass(frozen=True, slots=True)
class HubRow:
    """A hub that claims the pool."""

    name: str
    host: str
    process: str
    """Which process of which machine it is, as its own pool writes it."""
    silent: float
    """Seconds since it last said that it lives."""


def claims(conn: Connection, now: float) -> tuple[HubRow, ...]:
    """Every hub that claims the pool, whether it still lives or not."""
    found = conn.execute(select(t.hubs).where(t.hubs.c.process != "").order_by(t.hubs.c.name))
    return tuple(HubRow(row.name, row.host, row.process, now - row.beat_at) for row in found)


def register(
    tx: Transaction, hub: str, host: str, process: str, gone: Collection[str], policy: Policy
) -> int:
    """Begin a new epoch of a hub, and claim the pool for its process; an empty one claims nothing.

    Whatever a former process waited for or launched is left alone.  Raises Unavailable while another process
    has the pool that is not among those ``gone`` and has said within ``beat_age`` seconds that it lives, and
    where sessions of a pool with another name hold slices: this one would not see them.
    """
    if process:
        _same_pool(tx, policy.pool)
    others = [row for row in claims(tx.conn, tx.now) if row.process != process]
    for row in others:
        # A clock that went back must not keep everybody out.
        if row.process not in gone and -policy.beat_age < row.silent <= policy.beat_age:
            raise Unavailable(_taken(row), reason=OTHER_HUB)
    if others:
        tx.run(update(t.hubs).where(t.hubs.c.process.in_([row.process for row in others])).values(process=""))
    known = tx.run(select(t.hubs).where(t.hubs.c.name == hub)).one_or_none()
    epoch = known.epoch + 1 if known else 1
    values: dict[str, Any] = {"epoch": epoch, "beat_at": tx.now, "host": host, "process": process}
    if known:
        tx.run(update(t.hubs).where(t.hubs.c.name == hub).values(**values))
    else:
        tx.run(insert(t.hubs).values(name=hub, **values))
    left = {hub, *(row.name for row in others)}
    tx.run(
        update(t.leases)
        .where(
            t.leases.c.hub.in_(left),
            t.leases.c.left_at.is_(None),
            t.leases.c.state.in_([State.QUEUED.value, State.STARTING.value]),
        )
        .values(left_at=tx.now)
    )
    return int(epoch)


def _same_pool(tx: Transaction, pool: str) -> None:
    held = select(t.leases.c.session, t.leases.c.id, t.leases.c.epoch).where(t.leases.c.held == 1)
    for row in tx.run(held):
        if row.session != session_name(pool, row.id, row.epoch):
            other = row.session.removesuffix(session_name("", row.id, row.epoch))
            raise Unavailable(
                f"This ledger has open sessions of the pool {other!r}, and GPUPool.name is {pool!r}. Give this hub "
                "that name, or a ledger of its own (GPUPool.database_url).",
                reason=OTHER_HUB,
            )


_mine = (t.hubs.c.name == bindparam("hub")) & (t.hubs.c.process == bindparam("its_process"))
_beat_at = select(t.hubs.c.beat_at).where(_mine)
_beat = update(t.hubs).where(_mine).values(beat_at=bindparam("now"))


def beat(tx: Transaction, hub: str, process: str) -> bool:
    """Say that a hub lives.  False: the pool is not, or no longer, its own."""
    return bool(tx.run(_beat, {"hub": hub, "its_process": process, "now": tx.now}).rowcount)


def silence(tx: Transaction, hub: str, process: str) -> float:
    """Seconds since a hub last said that it lives; 0 where the pool is not its own."""
    before = tx.run(_beat_at, {"hub": hub, "its_process": process}).scalar_one_or_none()
    return 0.0 if before is None else float(tx.now - before)


def refuse_other(tx: Transaction, hub: str, process: str) -> None:
    """Raise Unavailable for who has lost the pool: what it asks for would never be granted."""
    taken = next((row for row in claims(tx.conn, tx.now) if row.process != process), None)
    why = _taken(taken) if taken else f"The ledger does not know the hub {hub!r}; try again in a moment."
    raise Unavailable(why, reason=OTHER_HUB)


def _taken(row: HubRow) -> str:
    return (
        f"Another hub serves this pool: {row.name!r} on {row.host or 'an unknown machine'} "
        f"(process {row.process.partition(' ')[0]}), which said so {max(0.0, row.silent):.0f} s ago. One ledger "
        "serves one hub at a time: stop that one, or give this one a ledger of its own (GPUPool.database_url)."
    )
