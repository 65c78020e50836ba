"""What the service sees and decides: samples with their verdicts, doubt, leadership."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from .. import idleness
from ..books import by_day
from ..errors import Rejected
from ..model import Decision, Sample, State, Verdict
from ..trust import MPS
from ..watchdog import MEMORY
from . import rows
from . import schema as t
from .store import Transaction
from .transitions import expect, note, row_of, set_columns


@dataclass(frozen=True, slots=True)
class Observation:
    """One lease after a look at it: what was seen, what it adds up to, what is decided.

    ``version`` is the version that was judged; the ledger drops the observation if the lease has changed.
    """

    lease: str
    version: int
    sample: Sample
    idle_seconds: float
    grace_seconds: float
    deadline_seconds: float | None
    warned_for: str
    verdict: Verdict
    idle_tick: float = 0.0
    """Seconds since the last look that count as idle; for the books, which use does not set back."""
    note: str = ""
    """What its owner should know."""
    counting: bool = False
    """Whether the countdown of the warning runs from here on."""
    undelivered_seconds: float = 0.0
    idle_samples: int = 0
    low_samples: int = 0
    unseen_seconds: float = 0.0
    over_seconds: float | None = None  # as in a lease


_as_seen = (
    "idle_seconds", "idle_samples", "low_samples", "unseen_seconds", "grace_seconds", "deadline_seconds",
)  # fmt: skip
_record = (
    update(t.leases)
    .where(t.leases.c.id == bindparam("key"))
    .values(
        {
            name: bindparam(f"new_{name}")
            for name in (
                "version",
                "idle_seconds",
                "idle_samples",
                "low_samples",
                "unseen_seconds",
                "signal",
                "idle_total",
                "grace_seconds",
                "deadline_seconds",
                "warned_at",
                "warned_for",
                "warning",
                "delivered_at",
                "delivered_by",
                "counting",
                "undelivered_seconds",
                "verdict",
                "verdict_reason",
                "verdict_at",
                "utilization",
                "memory_used_mib",
                "peak_utilization",
                "peak_memory_mib",
                "sampled_at",
                "note",
                "over_seconds",
            )
        }
    )
)


def record(tx: Transaction, observed: Iterable[Observation]) -> dict[str, int]:
    """Store observations of active leases, with an event for each warning given or taken back.

    A new warning, and one for another rule, is yet to be delivered.  Returns the new version of every lease
    whose observation was taken.
    """
    current = {row.id: row for row in tx.run(_current)}
    values, notes, taken, idle = [], [], {}, {}
    for item in observed:
        row = current.get(item.lease)
        if row is None or row.version != item.version:
            continue
        taken[item.lease] = item.version + 1
        warned = item.deadline_seconds is not None
        changed = warned and row.warned_for != item.warned_for
        new = warned and (changed or row.warned_at is None)
        told = warned and not new
        if item.note and not row.note:
            notes.append(_event(tx, "budget", row, item.note))
        if new or (not warned and row.warned_at is not None):
            notes.append(_event(tx, "warn" if warned else "unwarn", row, item.verdict.reason))
        if action := _overrun(row, item):
            notes.append(_event(tx, action, row, item.verdict.reason))
        if item.idle_tick > 0 and row.gpus > 0:
            idle[item.lease] = item.idle_tick
        seen = item.sample.utilization is not None or item.sample.processes == 0
        values.append(
            {
                "key": item.lease,
                "new_version": item.version + 1,
                **{f"new_{name}": getattr(item, name) for name in _as_seen},
                "new_signal": item.verdict.signal,
                "new_idle_total": row.idle_total + idle.get(item.lease, 0.0),
                "new_warned_at": None if not warned else tx.now if changed else row.warned_at or tx.now,
                "new_warned_for": item.warned_for if warned else "",
                "new_warning": uuid.uuid4().hex if new else row.warning,
                "new_delivered_at": row.delivered_at if told else None,
                "new_delivered_by": row.delivered_by if told else "",
                "new_counting": int(item.counting),
                "new_undelivered_seconds": item.undelivered_seconds,
                "new_verdict": item.verdict.decision.value,
                "new_verdict_reason": item.verdict.reason,
                "new_verdict_at": tx.now,
                "new_utilization": item.sample.utilization,
                "new_memory_used_mib": item.sample.memory_mib,
                "new_peak_utilization": _peak(row.peak_utilization, item.sample.utilization),
                "new_peak_memory_mib": _peak(row.peak_memory_mib, item.sample.memory_mib),
                "new_sampled_at": tx.now if seen else row.sampled_at,
                "new_note": item.note,
                "new_over_seconds": item.over_seconds,
            }
        )
    if values:
        tx.run(_record, values)
    if notes:
        tx.run(insert(t.events), notes)
    if idle:
        _keep_idle(tx, idle)
    return taken


_looked_at = (
    "id", "version", "warned_at", "warned_for", "sampled_at", "user", "gpus", "idle_total",
    "peak_utilization", "peak_memory_mib", "note", "warning", "delivered_at", "delivered_by", "over_seconds",
)  # fmt: skip
_current = select(*(t.leases.c[name] for name in _looked_at)).where(t.leases.c.state == State.ACTIVE.value)
_idle_of_day = select(t.idle_days.c.lease).where(t.idle_days.c.day == bindparam("of_day"))
_more_idle = (
    update(t.idle_days)
    .where(t.idle_days.c.lease == bindparam("key"), t.idle_days.c.day == bindparam("of_day"))
    .values(seconds=t.idle_days.c.seconds + bindparam("more"))
)


def _event(tx: Transaction, action: str, row: Any, reason: str) -> dict[str, Any]:
    return {
        "at": tx.now, "actor": "service", "action": action, "lease": row.id, "user": row.user, "reason": reason,
    }  # fmt: skip


def _overrun(row: Any, item: Observation) -> str:
    """The event of an overrun that begins or ends beside another warning; where it is the warning, that has one."""
    over = item.over_seconds is not None
    if over == (row.over_seconds is not None) or MEMORY in (item.warned_for, row.warned_for):
        return ""
    return "overrun" if over else "within"


def _peak(before: Any, seen: Any) -> Any:
    return seen if before is None else before if seen is None else max(before, seen)


def _keep_idle(tx: Transaction, idle: Mapping[str, float]) -> None:
    """Add what was seen idle to its day; a look across midnight belongs to two."""
    of_day: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for lease, seconds in idle.items():
        for day, part in by_day(tx.now - seconds, tx.now):
            of_day[day].append({"key": lease, "of_day": day, "more": part})
    for day, parts in of_day.items():
        known = set(tx.run(_idle_of_day, {"of_day": day}).scalars())
        more = [item for item in parts if item["key"] in known]
        new = [
            {"lease": item["key"], "day": day, "seconds": item["more"]}
            for item in parts
            if item["key"] not in known
        ]
        if more:
            tx.run(_more_idle, more)
        if new:
            tx.run(insert(t.idle_days), new)


UNWARNED = {
    "deadline_seconds": None,
    "warned_at": None,
    "warned_for": "",
    "delivered_at": None,
    "delivered_by": "",
    "counting": 0,
    "undelivered_seconds": 0.0,
}
"""The columns of a lease without a warning."""


def restart_warnings(tx: Transaction, mode: str) -> None:
    """Give every warned lease its full time again: nobody counted down while the service was away.

    Where the pool only now begins to stop sessions, warnings of before are taken back: whoever was told of one
    read that nothing would be stopped.
    """
    begins = mode == "reclaim" and tx.run(select(t.pool.c.mode)).scalar_one() != mode
    for row in tx.run(
        select(t.leases).where(
            t.leases.c.deadline_seconds.is_not(None), t.leases.c.state == State.ACTIVE.value
        )
    ).all():
        if begins:
            set_columns(tx, row.id, **UNWARNED)
            note(tx, "service", "unwarn", "sessions are stopped from now on", lease=row.id, user=row.user)
        else:
            set_columns(tx, row.id, deadline_seconds=float(rows.terms(row.terms).warn))
    for lease in tx.run(select(t.leases.c.id).where(t.leases.c.over_seconds.is_not(None))).scalars().all():
        set_columns(tx, lease, over_seconds=None)


def extend(tx: Transaction, lease: str, actor: str) -> float:
    """Give the lease ``extend`` seconds more, up to ``extend_max`` in all; returns the seconds given."""
    row = row_of(tx, lease)
    if State(row.state) is not State.ACTIVE:
        raise Rejected(
            f"This session is {row.state}; only an active one can be extended.",
            reason="not-active",
            status=409,
        )
    terms = rows.terms(row.terms)
    if row.warned_for == "max_age":
        raise Rejected(
            f"This session ends at the age of {terms.max_age:g} s, the most that its profile allows; that cannot be "
            "extended.",
            reason="max-age",
            status=409,
        )
    if row.warned_for in (*idleness.CALLED, MPS):
        raise Rejected(
            f"This session ends, and that cannot be put off: {row.verdict_reason}.",
            reason=row.warned_for,
            status=409,
        )
    if row.warned_for == MEMORY:
        raise Rejected(
            f"An extension does not help here: {row.verdict_reason}. Free GPU memory, and the session goes on.",
            reason=MEMORY,
            status=409,
        )
    left = terms.extend_max - row.extended_seconds
    if left <= 0:
        raise Rejected(
            f"This session was extended by {terms.extend_max:g} s already, and that is the most its profile allows.",
            reason="extend-max",
            status=409,
        )
    given = float(min(terms.extend, left))
    set_columns(
        tx,
        lease,
        extended_seconds=row.extended_seconds + given,
        grace_seconds=row.grace_seconds + given,
        **UNWARNED,
        verdict=Decision.KEEP.value,
        verdict_reason=f"extended by {given:g} s",
        signal="",
    )
    note(tx, actor, "extend", f"{given:g} s", lease=lease, user=row.user)
    return given


def doubt(tx: Transaction, lease: str, why: str) -> None:
    """Write since when and why the truth about a session is unknown; an empty reason ends the doubt."""
    row = row_of(tx, lease)
    if row.doubt == why or row.state == State.CLOSED:
        return
    since = None if not why else (row.doubt_since or tx.now)
    set_columns(tx, lease, doubt=why, doubt_since=since)
    note(tx, "service", "doubt" if why else "certain", why, lease=lease, user=row.user)


def absent(tx: Transaction, lease: str, gone: bool) -> None:
    """Write that a proof of absence is under way, or that it came to nothing."""
    row = row_of(tx, lease)
    expect(row, State.STARTING, State.ACTIVE, State.STOPPING)
    if gone != (row.absent_since is not None):
        set_columns(tx, lease, absent_since=tx.now if gone else None)


def lead(tx: Transaction, holder: str, seconds: float) -> bool:
    """Become, or stay, the one service that acts; False while another one is."""
    row = tx.run(select(t.pool.c.leader, t.pool.c.leader_until)).one()
    # A clock that went back must not lock everybody out: nobody leads much longer than it asked for.
    if row.leader not in ("", holder) and tx.now < row.leader_until <= tx.now + 10 * seconds:
        return False
    tx.run(update(t.pool).values(leader=holder, leader_until=tx.now + seconds))
    return True


def resign(tx: Transaction, holder: str) -> None:
    """Let the next service lead at once."""
    tx.run(update(t.pool).where(t.pool.c.leader == holder).values(leader="", leader_until=0))
