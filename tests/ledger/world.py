"""A hub, a service and a backend in one process, small enough to be crashed thousands of times.

The real ledger, the real mixin, the real pool and the real sweep; only the hub around the spawners and
the backend under them are models, and the clock is the test's.  The rules are checked after every commit
and every backend call.
"""

from __future__ import annotations

import asyncio
import datetime
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jupyterhub.spawner import Spawner
from traitlets.config import Config

from jupyterhub_gpupool import faults
from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import HOLDING, Device, Lease, Presence, Process, Sample, Session
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.sweep import Rules, Sweep
from jupyterhub_gpupool.sessions import Foreign
from jupyterhub_gpupool.spawners.base import GPUPoolMixin

from .conftest import Clock, gpu

WINDOW, WARN, INTERVAL, ABSENCE = 20.0, 20.0, 10.0, 30.0
PROFILE = {
    "slug": "whole",
    "display_name": "A whole GPU",
    "gpu": {"count": 1},
    "idle": {"window": WINDOW, "warn": WARN, "min_age": 0, "extend": 10, "extend_max": 20},
}


class Crash(BaseException):
    """The process dies here: no ``except Exception`` sees it."""


class Broken(AssertionError):
    """A rule of the pool was broken."""


class Backend:
    """Sessions that survive every crash of hub and service, each under a unique name."""

    trusted = False

    def __init__(self, world: World) -> None:
        self._world = world
        self.made: dict[str, Session] = {}  # containers that were created and never started
        self.live: dict[str, Session] = {}
        self.busy: set[str] = set()
        self.wrong: dict[str, tuple[str, ...] | None] = {}  # what differs from the lease, by lease
        self.mute = False  # answers no question; what it is told it does all the same
        self.launched: Counter[str] = Counter()

    def create(self, lease: Lease, user: str, mark: str) -> None:
        if lease.session in self.live:
            raise Broken(f"{lease.session} was launched twice")
        cells = {item.device: item.cells for item in lease.slices}
        self.made[lease.session] = Session(
            lease.session, lease.id, user, "", lease.profile, cells, mark, {"pid": 1}, "http://127.0.0.1:1",
            running=False,
        )  # fmt: skip

    def launch(self, name: str) -> None:
        session = replace(self.made.pop(name), running=True)
        self.launched[session.lease] += 1
        self.live[name] = session
        self._world.check(f"launch {name}")

    def end(self, name: str) -> None:
        self.made.pop(name, None)
        session = self.live.pop(name, None)
        if session is not None:
            self._world.ended(session)
        self._world.check(f"end {name}")

    # the Sessions interface

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        if self.mute:
            return dict.fromkeys(names, Presence.UNKNOWN)
        return {name: Presence.PRESENT if name in self.live else Presence.ABSENT for name in names}

    def list(self) -> tuple[Session, ...] | None:
        return None if self.mute else (*self.live.values(), *self.made.values())

    def remove(
        self,
        name: str,
        *,
        timeout: float,
        keep: Callable[[str], None] | None = None,
        known: Collection[Any] = (),
    ) -> bool:
        if keep is not None and name in self.live:
            keep(f"the last words of {name}")
        self.end(name)
        return True

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        if self.mute or lease.session not in self.live:
            return None
        return self.wrong.get(lease.id, ())

    def foreign(self) -> tuple[Foreign, ...]:
        return ()


class ModelSpawner(GPUPoolMixin):
    """A stock spawner over the model backend."""

    world: Any = None

    async def start(self) -> Any:  # stands where a stock spawner's start() stands
        raise AssertionError("never called: the mixin's start() comes first")

    @property
    def _sessions(self) -> Backend:
        return self.world.backend  # type: ignore[no-any-return]

    @property
    def pool(self) -> GPUPool:  # type: ignore[override]
        return self.world.pool  # type: ignore[no-any-return]

    async def _attach(self, session: Session) -> None:
        self.attached = session

    async def _end(self, lease: Lease, now: bool) -> bool:
        return bool(await self._backend(self._sessions.remove, lease.session, timeout=1))

    async def _answers(self, session: Session) -> None:
        return

    async def _check(self, lease: Lease) -> None:
        await self.pool.ask("record_check", lease.id, "an image", {}, passed=True)
        faults.point("check.done")


class Stock(Spawner):
    """What the mixin calls as its stock spawner."""

    async def start(self) -> Any:
        self.world.backend.create(self._lease, self.user.name, self._owner.mark())
        faults.point("create.done")
        self.world.backend.launch(self._lease.session)
        return "http://127.0.0.1:1"

    async def stop(self, now: bool = False) -> None:
        return

    async def poll(self) -> int | None:
        return 0


class PoolSpawner(GPUPoolMixin, Stock):
    """The mixin in front of the model's stock spawner."""

    world: Any = None
    _sessions = ModelSpawner._sessions
    pool = ModelSpawner.pool  # type: ignore[assignment]
    _attach = ModelSpawner._attach
    _end = ModelSpawner._end
    _check = ModelSpawner._check
    _answers = ModelSpawner._answers


@dataclass
class Row:
    """What the hub's database keeps of a server."""

    user: str
    started: float
    ready: bool = False


class Devices:
    """One GPU, and samples that say what the test wants."""

    def __init__(self, world: World) -> None:
        self._world = world

    def devices(self) -> tuple[Device, ...]:
        return (gpu(0),)

    def sample(self, slices: Any, processes: dict[str, tuple[Process, ...] | None]) -> Readings:
        busy = self._world.backend.busy
        found = {
            lease: Sample() if known is None else Sample(100.0 if lease in busy else 0.0, 1, 1)
            for lease, known in processes.items()
        }
        return Readings(leases=found, devices={})


class Counters:
    def verdict(self, decision: str) -> None: ...
    def reclaim(self, reason: str) -> None: ...
    def swept(self, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def gpu_seconds(self, group: str, state: str, seconds: float) -> None: ...
    def measured(self, conditions: object) -> None: ...


class World:
    """Everything that is there, and what may be crashed of it."""

    def __init__(self, url: str, crash_at: Callable[[str, int], bool] = lambda name, n: False) -> None:
        self.clock = Clock()
        self.url = url
        self.backend = Backend(self)
        self.rows: dict[str, Row] = {}
        self.spawners: dict[str, PoolSpawner] = {}
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.wants_end: set[str] = set()
        self.passed: list[str] = []
        self.crash_at = crash_at
        self.dead: set[str] = set()
        self.checks = 0
        self.broken = ""
        self._checking = False
        self.users = {name: n for n, name in enumerate(("ada", "grace", "linus", "alan"), 1)}
        self.boot_service()
        self._new_pool()

    # --- faults ------------------------------------------------------------------------------------

    def point(self, name: str) -> None:
        self.passed.append(name)
        if self.crash_at(name, len(self.passed)):
            self.dead.add("service" if name.startswith("sweep.") else "hub")
            raise Crash(name)

    # --- the rules ---------------------------------------------------------------------------------

    def check(self, after: str) -> None:
        """What must hold at every moment, seen by somebody who reads ledger and backend."""
        if self._checking:
            return
        self._checking = True
        try:
            self.checks += 1
            reader = self._reader
            broken = reader.verify()
            leases = {lease.id: lease for lease in reader.snapshot().leases}
            cells: set[tuple[str, int]] = set()
            for session in self.backend.live.values():
                lease = leases.get(session.lease)
                if lease is None or lease.state not in HOLDING:
                    broken.append(f"{session.name} runs, its lease holds nothing")
                    continue
                if {item.device: item.cells for item in lease.slices} != dict(session.cells):
                    broken.append(f"{session.name} runs on other cells than its lease holds")
                mine = {(device, cell) for device, held in session.cells.items() for cell in held}
                if mine & cells:
                    broken.append(f"{session.name} runs on cells of another session")
                cells |= mine
            if broken:
                self.fail(f"after {after}: {'; '.join(broken)}")
        finally:
            self._checking = False

    def ended(self, session: Session) -> None:
        """A session may end because its owner wanted it, or after a delivered warning of the full length."""
        if session.user in self.wants_end:
            return
        warned = None
        for event in self._reader.events(count=100_000):
            if event.lease == session.lease:
                warned = {"warn": event.at, "unwarn": None}.get(event.action, warned)
        # The sweep's own steps are `INTERVAL` apart; a warning counts from the look that gave it.
        if warned is None or self.clock.now - warned < WARN:
            self.fail(f"{session.name} was ended without a warning of {WARN} s")

    def fail(self, why: str) -> None:
        """A rule is broken.  Kept too, because who calls a backend takes its errors for "unknown"."""
        self.broken = self.broken or why
        raise Broken(why)

    # --- processes ---------------------------------------------------------------------------------

    def _watched(self, ledger: Ledger) -> Ledger:
        real = ledger.store.write

        @contextmanager
        def write() -> Iterator[Any]:
            with real() as tx:
                yield tx
            self.check("a commit")

        ledger.store.write = write  # type: ignore[method-assign]
        return ledger

    def _pool(self) -> GPUPool:
        config = Config(
            {"GPUPool": {"database_url": self.url, "profiles": [PROFILE], "watch_interval": 0.001}}
        )
        pool = GPUPool(config=config)
        pool._ledger = self._watched(Ledger(self.url, pool.policy, clock=self.clock, on_move=pool._moved))
        return pool

    @property
    def _reader(self) -> Ledger:
        if not hasattr(self, "_reading"):
            self._reading = Ledger(self.url, clock=self.clock)
        return self._reading

    def _new_pool(self) -> None:
        self.pool = self._pool()

    def boot_service(self) -> None:
        rules = Rules("reclaim", INTERVAL, ABSENCE, 5.0, undelivered_max=0, before_reclaim_timeout=0)
        devices = Devices(self)
        self.sweep = Sweep(self._pool(), devices, self.backend, self, rules, Counters(), clock=self.clock)

    async def recover(self) -> None:
        """Start again what died, and let people ask again for what they waited for."""
        while self.dead:
            dead, self.dead = self.dead, set()
            if "service" in dead:
                self.boot_service()
            if "hub" in dead:
                await self._reboot_hub()

    async def _reboot_hub(self) -> None:
        waiting = [user for user, row in self.rows.items() if not row.ready]
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        self.spawners.clear()
        self._new_pool()
        self.backend.mute = False  # a hub that boots waits until the backend answers
        for user, row in list(self.rows.items()):
            try:
                if await self.spawner(user).poll() is None:
                    row.ready = True
                    continue
                await self.spawner(user).run_post_stop_hook()
            except Crash:
                return
            if any(session.user == user for session in self.backend.live.values()):
                raise Broken(f"{user}'s session runs, and the hub that came back has forgotten it")
            del self.rows[user]
        for user in waiting:
            if user not in self.rows and user not in self.wants_end:
                await self.start(user)

    def spawner(self, user: str) -> PoolSpawner:
        if user not in self.spawners:
            orm = types.SimpleNamespace(created=datetime.datetime(2026, 1, 1), groups=[])
            person = types.SimpleNamespace(
                name=user, id=self.users[user], admin=False, orm_user=orm, settings={}
            )
            self.spawners[user] = PoolSpawner(user=person, user_options={"profile": "whole"})
            self.spawners[user].world = self
        return self.spawners[user]

    # --- what people and the hub do ------------------------------------------------------------------

    async def start(self, user: str) -> None:
        """As the hub does: the row is written first, then ``start()`` runs."""
        if user in self.rows:
            return
        self.wants_end.discard(user)
        self.rows[user] = Row(user, self.clock.now)
        spawner = self.spawner(user)
        self.tasks[user] = asyncio.create_task(self._starting(user, spawner))
        await self.settle()

    async def _starting(self, user: str, spawner: PoolSpawner) -> None:
        await spawner.start()
        if user in self.rows:
            self.rows[user].ready = True

    async def settle(self) -> None:
        """Let everything run that can run: until every start is done, dead, or known to wait in the queue."""
        for _ in range(2000):
            if self.dead:
                return
            running = [user for user, task in self.tasks.items() if not task.done()]
            for user, task in list(self.tasks.items()):
                if task.done() and not task.cancelled() and isinstance(task.exception(), Exception):
                    raise Broken(f"{user}'s start failed: {task.exception()!r}")
            leases = {lease.user: lease for lease in self._reader.snapshot().leases}
            if all(self._waits(user, leases.get(user)) for user in running):
                return
            await asyncio.sleep(0.001)
        raise Broken("a start neither ends nor waits")

    def _waits(self, user: str, lease: Lease | None) -> bool:
        """Whether a start has read its lease, and can do nothing but wait for it to change."""
        mine = self.spawners[user]._lease
        if lease is None or mine is None or lease.id != mine.id:
            return False
        return lease.state in ("queued", "stopping")

    async def stop_server(self, user: str) -> None:
        """As the hub does at a DELETE, in its order."""
        row = self.rows.get(user)
        if row is None:
            return
        spawner, task = self.spawner(user), self.tasks.pop(user, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if await spawner.poll() is None:
            await spawner.stop()
        await spawner.run_post_stop_hook()
        self.rows.pop(user, None)

    async def leave(self, user: str) -> None:
        """A person stops their server or their wait."""
        self.wants_end.add(user)
        known = user in self.rows
        await self._guarded(self.stop_server(user))
        await self.settle()
        if known and not self.dead and any(lease.user == user for lease in self._reader.snapshot().queue):
            raise Broken(f"{user} has left and still waits")

    async def poll_all(self) -> None:
        """The hub's own poll of the servers that it takes for ready."""
        for user, row in list(self.rows.items()):
            if row.ready and await self.spawner(user).poll() is not None:
                await self.spawner(user).run_post_stop_hook()
                del self.rows[user]

    async def pass_time(self, sweeps: int = 1) -> None:
        for _ in range(sweeps):
            self.clock.forward(INTERVAL)
            if any(not task.done() for task in self.tasks.values()):
                await self.pool.ask(
                    "beat", "hub", self.pool._process
                )  # the hub's own beat goes by the real clock
            await self._guarded(self.sweep.run())
            await self._guarded(self.poll_all())
            await self.settle()
            await self.recover()

    async def _guarded(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except Crash:
            return
        if self.broken:
            raise Broken(self.broken)

    # --- the hub as the service sees it --------------------------------------------------------------

    async def server(self, user: str, name: str) -> Server | None:
        row = self.rows.get(user)
        return None if row is None else Server(row.ready, "" if row.ready else "spawn", row.started)

    async def stop(self, user: str, name: str) -> None:
        if self.backend.mute and user not in self.wants_end:
            raise Broken(f"{user}'s session is stopped while nobody can see whether it works")
        try:
            await self.stop_server(user)
        except Crash as crash:
            raise Unavailable("The hub does not answer.", reason="hub") from crash

    def close(self) -> None:
        faults.install(None)
        for task in self.tasks.values():
            task.cancel()
        self._reading.close_database()
        for pool in (self.pool, self.sweep.pool):
            pool._worker.shutdown()
            if pool._ledger is not None:
                pool._ledger.close_database()


async def story(world: World) -> None:
    """A day on one GPU: a start, a queue, a cancel, a stop, an idle end, a session that dies, a silent backend."""
    faults.install(world.point)

    async def do(work: Awaitable[Any]) -> None:
        await world._guarded(work)
        await world.recover()

    await world.pass_time()
    await do(world.start("ada"))
    await do(world.start("grace"))
    await do(world.start("linus"))
    await do(world.leave("linus"))
    world.backend.mute = True
    await world.pass_time(6)
    world.backend.mute = False
    await do(world.leave("ada"))
    await world.pass_time(8)  # grace was granted, is idle, is warned, is stopped
    await do(world.start("alan"))
    world.wants_end.add("alan")
    for name in [name for name, session in world.backend.live.items() if session.user == "alan"]:
        world.backend.end(name)
    await world.pass_time(6)
    for user in world.users:
        await do(world.leave(user))
    world.clock.forward(world.pool.queue_keep)  # a place that nobody comes for is kept so long
    for _ in range(12):
        await world.pass_time()
        if not (world._reader.snapshot().leases or world.backend.live or world.backend.made):
            break
    else:
        backend = world.backend
        raise Broken(f"left over: {world._reader.snapshot().leases} {backend.live} {backend.made}")
    world.check("the end")
