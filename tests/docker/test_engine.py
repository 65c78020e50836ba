"""The tests' own engine: it starts fast, may be killed and started again, and disturbs nobody."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
import requests

from tests.hub.conftest import until

from .engine import Engine, Network

pytestmark = pytest.mark.docker

GPU = docker.types.DeviceRequest(driver="nvidia", device_ids=["GPU-1", "GPU-2"], capabilities=[["gpu"]])


ASK = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=3).status)"


def run(engine: Engine, image: str, name: str, **given: Any) -> Any:
    return engine.client.containers.run(image, ["sleep", "600"], name=name, detach=True, init=True, **given)


def interfaces() -> set[str]:
    """Names of the network interfaces where this thread is."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


def test_device_requests_go_the_whole_way(engine: Engine, session_image: str) -> None:
    made = run(engine, session_image, "asks", device_requests=[GPU])
    assert engine.hook.visible(made.id) == ["GPU-1,GPU-2"]
    plain = run(engine, session_image, "asks-nothing", environment={"NVIDIA_VISIBLE_DEVICES": "void"})
    assert engine.hook.visible(plain.id) == []
    with engine.hook.failing("unknown device"), pytest.raises(docker.errors.APIError, match="unknown device"):
        run(engine, session_image, "fails", device_requests=[GPU])


def test_containers_reach_this_machine_but_not_each_other(engine: Engine, session_image: str) -> None:
    network = engine.client.networks.create(
        "reach", options={"com.docker.network.bridge.enable_icc": "false"}
    )
    network.reload()
    gateway = network.attrs["IPAM"]["Config"][0]["Gateway"]
    given = {"network": "reach", "environment": {"JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/"}}
    ports = {"8888/tcp": ("127.0.0.1", None)}
    one, other = (
        engine.client.containers.run(session_image, detach=True, ports=ports, **given) for _ in range(2)
    )
    one.reload()
    other.reload()
    published = f"http://127.0.0.1:{one.ports['8888/tcp'][0]['HostPort']}"
    until(lambda: answers(published), "the session to answer on this machine's loopback")
    with HTTPServer((gateway, 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        status, said = one.exec_run(["python3", "-c", ASK, f"http://{gateway}:{server.server_port}"])
        assert b"501" in said, said  # it was reached, and knows no GET
    inside = other.attrs["NetworkSettings"]["Networks"]["reach"]["IPAddress"]
    status, said = one.exec_run(["python3", "-c", ASK, f"http://{inside}:8888"])
    assert status != 0 and b"timed out" in said


def answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url, timeout=5).ok
    return False


def test_a_restart_ends_containers_and_a_kill_leaves_them(engine: Engine, session_image: str) -> None:
    made = run(engine, session_image, "lives")
    made.reload()
    pid = made.attrs["State"]["Pid"]
    engine.kill()
    assert not engine.answers()
    assert psutil.pid_exists(pid)
    engine.start()
    until(lambda: not psutil.pid_exists(pid), "the returning engine to end it")
    assert engine.client.containers.get("lives").status == "exited"
    other = run(engine, session_image, "stops")
    engine.restart()
    other.reload()
    assert other.status == "exited"


def test_the_machines_own_engine_is_not_disturbed(engine: Engine, own_network: Network) -> None:
    """The trap of two engines: one deletes the other's bridge.  Here each has a network of its own."""
    bridge = f"br-{engine.client.networks.create('own').id[:12]}"
    assert {bridge, "docker0"} <= interfaces()
    with own_network.outside():
        assert bridge not in interfaces()
