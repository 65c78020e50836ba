"""The rules of the ledger as questions to it: what the keys cannot say by themselves."""

from __future__ import annotations

from collections import Counter, defaultdict

from sqlalchemy import Connection, func, select

from .. import fairness
from ..model import HOLDING, State
from . import checks, rows
from . import schema as t


def problems(conn: Connection) -> list[str]:
    """Sentences for every broken rule."""
    found: list[str] = []
    held: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for claim in conn.execute(select(t.claims)):
        if (claim.device, claim.cell) in held[claim.lease]:
            found.append(f"lease {claim.lease} claims {claim.device}:{claim.cell} twice")
        held[claim.lease].add((claim.device, claim.cell))
    leases = conn.execute(select(t.leases)).all()
    written = rows.slices_of(conn, [row.id for row in leases])
    for row in leases:
        named = {(item.device, cell) for item in written.get(row.id, ()) for cell in item.cells}
        wanted = named if State(row.state) in HOLDING else set()
        if held.get(row.id, set()) != wanted:
            found.append(f"lease {row.id} is {row.state}, claims differ from its slices")
        size = sum(item.gpus for item in written.get(row.id, ()))
        if row.granted_at is not None and abs(size - row.gpus) > 1e-9:
            found.append(f"lease {row.id} counts as {row.gpus} GPUs, its slices are {size}")
    cells = Counter((claim.device, claim.cell) for claim in conn.execute(select(t.claims)))
    found += [f"cell {device}:{cell} is claimed {n} times" for (device, cell), n in cells.items() if n > 1]
    per_device = select(t.claims.c.device, func.count().label("size")).group_by(t.claims.c.device)
    counted = {row.device: int(row.size) for row in conn.execute(per_device)}
    for device in conn.execute(select(t.devices)):
        if device.used != counted.get(device.id, 0):
            found.append(
                f"{device.id} says {device.used} cells are used, {counted.get(device.id, 0)} are claimed"
            )
    found += _history(conn, {row.id: row for row in leases})
    found += checks.problems(conn)
    found += _rules(conn)
    return found


def _rules(conn: Connection) -> list[str]:
    """Whether edits of limits can be read, drains say since when, who is gone ends, and idle days sum up."""
    found = []
    for row in conn.execute(select(t.limits)):
        try:
            fairness.read_limit(row.scope, rows.load(row.caps))
        except ValueError as problem:
            found.append(f"the edit of {row.scope} is no limit: {problem}")
    for device in conn.execute(select(t.devices)):
        if bool(device.drained) != (device.drain_at is not None):
            found.append(f"{device.id} is drained without a time, or has a time without being drained")
    for key, state in conn.execute(
        select(t.leases.c.id, t.leases.c.state).where(t.leases.c.gone_at.is_not(None))
    ):
        if state not in (State.STOPPING, State.CLOSED):
            found.append(f"lease {key} is {state}, though its session is gone")
    sums = select(t.idle_days.c.lease, func.sum(t.idle_days.c.seconds)).group_by(t.idle_days.c.lease)
    idle = dict(conn.execute(sums).all())
    for key, total in conn.execute(select(t.leases.c.id, t.leases.c.idle_total)):
        if abs(idle.get(key, 0.0) - total) > 1e-6 * max(1.0, total):
            found.append(f"lease {key} was idle for {total} s, its days sum to {idle.get(key, 0.0)} s")
    return found


def _history(conn: Connection, leases: dict[str, object]) -> list[str]:
    """Whether every lease stands where its events led it."""
    found = []
    at: dict[str, str] = {}
    for event in conn.execute(select(t.events).where(t.events.c.step.is_not(None)).order_by(t.events.c.seq)):
        if event.from_state != at.get(event.lease, "none"):
            found.append(f"event {event.seq} moves lease {event.lease} from where it was not")
        at[event.lease] = event.to_state
    for key, row in leases.items():
        if at.get(key) != row.state:  # type: ignore[attr-defined]
            found.append(f"lease {key} is {row.state}, its events say {at.get(key)}")  # type: ignore[attr-defined]
    return found
