"""The ledger: who holds which slice, since when, under which terms.  The only SQL of the package.

A library, not a server: the hub process (through the spawner) and the service both open the same
database.  Every method is one short transaction and blocks; callers put it on a worker thread.  The
transitions raise :class:`~..errors.LeaseConflict` when the lease is not where the caller believed it,
and every method raises :class:`~..errors.Unavailable` when the database does not answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import or_, select, update

from .. import fairness, placement, trust
from ..conditions import Condition
from ..errors import Unavailable
from ..model import NEW, Device, Lease, Request, Sample, Session, State
from . import checks, endings, handing, hubs, inventory, observations, rows, transitions, troubles
from . import schema as t
from .admin import Admin
from .checks import Check
from .counts import Budgets, queue_usage
from .deliveries import Deliveries, Delivery
from .drains import devices_until
from .endings import Ending, Endings
from .hubs import OTHER_HUB, HubRow
from .observations import Observation
from .preview import Touched, preview
from .reading import Reader
from .room import Wanted
from .rules import EDITED, LimitRow, Rules
from .spans import Progress
from .store import Transaction, file_of, url_of
from .text import last_lines
from .transitions import expect, move, note, row_of, set_columns
from .turns import Policy
from .views import Event, Reading, Snapshot, Waiting

__all__ = [
    "EDITED",
    "OTHER_HUB",
    "Check",
    "Delivery",
    "Ending",
    "Event",
    "HubRow",
    "Ledger",
    "LimitRow",
    "Observation",
    "Policy",
    "Progress",
    "Reading",
    "Snapshot",
    "Touched",
    "Waiting",
    "Wanted",
    "devices_until",
    "file_of",
    "preview",
    "url_of",
]


class Ledger(Reader, Admin, Deliveries, Endings):
    """The ledger of one pool."""

    # --- the hub's side: a spawn ---------------------------------------------------------------

    def register_hub(self, hub: str, *, host: str = "", process: str = "", gone: Collection[str] = ()) -> int:
        """See :func:`hubs.register`."""
        with self.store.write() as tx:
            return hubs.register(tx, hub, host, process, gone, self.policy)

    def beat(self, hub: str, process: str = "") -> bool:
        """Say that the hub's process lives; a hub that was away for long is served again from here on.

        False: the pool is not its own, it has to register first.
        """
        with self.store.write() as tx:
            away = hubs.silence(tx, hub, process) > self.policy.beat_age
            mine = hubs.beat(tx, hub, process)
            if mine and away:
                self._serve(tx)
            return mine

    def enqueue(self, hub: str, request: Request, process: str = "") -> Lease:
        """Ask for a slice.  Idempotent: the open lease of this owner and server is returned as it is.

        Raises Rejected when it could never be granted, Unavailable when the queue is full, or when another hub
        than that of ``process`` serves the pool.
        """
        with self.store.write() as tx:
            owner = transitions.owner_key(tx, request.owner)
            row = transitions.open_row(tx, owner, request.server)
            if row is not None and row.state != State.QUEUED:
                return transitions.reread(tx, row.id)
            rules = self._grants.rules(tx.conn, tx.limits_version)
            gpus = self._could_be(tx, request, rules)
            if not hubs.beat(tx, hub, process) and process:
                hubs.refuse_other(tx, hub, process)
            if row is None:
                self._may_ask(tx, request, gpus, rules)
                waiting = (
                    queue_usage(tx.run, owner, request.owner.name, request.groups) if rules.queued else None
                )
                key = transitions.new_lease(
                    tx, owner, request, State.QUEUED, hub=hub, gpus=gpus,
                    actor=request.owner.name, action="request", why=request.wish.describe(),
                )  # fmt: skip
                self._told(tx, key, NEW)
            else:
                # The same person asks again, perhaps after the hub was away: the place is kept, the wish is new.
                key, waiting = row.id, None
                again = transitions.request_columns(request)
                set_columns(tx, key, hub=hub, left_at=None, gpus=gpus, **again)
            self._serve(tx)
            lease = transitions.reread(tx, key)
            if waiting is not None and lease.state is State.QUEUED:
                # Only who has to wait needs room in the queue.  The refusal takes the whole transaction back.
                fairness.check_queue(request.owner.name, request.groups, waiting, rules.limits)
            return lease

    def _could_be(self, tx: Transaction, request: Request, rules: Rules) -> float:
        """GPU-equivalents that the wish costs at least.  Before the first inventory nobody can say."""
        name, groups = request.owner.name, request.groups
        if rules.profiles:
            fairness.check_profile(name, groups, request.profile, rules.limits)
        known = self._grants.devices(tx.conn, tx.inventory)
        if not known or not tx.settled:
            return 0.0
        devices = trust.open_to(known, groups)
        placement.check_possible(request.wish, devices)
        gpus = placement.cost(request.wish, devices)
        fairness.check_ever(name, groups, gpus, rules.limits)
        return gpus

    def _may_ask(self, tx: Transaction, request: Request, gpus: float, rules: Rules) -> None:
        """Refuse who has no GPU-hours left, with the time when a start will work again."""
        if rules.hours and gpus:
            budget = Budgets(tx.run, tx.now, rules).of(request.owner.name, request.groups)
            if budget.state is fairness.BudgetState.EXHAUSTED:
                raise Unavailable(budget.message, reason="budget", status=429)

    def checkpoint(
        self,
        lease: str,
        runtime: Mapping[str, Any],
        url: str = "",
        image: str | None = None,
        devices: Collection[str] = (),
    ) -> tuple[Device, ...]:
        """Write what the backend needs to find the session again, before the launch or at its adoption.

        An empty ``url`` and an ``image`` of None leave what was written before.  Returns the devices that
        are named: a launch needs to know them, and has no time to ask apart.
        """
        with self.store.write() as tx:
            row = row_of(tx, lease)
            expect(row, State.STARTING, State.ACTIVE)
            set_columns(
                tx, lease, runtime=rows.dump(dict(runtime)), url=url or row.url,
                image=row.image if image is None else image, left_at=None,
            )  # fmt: skip
            return tuple(
                device for device in self._grants.devices(tx.conn, tx.inventory) if device.id in devices
            )

    def activate(
        self,
        lease: str,
        *,
        actor: str,
        reason: str = "",
        runtime: Mapping[str, Any] | None = None,
        url: str = "",
        tensorflow: Mapping[str, str] | None = None,
        **columns: Any,
    ) -> Lease:
        """STARTING → ACTIVE: the session runs and is what the lease says.  A launch less is under way.

        ``runtime`` and ``url`` are as for :meth:`checkpoint`; None leaves the runtime as it was.  ``tensorflow`` are
        the settings that the session was given, for the word on what holds it; None: not known.
        """
        with self.store.write() as tx:
            row = row_of(tx, lease)
            expect(row, State.STARTING)
            if runtime is not None:
                columns["runtime"] = rows.dump(dict(runtime))
            move(
                tx, row, State.ACTIVE, actor=actor, action="activate", reason=reason,
                active_at=tx.now, left_at=None, absent_since=None, url=url or row.url,
                rung=transitions.rung(tx, row, tensorflow), **columns,
            )  # fmt: skip
            self._serve(tx)
            return self._told(tx, lease, row.state)

    def begin_stop(
        self, lease: str, *, actor: str, reason: str, judged: int | None = None, script: bool = False
    ) -> Lease:
        """STARTING or ACTIVE → STOPPING; the slices stay held.  A lease that is STOPPING stays as it is.

        ``judged`` is the version a reclaim was decided on: LeaseConflict if the lease has changed since.
        ``script``: its owner's script is due before the session ends, whoever is there to run it.
        """
        with self.store.write() as tx:
            row = row_of(tx, lease)
            if row.state == State.STOPPING and judged is None:
                return transitions.reread(tx, lease)
            expect(row, State.STARTING, State.ACTIVE, version=judged)
            move(tx, row, State.STOPPING, actor=actor, action="stop", reason=reason, stopped_by=actor)
            if script:
                endings.intend_script(tx, lease)
            self._serve(tx)  # a failed start leaves room for another launch
            return self._told(tx, lease, row.state)

    def close(
        self, lease: str, *, actor: str, reason: str = "", judged: int | None = None, clean: bool = False
    ) -> Lease:
        """STOPPING → CLOSED, on proof that the session is gone; frees the slices and serves the queue.

        Where slices can be examined the lease stays STOPPING until they were found ``clean``.
        """
        with self.store.write() as tx:
            row = row_of(tx, lease)
            expect(row, State.STOPPING, version=judged)
            if not clean and handing.waits(tx, row):
                handing.note_gone(tx, row, actor)
                return transitions.reread(tx, lease)
            return self._close(tx, row, actor, reason)

    def set_aside(self, lease: str, left: Mapping[str, str], *, judged: int) -> Lease:
        """STOPPING → CLOSED with something left on these devices: nothing is granted there until it is not."""
        with self._changing() as tx:
            row = row_of(tx, lease)
            expect(row, State.STOPPING, version=judged)
            handing.mark(tx, left)
            return self._close(tx, row, "service", "")

    def mark_unclean(self, left: Mapping[str, str]) -> None:
        """See :func:`handing.mark`, of devices that are set aside; what is clean again is granted."""
        with self._changing() as tx:
            if handing.mark(tx, handing.still_aside(tx, left)):
                self._serve(tx)

    def _close(self, tx: Transaction, row: Any, actor: str, reason: str) -> Lease:
        lease = row.id
        transitions.free(tx, lease)
        move(tx, row, State.CLOSED, actor=actor, action="close", reason=reason or row.reason,
             closed_at=tx.now, deadline_seconds=None, doubt="", doubt_since=None)  # fmt: skip
        transitions.check(tx, lease)
        closed = self._told(tx, lease, row.state)
        self._serve(tx)
        return closed

    def give_up(self, lease: str, *, actor: str, reason: str) -> bool:
        """QUEUED → CLOSED.  False when the lease is no longer queued."""
        with self.store.write() as tx:
            row = row_of(tx, lease)
            if row.state != State.QUEUED:
                return False
            move(tx, row, State.CLOSED, actor=actor, action="leave", reason=reason, closed_at=tx.now)
            self._told(tx, lease, row.state)
            self._serve(tx)
            return True

    def record_check(
        self,
        lease: str,
        image: str,
        report: Mapping[str, Any],
        passed: bool | None,
        remembered: bool = False,
    ) -> bool:
        """See :func:`checks.record`.  True: the devices of the lease became suspect."""
        seconds = self.policy.suspect_for
        with self.store.write() as tx:
            return checks.record(tx, lease, image, report, passed, remembered=remembered, suspect_for=seconds)

    def keep_log(self, lease: str, text: str) -> None:
        """Keep the end of what a session wrote, see :func:`text.last_lines`; nothing at all changes nothing."""
        kept = last_lines(text)
        if kept:
            with self.store.write() as tx:
                checks.keep_log(tx, lease, kept)

    # --- the service's side: a sweep -----------------------------------------------------------

    def lead(self, holder: str, seconds: float) -> bool:
        """See :func:`observations.lead`."""
        with self.store.write() as tx:
            return observations.lead(tx, holder, seconds)

    def resign(self, holder: str) -> None:
        """Let the next service lead at once."""
        with self.store.write() as tx:
            observations.resign(tx, holder)

    def sync_inventory(self, found: Sequence[Device]) -> bool:
        """See :func:`inventory.sync_inventory`."""
        with self.store.write() as tx:
            return inventory.sync_inventory(tx, found, self.policy.suspect_for)

    def record(
        self,
        observed: Iterable[Observation],
        readings: Mapping[str, Sample] | None = None,
        conditions: Mapping[str, Condition] | None = None,
    ) -> dict[str, int]:
        """See :func:`observations.record`."""
        with self.store.write() as tx:
            inventory.read_devices(tx, readings or {}, conditions or {})
            return observations.record(tx, observed)

    def swept(self, seconds: float, mode: str) -> None:
        """Mark the end of a whole sweep, and serve the queue once more."""
        with self.store.write() as tx:
            tx.run(update(t.pool).values(swept_at=tx.now, sweep_seconds=seconds, mode=mode))
            self._serve(tx)

    def note_foreign(self, found: Mapping[str, str]) -> None:
        """See :func:`checks.note_foreign`: device → a sentence, for all devices that have one."""
        with self.store.write() as tx:
            checks.note_foreign(tx, found)

    def restart_warnings(self, mode: str = "") -> None:
        """See :func:`observations.restart_warnings`."""
        with self.store.write() as tx:
            observations.restart_warnings(tx, mode)

    def extend(self, lease: str, actor: str) -> float:
        """See :func:`observations.extend`."""
        with self.store.write() as tx:
            return observations.extend(tx, lease, actor)

    def absent(self, lease: str, gone: bool) -> None:
        """See :func:`observations.absent`."""
        with self.store.write() as tx:
            observations.absent(tx, lease, gone)

    def doubt(self, lease: str, why: str) -> None:
        """See :func:`observations.doubt`."""
        with self.store.write() as tx:
            observations.doubt(tx, lease, why)

    def set_trouble(self, lease: str, why: str) -> bool:
        """See :func:`troubles.set_trouble`."""
        with self.store.write() as tx:
            return troubles.set_trouble(tx, lease, why)

    def adopt(self, found: Session, request: Request) -> Lease | None:
        """See :func:`transitions.adopt`."""
        with self.store.write() as tx:
            key = transitions.adopt(tx, found, request, self.policy.pool)
            if key is None:
                return None
            transitions.check(tx, key)
            return self._told(tx, key, NEW)

    def settle(self) -> None:
        """Say that all running sessions have been looked at: from now on slices are granted."""
        with self.store.write() as tx:
            if not tx.settled:
                tx.run(update(t.pool).values(settled_at=tx.now))
                note(tx, "service", "settle", "every running session has been looked at")
                tx.settled = True
            self._serve(tx)

    def expire_queue(self) -> list[str]:
        """Close requests whose hub has been away for longer than ``queue_keep``."""
        keep = self.policy.queue_keep
        gone = []
        with self.store.write() as tx:
            query = (
                select(t.leases)
                .join(t.hubs, t.hubs.c.name == t.leases.c.hub)
                .where(
                    t.leases.c.state == State.QUEUED.value,
                    or_(t.leases.c.left_at < tx.now - keep, t.hubs.c.beat_at < tx.now - keep),
                )
            )
            for row in tx.run(query).all():
                why = f"nobody waited for it for {keep:g} s"
                move(tx, row, State.CLOSED, actor="service", action="expire", reason=why, closed_at=tx.now)
                self._told(tx, row.id, row.state)
                gone.append(str(row.id))
            self._serve(tx)
        return gone
