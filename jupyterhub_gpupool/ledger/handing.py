"""What lies between the end of a session and the next one on its slices: these are examined first.

That holds only for devices whose driver tells what a session has left behind.  Whoever proves that a session is
gone leaves its lease STOPPING and in doubt; the service examines and closes it.  What is not clean in time is set
aside: the lease closes for its owner's sake, and nothing is granted on the device until it is clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import and_, literal, select, update

from . import schema as t
from .store import Transaction
from .text import sentence
from .transitions import note, set_columns

EXAMINED = "its session has ended; what it held is examined before it is given again"


def waits(tx: Transaction, row: Any) -> bool:
    """Whether something was launched for this lease where it may have left something behind."""
    if row.active_at is None and row.runtime == "{}":
        return False
    query = select(literal(1)).select_from(t.slices).join(t.devices, t.devices.c.id == t.slices.c.device)
    where = and_(t.slices.c.lease == row.id, t.devices.c.examined == 1)
    return tx.run(query.where(where).limit(1)).first() is not None


def note_gone(tx: Transaction, row: Any, actor: str) -> None:
    """Write that the session of a lease is gone for certain, and that its slices are yet to be examined."""
    if row.gone_at is None:
        set_columns(
            tx,
            row.id,
            gone_at=tx.now,
            absent_since=None,
            doubt=EXAMINED,
            doubt_since=row.doubt_since or tx.now,
        )
        note(tx, actor, "gone", EXAMINED, lease=row.id, user=row.user)


def still_aside(tx: Transaction, found: Mapping[str, str]) -> dict[str, str]:
    """Leave out devices that an admin has put back since they were looked at: that word counts."""
    query = select(t.devices.c.id).where(t.devices.c.unclean != "", t.devices.c.id.in_(list(found)))
    return {device: found[device] for device in tx.run(query.order_by(t.devices.c.id)).scalars()}


def mark(tx: Transaction, found: Mapping[str, str]) -> bool:
    """Write what sessions have left on these devices; an empty text: nothing any more.  True if that is news.

    Nothing is granted on a device while something is left on it.
    """
    changed = False
    query = select(t.devices.c.id, t.devices.c.unclean).where(t.devices.c.id.in_(list(found)))
    for device, before in tx.run(query).all():
        why = sentence(found[device])
        if why == before:
            continue
        tx.run(update(t.devices).where(t.devices.c.id == device).values(unclean=why))
        if bool(why) != bool(before):
            said = why or f"it is clean again: {before}"
            note(tx, "service", "unclean" if why else "clean", said, device=device)
        changed = True
    if changed:
        tx.run(update(t.pool).values(inventory=t.pool.c.inventory + 1))
        tx.inventory += 1  # what this transaction still grants is granted on the devices as they are now
    return changed
