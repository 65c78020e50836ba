"""One pass of the service: lead, inventory, sample, judge, act, tidy.

Judging is pure and happens elsewhere; acting is separate and repeatable, so a crash at any place costs
nothing but a sweep.  What cannot be asked is unknown, and unknown neither frees nor ends anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from .. import faults, idleness, watchdog
from ..devices import Inventory, Readings, Telemetry
from ..errors import GPUPoolError, LeaseConflict, Unavailable
from ..fairness import Victim
from ..ledger import Observation, Progress, Snapshot, Wanted
from ..model import Decision, Lease, Process, Sample, Session, State, Verdict
from ..mps.manager import Daemons
from ..pool import GPUPool
from ..sessions import Sessions
from ..signals import Work
from ..trust import MPS
from .before import Before
from .calls import calls_on, note_on
from .handover import HandOver
from .hub import HubClient
from .metrics import Counters
from .modes import in_mode
from .probing import Prober
from .reach import Reach
from .sharing import Sharing
from .tidy import Tidy

T = TypeVar("T")


@dataclass(slots=True)
class Rules:
    """How the sweep is configured; times in seconds."""

    mode: str = "observe"
    interval: float = 10.0
    absence_interval: float = 30.0
    backend_timeout: float = 30.0
    undelivered_max: float | None = 4 * 3600.0
    before_reclaim_timeout: float = 30.0
    hand_over_timeout: float = 120.0
    patience: watchdog.Patience = field(default_factory=watchdog.Patience)


class Sweep:
    """The passes of one service process."""

    def __init__(
        self,
        pool: GPUPool,
        devices: Any,
        sessions: Sessions,
        hub: HubClient,
        rules: Rules,
        counters: Counters,
        *,
        clock: Callable[[], float] = time.monotonic,
        log: logging.Logger | None = None,
        prober: Prober | None = None,
        daemons: Daemons | None = None,
    ) -> None:
        self.prober = prober
        self.pool, self.sessions, self.hub, self.rules, self.counters = pool, sessions, hub, rules, counters
        self.inventory: Inventory = devices
        self.telemetry: Telemetry = devices
        self.holder = uuid.uuid4().hex
        self._clock = clock
        self._log = log or logging.getLogger(__name__)
        self._backend = ThreadPoolExecutor(4, thread_name_prefix="gpupool-backend")
        self._looked_at: float | None = None
        self._counted_at: float | None = None
        self._idle: dict[str, float] = {}  # GPU-seconds seen idle in this sweep, by group
        self._leading = False
        self.before = Before(self)
        self.tidy = Tidy(self)
        self.hand_over = HandOver(self)
        self.reach = Reach(self)
        self.mps = Sharing(self, daemons)
        self.last_success: float | None = None
        self.last_problem = "no sweep yet"

    @property
    def leads(self) -> bool:
        """Whether this is the one service that acts."""
        return self._leading

    async def run(self) -> bool:
        """Make one pass.  False when another service leads.  Raises Unavailable when the ledger is away."""
        began = self._clock()
        lead_time = max(15.0, 4 * self.rules.interval)
        if not await self.pool.ask("lead", self.holder, lead_time):
            self._leading, self._looked_at = False, None
            self.last_problem = "another service leads"
            return False
        if self._looked_at is not None and began - self._looked_at > lead_time:
            # It hung for so long that it no longer led: an outage like any other.
            self._leading, self._looked_at = False, None
        if not self._leading:
            await self.pool.ask("restart_warnings", self.rules.mode)
            await self.hand_over.recall()
            self._leading = True
        devices = await self.mps.watch(await self.ask(self.inventory.devices))
        if devices is not None and await self.pool.ask("sync_inventory", devices):
            problem = await self.pool.ask("check_shares")
            if problem:
                self._log.error("%s", problem)
        listed = await self.ask(self.sessions.list)
        snapshot: Snapshot = await self.pool.ask("snapshot")
        if listed is not None:
            await self.tidy.foreigners(snapshot)
            await self.tidy.strangers(listed, snapshot)
            if not snapshot.settled and devices is not None:
                await self.pool.ask("settle")
            snapshot = await self.pool.ask("snapshot")
        await self._judge(snapshot, listed)
        snapshot = await self.pool.ask("snapshot")
        await self.tidy.leases(snapshot, listed)
        await self.hand_over.examine(snapshot, listed)
        await self.reach.look(snapshot)
        await self.pool.ask("expire_queue")
        await self.pool.ask("expect", {profile.slug: profile.wish for profile in self.pool.offer.values()})
        faults.point("sweep.tidied")
        await self._count()
        seconds = self._clock() - began
        await self.pool.ask("swept", seconds, self.rules.mode)
        self.counters.swept(seconds)
        self.last_success, self.last_problem = self._clock(), ""
        return True

    async def ask(self, verb: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Ask backend or driver on a thread, with a deadline.  None, which is unknown, when it errs or hangs."""
        loop = asyncio.get_running_loop()
        try:
            asked = loop.run_in_executor(self._backend, lambda: verb(*args, **kwargs))
            return await asyncio.wait_for(asked, self.rules.backend_timeout)
        except TimeoutError:
            self._log.warning("%s did not answer within %g s", verb, self.rules.backend_timeout)
        except GPUPoolError as problem:
            self._log.warning("%s", problem.message)
        except Exception:  # a backend may raise anything; whatever it is, the truth is unknown
            self._log.exception("%s failed", verb)
        return None

    async def _count(self) -> None:
        """Count what has been granted, held and waited for since the last sweep of this process."""
        since: Progress = await self.pool.ask("progress", self._counted_at)
        self._counted_at = since.now
        for seconds in since.waits:
            self.counters.waited(seconds)
        for group, held in since.held.items():
            idle = min(held, self._idle.pop(group, 0.0))
            for state, part in (("used", held - idle), ("idle", idle), ("waiting", since.waiting[group])):
                self.counters.gpu_seconds(group, state, part)
        self._idle.clear()

    # --- judge -----------------------------------------------------------------------------------

    async def _look(self, leases: Mapping[str, Lease], listed: tuple[Session, ...] | None) -> Readings:
        """Sample these leases.  A session that the backend does not list has unknown processes.

        The processes of all sessions are told, so that nobody takes those of one that starts for foreign.
        """
        processes: dict[str, tuple[Process, ...] | None] = dict.fromkeys(leases)
        for session in listed or ():
            if session.running or session.lease in leases:
                processes[session.lease] = session.processes
        slices = {key: lease.slices for key, lease in leases.items()}
        readings = await self.ask(self.telemetry.sample, slices, processes) or Readings()
        self.counters.measured(readings.conditions)
        return readings

    async def _judge(self, snapshot: Snapshot, listed: tuple[Session, ...] | None) -> None:
        active = {lease.id: lease for lease in snapshot.leases if lease.state is State.ACTIVE}
        now = self._clock()
        elapsed = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        readings = await self._look(active, listed)
        self.mps.note(readings, active)
        faults.point("sweep.sampled")
        wanted: Wanted = await self.pool.ask("wanted")
        devices = {device.id: device for device in snapshot.devices}
        works: Mapping[str, Work] = {}
        if self.prober is not None:
            tick = idleness.tick(elapsed, self.rules.interval)
            works = await self.prober.quiet_ones(active.values(), readings.leases, tick)
        observed = []
        for lease in active.values():
            sample = readings.leases.get(lease.id, Sample())
            called = calls_on(lease, wanted, devices, snapshot.now, budget_end=self.pool.budget_end)
            work = works.get(lease.id, Work())
            seen = self.observe(lease, sample, elapsed, snapshot.now, wanted.idle.get(lease.id), called, work)
            observed.append(replace(seen, note=note_on(lease, wanted)))
        taken: dict[str, int] = await self.pool.ask("record", observed, readings.devices, readings.conditions)
        for item in observed:
            seen_of = active[item.lease]
            self._idle[seen_of.group] = self._idle.get(seen_of.group, 0.0) + item.idle_tick * seen_of.gpus
        faults.point("sweep.judged")
        for item in observed:
            self.counters.verdict(item.verdict.decision.value)
            if item.verdict.decision is Decision.RECLAIM and item.lease in taken:
                work = works.get(item.lease, Work())
                await self._reclaim(active[item.lease], taken[item.lease], item.verdict, active, work)

    def observe(
        self,
        lease: Lease,
        sample: Sample,
        elapsed: float,
        now: float,
        wanted: Victim | None = None,
        calls: tuple[idleness.Call, ...] = (),
        work: Work = Work(),  # noqa: B008 - it is frozen
    ) -> Observation:
        """Fold one sample into a lease and judge it: pure but for the mode."""
        interval = self.rules.interval
        busy = idleness.is_busy(sample, lease.terms.threshold)
        counting = lease.counting or lease.delivered_at is not None
        idle = idleness.look(idleness.Idle.of(lease), sample, lease.terms, elapsed, interval)
        facts = idleness.Facts(
            terms=lease.terms,
            kind=lease.wish.kind,
            age=now - (lease.active_at or now),
            idle_seconds=idle.seconds,
            samples=idle.samples,
            low=idle.low,
            work=work,
            busy=busy,
            sample=sample,
            grace_seconds=max(0.0, lease.grace_seconds - idleness.tick(elapsed, interval)),
            deadline_seconds=idleness.count_down(
                lease.deadline_seconds,
                lease.warned_for,
                busy,
                _since_told(lease, elapsed, now),
                interval,
                counting=counting,
            ),
            warned_for=lease.warned_for,
            counting=counting,
            wanted=wanted is not None,
            wanted_why=wanted.why if wanted is not None else "",
            calls=calls,
        )
        watched = self._watch(lease, sample, elapsed)
        verdict = self.mps.strays.join(lease.id, watchdog.join(idleness.judge(facts), watched))
        verdict, deadline, warned_for = in_mode(verdict, self.rules.mode)
        return Observation(
            lease=lease.id,
            version=lease.version,
            sample=sample,
            idle_seconds=idle.seconds,
            idle_samples=idle.samples,
            low_samples=idle.low,
            unseen_seconds=idle.unseen,
            grace_seconds=facts.grace_seconds,
            deadline_seconds=deadline,
            warned_for=warned_for,
            verdict=verdict,
            **self._delivery(lease, deadline, warned_for, elapsed, watched),
            idle_tick=idleness.tick(elapsed, interval) if busy is False and not idle.steady else 0.0,
        )

    def _watch(self, lease: Lease, sample: Sample, elapsed: float) -> watchdog.Watch:
        """Judge the memory of a lease's processes; where nobody is warned, no time counts from a warning."""
        limit, tick = watchdog.limit_of(lease.slices), idleness.tick(elapsed, self.rules.interval)
        facts = watchdog.Facts(limit, sample.memory_mib, lease.over_seconds, tick)
        watched = watchdog.watch(facts, self.rules.patience)
        return replace(watched, over_seconds=None) if self.rules.mode == "observe" else watched

    def _delivery(
        self, lease: Lease, deadline: float | None, warned_for: str, elapsed: float, watched: watchdog.Watch
    ) -> dict[str, Any]:
        """For how long the warning has reached nobody, and whether its countdown runs from this look on.

        That of an overrun waits for nobody: the neighbours need their memory.
        """
        same = lease.deadline_seconds is not None and lease.warned_for == warned_for
        delivered = same and lease.delivered_at is not None
        undelivered = 0.0
        if deadline is not None and lease.deadline_seconds is not None and lease.delivered_at is None:
            # Another rule is no news to somebody whom no warning has reached.
            undelivered = lease.undelivered_seconds + idleness.tick(elapsed, self.rules.interval)
        runs = idleness.counts(delivered, undelivered, lease.terms.warn, self.rules.undelivered_max)
        if warned_for == watchdog.MEMORY:
            runs = watched.counting
        counting = deadline is not None and runs
        return {
            "undelivered_seconds": undelivered,
            "counting": counting,
            "over_seconds": watched.over_seconds,
        }

    # --- act -------------------------------------------------------------------------------------

    async def _reclaim(
        self, lease: Lease, version: int, verdict: Verdict, active: Mapping[str, Lease], work: Work
    ) -> None:
        """Take a slice back: one more sample, the hub's word on the server, then STOPPING by compare-and-set."""
        try:
            if not await self._still(lease, verdict.warned_for, active, work):
                return
            server = await self.hub.server(lease.user, lease.server)
            if server is not None and server.pending:
                self._log.info("lease=%s is not stopped: its server is pending %s", lease.id, server.pending)
                return
            stopping = await self.pool.move(
                "begin_stop", lease, actor="service", reason=verdict.reason, judged=version,
                script=self.rules.before_reclaim_timeout > 0,
            )  # fmt: skip
        except LeaseConflict as changed:  # extended, released or stopped in this very moment
            self._log.info("lease=%s is not stopped: %s", lease.id, changed.message)
            return
        except Unavailable as problem:
            self._log.warning("lease=%s is judged again: %s", lease.id, problem.message)
            return
        self.counters.reclaim(verdict.warned_for or "idle")
        faults.point("sweep.intent")
        if self.rules.before_reclaim_timeout > 0:
            self.before.begin(stopping)
            return
        await self.end(stopping, known=server is not None)
        faults.point("sweep.told")

    async def _still(self, lease: Lease, rule: str, active: Mapping[str, Lease], work: Work) -> bool:
        """Look once more, where a rule judges use; at all of them, because telemetry measures from look to look.

        Nor may an idle session's owner have come back to work meanwhile; ``work`` is what was judged.
        """
        if rule not in (idleness.IDLE, watchdog.MEMORY, MPS):
            return True
        listed = await self.ask(self.sessions.list)
        readings = await self._look(active, listed)
        sample = readings.leases.get(lease.id, Sample())
        if rule == MPS:
            return bool(readings.strays.get(lease.id))
        if rule == watchdog.MEMORY:
            return watchdog.is_over(sample.memory_mib, watchdog.limit_of(lease.slices), self.rules.patience)
        if not idleness.is_quiet(sample, lease.terms.threshold):
            return False
        if self.prober is None or work.decisive:
            return True
        return (await self.prober.look([lease]))[lease.id].decisive is None

    async def end(self, lease: Lease, *, known: bool) -> None:
        """End the session of a STOPPING lease: by the hub while it knows the server, else by the backend."""
        try:
            if known:
                await self.hub.stop(lease.user, lease.server)
            elif await self.remove(lease.session, lease.id):
                await self.pool.move("close", lease, actor="service")
        except GPUPoolError as problem:
            self._log.warning("lease=%s is ended by a later sweep: %s", lease.id, problem.message)

    async def remove(self, session: str, lease: str) -> bool:
        """End a session by the backend and keep its last lines; True on proof that it is gone."""
        lines: list[str] = []
        gone = await self.ask(
            self.sessions.remove, session, timeout=self.rules.absence_interval, keep=lines.append
        )
        for text in lines:
            try:
                await self.pool.ask("keep_log", lease, text)
            except LeaseConflict as unknown:  # a left-over of a ledger that is no more
                self._log.info("%s: its last lines are not kept: %s", session, unknown.message)
        return bool(gone)

    async def release(self, lease: Lease, actor: str) -> None:
        """End a lease at its owner's or an admin's wish: leave the queue, or stop the session."""
        if lease.state is State.QUEUED:
            if await self.pool.ask("give_up", lease.id, actor=actor, reason="left the queue"):
                await self.hub.stop(lease.user, lease.server)
                return
            lease = await self.pool.ask("lease", lease.id)  # granted in this very moment
        if lease.state is State.CLOSED or lease.gone_at is not None:
            return
        if lease.state in (State.STARTING, State.ACTIVE):
            lease = await self.pool.move("begin_stop", lease, actor=actor, reason="released")
        server = await self.hub.server(lease.user, lease.server)
        await self.end(lease, known=server is not None)


def _since_told(lease: Lease, elapsed: float, now: float) -> float:
    """What counts of the time since the last look: only what came after the warning was written, and delivered."""
    if lease.counting or lease.delivered_at is None:
        since = elapsed if lease.warned_at is None else now - lease.warned_at
        return min(elapsed, since) if since >= 0 else elapsed  # a clock that was set back stops no countdown
    return min(elapsed, max(0.0, now - lease.delivered_at))
