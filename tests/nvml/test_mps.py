"""GPUs that a group shares through MPS, from the driver's words to the end of who goes past the daemon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError

from jupyterhub_gpupool.devices import Residue
from jupyterhub_gpupool.devices.nvidia.attribution import Shown
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.devices.nvidia.remains import Remains
from jupyterhub_gpupool.model import Device, Health, Mode, Sample
from jupyterhub_gpupool.rungs import Rung
from tests.ledger.conftest import HALF

from .conftest import MakeDevices, MakeMachine
from .scenario import FakeProcess, Machine, a100, h100, small
from .test_service import Pool
from .test_telemetry import look, opened, session, share

MINE, OTHER = os.getpid(), os.getppid()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """A process that is called as the server of MPS is."""
    program = tmp_path / "nvidia-cuda-mps-server"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        yield process.pid
        process.kill()


def test_a_gpu_with_mps_is_for_shares_of_its_group(
    machine: MakeMachine, devices: MakeDevices, caplog: pytest.LogCaptureFixture
) -> None:
    there = machine(a100(0), a100(1), h100(2, mig=(1, 1), instances={0: small(1, 0)}), a100(3))
    seen = devices(
        there, mps={"0": "lab", "GPU-a1000000*3": "*", "H100*": "lab", "T4": "lab"}, modes={"3": "whole"}
    )
    first, second, mig, whole = sorted(seen.devices(), key=lambda one: one.index)
    assert (first.mode, first.trust, first.usable) == (Mode.SHARE, "lab", True)
    assert (second.mode, second.trust) == (Mode.ANY, "")
    assert mig.health is whole.health is Health.BARRED
    assert "its mode is mig; allowed are share and any" in mig.health_reason
    assert "its mode is whole" in whole.health_reason
    assert "NvidiaDevices.mps names 'T4', and no GPU here is called so" in caplog.text
    assert "'H100*'" not in caplog.text


@pytest.mark.parametrize("group", ["", " lab", "x" * 256])
def test_what_is_no_group_is_refused(group: str) -> None:
    with pytest.raises(TraitError, match="allowed is the name of a group"):
        NvidiaDevices(mps={"0": group})


def test_who_is_no_client_goes_past(machine: MakeMachine, devices: MakeDevices, server: int) -> None:
    listed = [FakeProcess(server, 300), FakeProcess(MINE, 800, mps=True), FakeProcess(OTHER, 700)]
    gpu = a100(0, rates=50, used=1900, processes=listed)
    there = machine(gpu)
    held = {"a": share(gpu), "b": share(gpu), "c": share(gpu)}
    ours = {"a": session(MINE), "b": session(OTHER), "c": None}
    assert look(opened(devices, there), held, ours).strays == {}  # a GPU without MPS
    seen = opened(devices, there, mps={"0": "lab"})
    assert look(seen, held, ours).strays == {"a": (), "b": (OTHER,), "c": None}
    gpu.fails = {"nvmlDeviceGetMPSComputeRunningProcesses_v3": 3}
    there.write()
    assert look(seen, held, ours).strays == {"a": None, "b": None, "c": None}
    gpu.processes = []
    assert look(devices(machine(gpu, library=None), mps={"0": "lab"}), held, ours).strays == {}


def test_an_old_driver_tells_nobody_apart(machine: MakeMachine, devices: MakeDevices) -> None:
    gpu = a100(0, used=900, processes=[FakeProcess(MINE, 800)])
    seen = opened(devices, machine(gpu, library="old"), mps={"0": "lab"})
    assert look(seen, {"a": share(gpu)}, {"a": session(MINE)}).strays == {"a": None}


def test_what_clients_do_is_unknown_and_what_they_hold_is_not(
    machine: MakeMachine, devices: MakeDevices, server: int
) -> None:
    gpu = a100(
        0, rates=50, used=1900, processes=[FakeProcess(server, 300, 50), FakeProcess(MINE, 800, mps=True)]
    )
    seen = opened(devices, machine(gpu), mps={"0": "lab"})
    assert look(seen, {"a": share(gpu)}, {"a": session(MINE)}).leases["a"] == Sample(None, 800, 1)


def test_what_the_server_keeps_is_not_what_a_session_has_left() -> None:
    remains = Remains(["nvidia-*"], {1: Shown("nvidia-cuda-mps", 9.0)}.get)

    def left(used: int, served: int | None) -> Residue:
        listed = [[1, served, 0]]
        return remains.of(
            {"uuid": "u", "used": used, "reserved": 600, "processes": listed}, shared=False, ours=()
        )

    assert left(700, 690) == Residue(True) == left(5000, None)
    assert left(5000, 690).memory_mib == 4310


class Running:
    """Daemons that run, or do not."""

    def __init__(self) -> None:
        self.held: list[frozenset[str]] = []

    def look(self, devices: Iterable[Device], held: Collection[str]) -> tuple[Device, ...]:
        self.held.append(frozenset(held))
        return tuple(devices)


def test_a_session_that_goes_past_the_daemon_is_stopped_and_its_neighbour_is_not(
    machine: MakeMachine, devices: MakeDevices, tmp_path: Path
) -> None:
    gpu = a100(0)
    there: Machine = machine(gpu)
    bench, running = Pool(tmp_path, devices(there, mps={"0": "lab"})), Running()
    try:
        bench.pass_time()
        assert bench.device(gpu.uuid).health is Health.BARRED  # nobody has seen to its daemon
        stray: Any = bench.ask("ada", "lab", wish=HALF)
        assert stray.state == "queued"
        bench.sweep.mps._daemons = running  # type: ignore[assignment]
        bench.pass_time(2)
        neighbour = bench.ask("grace", "lab", wish=HALF)
        stray = bench.lease(stray)
        assert (stray.rung, neighbour.rung) == (Rung.MPS, Rung.MPS)
        bench.processes |= {"ada": (MINE,), "grace": (OTHER,)}
        gpu.processes = [FakeProcess(MINE, 900), FakeProcess(OTHER, 900, mps=True)]
        gpu.used = 1900
        there.write()
        bench.pass_time()
        assert bench.lease(stray).state == "active"
        bench.pass_time()
        found = bench.lease(stray)
        assert found.state == "stopping" and f"go past the MPS daemon (pid {MINE})" in found.reason
        assert bench.lease(neighbour).state == "active"
        assert bench.counters.reclaims == ["mps"]
        assert running.held[-1] == {gpu.uuid}
    finally:
        bench.close()
