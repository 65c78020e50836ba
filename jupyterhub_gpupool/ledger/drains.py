"""Take devices out of service and put them back: nothing new is granted on them, their sessions are warned.

A device that is lost for good is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import or_, select, update

from ..errors import Rejected
from ..model import Device, Health
from . import schema as t
from .store import Transaction
from .text import sentence
from .transitions import note

LATEST = 10 * 365 * 86400.0
"""Seconds ahead that a drain may be planned for."""

known_ones = t.devices.c.forgotten == 0
"""The devices that there are; of the others only the history is left."""


def planned(devices: Sequence[Device], now: float) -> dict[str, float]:
    """The devices that will be drained later: when."""
    return {
        device.id: device.drain_at
        for device in devices
        if device.drained and device.drain_at is not None and device.drain_at > now
    }


def still_open(planned: Mapping[str, float], now: float, max_age: float) -> frozenset[str]:
    """Which of them a session may have that starts now: those that it has left by then, for its age (0: no end)."""
    ends_at = now + max_age if max_age > 0 else math.inf
    return frozenset(key for key, at in planned.items() if ends_at <= at)


def lent(devices: Sequence[Device], still: Collection[str]) -> tuple[Device, ...]:
    """The devices as they are for a session that may have these."""
    return tuple(replace(device, drained=device.drained and device.id not in still) for device in devices)


def devices_until(devices: Sequence[Device], now: float, max_age: float) -> Sequence[Device]:
    """The devices as they are for a session that starts now."""
    still = still_open(planned(devices, now), now, max_age)
    return lent(devices, still) if still else devices


_holders = (
    select(t.leases.c.user).join(t.slices, t.slices.c.lease == t.leases.c.id).where(t.leases.c.held == 1)
)


def drain(tx: Transaction, device: str | None, at: float | None, actor: str, why: str) -> tuple[str, ...]:
    """Let nothing more be granted on a device that could outlast ``at`` (None: now), and its sessions end then.

    ``device`` None is every GPU that there is now.  Returns their ids.  Raises Rejected (``no-device``, 404) for
    one that is not known, and (``bad-time``, 400) for a time that no drain can have.
    """
    if at is not None and not (math.isfinite(at) and at <= tx.now + LATEST):
        raise Rejected("A drain begins at a time of the next ten years.", reason="bad-time", status=400)
    begins = tx.now if at is None else max(at, tx.now)
    values = {"drained": 1, "drain_at": begins, "drain_by": actor[:255], "drain_why": sentence(why)}
    when = f"{datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M} UTC"
    found = _of(tx, device)
    _write(tx, found, values, actor, "drain", f"sessions end from {when} on", why)
    return found


def undrain(tx: Transaction, device: str | None, actor: str, why: str) -> tuple[str, ...]:
    """Put a device back into service (None: every one that is drained); returns those that were not in service.

    Who names a device that is not clean takes it as it is.  Raises Rejected (``no-device``, 404) for one that is
    not known.
    """
    out = t.devices.c.drained == 1
    if device is not None:
        out = or_(out, t.devices.c.unclean != "")
    drained = set(tx.run(select(t.devices.c.id).where(out)).scalars())
    found = tuple(key for key in _of(tx, device) if key in drained)
    values: dict[str, Any] = {"drained": 0, "drain_at": None, "drain_by": "", "drain_why": ""}
    if device is not None:
        values["unclean"] = ""
    _write(tx, found, values, actor, "undrain", "back in service", why)
    return found


def forget(tx: Transaction, device: str, actor: str, why: str) -> None:
    """Take a lost device out of the pool; when the inventory sees it again, it is a new one.

    Its row stays for the leases that it has served.  Raises Rejected for one that is not known (``no-device``,
    404), that is not lost (``not-lost``, 409), or that somebody still holds (``held``, 409).
    """
    _of(tx, device)
    row = tx.run(select(t.devices.c.health, t.devices.c.used).where(t.devices.c.id == device)).one()
    if row.health != Health.LOST:
        raise Rejected(
            f"GPU {device} is not lost (its health is {row.health}), and only a lost one can be forgotten. "
            "To grant nothing more on it, take it out of service.",
            reason="not-lost",
            status=409,
        )
    holders = sorted(set(tx.run(_holders.where(t.slices.c.device == device)).scalars()))
    if holders or row.used:
        raise Rejected(
            f"GPU {device} is lost, and still held by a session of {' and of '.join(holders)}. "
            "It can be forgotten when that has ended.",
            reason="held",
            status=409,
        )
    values = {"forgotten": 1, "drained": 0, "drain_at": None, "drain_by": "", "drain_why": ""}
    _write(tx, (device,), values, actor, "forget", "it was lost and is no part of the pool any more", why)


def _of(tx: Transaction, device: str | None) -> tuple[str, ...]:
    query = select(t.devices.c.id).where(known_ones).order_by(t.devices.c.node, t.devices.c.idx)
    if device is not None:
        query = query.where(t.devices.c.id == device)
    found = tuple(tx.run(query).scalars())
    if device is not None and not found:
        raise Rejected(f"There is no GPU {device[:80]!r} in this pool.", reason="no-device", status=404)
    return found


def _write(
    tx: Transaction,
    found: tuple[str, ...],
    values: Mapping[str, Any],
    actor: str,
    action: str,
    what: str,
    why: str,
) -> None:
    for key in found:
        tx.run(update(t.devices).where(t.devices.c.id == key).values(**values))
        note(tx, actor[:255], action, sentence(f"{what}: {why}" if why else what), device=key)
    if found:
        tx.run(update(t.pool).values(inventory=t.pool.c.inventory + 1))
        tx.inventory += 1  # what this transaction still grants is granted on the devices as they are now
