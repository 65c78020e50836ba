"""Shares through MPS: the daemons with a stand-in for NVIDIA's program, the launch, and who goes past them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from traitlets import TraitError
from traitlets.config import Config

from jupyterhub_gpupool import containment, rungs, trust
from jupyterhub_gpupool.containment.readback import UNSAFE, labels_of, request_for, unlike
from jupyterhub_gpupool.devices import Readings
from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.model import (
    Decision,
    Device,
    Health,
    Kind,
    Lease,
    Sample,
    Slice,
    State,
    Terms,
    Verdict,
    Wish,
)
from jupyterhub_gpupool.mps import client
from jupyterhub_gpupool.mps import daemon as daemons
from jupyterhub_gpupool.mps.daemon import ISOLATED, Daemon
from jupyterhub_gpupool.mps.manager import GONE, SILENT, Daemons
from jupyterhub_gpupool.mps.places import Place, place_of
from jupyterhub_gpupool.mps.strays import Strays
from jupyterhub_gpupool.notices import Occasion, decide
from jupyterhub_gpupool.notices import Rules as NoticeRules
from jupyterhub_gpupool.rungs import Rung
from jupyterhub_gpupool.service import words
from jupyterhub_gpupool.service.app import GPUPoolService
from jupyterhub_gpupool.service.sharing import UNKNOWN
from jupyterhub_gpupool.service.sweep import Rules, Sweep
from jupyterhub_gpupool.spawners.docker import GPUPoolDockerSpawner

CONTROL = """#!/bin/sh
here=$(dirname "$0")
pipe="$CUDA_MPS_PIPE_DIRECTORY"
if [ "$1" = -f ]; then
    [ -e "$here/broken" ] && exit 3
    env > "$pipe/env"
    stat -L -c %i /dev/shm > "$pipe/memory"
    mkfifo "$pipe/control"
    while read -r line < "$pipe/control"; do [ "$line" = quit ] && exit 0; done
    exit 4
fi
read -r line
[ -p "$pipe/control" ] && [ ! -e "$here/mute" ] || exit 1
[ "$line" = quit ] && echo quit > "$pipe/control"
exit 0
"""
UUID = "GPU-a1000000-0000-4000-8000-000000000000"
GPU = Device(UUID, "n1", 0, "A100", 81920, mode="share", trust="lab")  # type: ignore[arg-type]
HALF = Slice(UUID, Kind.SHARE, tuple(range(60)), 120, 40000, 50)
LEASE = Lease(
    id="l1", user="ada", server="", profile="p", state=State.ACTIVE, version=1, epoch=1, session="s",
    wish=Wish(Kind.SHARE, fraction="1/2"), terms=Terms(window=60, warn=30, min_age=0), groups=(), options={},
    slices=(HALF,), gpus=0.5, group="", url="", runtime={}, requested_at=0.0, granted_at=0.0, active_at=0.0,
    rung=Rung.MPS,
)  # fmt: skip


class Bench:
    """Daemons of one test, in folders of its own."""

    def __init__(self, folder: Path, program: Path) -> None:
        # not in /dev/shm, as on a machine
        self.place, self.program, self.folder = Place(folder / "place", folder / "memory"), program, folder
        self.isolated: tuple[str, ...] = ()

    def daemon(self, device: str = UUID, logs: Path | None = None) -> Daemon:
        return Daemon(device, self.place, logs or self.folder / "logs", self.isolated)

    def service(self) -> Daemons:
        return Daemons(self.folder / "state", make=self.daemon)

    def pid(self) -> int:
        found = self.place.daemon()
        assert found is not None
        return found[0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    monkeypatch.setattr(daemons, "ANSWER", 2.0)
    made = Bench(tmp_path, program)
    yield made
    made.daemon().end()


# --- the daemons -----------------------------------------------------------------------------------------


def test_a_daemon_is_started_adopted_and_ended(bench: Bench) -> None:
    service = bench.service()
    assert service.look([GPU], held=()) == (GPU,)
    first = bench.pid()
    environment = (bench.place.pipe / "env").read_text().splitlines()
    assert f"CUDA_VISIBLE_DEVICES={UUID}" in environment
    assert f"CUDA_MPS_PIPE_DIRECTORY={bench.place.pipe}" in environment
    assert f"CUDA_MPS_LOG_DIRECTORY={bench.folder}/state/mps/{UUID}" in environment
    assert not any("secret" in line for line in environment)
    assert [folder.stat().st_mode & 0o7777 for folder in (bench.place.memory, bench.place.shm)] == [
        0o700,
        0o1777,
    ]
    service = bench.service()  # the next one
    assert service.look([GPU], held=[UUID]) == (GPU,) and bench.pid() == first
    service.end(held=[UUID])
    assert bench.pid() == first  # sessions outlive the service
    service.end(held=[])
    assert bench.place.daemon() is None


def test_a_dead_daemon_is_started_again_once_nobody_is_on_its_gpu(bench: Bench) -> None:
    service = bench.service()
    service.look([GPU], held=())
    first = bench.pid()
    (bench.place.shm / "left").write_text("of a session")
    os.kill(first, signal.SIGKILL)
    psutil.Process(first).wait(10)
    [barred] = service.look([GPU], held=[UUID])
    assert (barred.health, barred.health_reason) == (Health.BARRED, GONE)
    assert service.look([GPU], held=()) == (GPU,)
    assert bench.pid() != first
    assert list(bench.place.shm.iterdir()) == []


def test_a_mute_daemon_is_left_to_its_sessions_and_then_replaced(bench: Bench) -> None:
    service = bench.service()
    service.look([GPU], held=())
    first, mute = bench.pid(), bench.program.parent / "mute"
    mute.touch()
    assert service.look([GPU], held=[UUID])[0].health_reason == SILENT
    assert bench.pid() == first
    assert "does not answer" in service.look([GPU], held=())[0].health_reason
    mute.unlink()
    assert service.look([GPU], held=()) == (GPU,)


def test_what_cannot_be_started_bars_its_gpu_and_no_other(bench: Bench) -> None:
    (bench.program.parent / "broken").touch()
    plain, sick = replace(GPU, trust=""), replace(GPU, health=Health.SICK, health_reason="XID 79")
    found = bench.service().look([GPU, plain, sick], held=())
    assert "ended at once with status 3" in found[0].health_reason and found[1:] == (plain, sick)
    bench.program.unlink()
    assert "cannot be started" in bench.service().look([GPU], held=())[0].health_reason


def test_a_place_of_somebody_else_is_not_used(bench: Bench) -> None:
    bench.place.root.mkdir(mode=0o777)
    bench.place.root.chmod(0o777)
    assert (
        "is not a folder of this service's account alone" in bench.service().look([GPU], ())[0].health_reason
    )


def test_a_daemon_meets_its_clients_in_memory_of_its_own(bench: Bench) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of mounts may be made here")
    bench.isolated = ISOLATED
    assert bench.service().look([GPU], held=()) == (GPU,)
    assert int((bench.place.pipe / "memory").read_text()) == bench.place.shm.stat().st_ino
    assert bench.place.shm.stat().st_ino != Path("/dev/shm").stat().st_ino


# --- the launch ------------------------------------------------------------------------------------------


def test_a_session_is_led_to_its_daemon_with_its_limits() -> None:
    assert client.shared([HALF], [GPU]) is HALF
    assert client.shared([HALF], [replace(GPU, trust="")]) is None
    assert client.environment(HALF) == {
        "CUDA_MPS_PIPE_DIRECTORY": "/run/gpupool-mps",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=40000M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50",
    }
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in client.environment(replace(HALF, compute=0))
    assert all(containment.names.is_owned_variable(name) for name in client.environment(HALF))
    assert client.volumes(HALF) == {
        f"/run/gpupool-mps-{UUID}/pipe": "/run/gpupool-mps",
        f"/dev/shm/gpupool-mps-{UUID}/shm": "/dev/shm",
    }
    assert len(f"{place_of(UUID).pipe}/control_privileged") < 107  # the longest path of a socket


def test_nothing_is_launched_without_its_daemon_or_under_another_account(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="its daemon does not run"):
        client.check(HALF, account="1000:100", common="1000:100", place=bench.place)
    bench.service().look([GPU], held=())
    client.check(HALF, account="1000:100", common="1000:50", place=bench.place)
    for account, common in (("1001:100", "1000:100"), ("1000:100", None)):
        with pytest.raises(Unavailable, match="one account at a time"):
            client.check(HALF, account=account, common=common, place=bench.place)


def test_the_spawner_mounts_what_is_shared_and_tells_where(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "place_of", lambda device: bench.place)
    spawner: Any = SimpleNamespace(
        run_as="1000:100", volumes={"home": "/home/jovyan"}, _eval_if_callable=lambda value: value
    )
    with pytest.raises(Unavailable, match="daemon does not run"):
        GPUPoolDockerSpawner._join(spawner, HALF, {})
    bench.service().look([GPU], held=())
    GPUPoolDockerSpawner._join(spawner, HALF, {})
    assert set(spawner.volumes) == {"home", str(bench.place.pipe), str(bench.place.shm)}
    with pytest.raises(Unavailable, match="one account"):
        GPUPoolDockerSpawner._join(spawner, HALF, {"user": "1001:100"})
    spawner.run_as = lambda spawner: "1000:100"
    with pytest.raises(Unavailable, match="one account"):
        GPUPoolDockerSpawner._join(spawner, HALF, {"user": "1000:100"})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"/dev/shm/gpupool-mps-{UUID}/shm", ""),
        (f"/dev/shm/gpupool-mps-{UUID}", "host-path"),
        ("/dev/shm/gpupool-mps-GPU-other/shm", "host-path"),
        (f"/dev/shm/gpupool-mps-{UUID}/shm/../..", "host-path"),
        ("/dev/shm", "host-path"),
    ],
)
def test_what_is_shared_on_another_gpu_is_a_danger(source: str, said: str) -> None:
    labels = {**labels_of(LEASE, "lab"), "org.jupyterhub.gpupool.access": "runtime", UNSAFE: ""}
    host = {"DeviceRequests": request_for([UUID], "runtime"), "Binds": [f"{source}:/dev/shm:rw"]}
    config = {"Labels": labels, "User": "1000:100", "Env": [f"NVIDIA_VISIBLE_DEVICES={UUID}"]}
    found = " ".join(unlike({"HostConfig": host, "Config": config}, LEASE, "lab"))
    assert said in found if said else found == ""


def test_mps_needs_containers() -> None:
    config = Config({"GPUPoolService": {"backend": "local"}, "NvidiaDevices": {"mps": {"0": "lab"}}})
    with pytest.raises(TraitError, match="allowed with MPS is 'docker'"):
        GPUPoolService(config=config)._devices()


# --- who goes past it --------------------------------------------------------------------------------------

KEEP = Verdict(Decision.KEEP, "it is used")


def test_two_looks_in_a_row_and_no_unknown_one_between() -> None:
    strays = Strays()
    for seen, then in [
        ({"l1": (7,)}, Decision.KEEP),
        ({"l1": None}, Decision.KEEP),
        ({"l1": (7,)}, Decision.KEEP),
        ({}, Decision.KEEP),
        ({"l1": (7,)}, Decision.KEEP),
        ({"l1": ()}, Decision.KEEP),
        ({"l1": (7,)}, Decision.KEEP),
        ({"l1": (8,)}, Decision.RECLAIM),
    ]:
        strays.note(seen)
        assert strays.join("l1", KEEP).decision is then
        assert strays.join("l2", KEEP) is KEEP
    found = strays.join("l1", Verdict(Decision.WARN, "idle", 5.0, "idle"))
    assert (found.warned_for, found.deadline_seconds) == (trust.MPS, 0.0)
    assert "pid 8" in found.reason
    ends = Verdict(Decision.RECLAIM, "too old", 0.0, "max_age")
    assert strays.join("l1", ends) is ends


@pytest.mark.parametrize(
    ("mode", "rung", "decision", "deadline"),
    [
        ("reclaim", Rung.MPS, Decision.RECLAIM, 0.0),
        ("warn", Rung.MPS, Decision.WARN, 0.0),
        ("observe", Rung.MPS, Decision.RECLAIM, None),
        ("reclaim", Rung.FRAMEWORK, Decision.KEEP, None),  # launched before its GPU had a daemon
    ],
)
def test_the_sweep_stops_who_goes_past(
    mode: str, rung: Rung, decision: Decision, deadline: float | None
) -> None:
    sweep = Sweep(Any, SimpleNamespace(), Any, Any, Rules(mode, 10.0), Any)  # type: ignore[arg-type]
    lease = replace(LEASE, rung=rung)
    for _ in range(2):
        sweep.mps.note(Readings(strays={"l1": (7,), "gone": (8,)}), {"l1": lease})
    seen = sweep.observe(lease, Sample(50.0, 10, 1), 10.0, 1000.0)
    assert (seen.verdict.decision, seen.deadline_seconds) == (decision, deadline)


async def test_without_a_word_of_the_daemons_nothing_is_granted() -> None:
    sweep = Sweep(Any, SimpleNamespace(), Any, Any, Rules(), Any)  # type: ignore[arg-type]
    plain = replace(GPU, id="GPU-2", trust="")
    assert await sweep.mps.watch(None) is None
    assert await sweep.mps.watch((plain,)) == (plain,)
    found = await sweep.mps.watch((GPU, plain))
    assert found is not None and found[0].health_reason == UNKNOWN and found[1] == plain


def test_what_people_are_told() -> None:
    assert rungs.rung_of(Kind.SHARE, simulated=False, limited=True, mps=True) is Rung.MPS
    assert rungs.rung_of(Kind.GPU, simulated=False, limited=True, mps=True) is Rung.DEVICES
    said = rungs.in_words(Rung.MPS)
    assert all(part in said for part in ("/dev/shm", "one account", "a fatal error of one ends", "watchdog"))
    warned = replace(LEASE, warned_for=trust.MPS, deadline_seconds=0.0, verdict_reason="pid 7")
    assert "past" in words.rule_in_words(warned)
    assert "does not put this end off" in words.extension_in_words(warned)


@pytest.mark.parametrize("stops", [True, False])
def test_an_owner_is_told_that_it_ends_now(stops: bool) -> None:
    warned = replace(LEASE, warned_for=trust.MPS, deadline_seconds=0.0, warning="w1", warned_at=999.0)
    rules = NoticeRules(events={"warning": ("mail",)}, stops=stops)
    [told] = decide(rules, Occasion("warn", 1000.0, reason="pid 7", lease=warned, owner="ada"))
    assert told.subject == "Your GPU session “p” runs programs past MPS"
    assert ("It is stopped now." in told.text) is stops
    assert ("Nothing is stopped at present" in told.text) is not stops
