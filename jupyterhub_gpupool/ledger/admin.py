"""The verbs of those who run the pool: limits, drains, books, and what a sweep asks before it judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import books
from ..model import Wish
from . import drains, expectations, rules, spans
from . import room as rooms
from .base import Base
from .room import Wanted
from .rules import LimitRow
from .store import Transaction


class Admin(Base):
    """Each writing verb leaves an event with its actor and why."""

    @contextmanager
    def _changing(self) -> Iterator[Transaction]:
        """Open a writing transaction that changes what grants remember; one that fails changes nothing."""
        try:
            with self.store.write() as tx:
                yield tx
        except BaseException:
            self._grants.forget()
            raise

    def limits(self) -> dict[str, LimitRow]:
        """Every scope with a limit: what is configured, and the edit in its place."""
        with self.store.read() as (conn, _):
            return rules.read(conn, self.policy.limits)

    def set_limit(
        self, scope: str, keys: Mapping[str, Any], *, actor: str, why: str = "", seen: str | None = None
    ) -> LimitRow:
        """Put a limit in the place of the configured one, whole, and serve the queue.

        ``seen`` is the mark of the edit that it was decided on: Unavailable (``edited``, 409) when there is
        another one by now.  None: whatever is there.
        Raises ValueError with a sentence for what is no limit, and for guaranteed shares beyond the pool.
        """
        with self._changing() as tx:
            rules.check_seen(tx, scope, seen)
            rules.edit(tx, scope, keys, self.policy.limits, actor, why)
            self._serve(tx)
            return rules.read(tx.conn, self.policy.limits)[scope]

    def clear_limit(self, scope: str, *, actor: str, why: str = "", seen: str | None = None) -> LimitRow:
        """Let what is configured hold again, and serve the queue.

        ``seen`` is as for :meth:`set_limit`.  Raises ValueError for what is no scope.
        """
        with self._changing() as tx:
            rules.check_seen(tx, scope, seen)
            rules.clear(tx, scope, self.policy.limits, actor, why)
            self._serve(tx)
            return rules.read(tx.conn, self.policy.limits).get(scope, LimitRow(scope))

    def check_shares(self) -> str:
        """A sentence when more is guaranteed than the pool has; empty when all is well."""
        with self.store.read() as (conn, now):
            try:
                rules.check_shares(conn, rules.in_force(conn, self.policy.limits), now)
            except ValueError as problem:
                return str(problem)
            return ""

    def drain(
        self, device: str | None, at: float | None = None, *, actor: str, why: str = ""
    ) -> tuple[str, ...]:
        """See :func:`drains.drain`."""
        with self._changing() as tx:
            return drains.drain(tx, device, at, actor, why)

    def undrain(self, device: str | None, *, actor: str, why: str = "") -> tuple[str, ...]:
        """See :func:`drains.undrain`; serves the queue."""
        with self._changing() as tx:
            found = drains.undrain(tx, device, actor, why)
            self._serve(tx)
            return found

    def forget_device(self, device: str, *, actor: str, why: str = "") -> None:
        """See :func:`drains.forget`; serves the queue: who waits for what only this device had is told so."""
        with self._changing() as tx:
            drains.forget(tx, device, actor, why)
            self._serve(tx)

    def usage(self, by: str, start: float, end: float, user: str | None = None) -> list[books.Entry]:
        """GPU-hours by key and day, of the whole UTC days that ``start`` to ``end`` touches.

        ``by`` is ``user``, ``group`` or ``profile``; ``user`` leaves only what is this person's.
        Raises ValueError with a sentence for any other, and for a time that ends before it begins.
        """
        with self.store.read() as (conn, now):
            return spans.usage(conn, now, by, start, end, user)

    def progress(self, since: float | None) -> spans.Progress:
        """See :func:`spans.progress`; None is this moment, when nothing has happened yet."""
        with self.store.read() as (conn, now):
            return spans.progress(conn, now, now if since is None else min(since, now))

    def wanted(self) -> Wanted:
        """See :func:`room.wanted`."""
        with self.store.read() as (conn, now):
            return rooms.wanted(conn, now, self._grants)

    def expect(self, offers: Mapping[str, Wish]) -> None:
        """Work out how long the places in the queue will take, and a new request for each of the offers.

        ``offers`` is by profile.  What is found is read with the queue until the next time.
        """
        with self.store.read() as (conn, now):
            seen = expectations.look(conn, now, self._grants, offers)
        found = expectations.work_out(seen)  # no transaction waits for it
        if found != seen.known:
            with self.store.write() as tx:
                expectations.write(tx, seen.known, found)
