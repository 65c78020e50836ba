"""What befalls sessions that run: their GPU is no longer well, or they have lost the access to one that is."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from ..model import Device, Health, State
from . import schema as t
from .store import Transaction
from .text import sentence
from .transitions import note, row_of

UNWELL = (Health.SICK, Health.LOST)
"""What a device is with which something is wrong, so that its holders should know."""


def tell_holders(tx: Transaction, device: Device, before: str) -> None:
    """Leave an event on every lease that holds something of a device which has just stopped being well."""
    if device.health not in UNWELL or Health(before) in UNWELL:
        return
    why = sentence(f"its GPU {device.id} is {device.health}: {device.health_reason}")
    held = select(t.slices.c.lease).where(t.slices.c.device == device.id)
    query = select(t.leases.c.id, t.leases.c.user).where(t.leases.c.held == 1, t.leases.c.id.in_(held))
    for row in tx.run(query.order_by(t.leases.c.ticket)).all():
        note(tx, "service", "unwell", why, lease=row.id, user=row.user, device=device.id)


def set_trouble(tx: Transaction, lease: str, why: str) -> bool:
    """Write what has befallen a session that runs, in words for its owner; empty: it is over.

    False where that is no news, or the session no longer runs.  The lease's version stays: else a trouble could put
    off a reclaim.
    """
    row: Any = row_of(tx, lease)
    if row.trouble == why or row.state != State.ACTIVE:
        return False
    tx.run(update(t.leases).where(t.leases.c.id == lease).values(trouble=why))
    said = why or "it can open its GPU again"
    note(tx, "service", "cut-off" if why else "regained", said, lease=lease, user=row.user)
    return True
