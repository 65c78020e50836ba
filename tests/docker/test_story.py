"""The main job in containers, through a real hub: a session has exactly its slice, and nothing it must not have."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jupyterhub_gpupool.model import Lease
from tests.hub.conftest import until
from tests.hub.kills import events_of

from .hub import LABEL, HubUnderDocker

pytestmark = pytest.mark.docker

KINDS = {"whole": "gpu", "half": "share", "mig": "mig", "cpu": "cpu"}
MIB = 1 << 20


GIVEN: dict[str, Any] = {
    "profiles": [
        {
            "slug": "brief",
            "display_name": "Soon idle",
            "gpu": {"count": 1},
            "idle": {"window": 2, "warn": 3, "min_age": 0},
        },
        {
            "slug": "work",
            "display_name": "Idle a little later",
            "gpu": {"count": 1},
            "idle": {"window": 8, "warn": 4, "min_age": 0},
        },
    ],
}


@pytest.mark.parametrize("profile", KINDS)
def test_a_container_has_what_its_lease_says_and_no_more(hub: HubUnderDocker, profile: str) -> None:
    lease = hub.run("ada", profile)
    visible = [item.visible for item in lease.slices]
    assert lease.wish.kind == KINDS[profile] and bool(visible) == (profile != "cpu")
    is_hardened(hub, lease)
    is_labelled(hub, lease)
    # What was asked of the engine, what the runtime's hook was told, what the session sees: one and the same.
    requests = hub.inspect(lease)["HostConfig"]["DeviceRequests"] or []
    assert [one["DeviceIDs"] for one in requests] == ([visible] if visible else [])
    assert hub.shown(lease) == sorted(visible)
    told = hub.told("ada")
    assert told["NVIDIA_VISIBLE_DEVICES"] == (",".join(visible) or "void")
    assert told["GPUPOOL_LEASE"] == lease.id and told["GPUPOOL_SLICE"] == KINDS[profile]
    assert told["GPUPOOL_VISIBLE"] == ",".join(visible)
    assert (told["uid"], told["gid"]) == (1000, 100)
    assert told.get("GPUPOOL_SIMULATED") == ("1" if visible else None)
    assert told["GPUPOOL_PRECISION_AUTO"] == ("mixed_bfloat16" if visible else "float32")
    if visible:
        assert int(told["GPUPOOL_MEMORY_LIMIT_MB"]) == lease.slices[0].memory_mib
    assert hub.delete("ada").status_code in (202, 204)
    hub.wait_gone("ada")
    assert not hub.exists(lease) and hub.sessions(lease.id) == []


def is_hardened(hub: HubUnderDocker, lease: Lease) -> None:
    """The list of issue 3, as ``docker inspect`` and the inside of the container have it."""
    found = hub.inspect(lease)
    config: dict[str, Any] = found["Config"]
    host: dict[str, Any] = found["HostConfig"]
    assert config["User"] == "1000:100"
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges"]  # and so the default seccomp profile
    assert 0 < host["PidsLimit"] <= 4096
    assert host["Memory"] > 0 and host["MemorySwap"] in (0, host["Memory"])
    assert host["IpcMode"] == "private" and 64 * MIB <= host["ShmSize"] <= host["Memory"] / 2
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    assert "size=" in host["Tmpfs"]["/tmp"] and "nosuid" in host["Tmpfs"]["/tmp"]
    assert not host["Devices"] and not host["DeviceCgroupRules"] and not host["VolumesFrom"]
    assert host["RestartPolicy"]["Name"] in ("", "no") and host["AutoRemove"] is False
    assert host["LogConfig"]["Config"]["max-size"]
    assert host["NetworkMode"] == f"gpupool-{hub.pool_name}"
    assert host["PortBindings"] == {"8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert [point["Destination"] for point in found["Mounts"]] == ["/home/jovyan"]
    assert not any("docker.sock" in str(point) for point in found["Mounts"])
    network = hub.engine.client.networks.get(host["NetworkMode"])
    assert network.attrs["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    script = "grep -E '^(CapEff|CapBnd|CapPrm|NoNewPrivs|Seccomp):' /proc/1/status"
    _, said = hub.container(lease).exec_run(["sh", "-c", script])
    status = dict(line.split(":\t") for line in said.decode().splitlines())
    assert {int(status[name], 16) for name in ("CapEff", "CapBnd", "CapPrm")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    if lease.profile == "cpu":
        assert host["Memory"] == 1 << 30
        assert host["CpuQuota"] == host["CpuPeriod"] > 0 or host["NanoCpus"] == 10**9


def is_labelled(hub: HubUnderDocker, lease: Lease) -> None:
    labels = hub.container(lease).labels
    said = {key.removeprefix(LABEL): value for key, value in labels.items() if key.startswith(LABEL)}
    assert hub.container(lease).name == lease.session == f"{hub.pool_name}-{lease.id}-{lease.epoch}"
    assert (said["pool"], said["lease"], said["epoch"]) == (hub.pool_name, lease.id, str(lease.epoch))
    assert (said["user"], said["server"], said["profile"]) == (lease.user, lease.server, lease.profile)
    assert said["devices"] == ",".join(item.visible for item in lease.slices)


def test_two_people_on_two_shares_of_one_gpu(hub: HubUnderDocker) -> None:
    ada, grace = hub.run("ada", "half"), hub.run("grace", "half")
    [one], [other] = ada.slices, grace.slices
    assert one.device == other.device and not set(one.cells) & set(other.cells)
    assert hub.shown(ada) == hub.shown(grace) == [one.device]
    limits = [int(hub.told(user)["GPUPOOL_MEMORY_LIMIT_MB"]) for user in ("ada", "grace")]
    assert sum(limits) <= 80 * 1024
    volumes = {hub.inspect(lease)["Mounts"][0]["Name"] for lease in (ada, grace)}
    assert len(volumes) == 2
    hub.container(ada).exec_run(["sh", "-c", "echo mine > /home/jovyan/secret"])
    status, _ = hub.container(grace).exec_run(["cat", "/home/jovyan/secret"])
    assert status != 0
    ip = hub.inspect(ada)["NetworkSettings"]["Networks"][f"gpupool-{hub.pool_name}"]["IPAddress"]
    ask = f"import urllib.request as u; u.urlopen('http://{ip}:8888/user/ada/', timeout=2)"
    status, said = hub.container(grace).exec_run(["python3", "-c", ask])
    assert status != 0 and b"timed out" in said


def test_who_waits_gets_the_slice_once_the_container_is_gone(hub: HubUnderDocker) -> None:
    first = hub.run("ada")
    hub.spawn("grace")
    hub.wait_state("grace", "queued")
    assert not hub.containers(user="grace")
    answer = hub.pool("DELETE", f"api/leases/{first.id}", hub.token_of("ada"))
    assert answer.status_code in (200, 202, 204), answer.text
    hub.wait_ready("grace")
    second = hub.wait_state("grace", "active")
    assert second.slices == first.slices
    assert not hub.exists(first)
    hub.reachable(second)


def test_an_idle_container_is_warned_stopped_and_its_log_kept(hub: HubUnderDocker) -> None:
    lease = hub.run("ada", "brief")
    hub.ask_session("ada", "say?line=so+far+so+good")
    hub.spawn("grace")
    hub.wait_ready("grace")
    closed = hub.ledger().lease(lease.id)
    assert closed is not None and (closed.state, closed.stopped_by) == ("closed", "service")
    [warned], [stopped] = events_of(hub, lease, "warn"), events_of(hub, lease, "stop")
    assert stopped.at - warned.at >= 3
    assert "so far so good" in hub.ledger().log_of(lease.id)
    assert not hub.exists(lease)


def test_the_home_survives_and_nothing_else_does(hub: HubUnderDocker) -> None:
    first = hub.run("ada", "cpu")
    write = "echo kept > /home/jovyan/notes; echo lost > /tmp/notes; pip --version >/dev/null 2>&1; true"
    assert hub.container(first).exec_run(["sh", "-c", write])[0] == 0
    assert hub.container(first).exec_run(["sh", "-c", "echo no > /usr/bin/evil"])[0] != 0  # not root
    hub.delete("ada")
    hub.wait_gone("ada")
    second = hub.run("ada", "half")
    assert hub.container(second).id != second.id and second.id != first.id
    assert hub.container(second).exec_run(["cat", "/home/jovyan/notes"])[1] == b"kept\n"
    assert hub.container(second).exec_run(["cat", "/tmp/notes"])[0] != 0


def test_work_in_the_container_keeps_a_session(hub: HubUnderDocker) -> None:
    lease = hub.run("ada", "work")
    hub.ask_session("ada", "burn?seconds=25")
    until(
        lambda: (now := hub.ledger().lease(lease.id)) and (now.utilization or 0) > 20, "utilization to rise"
    )
    began = time.monotonic()
    while time.monotonic() - began < 14:  # longer than window and warning together
        now = hub.ledger().lease(lease.id)
        assert now is not None and now.state == "active"
        time.sleep(0.5)
    hub.wait_gone("ada", seconds=60)  # the work has ended, and so does the session
