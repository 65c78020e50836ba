"""Unknown is not idle: what cannot be seen is kept, and nothing is taken back without its full warning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from traitlets.config import Config

from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.devices.simulated import set_fault
from jupyterhub_gpupool.ledger import Event, Ledger
from jupyterhub_gpupool.model import (
    Device,
    Kind,
    Lease,
    Owner,
    Presence,
    Request,
    Sample,
    Session,
    State,
    Terms,
    Wish,
)
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.sweep import Rules, Sweep

from .conftest import HubUnderTest, until

# --- the sweep, with clocks that only the test moves ---------------------------------------------------

DAY = 86400.0
WINDOW, WARN, INTERVAL, MAX_AGE = 100.0, 50.0, 10.0, DAY / 2
IDLE, BUSY, UNKNOWN = Sample(0.0, 0, 1), Sample(90.0, 1000, 1), Sample()
GPU = Device("GPU-0", "n1", 0, "A100-SXM4-80GB", 81920)


class Clock:
    """Time that only a test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Counters:
    def verdict(self, decision: str) -> None: ...
    def reclaim(self, reason: str) -> None: ...
    def swept(self, seconds: float) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def gpu_seconds(self, group: str, state: str, seconds: float) -> None: ...


class Bench:
    """The real ledger and the real sweep over one session; the wall clock and the monotonic one are two.

    The bench itself is what the sweep sees as devices, sessions and hub.
    """

    def __init__(self, folder: Path, **terms: Any) -> None:
        self.wall, self.monotonic = Clock(1_700_000_000.0), Clock(5000.0)
        self.url = f"sqlite:///{folder / 'ledger.sqlite'}"
        self.ledger = Ledger(self.url, clock=self.wall)
        self.seen: Sample = IDLE
        self.present, self.mute = True, False
        self.stopped_at = 0.0
        self.ledger.sync_inventory([GPU])
        self.ledger.settle()
        self.ledger.register_hub("hub")
        self.owner = Owner("ada", 1, 1.0)
        rules = Terms(**{"window": WINDOW, "warn": WARN, "min_age": 0, **terms})
        lease = self.ledger.enqueue("hub", Request(self.owner, "", "whole", Wish(kind=Kind.GPU), rules))
        self.id = self.ledger.activate(lease.id, actor="ada").id
        self.boot()

    def boot(self) -> None:
        """Start a service, as after the kill of the one before."""
        pool = GPUPool(config=Config({"GPUPool": {"database_url": self.url}}))
        pool._ledger = self.ledger
        rules = Rules("reclaim", INTERVAL, 30.0, 5.0, undelivered_max=0, before_reclaim_timeout=0)
        self.sweep = Sweep(pool, self, self, self, rules, Counters(), clock=self.monotonic)

    @property
    def lease(self) -> Lease:
        lease = self.ledger.lease(self.id)
        assert lease is not None
        return lease

    def events(self, action: str) -> list[Event]:
        return [event for event in self.ledger.events(count=1000) if event.action == action]

    # what the sweep asks

    def devices(self) -> tuple[Device, ...]:
        return (GPU,)

    def sample(self, slices: Mapping[str, Any], processes: Mapping[str, Any]) -> Readings:
        found = {key: Sample() if processes[key] is None else self.seen for key in slices}
        return Readings(leases=found, devices={})

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        there = Presence.PRESENT if self.present else Presence.ABSENT
        return dict.fromkeys(names, Presence.UNKNOWN if self.mute else there)

    def list(self) -> tuple[Session, ...] | None:
        if self.mute:
            return None
        lease = self.lease
        cells = {item.device: item.cells for item in lease.slices}
        one = Session(lease.session, lease.id, "ada", "", "whole", cells, self.owner.mark())
        return (one,) if self.present else ()

    def foreign(self) -> tuple[Any, ...]:
        return ()

    async def server(self, user: str, name: str) -> Server | None:
        return Server(True, "", self.lease.requested_at)

    async def stop(self, user: str, name: str) -> None:
        self.present, self.stopped_at = False, self.monotonic.now

    # time

    def jump(self, wall: float = 0, monotonic: float = 0) -> None:
        self.wall.now += wall
        self.monotonic.now += monotonic

    def sweeps(self, count: int) -> None:
        async def run() -> None:
            for _ in range(count):
                self.jump(INTERVAL, INTERVAL)
                assert await self.sweep.run()

        asyncio.run(run())

    def until(self, probe: Callable[[Lease], bool], most: int = 60) -> float:
        """Sweep until the lease is so; the monotonic time at which it was."""
        for _ in range(most):
            if probe(self.lease):
                return self.monotonic.now
            self.sweeps(1)
        raise AssertionError(f"after {most} sweeps the lease is {self.lease}")

    def reclaimed(self) -> float:
        """Sweep until the session is stopped; the monotonic time at which it was."""
        self.until(lambda lease: lease.state is not State.ACTIVE)
        assert self.stopped_at
        return self.stopped_at


def warned(lease: Lease) -> bool:
    return lease.deadline_seconds is not None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_idle_session_is_warned_and_then_stopped(bench: Bench) -> None:
    """The bench can reclaim: without this nothing below says anything."""
    began = bench.monotonic.now
    at = bench.until(warned)
    assert at - began >= WINDOW
    assert bench.reclaimed() - at >= WARN
    [warn], [stop] = bench.events("warn"), bench.events("stop")
    assert stop.at - warn.at >= WARN


@pytest.mark.parametrize("days", [1, -1, 400, -400])
@pytest.mark.parametrize("after", [0, 5, 12])
def test_a_clock_that_jumps_takes_nothing_back(bench: Bench, days: float, after: int) -> None:
    """Before the first look, on the way to the warning, and inside the countdown."""
    began = bench.monotonic.now
    bench.sweeps(after)
    was = warned(bench.lease)
    assert was == (after == 12)
    bench.jump(wall=days * DAY)
    at = began + 11 * INTERVAL if was else bench.until(warned)
    assert at - began >= WINDOW
    assert bench.reclaimed() - at >= WARN
    assert len(bench.events("warn")) == 1


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_ends_no_session_by_age_without_warning(tmp_path: Path, days: float) -> None:
    bench = Bench(tmp_path, window=0, max_age=MAX_AGE)
    bench.sweeps(2)
    assert not warned(bench.lease)
    bench.jump(wall=days * DAY)
    if days < 0:
        bench.sweeps(20)
        assert bench.lease.state is State.ACTIVE and not warned(bench.lease)
        return
    at = bench.until(warned)
    assert bench.lease.warned_for == "max_age"
    assert bench.reclaimed() - at >= WARN


@pytest.mark.parametrize("after", [5, 12])
def test_a_service_that_hangs_for_a_day_counts_no_idleness_and_warns_in_full(
    bench: Bench, after: int
) -> None:
    """The monotonic clock runs on while the process is stopped."""
    bench.sweeps(after)
    bench.jump(wall=DAY, monotonic=DAY)
    back = bench.monotonic.now
    bench.sweeps(1)
    assert bench.lease.state is State.ACTIVE
    assert bench.reclaimed() - back >= WARN


def test_a_service_that_comes_back_gives_the_full_warning_again(bench: Bench) -> None:
    bench.until(lambda lease: lease.deadline_seconds is not None and lease.deadline_seconds <= INTERVAL)
    bench.jump(wall=10 * WINDOW, monotonic=10 * WINDOW)
    bench.boot()
    back = bench.monotonic.now
    bench.sweeps(1)
    assert bench.lease.deadline_seconds == WARN
    assert bench.reclaimed() - back >= WARN


@pytest.mark.parametrize("silent", ["device", "backend"])
def test_what_is_unknown_neither_warns_nor_ends(bench: Bench, silent: str) -> None:
    bench.seen, bench.mute = (UNKNOWN, False) if silent == "device" else (IDLE, True)
    bench.sweeps(50)
    assert bench.lease.state is State.ACTIVE and bench.lease.idle_seconds == 0
    assert bench.events("warn") == []
    assert (silent == "backend") == bool(bench.lease.doubt)
    bench.seen, bench.mute = IDLE, False
    back = bench.monotonic.now
    assert bench.reclaimed() - back >= WINDOW + WARN


def test_what_becomes_unknown_inside_the_countdown_stops_it(bench: Bench) -> None:
    bench.until(warned)
    bench.seen = UNKNOWN
    bench.sweeps(1)
    left = bench.lease.deadline_seconds
    bench.sweeps(50)
    assert bench.lease.state is State.ACTIVE and bench.lease.deadline_seconds == left == WARN
    bench.seen = IDLE
    back = bench.monotonic.now
    assert bench.reclaimed() - back >= WARN


def test_what_is_busy_at_the_last_look_is_kept(bench: Bench) -> None:
    """The warning has run out; the sample right before the stop shows work."""
    bench.until(lambda lease: lease.deadline_seconds is not None and lease.deadline_seconds <= INTERVAL)
    looks: list[Sample] = [IDLE, BUSY]
    bench.sample = lambda slices, processes: Readings(  # type: ignore[method-assign]
        leases={key: looks.pop(0) if looks else BUSY for key in slices}, devices={}
    )
    bench.sweeps(1)
    assert looks == []  # the second look was taken
    assert bench.lease.state is State.ACTIVE and bench.events("stop") == []
    bench.sweeps(1)
    assert not warned(bench.lease) and len(bench.events("unwarn")) == 1


# --- a real hub ----------------------------------------------------------------------------------------

SWEEP = 0.5
"""``GPUPoolService.sweep_interval`` of the tests' configuration."""
SHORT = {"window": 1, "warn": 3, "min_age": 0}
LONG = {"window": 1, "warn": 8, "min_age": 0}
PROFILES = [
    {"slug": "short", "display_name": "Soon idle", "gpu": {"count": 1}, "idle": SHORT},
    {"slug": "long", "display_name": "Long warning", "gpu": {"count": 1}, "idle": LONG},
    {"slug": "small", "display_name": "Soon idle, MIG", "gpu": {"mig": "1g.10gb"}, "idle": SHORT},
]
A100, H100 = 0, 1  # places in the inventory


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubUnderTest, Path]]:
    folder = tmp_path_factory.mktemp("unknown")
    hub = HubUnderTest(folder / "state", profiles=PROFILES)
    faults = hub.state / "faults.json"  # where the demo's simulated GPUs look
    hub.start()
    yield hub, faults
    hub.clean()


@pytest.fixture
def hub(running: tuple[HubUnderTest, Path], request: pytest.FixtureRequest) -> Iterator[HubUnderTest]:
    """The hub, empty before and after; every reclaim in its books had its warning."""
    hub, faults = running
    yield hub
    faults.unlink(missing_ok=True)
    if getattr(request.node, "failed", False):
        print(f"--- hub log ---\n{hub.tail(150)}")
        print(*hub.ledger().events(count=1000)[-60:], sep="\n")
    for lease in hub.ledger().snapshot().leases:
        hub.delete(lease.user, lease.server)
    for lease in hub.ledger().snapshot().leases:
        hub.wait_gone(lease.user, lease.server)
    assert hub.ledger().verify() == []
    warnings_delivered(hub)


@pytest.fixture
def faults(running: tuple[HubUnderTest, Path]) -> Path:
    return running[1]


def warnings_delivered(hub: HubUnderTest) -> None:
    """See that each reclaim has a stored warning that is at least `warn` older and was not taken back."""
    standing: dict[str, float] = {}
    for event in hub.ledger().events(count=1000):
        if event.lease is None:
            continue
        if event.action == "warn":
            standing[event.lease] = event.at
        elif event.action == "unwarn":
            del standing[event.lease]
        elif event.action == "stop" and event.actor == "service" and "by itself" not in event.reason:
            lease = hub.ledger().lease(event.lease)
            assert lease is not None
            assert event.at - standing[event.lease] >= lease.terms.warn, event


def events_of(hub: HubUnderTest, lease: Lease, action: str) -> list[Event]:
    return [e for e in hub.ledger().events(count=1000) if (e.lease, e.action) == (lease.id, action)]


def now(hub: HubUnderTest, lease: Lease) -> Lease:
    found = hub.ledger().lease(lease.id)
    assert found is not None
    return found


def test_a_silent_device_keeps_its_session(hub: HubUnderTest, faults: Path) -> None:
    set_fault(faults, H100, "silent")
    lease = hub.run("ada", "small")
    # Three times as long as the window and the warning of an idle session.
    seconds = 3 * (SHORT["window"] + SHORT["warn"])
    until(lambda: now(hub, lease).version >= lease.version + seconds / SWEEP, "so many sweeps", 60)
    seen = now(hub, lease)
    assert seen.state is State.ACTIVE and seen.utilization is None and "unknown" in seen.verdict_reason
    assert events_of(hub, lease, "warn") == []
    shown = hub.pool("GET", "api/pool").json()["devices"][H100]
    assert shown["utilization"] is None and shown["memory_used_mib"] is None
    set_fault(faults, H100, None)
    hub.wait_gone("ada")
    assert len(events_of(hub, lease, "warn")) == 1
    assert now(hub, lease).stopped_by == "service"


def test_a_sick_device_is_shown_is_not_granted_and_comes_back(hub: HubUnderTest, faults: Path) -> None:
    holder = hub.run("ada", "mig")
    set_fault(faults, A100, "sick")

    def health() -> str:
        return str(hub.pool("GET", "api/pool").json()["devices"][A100]["health"])

    until(lambda: health() == "sick", "the page to show it")
    hub.spawn("grace", "whole")
    waiting = hub.wait_state("grace", "queued")
    swept = now(hub, holder).version
    until(lambda: now(hub, holder).version >= swept + 6, "six sweeps")
    assert now(hub, waiting).state is State.QUEUED
    assert now(hub, holder).state is State.ACTIVE  # on a device that is well
    set_fault(faults, A100, None)
    hub.wait_ready("grace")
    assert hub.wait_state("grace", "active").id == waiting.id
    assert health() == "ok"


def test_work_inside_the_countdown_takes_the_warning_back(hub: HubUnderTest) -> None:
    lease = hub.run("ada", "long")
    until(lambda: now(hub, lease).deadline_seconds is not None, "a warning")
    hub.ask_session("ada", "burn?seconds=4")
    until(lambda: events_of(hub, lease, "unwarn"), "the warning to be taken back")
    assert now(hub, lease).state is State.ACTIVE
    hub.wait_gone("ada")
    assert len(events_of(hub, lease, "warn")) == 2  # that the second ran for its full time is seen to for all


def test_a_service_that_was_away_warns_in_full_again(hub: HubUnderTest) -> None:
    lease = hub.run("ada", "long")
    until(
        lambda: (now(hub, lease).deadline_seconds or LONG["warn"]) < LONG["warn"] / 2, "half of the warning"
    )
    former = hub.processes("jupyterhub_gpupool service")
    assert former
    hub.kill_service()
    psutil.wait_procs(former, timeout=20)
    last = now(hub, lease)
    # The hub starts it again; it waits until the one that was killed no longer counts as the leader.
    until(lambda: now(hub, lease).version > last.version + 1, "the next sweep", 60)
    back = now(hub, lease)
    assert back.verdict_at is not None and last.verdict_at is not None
    assert back.verdict_at - last.verdict_at > LONG["window"] + LONG["warn"]  # the outage was long enough
    assert back.state is State.ACTIVE and back.deadline_seconds is not None
    assert back.deadline_seconds > LONG["warn"] - 4 * SWEEP
    hub.wait_gone("ada")
    [stop] = events_of(hub, lease, "stop")
    assert stop.at - back.verdict_at > LONG["warn"] - 4 * SWEEP
