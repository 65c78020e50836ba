"""What the service makes of real devices: through the real sweep and ledger, and as metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jupyterhub_gpupool.devices import Condition, Readings
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.model import Device, Health, Kind, Presence, Process, Session, Wish
from jupyterhub_gpupool.service import metrics, shapes
from jupyterhub_gpupool.service.app import GPUPoolService
from jupyterhub_gpupool.service.metrics import Metrics
from jupyterhub_gpupool.status import view
from tests.ledger.bench import Bench

from .conftest import MakeDevices, MakeMachine
from .scenario import MISMATCH, FakeProcess, Machine, a100, h100, small

MINE = os.getpid()


class Pool(Bench):
    """A pool whose devices are real ones: every session of it runs in the processes that a test names."""

    def __init__(self, folder: Path, devices: NvidiaDevices, **settings: Any) -> None:
        super().__init__(f"sqlite:///{folder / 'bench.sqlite'}", 0, **settings)
        self.real = devices
        self.processes: dict[str, tuple[int, ...]] = {}  # user → pids
        self.passed: list[Mapping[str, Any]] = []

    def devices(self) -> tuple[Device, ...]:
        return self.real.devices()

    def sample(self, slices: Mapping[str, Any], processes: Mapping[str, Any]) -> Readings:
        self.passed.append(processes)
        return self.real.sample(slices, processes)

    def recall(self, devices: tuple[Device, ...]) -> None:
        self.real.recall(devices)

    def residues(self, *asked: Any) -> Mapping[str, Any]:
        return self.real.residues(*asked)

    def reaches(self, name: str) -> bool:
        return True

    def list(self) -> tuple[Session, ...] | None:
        found = tuple(one for one in super().list() if self.ledger.lease(one.lease).gone_at is None)  # type: ignore[union-attr]
        return found and tuple(
            Session(
                one.name,
                one.lease,
                one.user,
                one.server,
                one.profile,
                one.cells,
                one.owner,
                processes=tuple(Process(pid, 1.0, 0.0, 1) for pid in self.processes.get(one.user, ())),
            )
            for one in found
        )

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        there = {one.name for one in self.list() or ()}
        return {name: Presence.PRESENT if name in there else Presence.ABSENT for name in names}

    def device(self, key: str) -> Device:
        return next(one for one in self.ledger.snapshot().devices if one.id == key)


@pytest.fixture
def pool(tmp_path: Path, devices: MakeDevices) -> Iterator[Any]:
    made: list[Pool] = []

    def make(machine: Machine, **settings: Any) -> Pool:
        made.append(Pool(tmp_path, devices(machine), **settings))
        made[-1].pass_time()
        return made[-1]

    yield make
    for one in made:
        one.close()


IDLE = {"window": 30, "warn": 20}


def states(pool: Pool, lease: Any) -> tuple[str, str | None]:
    found = pool.lease(lease)
    return found.state, found.verdict


def test_a_session_is_kept_while_it_works_and_taken_back_when_it_does_not(
    machine: MakeMachine, pool: Any
) -> None:
    gpu = a100(0, rates=80, used=3000, processes=[FakeProcess(MINE, 2900, 80)])
    there = machine(gpu)
    bench = pool(there)
    bench.processes["ada"] = (MINE,)
    lease = bench.ask("ada", **IDLE)
    assert [part.device for part in lease.slices] == [gpu.uuid]
    bench.pass_time(8)
    assert states(bench, lease) == ("active", "keep")
    assert bench.lease(lease).utilization == 80 and bench.lease(lease).memory_used_mib == 3000
    gpu.rates, gpu.processes[0].sm = 0, 0  # the kernel holds its memory and does nothing
    there.gpus[0].live = False
    there.write()
    bench.pass_time(4)
    assert states(bench, lease) == ("active", "warn")
    bench.pass_time(3)
    assert bench.lease(lease).state == "stopping" and f"pid {MINE}" in bench.lease(lease).doubt
    gpu.processes, gpu.used = [], 4  # it has ended with its session
    there.write()
    bench.pass_time()
    assert bench.lease(lease).state == "closed"
    assert bench.counters.reclaims == ["idle"]


def test_a_driver_that_hangs_takes_nothing_back_and_holds_up_nobody(machine: MakeMachine, pool: Any) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there)
    lease = bench.ask("ada", **IDLE)
    bench.pass_time(4)
    assert states(bench, lease) == ("active", "warn")
    gpu.hangs = ["nvmlDeviceGetMemoryInfo_v2"]
    there.write()
    bench.real._helper._timeout = 0.3
    bench.pass_time(5)
    found = bench.lease(lease)
    assert (found.state, found.verdict) == ("active", "warn") and "unknown" in found.verdict_reason
    assert bench.device(gpu.uuid).usable  # nothing is known of it, so nothing has changed


def test_an_unknown_driver_is_logged_as_a_sentence(
    machine: MakeMachine, pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = a100(0)
    there = machine(gpu)
    bench = pool(there)
    gpu.hangs = ["nvmlDeviceGetUUID"]
    there.write()
    bench.real._helper._timeout = 0.3
    caplog.set_level(logging.WARNING)
    bench.pass_time(2)
    assert "hangs" in caplog.text and "Traceback" not in caplog.text


def test_nothing_is_granted_on_a_gpu_that_others_use_until_they_are_gone(
    machine: MakeMachine, pool: Any
) -> None:
    gpu = a100(0, used=900, processes=[FakeProcess(MINE, 800)])
    there = machine(gpu)
    bench = pool(there)
    bench.pass_time(2)
    assert bench.device(gpu.uuid).health is Health.BARRED
    lease = bench.ask("ada")
    bench.pass_time(2)
    assert bench.lease(lease).state == "queued"
    gpu.processes, gpu.used = [], 4
    there.write()
    bench.pass_time(2)
    assert bench.lease(lease).state == "active"
    told = [event.reason for event in bench.ledger.events(count=100) if event.action == "device-health"]
    assert any(f"barred: in use by a process that is not of this pool (pid {MINE})" in one for one in told)


def test_processes_of_a_session_that_starts_are_not_foreign(
    machine: MakeMachine, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = a100(0, used=900)
    there = machine(gpu)
    bench = pool(there)
    bench.processes["ada"] = (MINE,)
    monkeypatch.setattr(bench, "launch", lambda: None)
    lease = bench.ask("ada")
    gpu.processes = [FakeProcess(MINE, 800)]
    there.write()
    bench.pass_time(3)
    assert bench.lease(lease).state == "starting"
    assert lease.id in bench.passed[-1]
    assert bench.device(gpu.uuid).usable


def test_what_is_left_of_a_session_hides_no_foreign_process(
    machine: MakeMachine, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that does not run has no processes, whatever the backend says of them."""
    gpu = a100(0, used=900, processes=[FakeProcess(MINE, 800)])
    bench = pool(machine(gpu))
    left = Session("left", "gone", "ada", "", "whole", {}, processes=None, running=False)
    monkeypatch.setattr(bench.sweep.sessions, "list", lambda: (left,))
    monkeypatch.setattr(bench.sweep, "remove", lambda *_: asyncio.sleep(0, True))
    bench.pass_time(2)
    assert bench.device(gpu.uuid).health is Health.BARRED


def test_a_sick_gpu_is_granted_to_nobody_and_its_session_runs_on(machine: MakeMachine, pool: Any) -> None:
    sick, well = a100(0), a100(1)
    there = machine(sick, well)
    bench = pool(there)
    first = bench.ask("ada")
    there.happen(0, 0x8, 79)
    bench.pass_time()
    second, third = bench.ask("grace"), bench.ask("linus")
    assert bench.lease(second).slices[0].device == well.uuid
    assert bench.lease(third).state == "queued"
    assert bench.lease(first).state == "active"
    assert "XID 79" in bench.device(sick.uuid).health_reason


def test_a_driver_upgrade_fences_all_and_ends_nothing(machine: MakeMachine, pool: Any) -> None:
    there = machine(a100(0), a100(1))
    bench = pool(there)
    lease = bench.ask("ada", **IDLE)
    there.fails, there.init = {"*": MISMATCH}, MISMATCH
    there.write()
    bench.pass_time(8)
    assert {one.health for one in bench.ledger.snapshot().devices} == {Health.SICK}
    assert states(bench, lease) == ("active", "keep")


def test_instances_that_are_made_again_are_not_those_of_a_lease(machine: MakeMachine, pool: Any) -> None:
    """As after a reboot: same profile and place, another UUID.  The lease is not moved over to it."""
    gpu = h100(0, mig=(1, 1), instances={0: small(1, 0), 2: small(2, 1)})
    there = machine(gpu)
    bench = pool(there)
    lease = bench.ask("ada", wish=Wish(kind=Kind.MIG, mig="1g.10gb"), **IDLE)
    held = bench.lease(lease).slices[0].instance
    assert held == small(1, 0).uuid
    gpu.instances = {0: small(8, 0), 2: small(9, 1)}
    there.write()
    bench.pass_time(8)
    found = bench.lease(lease)
    assert (found.state, found.slices[0].instance) == ("active", held)
    assert found.utilization is None and found.verdict == "keep"  # nothing is known of what is not there


def test_a_new_order_of_gpus_moves_no_lease(machine: MakeMachine, pool: Any) -> None:
    one, other = a100(0), a100(1)
    there = machine(one, other)
    bench = pool(there)
    lease = bench.ask("ada")
    held = bench.lease(lease).slices[0].device
    there.gpus.reverse()
    there.write()
    bench.real._helper.close()
    bench.pass_time()
    assert bench.lease(lease).slices[0].device == held
    assert [bench.device(uuid).index for uuid in (other.uuid, one.uuid)] == [0, 1]


def test_the_state_of_the_driver_is_told_to_whoever_asks_for_the_services_health(
    machine: MakeMachine, pool: Any
) -> None:
    there = machine(a100(0))
    bench = pool(there)
    service = GPUPoolService()
    bench.sweep.inventory, bench.sweep.last_success = bench.real, time.monotonic()
    assert service._health(bench.sweep) == (True, "the last whole sweep was 0 s ago")
    there.fails, there.init = {"*": MISMATCH}, MISMATCH
    there.write()
    bench.pass_time()
    bench.sweep.last_success = time.monotonic()
    well, text = service._health(bench.sweep)
    assert well and "The NVIDIA driver was upgraded while it was in use" in text


def test_conditions_go_the_whole_way_and_are_forgotten_when_nothing_is_said(
    machine: MakeMachine, pool: Any
) -> None:
    """From the driver through the ledger to what REST, pages and the terminal show."""
    gpu = a100(0, power=61_400, temperature=40, ecc=2)
    there = machine(gpu)
    bench = pool(there)
    bench.pass_time()

    def shown() -> list[Any]:
        device = shapes.pool(bench.ledger.snapshot(), shapes.Person(None))["devices"][0]
        return [device[name] for name in ("power_watts", "temperature_celsius", "ecc_errors")]

    assert shown() == [61.4, 40, 2]
    assert "61 W, 40 °C, 2 ECC errors" in " ".join(view.frame(bench.ledger.snapshot(), 200, str))
    gpu.power, gpu.ecc = None, None
    there.write()
    bench.pass_time()
    assert shown() == [None, 40, None]
    assert "power unknown, 40 °C, ECC unknown" in " ".join(view.frame(bench.ledger.snapshot(), 200, str))


def test_conditions_are_metrics_while_they_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    made = Metrics(registry)
    made.measured({"GPU-1": Condition(61.5, 40, None), "GPU-2": Condition(None, None, 3)})
    text = generate_latest(registry).decode()
    assert 'gpupool_device_power_watts{device="GPU-1"} 61.5' in text
    assert 'gpupool_device_temperature_celsius{device="GPU-1"} 40.0' in text
    assert 'gpupool_device_ecc_errors_total{device="GPU-2"} 3.0' in text
    assert 'ecc_errors_total{device="GPU-1"}' not in text
    monkeypatch.setattr(metrics, "OLD", -1.0)
    assert "GPU-1" not in generate_latest(registry).decode()
