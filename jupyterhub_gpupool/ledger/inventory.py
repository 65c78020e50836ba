"""What the inventory sees, and what the devices say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from ..conditions import UNKNOWN, Condition
from ..model import Device, Health, Sample
from . import rows
from . import schema as t
from .checks import end_suspicions
from .store import Transaction
from .transitions import note
from .troubles import tell_holders


def sync_inventory(tx: Transaction, found: Sequence[Device], suspect_for: float) -> bool:
    """Take over what the inventory sees; devices that it no longer sees are lost, never deleted.

    Returns whether anything changed.  A device that is drained stays drained, one that is suspect stays so for
    its time.
    """
    known = {row.id: row for row in tx.run(select(t.devices)).all()}
    changed = end_suspicions(tx, suspect_for)
    for item in found:
        values = rows.device_values(item)
        row = known.pop(item.id, None)
        if row is None:
            tx.run(insert(t.devices).values(seen_at=tx.now, used=0, drained=0, **values))
            note(tx, "service", "device-new", item.model, device=item.id)
            changed = True
            continue
        if row.forgotten:
            changed = _again(tx, item, values) or changed
            continue
        if any(getattr(row, name) != value for name, value in values.items()):
            if row.used and (row.cells != item.cells or row.instances != values["instances"]):
                # The layout of a card in use cannot change under its holders; it is taken over when empty.
                values |= {"cells": row.cells, "instances": row.instances, "mode": row.mode}
            if any(getattr(row, name) != value for name, value in values.items()):
                tx.run(update(t.devices).where(t.devices.c.id == item.id).values(seen_at=tx.now, **values))
                changed = True
                if row.health != values["health"]:
                    note(
                        tx,
                        "service",
                        "device-health",
                        f"{row.health}→{item.health}: {item.health_reason}",
                        device=item.id,
                    )
                    tell_holders(tx, item, row.health)
    for row in known.values():
        if row.health != Health.LOST:
            why = "the inventory no longer sees it"
            tx.run(
                update(t.devices)
                .where(t.devices.c.id == row.id)
                .values(health=Health.LOST.value, health_reason=why)
            )
            note(tx, "service", "device-health", f"{row.health}→{Health.LOST}: {why}", device=row.id)
            gone = replace(rows.device(row), health=Health.LOST, health_reason=why)
            tell_holders(tx, gone, row.health)
            changed = True
    if changed:
        tx.run(update(t.pool).values(inventory=t.pool.c.inventory + 1))
    return changed


def _again(tx: Transaction, item: Device, values: dict[str, Any]) -> bool:
    """A device that was forgotten is there: it is a new one.  False: it is as lost as it was."""
    if item.health is Health.LOST:
        return False
    fresh = {"forgotten": 0, "suspect_until": None, "suspect_reason": "", "foreign": "", "sampled_at": None}
    fresh |= {"utilization": None, "memory_used_mib": None, "unclean": ""}
    fresh |= {"power_watts": None, "temperature_celsius": None, "ecc_errors": None}
    tx.run(update(t.devices).where(t.devices.c.id == item.id).values(seen_at=tx.now, **fresh, **values))
    note(tx, "service", "device-new", f"{item.model}, which was forgotten", device=item.id)
    return True


_read = (
    update(t.devices)
    .where(t.devices.c.id == bindparam("key"))
    .values(
        utilization=bindparam("u"),
        memory_used_mib=bindparam("m"),
        power_watts=bindparam("power"),
        temperature_celsius=bindparam("warm"),
        ecc_errors=bindparam("errors"),
        sampled_at=bindparam("at"),
    )
)


def read_devices(
    tx: Transaction,
    readings: Mapping[str, Sample],
    conditions: Mapping[str, Condition] = MappingProxyType({}),
) -> None:
    """Store what the devices themselves say."""
    values = []
    for key, sample in readings.items():
        told = conditions.get(key, UNKNOWN)
        values.append(
            {"key": key, "u": sample.utilization, "m": sample.memory_mib, "power": told.power_watts,
             "warm": told.temperature_celsius, "errors": told.ecc_errors, "at": tx.now}
        )  # fmt: skip
    if values:
        tx.run(_read, values)
