"""Left-overs: sessions that the ledger does not know, and leases whose session is gone.

A slice is freed on proof only.  The proof is either our own confirmed removal, or a backend that answered
twice, at least ``absence_interval`` apart by this process's own clock, that the session is not there.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import GPUPoolError, LeaseConflict, Unavailable
from ..ledger import Snapshot
from ..model import Kind, Lease, Owner, Presence, Request, Session, State, Terms, Wish

if TYPE_CHECKING:
    from .sweep import Sweep


class Tidy:
    """The part of a sweep that brings ledger and backend together again."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._pool, self._log = sweep.pool, sweep._log
        self._absent: dict[str, float] = {}  # lease → when it was first not there, by our clock
        self._published: dict[str, Any] = {}  # session → ports at which this machine reaches it
        self._strange: set[str] = set()  # sessions without a lease that were told of

    # --- sessions without a lease ------------------------------------------------------------------

    async def strangers(self, listed: tuple[Session, ...], snapshot: Snapshot) -> None:
        """Adopt sessions of ours that the ledger does not know; end what outlived its lease."""
        known = {lease.id for lease in snapshot.leases}
        for session in listed:
            if session.lease in known:
                continue
            lease: Lease | None = await self._pool.ask("lease", session.lease)
            if not session.running:
                self._log.warning("%s of %r was left behind and is removed", session.name, session.user)
                await self._sweep.remove(session.name, session.lease)
            elif lease is None and snapshot.settled and not self._sweep.sessions.trusted:
                # The ledger was whole when this one appeared: the marker is not ours, or is forged.
                if session.name not in self._strange:
                    self._strange.add(session.name)
                    self._log.error("%s of %r has no lease; it is left alone", session.name, session.user)
            elif lease is None:
                await self._adopt(session)
            elif lease.state is State.CLOSED:
                self._log.warning("lease=%s is closed, %s outlived it and is ended", lease.id, session.name)
                await self._sweep.remove(session.name, session.lease)

    async def foreigners(self, snapshot: Snapshot) -> None:
        """Say on each device what others run there.  It is never touched."""
        found = await self._sweep.ask(self._sweep.sessions.foreign)
        if found is None:
            return
        said = {}
        for device in snapshot.devices:
            # Others may name a GPU by its number, and an instance by its number on that.
            places = [f"{device.index}:{number}" for number in range(len(device.instances))]
            mine = {device.id, *(one.id for one in device.instances), "all", str(device.index), *places}
            names = sorted(one.name for one in found if mine & one.visible)
            if names:
                said[device.id] = f"in use by {', '.join(names)}, which is not of this pool"
        if said != {device.id: device.foreign for device in snapshot.devices if device.foreign}:
            await self._pool.ask("note_foreign", said)

    async def _adopt(self, session: Session) -> None:
        """Hold what a running session holds, on the word of its marker.  Its rules start anew."""
        kind = Kind.CPU if not session.cells else Kind.SHARE
        try:
            owner = Owner.from_mark(session.user, session.owner)
        except ValueError:  # its cells are held all the same, for nobody that the hub knows
            owner = Owner(session.user, -1, float(zlib.crc32(session.user.encode())))
        request = Request(
            owner=owner,
            server=session.server,
            profile=session.profile,
            wish=Wish(kind=kind, fraction="1" if kind is Kind.SHARE else ""),
            terms=self._terms(session.profile),
        )
        try:
            lease = await self._pool.ask("adopt", session, request)
        except LeaseConflict as problem:
            lease = None
            self._log.error("%s", problem.message)
        if lease is None:
            self._log.error(
                "Session %s of %r runs on cells that the ledger has given to somebody else; it is left alone",
                session.name,
                session.user,
            )
        else:
            self._log.warning(
                "lease=%s adopted from a running session that the ledger did not know", lease.id
            )

    def _terms(self, profile: str) -> Terms:
        offered = self._pool.offer.get(profile)
        return offered.terms if offered is not None else Terms()

    # --- leases without a session ------------------------------------------------------------------

    async def leases(self, snapshot: Snapshot, listed: tuple[Session, ...] | None) -> None:
        """Bring every held lease towards the truth; one that fails does not stop the others."""
        held = [lease for lease in snapshot.leases if lease.state is not State.QUEUED]
        names = [lease.session for lease in held]
        looked = await self._sweep.ask(self._sweep.sessions.look, names) if names else {}
        self._absent = {key: at for key, at in self._absent.items() if any(key == x.id for x in held)}
        self._published = {one.name: one.runtime.get("published") for one in listed or ()}
        for lease in held:
            presence = (looked or {}).get(lease.session, Presence.UNKNOWN)
            try:
                await self._one(lease, presence)
            except LeaseConflict as changed:
                self._log.info("lease=%s has moved on: %s", lease.id, changed.message)
            except Unavailable as problem:
                self._log.warning("lease=%s waits for the next sweep: %s", lease.id, problem.message)

    async def _one(self, lease: Lease, presence: Presence) -> None:
        if lease.gone_at is not None and presence is not Presence.PRESENT:
            return  # it is examined, not looked for
        if presence is Presence.UNKNOWN:
            await self._pool.ask("doubt", lease.id, "the backend does not say whether its session is there")
            return
        if lease.doubt:
            await self._pool.ask("doubt", lease.id, "")
        if lease.state is State.STARTING and lease.left_at is None and await self._launching(lease):
            return
        if presence is Presence.PRESENT:
            await self._present(lease)
        else:
            await self._gone(lease)

    async def _launching(self, lease: Lease) -> bool:
        """Whether the hub is at the launch of this lease."""
        server = await self._sweep.hub.server(lease.user, lease.server)
        return server is not None

    async def _present(self, lease: Lease) -> None:
        if self._absent.pop(lease.id, None) is not None:
            await self._pool.ask("absent", lease.id, False)
        if lease.state is State.STOPPING:
            await self._go_on_stopping(lease)
        elif lease.state is State.STARTING and not await self._launching(lease):
            await self._forgotten(lease)
        elif lease.state is State.ACTIVE and self._elsewhere(lease):
            why = "it was restarted from outside, so its kernels are gone and its address is another"
            lease = await self._pool.move(
                "begin_stop", lease, actor="service", reason=why, judged=lease.version
            )
            await self._go_on_stopping(lease)

    async def _forgotten(self, lease: Lease) -> None:
        """A launch whose hub was killed before it looked: kept like any other session if it got what was granted."""
        wrong = await self._sweep.ask(self._sweep.sessions.differs, lease)
        if wrong is None:
            return  # not known: the next sweep asks again
        if not wrong:
            await self._pool.move("activate", lease, actor="service", reason="its hub has forgotten it")
            return
        why = f"it did not get what its lease says ({'; '.join(wrong)})"
        lease = await self._pool.move("begin_stop", lease, actor="service", reason=why, judged=lease.version)
        await self._go_on_stopping(lease)

    def _elsewhere(self, lease: Lease) -> bool:
        """Whether a session no longer has the port that its lease names: the engine gave it another at a restart."""
        published = self._published.get(lease.session) or ()
        return bool(published and lease.url) and urlsplit(lease.url).port not in published

    async def _go_on_stopping(self, lease: Lease) -> None:
        if not self._sweep.before.holds(lease.id) and not await self._sweep.before.resume(lease):
            await self.stop(lease)

    async def stop(self, lease: Lease) -> None:
        """End the session of a STOPPING lease, unless the hub is at it.  Raises Unavailable."""
        server = await self._sweep.hub.server(lease.user, lease.server)
        if (
            server is not None
            and server.pending == "spawn"
            and (server.started or 0) > (lease.granted_at or 0)
        ):
            server = None  # a new start waits for this very lease to end: a DELETE would cancel that one
        if server is not None and server.pending:
            return  # the hub is at it
        await self._sweep.end(lease, known=server is not None)

    async def _gone(self, lease: Lease) -> None:
        now = self._sweep._clock()
        first = self._absent.setdefault(lease.id, now)
        if lease.absent_since is None:
            await self._pool.ask("absent", lease.id, True)
        if now - first < self._sweep.rules.absence_interval:
            return
        try:
            if not await self._sweep.remove(lease.session, lease.id):
                return  # what is left of it could be started again
            lease = await self._pool.ask("lease", lease.id)
            if lease.state is not State.STOPPING:
                why = "the session ended by itself"
                lease = await self._pool.move(
                    "begin_stop", lease, actor="service", reason=why, judged=lease.version
                )
            await self._pool.move("close", lease, actor="service", judged=lease.version)
        except GPUPoolError as problem:
            self._log.warning("lease=%s: %s", lease.id, problem.message)
        else:
            self._absent.pop(lease.id, None)
