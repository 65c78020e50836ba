"""The moves of a lease.  Each takes an open transaction, and leaves an event for what it did."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Integer, String, bindparam, case, delete, func, insert, literal, select, update

from .. import rungs
from ..cells import ranges, runs
from ..errors import LeaseConflict
from ..model import NEW, Kind, Lease, Owner, Request, Session, Slice, State, plain, session_name
from . import rows
from . import schema as t
from .store import Transaction

# Built once: building a statement costs more than SQLite takes to run it.
_lease_by_id = select(t.leases).where(t.leases.c.id == bindparam("key"))
_open_lease = select(t.leases).where(
    t.leases.c.owner == bindparam("owner"), t.leases.c.server == bindparam("server"), t.leases.c.open_key == 1
)
_owner = select(t.owners).where(
    t.owners.c.hub_id == bindparam("hub_id"), t.owners.c.created == bindparam("created")
)
_set_lease = update(t.leases).where(t.leases.c.id == bindparam("key")).values(version=t.leases.c.version + 1)
_insert_event = insert(t.events)
_insert_lease = insert(t.leases)
_insert_slice = insert(t.slices)
_held = (
    select(t.claims.c.device, func.count())
    .where(t.claims.c.lease == bindparam("key"))
    .group_by(t.claims.c.device)
)
_free = delete(t.claims).where(t.claims.c.lease == bindparam("key"))
_use = (
    update(t.devices)
    .where(t.devices.c.id == bindparam("key"))
    .values(used=t.devices.c.used + bindparam("more"))
)
_claimed = select(t.claims.c.device, t.claims.c.cell).where(t.claims.c.lease == bindparam("key"))
_claim_range = insert(t.claims).from_select(
    ["device", "cell", "lease", "ordinal", "held"],
    select(
        bindparam("on_device", type_=String),
        t.cell_numbers.c.n,
        bindparam("for_lease", type_=String),
        bindparam("as_ordinal", type_=Integer),
        literal(1),
    ).where(t.cell_numbers.c.n.between(bindparam("first"), bindparam("last"))),
)


def row_of(tx: Transaction, lease: str) -> Any:
    """The row of a lease.  Raises LeaseConflict when there is none."""
    row = tx.run(_lease_by_id, {"key": lease}).one_or_none()
    if row is None:
        raise LeaseConflict(f"There is no lease {lease!r}.")
    return row


def reread(tx: Transaction, lease: str) -> Lease:
    """A lease as this transaction leaves it."""
    return rows.with_slices(tx.conn, [row_of(tx, lease)])[0]


def note(tx: Transaction, actor: str, action: str, reason: str, **columns: Any) -> None:
    """Append an event that is not a move."""
    tx.run(_insert_event, {"at": tx.now, "actor": actor, "action": action, "reason": reason, **columns})


def set_columns(tx: Transaction, lease: str, **columns: Any) -> None:
    """Change a lease without moving it."""
    tx.run(_set_lease, {"key": lease, **columns})


def move(
    tx: Transaction, row: Any, to: State, *, actor: str, action: str, reason: str, **columns: Any
) -> None:
    """Move a lease and leave the event that the move stands on."""
    holds = to in (State.STARTING, State.ACTIVE, State.STOPPING)
    set_columns(
        tx,
        row.id,
        state=to.value,
        step=row.step + 1,
        held=int(holds),
        open_key=None if to is State.CLOSED else 1,
        reason=reason,
        **columns,
    )
    note(
        tx,
        actor,
        action,
        reason,
        lease=row.id,
        user=row.user,
        step=row.step + 1,
        prev_step=row.step,
        from_state=row.state,
        to_state=to.value,
    )


def rung(tx: Transaction, row: Any, tensorflow: Mapping[str, str] | None) -> str:
    """What holds the session of a lease that becomes active."""
    held = rows.slices_of(tx.conn, [row.id]).get(row.id, ())
    limited = None if tensorflow is None else rungs.is_limited(tensorflow, rows.load(row.checked))
    return _rung(tx, held, limited)


def _rung(tx: Transaction, held: Sequence[Slice], limited: bool | None) -> str:
    if not held:
        return rungs.Rung.NONE.value
    on = t.devices.c.id.in_({part.device for part in held})
    simulated = bool(tx.run(select(func.max(t.devices.c.simulated)).where(on)).scalar_one())
    mps = bool(tx.run(select(func.max(t.devices.c.trust)).where(on)).scalar_one())
    return rungs.rung_of(held[0].kind, simulated=simulated, limited=limited, mps=mps).value


def expect(row: Any, *states: State, version: int | None = None) -> None:
    """Raise LeaseConflict unless the lease is in one of these states, and at this version if one is named."""
    if State(row.state) not in states:
        wanted = " or ".join(states)
        raise LeaseConflict(f"Lease {row.id} is {row.state}, not {wanted}.")
    if version is not None and row.version != version:
        raise LeaseConflict(f"Lease {row.id} has changed since it was judged.")


def owner_key(tx: Transaction, owner: Owner) -> str:
    """The ledger's own key of a person; a new one when a deleted user's hub id is given out again."""
    row = tx.run(_owner, {"hub_id": owner.hub_id, "created": owner.created}).one_or_none()
    if row is not None and row.name == owner.name:
        return str(row.id)
    tx.run(update(t.owners).where(t.owners.c.name == owner.name).values(name=None))
    if row is not None:  # renamed
        tx.run(update(t.owners).where(t.owners.c.id == row.id).values(name=owner.name))
        return str(row.id)
    key = uuid.uuid4().hex
    tx.run(insert(t.owners).values(id=key, hub_id=owner.hub_id, created=owner.created, name=owner.name))
    return key


def open_row(tx: Transaction, owner: str, server: str) -> Any:
    """The open lease of this owner and server, or None."""
    return tx.run(_open_lease, {"owner": owner, "server": server}).one_or_none()


def request_columns(request: Request) -> dict[str, Any]:
    """The columns of a lease that the wish decides."""
    return {
        "profile": request.profile,
        "wish": rows.dump(plain(request.wish)),
        "terms": rows.dump(plain(request.terms)),
        "groups": rows.dump(list(request.groups)),
        "options": rows.dump(dict(request.options)),
    }


def new_lease(tx: Transaction, owner: str, request: Request, state: State, **columns: Any) -> str:
    """Insert a lease in its first state, with its first event."""
    key = columns.pop("id", None) or uuid.uuid4().hex
    actor, action, reason = (columns.pop(k) for k in ("actor", "action", "why"))
    values: dict[str, Any] = {
        "id": key,
        "owner": owner,
        "user": request.owner.name,
        "server": request.server,
        "state": state.value,
        "step": 1,
        "held": int(state is not State.QUEUED),
        "open_key": 1,
        "version": 1,
        "epoch": 0,
        "hub": "",
        "ticket": tx.version,
        "group": "",
        "gpus": 0.0,
        "url": "",
        "runtime": "{}",
        "requested_at": tx.now,
        "idle_seconds": 0.0,
        "grace_seconds": 0.0,
        "extended_seconds": 0.0,
        "warned_for": "",
        "verdict_reason": "",
        "doubt": "",
        "reason": "",
        "stopped_by": "",
    }
    tx.run(_insert_lease, values | request_columns(request) | columns)
    note(
        tx,
        actor,
        action,
        reason,
        lease=key,
        user=request.owner.name,
        step=1,
        from_state=NEW,
        to_state=state.value,
    )
    return key


def free(tx: Transaction, lease: str) -> None:
    """Take the claims of a lease away."""
    held = tx.run(_held, {"key": lease}).all()
    tx.run(_free, {"key": lease})
    for device, size in held:
        tx.run(_use, {"key": device, "more": -size})


def claim(tx: Transaction, lease: str, items: tuple[Slice, ...]) -> None:
    """Write slices with named cells and claim them; the primary key refuses what another lease holds."""
    for ordinal, item in enumerate(items):
        tx.run(
            _insert_slice,
            {
                "lease": lease,
                "ordinal": ordinal,
                "device": item.device,
                "kind": item.kind.value,
                "cells": ranges(item.cells),
                "size": len(item.cells),
                "of": item.of,
                "memory_mib": item.memory_mib,
                "compute": item.compute,
                "instance": item.instance,
            },
        )
        where = {"on_device": item.device, "for_lease": lease, "as_ordinal": ordinal}
        for first, last in runs(item.cells):
            tx.run(_claim_range, {**where, "first": first, "last": last})
        tx.run(_use, {"key": item.device, "more": len(item.cells)})


def adopt(tx: Transaction, found: Session, request: Request, pool: str) -> str | None:
    """Take a running session that the ledger does not know as a held lease on the cells its marker names.

    Returns the lease's id, or None when cells, server or name are already taken: then the session is left
    alone and the caller raises the alarm.
    """
    owner = owner_key(tx, request.owner)
    if open_row(tx, owner, request.server) is not None:
        return None
    sizes = {row.id: row for row in tx.run(select(t.devices)).all()}
    items = []
    for device, held in found.cells.items():
        if device not in sizes or not held or max(held) >= sizes[device].cells:
            return None
        taken = tx.run(
            select(func.count()).where(t.claims.c.device == device, t.claims.c.cell.in_(held))
        ).scalar_one()
        if taken:
            return None
        items.append(_adopted_slice(rows.device(sizes[device]), held, request))
    epoch = int(found.name.rpartition("-")[2])
    key = new_lease(
        tx,
        owner,
        request,
        State.ACTIVE,
        id=found.lease,
        actor="gpupool",
        action="adopt",
        why="a running session that the ledger did not know",
        session=session_name(pool, found.lease, epoch),
        epoch=epoch,
        gpus=sum(item.gpus for item in items),
        granted_at=tx.now,
        active_at=tx.now,
        runtime=rows.dump(dict(found.runtime)),
        url=found.url,
        left_at=tx.now,
        rung=_rung(tx, items, None),
        doubt="adopted: the ledger had lost this session",
        doubt_since=tx.now,
    )
    claim(tx, key, tuple(items))
    tx.run(update(t.pool).values(epoch=case((t.pool.c.epoch < epoch, epoch), else_=t.pool.c.epoch)))
    return key


def _adopted_slice(device: Any, held: tuple[int, ...], request: Request) -> Slice:
    instance = next((i for i in device.instances if tuple(range(i.first, i.first + i.cells)) == held), None)
    if instance is not None:
        kind, memory = Kind.MIG, instance.memory_mib
    elif len(held) == device.cells:
        kind, memory = Kind.GPU, device.memory_mib
    else:
        kind, memory = Kind.SHARE, device.memory_mib * len(held) // device.cells
    return Slice(
        device=device.id,
        kind=kind,
        cells=held,
        of=device.cells,
        memory_mib=memory,
        compute=request.wish.compute if kind is Kind.SHARE else 100,
        instance=instance.id if instance else "",
    )


def check(tx: Transaction, lease: str) -> None:
    """Compare the claims of a lease with its slices and its state.  Raises LeaseConflict where they differ."""
    row = row_of(tx, lease)
    written = {
        (item.device, cell) for item in rows.slices_of(tx.conn, [lease]).get(lease, ()) for cell in item.cells
    }
    held = set(map(tuple, tx.run(_claimed, {"key": lease})))
    wanted = written if row.held else set()
    if held != wanted:
        raise LeaseConflict(f"Lease {lease} would hold {len(held)} cells, its slices name {len(wanted)}.")
