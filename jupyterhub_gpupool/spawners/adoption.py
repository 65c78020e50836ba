"""What a hub that comes back finds: is the session of a lease there, and how is it taken over.

"Cannot see" never becomes "is gone": at boot nothing is answered before ledger and backend gave a definite
answer, and later an unknown one leaves everything as it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from jupyterhub.utils import wait_for_http_server

from ..errors import LeaseConflict, Unavailable
from ..model import Lease, Presence, Session, State

UNSEEN = "backend"
"""Reason of a refusal that rests on nothing but a silent backend: it ends no session."""


class Adoption:
    """The part of the mixin that polls, finds and adopts.  Annotations name what the rest of it provides."""

    pool: Any
    log: Any
    name: str
    user: Any
    orm_spawner: Any
    adopt_timeout: float
    _log_name: str
    _polled: bool
    _launching: bool
    _start_pending: bool
    _lease: Lease | None
    _sessions: Any
    _backend: Any
    _open_lease: Any
    _attach: Any
    get_state: Any

    async def poll(self) -> int | None:
        """None while the session is there or while nobody can say; a number once it is certainly gone."""
        first, self._polled = not self._polled, True
        if first:
            await self._until_known(self.pool.register)
        lease = await self._until_known(self._open_lease) if first else await self._known_lease()
        if lease is None:
            return await self._poll_unknown(first)
        if lease.state is State.QUEUED:
            return 0
        if lease.state is State.STARTING and not first and not self._launching:
            return 0  # granted to this very instance, which has launched nothing for it yet
        presence = await self._presence(lease, wait=first)
        if presence is Presence.ABSENT:
            await self._note_gone(lease)
            return 0
        if presence is Presence.PRESENT and not self._launching:
            await self._take_over(lease, first)
        return None

    async def _take_over(self, lease: Lease, first: bool) -> None:
        """Adopt the session of a lease; what cannot be written now is written at a later poll."""
        try:
            if first:
                await self._until_known(lambda: self._adopt(lease, first))
            else:
                await self._adopt(lease, first)
        except (LeaseConflict, Unavailable) as problem:
            self._launching = False
            self.log.warning("lease=%s is adopted at a later poll: %s", lease.id, problem.message)

    async def _known_lease(self) -> Lease | None:
        try:
            return await self._open_lease()
        except Unavailable as problem:
            self.log.warning("%s: %s", self._log_name, problem.message)
            return self._lease

    async def _until_known(self, ask: Any) -> Any:
        """Ask until there is an answer: at boot, "cannot see" must not become "is not there"."""
        pause = 0.5
        while True:
            try:
                return await ask()
            except Unavailable as problem:
                self.log.warning("%s waits for an answer: %s", self._log_name, problem.message)
            await asyncio.sleep(pause)
            pause = min(10.0, pause * 2)

    async def _presence(self, lease: Lease, *, wait: bool) -> Presence:
        pause = 0.5
        while True:
            found = await self._backend(self._sessions.look, [lease.session])
            presence: Presence = found.get(lease.session, Presence.UNKNOWN)
            if presence is not Presence.UNKNOWN or not wait:
                return presence
            self.log.warning(
                "%s: the backend does not say whether %s is there", self._log_name, lease.session
            )
            await asyncio.sleep(pause)
            pause = min(10.0, pause * 2)

    async def _poll_unknown(self, first: bool) -> int | None:
        """No open lease.  A session of this server may run all the same: the ledger may have been lost."""
        if first:
            for session in await self._until_known(self._listed):
                if (session.user, session.server) == (self.user.name, self.name):
                    self._launching = True
                    await self._attach(session)
                    self.log.warning("%s runs without a lease; the service adopts it", self._log_name)
        status: int | None = await super().poll()  # type: ignore[misc]
        return status

    async def _find(self, lease: Lease) -> Session | None:
        """The running session of a lease.  Raises Unavailable while the backend does not say."""
        return next((session for session in await self._listed() if session.name == lease.session), None)

    async def _listed(self) -> tuple[Session, ...]:
        listed: tuple[Session, ...] | None = await self._backend(self._sessions.list)
        if listed is None:
            raise Unavailable(
                "The backend does not say whether your last session is still there. Try again in a minute.",
                reason=UNSEEN,
            )
        return tuple(session for session in listed if session.running)

    async def _adopt(self, lease: Lease, first: bool) -> None:
        """Take over a session that another process of this hub launched."""
        session = await self._find(lease)
        if session is None:
            return
        await self._attach(session)
        if lease.state is State.STARTING and (differences := await self._adopted(lease)):
            why = f"it did not get what its lease says ({'; '.join(differences)})"
            await self.pool.move("begin_stop", lease, actor="hub", reason=why)
            return
        self._launching = True
        if lease.state in (State.STARTING, State.ACTIVE):
            # A hub that died after the launch may not have written the address; without it `get_url` is wrong.
            found = session.runtime or lease.runtime
            await self.pool.ask("checkpoint", lease.id, found, session.url)
            lease = replace(lease, runtime=found, url=session.url or lease.url)
        self._lease = lease
        if lease.state is State.STARTING:
            self._lease = await self.pool.move("activate", lease, actor="hub", reason="adopted")
        if self.orm_spawner is not None:
            self.orm_spawner.state = self.get_state()
        self.log.info("lease=%s adopted, its session %s runs", lease.id, lease.session)
        if first:
            await self._answers(session)

    async def _adopted(self, lease: Lease) -> list[str]:
        """Say what differs from the lease in a session that an earlier hub launched, as far as one can tell."""
        wrong: tuple[str, ...] | None = await self._backend(self._sessions.differs, lease)
        if wrong is None:
            raise Unavailable(
                "The backend does not say what your last session got. Try again in a minute.",
                reason=UNSEEN,
            )
        return list(wrong)

    async def _answers(self, session: Session) -> None:
        """Wait until the session answers HTTP, whatever it says; it may be busy while the hub boots."""
        try:
            await wait_for_http_server(session.url, timeout=self.adopt_timeout)
        except TimeoutError:
            self.log.warning("%s did not answer for %g s", session.name, self.adopt_timeout)

    async def _note_gone(self, lease: Lease) -> None:
        """The session ended by itself.  The slice stays held until the sweep has proved it."""
        self._launching = False
        if lease.state in (State.STARTING, State.ACTIVE) and not self._start_pending:
            try:
                await self.pool.move("begin_stop", lease, actor="hub", reason="the session ended by itself")
            except (LeaseConflict, Unavailable) as problem:
                self.log.warning("lease=%s: %s", lease.id, problem.message)
