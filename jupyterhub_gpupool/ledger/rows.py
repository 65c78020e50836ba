"""Rows to the types of :mod:`..model`, and back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select

from ..cells import cell_numbers
from ..model import (
    Decision,
    Device,
    Health,
    Instance,
    Kind,
    Lease,
    Mode,
    Slice,
    State,
    Terms,
    When,
    Wish,
    plain,
)
from . import schema as t


def dump(value: Any) -> str:
    """JSON as the ledger stores it."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def load(text: str) -> Any:
    """The inverse of :func:`dump`."""
    return json.loads(text)


def device(row: Any) -> Device:
    """A row of ``devices``.  What the inventory sees comes before a suspicion."""
    health, reason = Health(row.health), row.health_reason
    if health is Health.OK and row.suspect_until is not None:
        health, reason = Health.SUSPECT, row.suspect_reason
    if health in (Health.OK, Health.SUSPECT) and row.unclean:
        health, reason = Health.SUSPECT, row.unclean
    return Device(
        id=row.id,
        node=row.node,
        index=row.idx,
        model=row.model,
        memory_mib=row.memory_mib,
        compute_capability=row.compute_capability,
        mode=Mode(row.mode),
        cells=row.cells,
        health=health,
        health_reason=reason,
        drained=bool(row.drained),
        simulated=bool(row.simulated),
        instances=tuple(Instance(**i) for i in json.loads(row.instances)),
        driver=row.driver,
        foreign=row.foreign,
        drain_at=row.drain_at if row.drained else None,
        drain_by=row.drain_by,
        drain_why=row.drain_why,
        examined=bool(row.examined),
        unclean=row.unclean,
        numa=row.numa,
        cpus=row.cpus,
        links=tuple((other, link) for other, link in json.loads(row.links)),
        trust=row.trust,
    )


def device_values(found: Device) -> dict[str, Any]:
    """The columns of a device that the inventory decides."""
    return {
        "id": found.id,
        "node": found.node,
        "idx": found.index,
        "model": found.model,
        "memory_mib": found.memory_mib,
        "compute_capability": found.compute_capability,
        "mode": found.mode.value,
        "cells": found.cells,
        "health": found.health.value,
        "health_reason": found.health_reason,
        "simulated": int(found.simulated),
        "driver": found.driver,
        "examined": int(found.examined),
        "instances": dump([plain(i) for i in found.instances]),
        "numa": found.numa,
        "cpus": found.cpus,
        "links": dump(found.links),
        "trust": found.trust,
    }


_of_one = select(t.slices).where(t.slices.c.lease == bindparam("key")).order_by(t.slices.c.ordinal)
AT_ONCE = 500
"""Leases named in one query: a list of parameters has its limits."""


def slices_of(conn: Connection, leases: Collection[str]) -> Mapping[str, tuple[Slice, ...]]:
    """The slices of these leases, in order."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for row in _slice_rows(conn, leases):
        found[row.lease].append(
            Slice(
                device=row.device,
                kind=Kind(row.kind),
                cells=cell_numbers(row.cells),
                of=row.of,
                memory_mib=row.memory_mib,
                compute=row.compute,
                instance=row.instance,
            )
        )
    return {lease: tuple(items) for lease, items in found.items()}


def _slice_rows(conn: Connection, leases: Collection[str]) -> Iterator[Any]:
    if len(leases) == 1:
        yield from conn.execute(_of_one, {"key": next(iter(leases))})
        return
    wanted = list(leases)
    for start in range(0, len(wanted), AT_ONCE):
        part = t.slices.c.lease.in_(wanted[start : start + AT_ONCE])
        order = (t.slices.c.lease, t.slices.c.ordinal)
        yield from conn.execute(select(t.slices).where(part).order_by(*order))


def terms(text: str) -> Terms:
    """Terms as a lease stores them."""
    values = json.loads(text)
    return Terms(**{**values, "when": When(values["when"])})


def wish(text: str) -> Wish:
    """A wish as a lease stores it."""
    values = json.loads(text)
    return Wish(**{**values, "kind": Kind(values["kind"])})


_READ = frozenset(
    {
        "state",
        "session",
        "wish",
        "terms",
        "groups",
        "options",
        "slices",
        "runtime",
        "counting",
        "verdict",
        "checked",
    }
)
_AS_STORED = tuple(item.name for item in fields(Lease) if item.name not in _READ)


def lease(row: Any, held: tuple[Slice, ...] = ()) -> Lease:
    """A row of ``leases`` with its slices."""
    return Lease(
        **{name: getattr(row, name) for name in _AS_STORED},
        state=State(row.state),
        session=row.session or "",
        wish=wish(row.wish),
        terms=terms(row.terms),
        groups=tuple(json.loads(row.groups)),
        options=json.loads(row.options),
        slices=held,
        runtime=json.loads(row.runtime),
        counting=bool(row.counting),
        verdict=Decision(row.verdict) if row.verdict else None,
        checked=json.loads(row.checked),
    )


_names = select(t.owners.c.id, t.owners.c.name)
_one_name = _names.where(t.owners.c.id == bindparam("key"))


def _owner_names(conn: Connection, owners: Collection[str]) -> Iterator[Any]:
    if len(owners) == 1:
        yield from conn.execute(_one_name, {"key": next(iter(owners))})
    elif owners:
        yield from conn.execute(_names if len(owners) > AT_ONCE else _names.where(t.owners.c.id.in_(owners)))


def with_slices(conn: Connection, found: Iterable[Any]) -> list[Lease]:
    """Rows of ``leases`` with the slices of each, under the present name of each owner."""
    listed = list(found)
    held = slices_of(conn, [row.id for row in listed if row.granted_at is not None])
    owners = {row.owner for row in listed}
    names: dict[str, str | None] = dict(_owner_names(conn, owners))
    return [
        replace(lease(row, held.get(row.id, ())), user=names[row.owner] or f"{row.user} (deleted)")
        for row in listed
    ]
