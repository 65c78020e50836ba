"""SimulatedDevices: the same inventory each time, faults from a file, use from processes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from jupyterhub_gpupool.devices import Inventory, Readings, Telemetry
from jupyterhub_gpupool.devices.simulated import SimulatedDevices, set_fault
from jupyterhub_gpupool.model import Device, Health, Kind, Mode, Process, Sample, Slice
from jupyterhub_gpupool.sessions.local import LocalSessions

A100 = {"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 2, "mode": "any"}
H100 = {"model": "H100", "memory": "80G", "mig": ["3g.40gb", "1g.10gb", "1g.10gb"]}
UNKNOWN = Sample()
IDLE = Sample(utilization=0.0, memory_mib=0, processes=0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pool:
    """Simulated devices with a clock that a test moves, and leases by hand."""

    def __init__(self, folder: Path, gpus: list[dict[str, Any]]) -> None:
        self.clock = Clock()
        self.faults = folder / "faults.json"
        self.simulated = SimulatedDevices(
            clock=self.clock, gpus=gpus, node="n1", faults_file=str(self.faults)
        )
        self.devices = self.simulated.devices()
        self.held: dict[str, tuple[Slice, ...]] = {}
        self.processes: dict[str, tuple[Process, ...] | None] = {}

    def whole(self, index: int) -> Slice:
        return self.part(index, self.devices[index].cells)

    def part(self, index: int, cells: int, first: int = 0) -> Slice:
        device = self.devices[index]
        kind = Kind.GPU if cells == device.cells else Kind.SHARE
        return Slice(device.id, kind, tuple(range(first, first + cells)), device.cells, 1000, 0)

    def lease(self, name: str, *held: Slice, cpu: dict[int, float] | None = None) -> None:
        self.held[name] = held
        self.use(name, cpu or {1: 0.0})

    def use(self, name: str, cpu: dict[int, float], memory_mib: int = 100) -> None:
        """Say how many CPU seconds each process has used so far; pid 0 is the notebook server."""
        self.processes[name] = tuple(
            Process(pid, 50.0, seconds, memory_mib, server=pid == 0) for pid, seconds in cpu.items()
        )

    def after(self, seconds: float) -> Readings:
        self.clock.now += seconds
        return self.simulated.sample(self.held, self.processes)

    def device(self, readings: Readings, index: int = 0) -> Sample:
        return readings.devices[self.devices[index].id]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path, [A100, H100])


# --- inventory -------------------------------------------------------------------------------------


def test_devices_are_as_configured(pool: Pool) -> None:
    assert [(d.index, d.model, d.mode, d.cells) for d in pool.devices] == [
        (0, "A100-SXM4-80GB", Mode.ANY, 120),
        (1, "A100-SXM4-80GB", Mode.ANY, 120),
        (2, "H100", Mode.MIG, 8),
    ]
    first = pool.devices[0]
    assert (first.memory_mib, first.compute_capability, first.node) == (81920, "8.0", "n1")
    assert all(d.simulated and d.usable and d.id.startswith("GPU-") for d in pool.devices)
    assert [(i.profile, i.first, i.cells, i.memory_mib) for i in pool.devices[2].instances] == [
        ("3g.40gb", 0, 4, 40960),
        ("1g.10gb", 4, 1, 10240),
        ("1g.10gb", 5, 1, 10240),
    ]


def test_ids_are_unique_and_stay(pool: Pool, tmp_path: Path) -> None:
    def ids(devices: tuple[Device, ...]) -> list[str]:
        return [d.id for d in devices] + [i.id for d in devices for i in d.instances]

    again = Pool(tmp_path, [A100, H100])
    assert ids(again.devices) == ids(pool.devices)
    assert len(set(ids(pool.devices))) == 6
    assert all(i.id.startswith("MIG-") for i in pool.devices[2].instances)
    elsewhere = SimulatedDevices(gpus=[A100, H100], node="n2").devices()
    assert not set(ids(elsewhere)) & set(ids(pool.devices))


def test_the_defaults_simulate_nothing() -> None:
    simulated = SimulatedDevices()
    assert simulated.devices() == ()
    assert simulated.node == os.uname().nodename


@pytest.mark.parametrize(
    ("model", "memory", "mig", "layout"),
    [
        ("H100", "80G", ["7g.80gb"], [(0, 8)]),
        ("H100", "80G", ["1g.10gb"] * 7, [(n, 1) for n in range(7)]),
        ("H100", "80G", ["1g.20gb"] * 4, [(0, 2), (2, 2), (4, 2), (6, 2)]),
        ("H100", "80G", ["2g.20gb"] * 3 + ["1g.10gb"], [(0, 2), (2, 2), (4, 2), (6, 1)]),
        ("H100", "80G", ["1g.10gb", "4g.40gb"], [(4, 1), (0, 4)]),
        ("H100", "80G", ["4g.40gb", "3g.40gb"], [(0, 4), (4, 4)]),
        ("A100-SXM4-40GB", "40G", ["3g.20gb", "2g.10gb", "1g.5gb"], [(0, 4), (4, 2), (6, 1)]),
        ("H200", "141G", ["1g.18gb", "4g.71gb"], [(4, 1), (0, 4)]),
        ("A30", "24G", ["2g.12gb", "1g.6gb", "1g.6gb"], [(0, 2), (2, 1), (3, 1)]),
        ("Future", "40G", ["1g.10gb", "2g.20gb"], [(0, 1), (2, 2)]),
    ],
)
def test_instances_are_put_where_nvidia_allows(
    model: str, memory: str, mig: list[str], layout: list[tuple[int, int]]
) -> None:
    (device,) = SimulatedDevices(gpus=[{"model": model, "memory": memory, "mig": mig}]).devices()
    assert [(i.first, i.cells) for i in device.instances] == layout
    assert [i.profile for i in device.instances] == mig
    assert device.mode is Mode.MIG


@pytest.mark.parametrize("mig", [["4g.40gb"] * 2, ["1g.10gb"] * 8, ["7g.80gb", "1g.10gb"], ["2g.20gb"] * 4])
def test_instances_that_do_not_fit_are_refused(mig: list[str]) -> None:
    with pytest.raises(TraitError, match=r"gpus\[0\]: the instances of 'mig' do not fit together"):
        SimulatedDevices(gpus=[{"model": "H100", "memory": "80G", "mig": mig}])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("A100", "must be a dictionary with the keys model, memory"),
        ({"colour": "T4", "memory": "16G"}, "unknown key 'colour'; allowed: model, memory"),
        ({"memory": "16G"}, "lacks the key 'model'"),
        ({"model": "T4"}, "lacks the key 'memory'"),
        ({"model": " ", "memory": "16G"}, "'model' must be a text"),
        ({"model": "T4", "memory": "16G", "compute_capability": 7.5}, "'compute_capability' must be a text"),
        *(
            ({"model": "T4", "memory": m}, "'memory' must be")
            for m in ("", "x", "-1G", "nanG", "infG", 0, True, [])
        ),
        *(
            ({"model": "T4", "memory": "16G", "count": n}, "'count' must be")
            for n in (0, -1, 1.5, True, "2", 10**6)
        ),
        (
            {"model": "T4", "memory": "16G", "mode": "all"},
            "'mode' 'all' is not allowed without 'mig'; allowed: any",
        ),
        ({"model": "T4", "memory": "16G", "mode": "mig"}, "not allowed without 'mig'"),
        ({"model": "T4", "memory": "16G", "mode": []}, "not allowed without 'mig'"),
        ({**H100, "mode": "any"}, "'mode' 'any' is not allowed with 'mig'; allowed: mig"),
        ({**H100, "mig": "1g.10gb"}, "'mig' must be a list"),
        ({**H100, "mig": ["1g.11gb"]}, "'1g.11gb' is not known here; allowed: 1g.10gb, 1g.20gb, 2g.20gb"),
        ({**H100, "mig": [7]}, "MIG instance 7 is not known here"),
    ],
)
def test_a_wrong_entry_stops_at_load_with_a_sentence(entry: Any, said: str) -> None:
    config = Config()
    config.SimulatedDevices.gpus = [A100, entry]
    with pytest.raises(TraitError) as raised:
        SimulatedDevices(config=config)
    assert "SimulatedDevices.gpus[1]" in str(raised.value)
    assert said in str(raised.value)


# --- faults ----------------------------------------------------------------------------------------


def test_faults_come_and_go(pool: Pool) -> None:
    set_fault(pool.faults, 0, "sick")
    set_fault(pool.faults, pool.devices[1].id, "lost")
    set_fault(pool.faults, 2, "silent")
    found = pool.simulated.devices()
    assert [d.health for d in found] == [Health.SICK, Health.LOST, Health.OK]
    assert found[0].health_reason == "simulated fault: sick" and found[2].health_reason == ""
    set_fault(pool.faults, 0, None)
    assert [d.health for d in pool.simulated.devices()] == [Health.OK, Health.LOST, Health.OK]
    assert [path.name for path in pool.faults.parent.iterdir()] == ["faults.json"]
    pool.faults.unlink()
    assert pool.simulated.devices() == pool.devices


def test_a_fault_that_is_not_known_is_refused(pool: Pool) -> None:
    with pytest.raises(ValueError, match="'ill' is not known; allowed: sick, lost, silent"):
        set_fault(pool.faults, 0, "ill")
    assert not pool.faults.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("\x00\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["sick"]', "must be an object"),
        ('{"7": "sick"}', "device '7' is not simulated; allowed: 0, GPU-"),
        ('{"0": "ill"}', "fault 'ill' of device '0' is not known; allowed: sick, lost, silent"),
        ('{"0": []}', "fault [] of device '0' is not known"),
    ],
)
def test_a_broken_file_is_said_once_and_changes_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    messages: list[str] = []
    logger = logging.Logger("test")
    monkeypatch.setattr(logger, "error", lambda message, *args: messages.append(message % args))
    pool.simulated.log = logger
    set_fault(pool.faults, 1, "sick")
    before = pool.simulated.devices()
    pool.faults.write_text(text, encoding="latin-1")
    assert [pool.simulated.devices() for _ in range(3)] == [before] * 3
    assert len(messages) == 1 and said in messages[0]
    pool.faults.write_text("{}")
    assert pool.simulated.devices() == pool.devices


def test_a_file_that_cannot_be_read_changes_nothing(pool: Pool) -> None:
    set_fault(pool.faults, 1, "sick")
    before = pool.simulated.devices()
    pool.faults.unlink()
    pool.faults.mkdir()
    assert pool.simulated.devices() == before


# --- samples ---------------------------------------------------------------------------------------


def test_utilization_is_cpu_time_between_two_looks(pool: Pool) -> None:
    pool.lease("a", pool.whole(0))
    assert pool.after(0).leases["a"] == Sample(None, 100, 1)
    pool.use("a", {1: 1.0})
    assert pool.after(2).leases["a"] == Sample(50.0, 100, 1)
    assert pool.after(2).leases["a"] == Sample(0.0, 100, 1)


@pytest.mark.parametrize(
    ("before", "now", "utilization"),
    [
        ({1: 0.0}, {1: 1.0}, 10.0),
        ({1: 0.0}, {1: 80.0}, 100.0),
        ({1: 5.0}, {1: 4.0}, 0.0),
        ({1: 0.0, 2: 0.0}, {1: 1.0, 2: 2.0}, 30.0),
        ({1: 0.0}, {1: 0.0, 2: 3.0}, 30.0),
        ({1: 0.0, 2: 90.0}, {1: 2.0}, 20.0),
        ({0: 0.0, 1: 0.0}, {0: 9.0, 1: 1.0}, 10.0),
        ({0: 0.0}, {0: 9.0, 1: 1.0}, 10.0),
    ],
    ids=["one", "clamped", "backwards", "sum", "new", "ended", "server does not count", "first job"],
)
def test_utilization(pool: Pool, before: dict[int, float], now: dict[int, float], utilization: float) -> None:
    pool.lease("a", pool.whole(0), cpu=before)
    pool.after(0)
    pool.use("a", now)
    assert pool.after(10).leases["a"].utilization == pytest.approx(utilization)


def test_a_new_process_with_an_old_pid_counts_from_its_creation(pool: Pool) -> None:
    pool.lease("a", pool.whole(0), cpu={1: 50.0})
    pool.after(0)
    pool.processes["a"] = (Process(1, 60.0, 2.0, 100),)
    assert pool.after(10).leases["a"].utilization == pytest.approx(20.0)


def test_no_job_is_a_definite_zero_at_the_first_look(pool: Pool) -> None:
    pool.lease("a", pool.whole(0), cpu={0: 3.0})
    pool.held["b"], pool.processes["b"] = (pool.whole(1),), ()
    readings = pool.after(0)
    assert readings.leases == {"a": IDLE, "b": IDLE}
    assert pool.device(readings) == IDLE


def test_no_answer_of_the_backend_is_unknown_and_the_gap_is_averaged(pool: Pool) -> None:
    pool.lease("a", pool.whole(0))
    pool.after(0)
    pool.processes["a"] = None
    assert pool.after(5).leases["a"] == UNKNOWN
    del pool.processes["a"]
    readings = pool.after(5)
    assert readings.leases["a"] == UNKNOWN
    assert pool.device(readings) == UNKNOWN
    pool.use("a", {1: 10.0})
    assert pool.after(10).leases["a"].utilization == pytest.approx(50.0)


def test_two_looks_at_one_time_tell_nothing(pool: Pool) -> None:
    pool.lease("a", pool.whole(0))
    pool.after(0)
    pool.use("a", {1: 1.0})
    assert pool.after(0).leases["a"].utilization is None
    assert pool.after(2).leases["a"].utilization == pytest.approx(50.0)


def test_a_lease_that_went_and_came_begins_anew(pool: Pool) -> None:
    pool.lease("a", pool.whole(0))
    pool.after(0)
    held = pool.held.pop("a")
    assert pool.after(1).leases == {}
    pool.held["a"] = held
    assert pool.after(1).leases["a"].utilization is None


@pytest.mark.parametrize(("fault", "known"), [("silent", False), ("lost", False), ("sick", True)])
def test_a_device_that_says_nothing_leaves_all_unknown(pool: Pool, fault: str, known: bool) -> None:
    pool.lease("a", pool.whole(0), pool.whole(1))
    pool.after(0)
    set_fault(pool.faults, 1, fault)
    readings = pool.after(1)
    assert (readings.leases["a"] == Sample(0.0, 100, 1)) is known
    assert (readings.leases["a"] == UNKNOWN) is not known
    assert (pool.device(readings, 1) == UNKNOWN) is not known
    assert (pool.device(readings, 0) == UNKNOWN) is not known  # the lease on it is unknown
    assert pool.device(readings, 2) == IDLE


def test_a_silent_device_without_leases_is_unknown_too(pool: Pool) -> None:
    set_fault(pool.faults, 2, "silent")
    pool.held["a"], pool.processes["a"] = (pool.whole(2),), ()
    readings = pool.after(0)
    assert (readings.leases["a"], pool.device(readings, 2)) == (UNKNOWN, UNKNOWN)


def test_a_lease_on_a_device_that_is_no_more_is_unknown(pool: Pool) -> None:
    pool.held["a"] = (Slice("GPU-gone", Kind.GPU, (0,), 120, 10, 0),)
    pool.processes["a"] = ()
    assert pool.after(0).leases["a"] == UNKNOWN


def test_shares_weigh_by_their_cells(pool: Pool) -> None:
    pool.lease("a", pool.part(0, 30))
    pool.lease("b", pool.part(0, 60, 30))
    pool.after(0)
    pool.use("a", {1: 10.0}, memory_mib=700)
    pool.use("b", {1: 5.0}, memory_mib=300)
    readings = pool.after(10)
    assert (readings.leases["a"].utilization, readings.leases["b"].utilization) == (100.0, 50.0)
    assert pool.device(readings) == Sample(pytest.approx(50.0), 1000, 2)
    pool.processes["b"] = None
    assert pool.device(pool.after(1)) == UNKNOWN


def test_a_lease_of_two_gpus_is_as_busy_on_both_and_splits_its_memory(pool: Pool) -> None:
    pool.lease("a", pool.whole(0), pool.whole(1))
    pool.after(0)
    pool.use("a", {1: 5.0}, memory_mib=300)
    readings = pool.after(10)
    assert readings.leases["a"] == Sample(50.0, 300, 1)
    assert pool.device(readings, 0) == pool.device(readings, 1) == Sample(50.0, 150, 1)


def test_a_lease_without_a_gpu_is_sampled(pool: Pool) -> None:
    pool.lease("a")
    pool.after(0)
    pool.use("a", {1: 5.0})
    assert pool.after(10).leases["a"].utilization == pytest.approx(50.0)


def test_the_first_look_of_a_device_knows_memory_but_not_use(pool: Pool) -> None:
    pool.lease("a", pool.whole(0))
    assert pool.device(pool.after(0)) == Sample(None, 100, 1)


# --- with real processes ---------------------------------------------------------------------------


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[bytes]]:
    code = "while True: pass"
    env = {"GPUPOOL_POOL": f"sim-{os.getpid()}", "GPUPOOL_LEASE": "a", "GPUPOOL_EPOCH": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as process:
        yield process
        process.kill()


def test_a_busy_process_shows_up_and_its_end_too(burner: subprocess.Popen[bytes]) -> None:
    sessions = LocalSessions(f"sim-{os.getpid()}")
    simulated = SimulatedDevices(gpus=[A100])
    device = simulated.devices()[0]
    held = {"a": (Slice(device.id, Kind.GPU, tuple(range(120)), 120, device.memory_mib, 0),)}

    def utilization() -> float | None:
        found = {one.lease: one.processes for one in sessions.list() or ()}
        sample = simulated.sample(held, {"a": found.get("a", ())})
        assert sample.devices[device.id].utilization == sample.leases["a"].utilization
        return sample.leases["a"].utilization

    until(lambda: sessions.list())
    assert utilization() is None
    until(lambda: (utilization() or 0.0) > 5.0)
    burner.kill()
    burner.wait()
    assert utilization() == 0.0


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def test_it_is_an_inventory_and_a_telemetry(pool: Pool) -> None:
    inventory: Inventory = pool.simulated
    telemetry: Telemetry = pool.simulated
    assert set(telemetry.sample({}, {}).devices) == {device.id for device in inventory.devices()}


def test_a_faults_file_is_json(pool: Pool) -> None:
    set_fault(pool.faults, 0, "silent")
    assert json.loads(pool.faults.read_text()) == {"0": "silent"}


# --- where they sit ---------------------------------------------------------------------------------------


def test_gpus_sit_where_their_entry_says() -> None:
    cards = {"model": "A100", "memory": "80G", "count": 2}
    gpus = [
        {**cards, "numa": 0, "cpus": "0-7,16", "links": "NV12"},
        {**cards, "numa": 1},
        {**cards, "numa": 0, "count": 1},
        {**cards, "links": "PIX"},
    ]
    found = SimulatedDevices(gpus=gpus, node="n1").devices()
    assert [device.numa for device in found] == [0, 0, 1, 1, 0, None, None]
    assert [device.cpus for device in found] == ["0-7,16", "0-7,16", "", "", "", "", ""]
    told = [{other.index: dict(one.links).get(other.id, "") for other in found} for one in found]
    assert told[0] == {0: "", 1: "NV12", 2: "SYS", 3: "SYS", 4: "NODE", 5: "", 6: ""}
    assert told[2] == {0: "SYS", 1: "SYS", 2: "", 3: "NODE", 4: "SYS", 5: "", 6: ""}
    assert told[5] == {**dict.fromkeys(range(7), ""), 6: "PIX"}
    assert all(told[one][other] == told[other][one] for one in told[0] for other in told[0])


def test_nothing_is_known_of_a_place_that_nobody_has_named(pool: Pool) -> None:
    assert {(device.numa, device.cpus, device.links) for device in pool.devices} == {(None, "", ())}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *(("numa", value, "'numa' must be a whole number from 0 to 1023") for value in (-1, 1024, "0", True, 0.0)),
        *(("cpus", value, "'cpus' must be a list of CPUs") for value in ("a", "0-", "7-0", "4096", 3, [0], "0\n")),
        *(("links", value, "'links' must be SYS, NODE") for value in ("near", "NV", "NV0", 4, ["PIX"], "nv4")),
    ],
)  # fmt: skip
def test_a_place_that_is_none_stops_at_load_with_a_sentence(key: str, value: Any, said: str) -> None:
    with pytest.raises(TraitError, match=said) as raised:
        SimulatedDevices(gpus=[{"model": "T4", "memory": "16G", "numa": 0, key: value}])
    assert repr(value) in str(raised.value)
    if key == "cpus":
        with pytest.raises(TraitError, match="of the node that 'numa' names"):
            SimulatedDevices(gpus=[{"model": "T4", "memory": "16G", "cpus": "0-7"}])
