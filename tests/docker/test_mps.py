"""Shares through MPS from end to end but for MPS: hub, containers, NVML and NVIDIA's daemon as stand-ins."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyterhub_gpupool.mps.daemon import Daemon
from jupyterhub_gpupool.mps.places import Place, place_of
from tests.hub.conftest import until
from tests.nvml.scenario import FakeProcess, Machine, a100, build
from tests.unit.test_mps import CONTROL

from .conftest import MakeHub
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

PROFILES = [{"slug": "part", "display_name": "Part of an A100", "gpu": {"memory": "1/4", "compute": 20}}]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    pytest.importorskip("pynvml", reason="the package nvidia-ml-py is not installed")
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    return Machine(tmp_path / "driver", build(tmp_path), [a100(0, uuid=f"GPU-{uuid.uuid4()}")])


@pytest.fixture
def place(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Where the daemon of the GPU is; it is ended with the test."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of mounts may be made here")
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    found = place_of(machine.gpus[0].uuid)
    yield found
    Daemon(machine.gpus[0].uuid, found, tmp_path).end()
    for folder in (found.root, found.memory):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hub(machine: Machine, place: Place, make_hub: MakeHub) -> HubUnderDocker:
    sections = {
        "GPUPoolService": {"devices": "nvidia"},
        "NvidiaDevices": {"library_dir": str(machine.folder), "node": "node", "mps": {"0": "*"}},
    }
    made = make_hub(profiles=PROFILES, sections=sections)
    made.start()
    return made


def test_sessions_meet_their_daemon_and_who_goes_past_it_is_stopped(
    hub: HubUnderDocker, machine: Machine, place: Place
) -> None:
    gpu = machine.gpus[0]
    stray, neighbour = hub.run("ada", "part"), hub.run("grace", "part")
    for lease in (stray, neighbour):
        now = hub.ledger().lease(lease.id)
        assert now is not None and now.rung == "mps+watchdog"
        found = hub.inspect(lease)
        assert f"{place.shm}:/dev/shm:rw" in found["HostConfig"]["Binds"]
        limits = [entry for entry in found["Config"]["Env"] if entry.startswith("CUDA_MPS_")]
        assert sorted(limits) == [
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=20",
            f"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0={lease.slices[0].memory_mib}M",
            "CUDA_MPS_PIPE_DIRECTORY=/run/gpupool-mps",
        ]
    pids = [hub.inspect(lease)["State"]["Pid"] for lease in (stray, neighbour)]
    shared = [Path(f"/proc/{pid}/root/dev/shm").stat().st_ino for pid in pids]
    assert shared == [place.shm.stat().st_ino] * 2 == [int((place.pipe / "memory").read_text())] * 2
    gpu.processes = [FakeProcess(pids[0], 900, 5), FakeProcess(pids[1], 900, 5, mps=True)]
    gpu.used = 1900
    machine.write()
    until(lambda: not hub.exists(stray), "the end of the session that goes past its daemon")
    ended = hub.ledger().lease(stray.id)
    assert ended is not None and f"go past the MPS daemon (pid {pids[0]})" in ended.reason
    assert hub.exists(neighbour)
    daemon = place.daemon()
    assert daemon is not None
    os.kill(daemon[0], signal.SIGKILL)

    def health() -> str:
        return hub.ledger().snapshot().devices[0].health_reason

    until(lambda: "its MPS daemon does not run" in health(), "the GPU to be barred")
    gpu.processes, gpu.used = [], 4
    machine.write()
    hub.delete("grace")
    hub.wait_gone("grace")
    until(lambda: place.daemon() is not None and not health(), "the daemon to be started again")
