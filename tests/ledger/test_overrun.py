"""A session that holds more GPU memory than its share, in sweeps over a real ledger: it is stopped, and no other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from traitlets.config import Config

from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.devices.simulated import SimulatedDevices
from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import (
    Device,
    Kind,
    Lease,
    Mode,
    Owner,
    Presence,
    Process,
    Request,
    Sample,
    Session,
    Terms,
    Wish,
)
from jupyterhub_gpupool.notices import why_ended
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.sweep import Rules, Sweep
from jupyterhub_gpupool.watchdog import MEMORY, Patience

from .conftest import CPU, HALF, SMALL_MIG, THIRD, WHOLE, Clock, Make, gpu, mig_gpu, request_of, run, url_of
from .world import Counters

SHARE = 40960
PATIENCE = Patience(fraction=0.1, seconds=30.0)


class Stage:
    """Backend, hub and GPU of two people who share one GPU; ``holds`` is what their processes hold."""

    def __init__(self, ledger: Ledger, clock: Clock, mode: str = "reclaim") -> None:
        self.ledger, self.clock, self.mode = ledger, clock, mode
        self.leases = {user: run(ledger, user) for user in ("ada", "bob")}
        self.holds: dict[str, int | None] = dict.fromkeys(self.leases, 1000)
        self.stopped: list[str] = []
        self.devices_seen = (gpu(0),)
        self.pool = GPUPool(config=Config({"GPUPool": {"database_url": url_of(ledger)}}))
        self.pool._ledger = Ledger(url_of(ledger), self.pool.policy, clock=clock)
        self.begin()

    def begin(self) -> None:
        """Start the service, anew."""
        rules = Rules(self.mode, 10.0, undelivered_max=None, before_reclaim_timeout=0, patience=PATIENCE)
        self.sweep = Sweep(self.pool, self, self, self, rules, Counters(), clock=lambda: self.clock.now)  # type: ignore[arg-type]

    async def look_once(self, **holds: int | None) -> None:
        self.holds |= holds
        self.clock.now += 10
        assert await self.sweep.run()

    def of(self, user: str) -> Lease:
        found = self.ledger.lease(self.leases[user].id)
        assert found is not None
        return found

    # the inventory, the telemetry

    def devices(self) -> tuple[Device, ...]:
        return self.devices_seen

    def sample(self, slices: Any, processes: Any) -> Readings:
        users = {lease.id: user for user, lease in self.leases.items()}
        return Readings(leases={key: Sample(50.0, self.holds[users[key]], 1) for key in slices}, devices={})

    # the backend

    def list(self) -> tuple[Session, ...]:
        return tuple(
            Session(one.session, one.id, user, "", "p", {part.device: part.cells for part in one.slices})
            for user, one in self.leases.items()
        )

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        return dict.fromkeys(names, Presence.PRESENT)

    def foreign(self) -> tuple[()]:
        return ()

    # the hub

    async def server(self, user: str, name: str) -> Server | None:
        return Server(True, "", None)

    async def stop(self, user: str, name: str) -> None:
        self.stopped.append(user)


@pytest.fixture
def stage(make: Make, clock: Clock) -> Stage:
    return Stage(make(devices=(gpu(0),)), clock)


async def test_who_overruns_is_warned_then_stopped_with_the_reason_and_the_neighbour_stays(
    stage: Stage,
) -> None:
    await stage.look_once()
    await stage.look_once(ada=SHARE + 100)
    ada = stage.of("ada")
    assert (ada.warned_for, ada.deadline_seconds, ada.counting, ada.over_seconds) == (MEMORY, 30, False, 0)
    with pytest.raises(Rejected, match="An extension does not help here"):
        stage.ledger.extend(ada.id, "ada")
    left = []
    for _ in range(3):
        await stage.look_once(ada=50000)
        left.append(stage.of("ada").deadline_seconds)
    assert left == [20, 10, 0]
    ada, bob = stage.of("ada"), stage.of("bob")
    assert (ada.state, bob.state, set(stage.stopped)) == ("stopping", "active", {"ada"})
    assert (bob.warned_for, bob.over_seconds) == ("", None)
    assert why_ended(ada) == (
        "The pool took the GPU back after a warning: its processes hold 50000 MiB of GPU memory together, its "
        "share is 40960 MiB; more than 45056 MiB for 30 s of 30 s."
    )
    trail = [(event.action, event.actor) for event in stage.ledger.events(count=100) if event.lease == ada.id]
    assert trail[-2:] == [("warn", "service"), ("stop", "service")]


async def test_what_falls_back_is_not_stopped_and_the_time_goes_back_with_it(stage: Stage) -> None:
    await stage.look_once()
    for _ in range(3):
        await stage.look_once(ada=50000)
    assert stage.of("ada").over_seconds == 20
    await stage.look_once(ada=SHARE + 1)  # within what is tolerated: it stands still
    await stage.look_once(ada=None)  # unknown is no overrun
    ada = stage.of("ada")
    assert (ada.over_seconds, ada.deadline_seconds, ada.counting, ada.warned_for) == (20, 10, False, MEMORY)
    await stage.look_once(ada=100)
    assert stage.of("ada").over_seconds == 10
    await stage.look_once(ada=100)
    ada = stage.of("ada")
    assert (ada.over_seconds, ada.deadline_seconds, ada.warned_for, ada.state) == (None, None, "", "active")
    assert [e.action for e in stage.ledger.events(count=100) if e.lease == ada.id][-2:] == ["warn", "unwarn"]
    assert not stage.stopped


@pytest.mark.engine("sqlite")
async def test_a_service_that_was_away_counts_nothing_of_before(stage: Stage) -> None:
    await stage.look_once()
    for _ in range(3):
        await stage.look_once(ada=50000)
    stage.clock.now += 86400
    stage.ledger.resign(stage.sweep.holder)
    stage.begin()
    for expected in (0, 10, 20):
        await stage.look_once()
        assert (stage.of("ada").over_seconds, stage.of("ada").state) == (expected, "active")


@pytest.mark.engine("sqlite")
async def test_in_the_mode_observe_nobody_is_warned_and_nothing_counts(make: Make, clock: Clock) -> None:
    stage = Stage(make(devices=(gpu(0),)), clock, "observe")
    for _ in range(9):
        await stage.look_once(ada=50000)
    ada = stage.of("ada")
    assert (ada.state, ada.warned_for, ada.over_seconds) == ("active", "", None)
    assert "50000 MiB" in ada.verdict_reason and "nobody is warned" in ada.verdict_reason


@pytest.mark.engine("sqlite")
async def test_an_overrun_beside_another_warning_is_in_the_audit_trail_and_ends_the_session(
    stage: Stage,
) -> None:
    ada = stage.leases["ada"]
    stage.ledger.drain("GPU-0", stage.clock.now + 1e6, actor="root", why="dust")
    await stage.look_once()
    assert stage.of("ada").warned_for == "drain"
    await stage.look_once(ada=50000)
    found = stage.of("ada")
    assert found.warned_for == "drain" and "besides, its processes hold 50000 MiB" in found.verdict_reason
    assert [e.action for e in stage.ledger.events(count=100) if e.lease == ada.id][-1] == "overrun"
    for _ in range(3):
        await stage.look_once()
    assert (stage.of("ada").state, stage.of("ada").warned_for) == ("stopping", MEMORY)
    assert stage.of("bob").state == "active"


@pytest.mark.engine("sqlite")
async def test_what_two_notebooks_hold_together_is_summed_from_their_processes(
    make: Make, clock: Clock
) -> None:
    simulated = SimulatedDevices(gpus=[{"model": "T4", "memory": "1G"}], node="n1", clock=lambda: clock.now)
    stage = Stage(make(devices=simulated.devices()), clock)
    stage.sweep.inventory = stage.sweep.telemetry = simulated
    kernel = Process(7, 1.0, 0.0, 300)  # each keeps to the 512 MiB of its share

    def listed(kernels: int) -> None:
        found = (Process(6, 0.5, 0.0, 9999, server=True), *(replace(kernel, pid=n) for n in range(kernels)))
        both = Stage.list(stage)
        stage.list = lambda: (replace(both[0], processes=found), replace(both[1], processes=(kernel,)))  # type: ignore[method-assign]

    listed(1)
    await stage.look_once()
    assert (stage.of("ada").memory_used_mib, stage.of("ada").warned_for) == (300, "")
    listed(2)
    for _ in range(4):
        await stage.look_once()
    ada, bob = stage.of("ada"), stage.of("bob")
    assert (ada.state, bob.state, bob.warned_for) == ("stopping", "active", "")
    assert "600 MiB of GPU memory together, its share is 512 MiB" in ada.reason


# --- the rung ------------------------------------------------------------------------------------------------


LIMITED, FREE = {"memory": "limit"}, {"memory": "growth"}


def test_the_rung_in_force_is_on_the_lease_from_its_activation(make: Make) -> None:
    """Shares of different sizes on one GPU, a whole one, MIG and a simulated GPU, all on one machine."""
    wishes = {
        "framework+watchdog": (replace(HALF, model="A100*"), LIMITED),
        "watchdog": (replace(THIRD, model="A100*"), FREE),
        "devices": (replace(WHOLE, model="A100*"), LIMITED),
        "hardware": (SMALL_MIG, LIMITED),
        "watchdog (simulated)": (replace(HALF, model="T4"), LIMITED),
        "none": (CPU, LIMITED),
    }
    modes = gpu(0, mode=Mode.SHARE), gpu(1, mode=Mode.WHOLE), mig_gpu(2)
    ledger = make(devices=(*modes, gpu(3, simulated=True, model="T4")))
    on = []
    for number, (rung, (wish, tensorflow)) in enumerate(wishes.items()):
        lease = ledger.enqueue("hub", request_of(chr(ord("a") + number), wish))
        assert (lease.state, lease.rung) == ("starting", "")
        assert ledger.activate(lease.id, actor="test", tensorflow=tensorflow).rung == rung
        on += [part.device for part in lease.slices]
    assert on == ["GPU-0", "GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    found = ledger.enqueue("hub", request_of("zoe", replace(SMALL_MIG, model="H100")))
    assert ledger.activate(found.id, actor="test").rung == "hardware"  # whatever is known of TensorFlow


@pytest.mark.engine("sqlite")
def test_an_image_that_knows_nothing_of_us_keeps_to_no_limit(make: Make) -> None:
    ledger = make(devices=(gpu(0),))
    lease = ledger.enqueue("hub", request_of("ada", HALF))
    ledger.record_check(lease.id, "an image", {"problems": ["it has no check"]}, None)
    assert ledger.activate(lease.id, actor="ada", tensorflow=LIMITED).rung == "watchdog"


@pytest.mark.engine("sqlite")
def test_an_adopted_session_claims_no_more_than_is_known(ledger: Ledger) -> None:
    session = Session("p-l7-9", "l7", "ada", "", "p", {"GPU-0": tuple(range(60))}, "1:1.0")
    request = Request(Owner("ada", 1, 1.0), "", "p", Wish(Kind.SHARE, fraction="1"), Terms())
    adopted = ledger.adopt(session, request)
    assert adopted is not None and adopted.rung == "watchdog"


async def test_a_delivery_gives_an_overrun_no_more_time(stage: Stage) -> None:
    await stage.look_once()
    await stage.look_once(ada=50000)
    await stage.look_once()
    before = stage.of("ada")
    assert (before.warned_for, before.deadline_seconds, before.counting) == (MEMORY, 20, True)
    assert stage.ledger.deliver(before.id, before.warning, "page", "ada")
    after = stage.of("ada")
    assert (after.delivered_by, after.deadline_seconds, after.counting) == ("page", 20, True)
