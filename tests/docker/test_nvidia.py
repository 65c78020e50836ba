"""Real GPUs from end to end but for the silicon: hub, containers and NVML over a stand-in for the driver."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from jupyterhub_gpupool.model import Lease
from tests.hub.conftest import until
from tests.hub.kills import events_of
from tests.nvml.scenario import FakeProcess, Machine, a100, build, h100, large, small

from .conftest import MakeHub
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

IDLE = {"window": 3, "warn": 2, "min_age": 0}
PROFILES = [
    {"slug": "a100", "display_name": "A100", "gpu": {"count": 1, "model": "A100*"}, "idle": IDLE},
    {"slug": "small", "display_name": "1g.10gb", "gpu": {"mig": "1g.10gb"}, "idle": IDLE},
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An A100, and an H100 with two MIG instances behind holes."""
    pytest.importorskip("pynvml", reason="the package nvidia-ml-py is not installed")
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    instances = {1: small(1, 0), 4: large(2)}
    return Machine(tmp_path / "driver", build(tmp_path), [a100(0), h100(1, mig=(1, 1), instances=instances)])


@pytest.fixture
def hub(make_hub: MakeHub, machine: Machine) -> HubUnderDocker:
    sections = {
        "GPUPoolService": {"devices": "nvidia"},
        "NvidiaDevices": {"library_dir": str(machine.folder), "node": "node"},
    }
    made = make_hub(profiles=PROFILES, sections=sections)
    made.start()
    return made


def now(hub: HubUnderDocker, lease: Lease) -> Lease:
    found = hub.ledger().lease(lease.id)
    assert found is not None
    return found


def test_a_session_has_its_gpu_and_loses_it_when_it_does_nothing(
    hub: HubUnderDocker, machine: Machine
) -> None:
    gpu = machine.gpus[0]
    lease = hub.run("ada", "a100")
    assert [part.visible for part in lease.slices] == [gpu.uuid]
    assert hub.shown(lease) == [gpu.uuid]
    told = hub.told("ada")
    assert told["NVIDIA_VISIBLE_DEVICES"] == told["GPUPOOL_VISIBLE"] == gpu.uuid
    assert "GPUPOOL_SIMULATED" not in told
    # A program of the session takes the GPU.
    pid = hub.inspect(lease)["State"]["Pid"]
    gpu.processes, gpu.rates, gpu.used = [FakeProcess(pid, 2900, 77)], 77, 3000
    machine.write()
    until(lambda: now(hub, lease).utilization == 77, "the utilization of the driver")
    busy_since = time.monotonic()
    while time.monotonic() - busy_since < IDLE["window"] + IDLE["warn"] + 2:
        found = now(hub, lease)
        assert (found.state, found.warned_at) == ("active", None)
        time.sleep(0.25)
    device = next(one for one in hub.pool("GET", "api/pool").json()["devices"] if one["id"] == gpu.uuid)
    assert (device["utilization"], device["memory_used_mib"], device["simulated"]) == (77, 3000, False)
    assert (device["health"], device["driver"]) == ("ok", "570.124.06")
    # It holds its memory, and does nothing more.
    gpu.rates, gpu.processes[0].sm = 0, 0
    machine.write()
    until(lambda: now(hub, lease).warned_at is not None, "the warning")
    # The container goes, and the driver still names a process of it: the GPU waits.
    until(lambda: f"pid {pid}" in now(hub, lease).doubt, "what is left on the GPU")
    assert now(hub, lease).state == "stopping" and not hub.exists(lease)
    assert hub.lease_of("ada", "") is not None
    gpu.processes, gpu.used = [], 4
    machine.write()
    hub.wait_gone("ada")
    closed = now(hub, lease)
    assert closed.stopped_by == "service" and not hub.exists(lease)
    [*_, warned], [stopped] = events_of(hub, lease, "warn"), events_of(hub, lease, "stop")
    assert stopped.at - warned.at >= IDLE["warn"]


def test_a_mig_instance_is_shown_by_its_own_uuid(hub: HubUnderDocker, machine: Machine) -> None:
    part = machine.gpus[1].instances[1]
    lease = hub.run("ada", "small")
    assert hub.shown(lease) == [part.uuid]
    # Use of a MIG instance is measured from sample to sample.
    pid = hub.inspect(lease)["State"]["Pid"]
    machine.gpus[1].processes = [FakeProcess(pid, 900, gi=part.gi, ci=part.ci)]
    part.use, part.used = 42.0, 1000
    machine.write()
    until(lambda: now(hub, lease).utilization == 42, "what GPM measures")
    # While the driver hangs nothing is known, and the session is kept.
    machine.hangs = ["nvmlDeviceGetUUID"]
    machine.write()
    until(lambda: now(hub, lease).utilization is None, "the utilization to be unknown")
    assert now(hub, lease).state == "active"
    hub.reachable(lease)
    assert hub.delete("ada").status_code in (202, 204)  # and nobody is held up
    until(lambda: "not known" in now(hub, lease).doubt, "the slice to be in doubt")
    machine.hangs, machine.gpus[1].processes, part.used = [], [], 12
    machine.write()
    hub.wait_gone("ada")
