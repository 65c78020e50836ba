"""Who was told what: the queue of notices, the deliveries of warnings, what people choose to be told.

Notices are made of the audit trail, each event once: the rows to deliver and the place up to which the trail
was read are written together.  A row is marked as tried before anything is sent, and as delivered afterwards;
only a crash between the two can tell somebody twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Float, and_, bindparam, delete, func, insert, or_, select, update

from ..errors import Rejected
from ..model import State
from ..notices import ACTIONS, Choice, Notice, Occasion
from ..watchdog import MEMORY
from . import endings, rows, views
from . import schema as t
from .base import Base
from .store import Transaction
from .text import sentence
from .transitions import note, row_of, set_columns
from .views import Event

WAITING, DELIVERED, FAILED, DROPPED = "waiting", "delivered", "failed", "dropped"
"""States of a delivery: dropped is what there is no more reason to tell."""

AT_ONCE = 200
"""Events that are read, and notices that are looked at, in one transaction."""

OVER = "This warning is no longer in force."


@dataclass(frozen=True, slots=True)
class Delivery:
    """A notice on its way to somebody, or arrived."""

    id: str
    event: str
    channel: str
    lease: str | None
    warning: str
    user: str
    state: str
    tries: int
    at: float
    done_at: float | None
    error: str
    notice: Notice = field(default_factory=Notice)
    choice: Choice = field(default_factory=Choice)


Decide = Callable[[Occasion], Iterable[Notice]]
"""What is to be told of an event.  Pure: it runs inside a transaction."""


class Deliveries(Base):
    """The ledger's verbs for notices; each is one short transaction."""

    # --- warnings --------------------------------------------------------------------------------

    def deliver(self, lease: str, warning: str, by: str, actor: str) -> bool:
        """Write that a warning has reached somebody through ``by``.  False: it had been delivered before.

        From now on its countdown runs, from the whole of its time.  Raises Rejected when the warning
        is no longer in force.
        """
        with self.store.write() as tx:
            row = row_of(tx, lease)
            if row.state != State.ACTIVE or row.deadline_seconds is None or row.warning != warning:
                raise Rejected(OVER, reason="warning-over", status=409)
            _mark_told(tx, row, by)
            return _deliver(tx, row, by, actor)

    # --- notices ---------------------------------------------------------------------------------

    def make_notices(self, decide: Decide, most: int) -> int:
        """Queue what is to be told of the events since the last call; returns how many were queued.

        With ``most`` waiting already, further ones are written as dropped.
        """
        with self.store.read() as (conn, _):
            last = conn.execute(select(func.max(t.events.c.seq))).scalar_one() or 0
            if conn.execute(select(t.pool.c.told_seq)).scalar_one() >= last:
                return 0
        with self.store.write() as tx:
            seq = tx.run(select(t.pool.c.told_seq)).scalar_one()
            found = views.events(tx.conn, seq, AT_ONCE)
            made = 0
            for event in found:
                if event.action in ACTIONS:
                    made += sum(_queue(tx, notice, most) for notice in decide(_occasion(tx, event)))
            tx.run(update(t.pool).values(told_seq=found[-1].seq if found else seq))
            return made

    def due(self, channel: str, count: int, pause: Callable[[int], float], per_hour: int) -> list[Delivery]:
        """Take up to ``count`` notices of a channel that are to be tried now, and mark each as tried.

        Each is due again after ``pause(tries)`` seconds, at most an hour, whatever becomes of this process.
        Warnings that are no longer in force are dropped; nobody gets more than ``per_hour`` an hour (0: no
        bound), the rest waits.  What is dropped or waits takes the place of no other.
        """
        taken: list[Delivery] = []
        looked = AT_ONCE
        while looked == AT_ONCE and not taken:
            with self.store.read() as (conn, now):
                if conn.execute(_next.limit(1), {"of_channel": channel, "now": now}).first() is None:
                    break
            with self.store.write() as tx:
                keys = tx.run(_next.limit(AT_ONCE), {"of_channel": channel, "now": tx.now}).scalars().all()
                looked = len(keys)
                for key in keys:
                    item = _take(tx, tx.run(_one, {"key": key}).one(), pause, per_hour)
                    taken += [item] if item is not None else []
                    if len(taken) == count:
                        break
        return taken

    def told(self, delivery: str, actor: str = "service", *, counts: bool = True) -> None:
        """Write that a notice was taken by its receiver.

        A warning counts as delivered with it, unless not ``counts``: then nobody knows whether its person saw it.
        """
        with self.store.write() as tx:
            row = tx.run(_one, {"key": delivery}).one()
            _finish(tx, row.id, DELIVERED)
            if not row.warning or not counts:
                return
            lease = row_of(tx, row.lease)
            if lease.warning == row.warning and lease.deadline_seconds is not None:
                _deliver(tx, lease, row.channel, actor)

    def not_told(self, delivery: str, error: str, *, final: bool) -> None:
        """Write why a notice was not taken; ``final``: it is not tried again."""
        with self.store.write() as tx:
            columns: dict[str, Any] = {"error": sentence(error)}
            if final:
                columns |= {"state": FAILED, "done_at": tx.now}
            tx.run(_set, {"key": delivery, **columns})

    def deliveries_of(self, lease: str) -> list[Delivery]:
        """What was told of a lease, and what is still to be told, in order."""
        with self.store.read() as (conn, _):
            return [_delivery(row) for row in conn.execute(_of_lease, {"key": lease})]

    def drop_notices(self, ways: Collection[str]) -> None:
        """Drop what waits for another channel than these: nothing carries it, and it takes the place of others."""
        gone = (t.deliveries.c.state == WAITING, t.deliveries.c.channel.not_in(sorted(ways)))
        with self.store.read() as (conn, _):
            if conn.execute(select(t.deliveries.c.id).where(*gone).limit(1)).first() is None:
                return
        with self.store.write() as tx:
            why = "This channel is no longer in use."
            tx.run(update(t.deliveries).where(*gone).values(state=DROPPED, done_at=tx.now, error=why))

    def forget_notices(self, older_than: float) -> None:
        """Drop finished deliveries that are older than so many seconds."""
        with self.store.read() as (conn, now):
            query = select(t.deliveries.c.id).where(t.deliveries.c.done_at < now - older_than).limit(1)
            if conn.execute(query).first() is None:
                return
        with self.store.write() as tx:
            tx.run(delete(t.deliveries).where(t.deliveries.c.done_at < tx.now - older_than))

    # --- choices ---------------------------------------------------------------------------------

    def choice(self, user: str) -> Choice | None:
        """What a person has chosen to be told; None for somebody whom the ledger does not know yet."""
        with self.store.read() as (conn, _):
            owner = conn.execute(select(t.owners.c.id).where(t.owners.c.name == user)).scalar_one_or_none()
            return None if owner is None else _choice(conn.execute(_chosen, {"key": owner}).one_or_none())

    def choose(self, user: str, choice: Choice) -> None:
        """Keep what a person has chosen.  Raises Rejected for somebody whom the ledger does not know yet."""
        with self.store.write() as tx:
            owner = tx.run(select(t.owners.c.id).where(t.owners.c.name == user)).scalar_one_or_none()
            if owner is None:
                message = "Choose what you are told once you have asked for a session for the first time."
                raise Rejected(message, reason="unknown-user", status=409)
            tx.run(delete(t.choices).where(t.choices.c.owner == owner))
            unwanted = rows.dump({channel: sorted(events) for channel, events in choice.unwanted.items()})
            values = {"unwanted": unwanted, "address": choice.address, "at": tx.now}
            tx.run(insert(t.choices).values(owner=owner, **values))
            note(tx, user, "choose", f"notices {unwanted}", user=user)


HOUR = 3600.0
"""Seconds: the span in which notices to one person are counted, and the longest that one may have to wait."""

_named = select(t.deliveries, t.owners.c.name).outerjoin(t.owners, t.owners.c.id == t.deliveries.c.owner)
_one = _named.where(t.deliveries.c.id == bindparam("key"))
_of_lease = _named.where(t.deliveries.c.lease == bindparam("key")).order_by(
    t.deliveries.c.at, t.deliveries.c.id
)
_now = bindparam("now", type_=Float)
_next = (
    select(t.deliveries.c.id)
    .where(
        t.deliveries.c.state == WAITING,
        t.deliveries.c.channel == bindparam("of_channel"),
        or_(
            t.deliveries.c.due_at <= _now,
            # The others only because the clock was set back: no pause goes that far, and nothing new has to wait.
            t.deliveries.c.due_at > _now + HOUR,
            t.deliveries.c.tried_at > _now,
            and_(t.deliveries.c.tries == 0, t.deliveries.c.error == ""),
        ),
    )
    .order_by(t.deliveries.c.due_at, t.deliveries.c.id)
)
_recent = (
    select(t.deliveries.c.tried_at)
    .where(
        t.deliveries.c.owner.is_not_distinct_from(bindparam("of_owner")),
        t.deliveries.c.channel == bindparam("of_channel"),
        t.deliveries.c.tried_at > _now - HOUR,
        t.deliveries.c.tried_at <= _now,
    )
    .order_by(t.deliveries.c.tried_at)
)
_owner_of = select(t.leases.c.owner).where(t.leases.c.id == bindparam("key"))
_set = update(t.deliveries).where(t.deliveries.c.id == bindparam("key"))
_chosen = select(t.choices).where(t.choices.c.owner == bindparam("key"))


def _occasion(tx: Transaction, event: Event) -> Occasion:
    """An event with what is known around it."""
    seen = Occasion(event.action, event.at, event.reason, event.device or "")
    if event.lease is None:
        return seen
    end = endings.read(tx.conn, event.lease)
    return replace(
        seen,
        lease=views.one(tx.conn, event.lease),
        owner=views.owner_of(tx.conn, event.lease),
        choice=_choice_of(tx, event.lease),
        saved=end.saved,
        script=end.script,
    )


def _deliver(tx: Transaction, row: Any, by: str, actor: str) -> bool:
    """Let the countdown begin with its whole time, if it waits for this.  False: it was delivered before."""
    if row.delivered_at is not None:
        return False
    told: dict[str, Any] = {"delivered_at": tx.now, "delivered_by": by, "undelivered_seconds": 0.0}
    if row.warned_for != MEMORY:  # its time waits for nobody
        # Not counting: part of the time up to the next look lies before this moment.
        whole = max(row.deadline_seconds, float(rows.terms(row.terms).warn))
        told |= {"deadline_seconds": whole, "counting": 0}
    set_columns(tx, row.id, **told)
    note(tx, actor, "told", f"of the warning, by {by}", lease=row.id, user=row.user)
    return True


def _mark_told(tx: Transaction, row: Any, by: str) -> None:
    """Write the delivery of a warning that nobody had to send."""
    here = (
        t.deliveries.c.lease == row.id,
        t.deliveries.c.warning == row.warning,
        t.deliveries.c.channel == by,
    )
    if tx.run(select(t.deliveries.c.id).where(*here)).first() is None:
        notice = Notice(event="warning", channel=by, lease=row.id, warning=row.warning, user=row.user)
        _insert(tx, notice, DELIVERED, tries=1, done_at=tx.now)


def _queue(tx: Transaction, notice: Notice, most: int) -> int:
    """Queue a notice once; how many it was."""
    here = (
        t.deliveries.c.lease == notice.lease,
        t.deliveries.c.warning == notice.warning,
        t.deliveries.c.event == notice.event,
        t.deliveries.c.channel == notice.channel,
    )
    if notice.lease is not None and tx.run(select(t.deliveries.c.id).where(*here)).first() is not None:
        return 0
    lately = (
        t.deliveries.c.event == notice.event,
        t.deliveries.c.channel == notice.channel,
        t.deliveries.c.owner.is_not_distinct_from(_owner(tx, notice.lease)),
        t.deliveries.c.at > tx.now - notice.once_in,
        t.deliveries.c.at <= tx.now,  # else it is not known when: the clock was set back
    )
    if notice.once_in and tx.run(select(t.deliveries.c.id).where(*lately)).first() is not None:
        return 0
    waiting = tx.run(
        select(func.count()).select_from(t.deliveries).where(t.deliveries.c.state == WAITING)
    ).scalar_one()
    if waiting >= most:
        _insert(tx, notice, DROPPED, done_at=tx.now, error=f"{most} notices wait already")
        return 0
    _insert(tx, notice, WAITING)
    return 1


def _insert(tx: Transaction, notice: Notice, state: str, **columns: Any) -> None:
    values: dict[str, Any] = {"tries": 0, "error": "", "at": tx.now, "due_at": tx.now, **columns}
    tx.run(
        insert(t.deliveries).values(
            id=uuid.uuid4().hex, event=notice.event, channel=notice.channel, lease=notice.lease,
            warning=notice.warning, owner=_owner(tx, notice.lease), state=state,
            notice=rows.dump({"subject": notice.subject, "text": notice.text, "facts": dict(notice.facts)}),
            **values,
        )
    )  # fmt: skip


def _take(tx: Transaction, row: Any, pause: Callable[[int], float], per_hour: int) -> Delivery | None:
    """Mark a notice as tried; None where it is dropped, or has to wait."""
    if row.warning:
        lease = row_of(tx, row.lease)
        if lease.state != State.ACTIVE or lease.warning != row.warning or lease.deadline_seconds is None:
            _finish(tx, row.id, DROPPED, OVER)
            return None
    if row.owner is not None and row.name is None:
        _finish(tx, row.id, DROPPED, "The person has left the hub.")
        return None
    if per_hour and row.tries == 0:
        of = {"of_owner": row.owner, "of_channel": row.channel, "now": tx.now}
        recent = tx.run(_recent, of).scalars().all()
        if len(recent) >= per_hour:
            later = recent[len(recent) - per_hour] + HOUR
            tx.run(_set, {"key": row.id, "due_at": later, "error": f"waits: at most {per_hour} in an hour"})
            return None
    tries = row.tries + 1
    tx.run(_set, {"key": row.id, "tries": tries, "tried_at": tx.now, "due_at": tx.now + pause(tries)})
    return _delivery(row, tries=tries, choice=_choice_of(tx, row.lease))


def _finish(tx: Transaction, delivery: str, state: str, error: str = "") -> None:
    tx.run(_set, {"key": delivery, "state": state, "done_at": tx.now, "error": error})


def _delivery(row: Any, **changes: Any) -> Delivery:
    """A row under the present name of its person, who may have been renamed since it was queued."""
    said, user = rows.load(row.notice), row.name or ""
    facts = said["facts"] | ({"user": user} if "user" in said["facts"] else {})
    names = ("id", "event", "channel", "lease", "warning", "state", "tries", "at", "done_at", "error")
    notice = Notice(
        event=row.event, channel=row.channel, lease=row.lease, warning=row.warning, user=user,
        subject=said["subject"], text=said["text"], facts=facts,
    )  # fmt: skip
    values = {name: getattr(row, name) for name in names}
    return Delivery(**values | {"user": user, "notice": notice} | changes)


def _owner(tx: Transaction, lease: str | None) -> str | None:
    """Whom the notices of a lease are for, by the ledger's own key: names are changed, and given out again."""
    return None if lease is None else str(tx.run(_owner_of, {"key": lease}).scalar_one())


def _choice_of(tx: Transaction, lease: str | None) -> Choice:
    """What the owner of a lease has chosen."""
    owner = _owner(tx, lease)
    return Choice() if owner is None else _choice(tx.run(_chosen, {"key": owner}).one_or_none())


def _choice(row: Any) -> Choice:
    if row is None:
        return Choice()
    unwanted = {channel: frozenset(events) for channel, events in rows.load(row.unwanted).items()}
    return Choice(unwanted=unwanted, address=row.address)
