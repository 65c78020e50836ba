"""``DockerSessions`` against a real engine that fails: an error is never absence, and only proof is proof."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from jupyterhub_gpupool.containment.readback import ACCESS, PORT, UNSAFE, labels_of
from jupyterhub_gpupool.model import Lease, Presence, Session
from jupyterhub_gpupool.sessions.docker import ENGINE_ERRORS, LABEL, LOG_LINES, RECOVERY, DockerSessions
from tests.hub.conftest import until
from tests.unit.test_readback import held

from .engine import Engine
from .fault_proxy import FaultProxy

pytestmark = pytest.mark.docker

TIMEOUT = 2.0
"""Seconds after which these sessions take the engine for silent."""
LIST, INSPECT = r"^/containers/json", r"^/containers/[^/]+/json"
PRESENT, ABSENT, UNKNOWN = Presence.PRESENT, Presence.ABSENT, Presence.UNKNOWN

# What an engine can do instead of answering.
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"action": "status", "status": 500},
    "503": {"action": "status", "status": 503},
    "404": {"action": "status", "status": 404},
    "dropped": {"action": "drop_before"},
    "answer lost": {"action": "drop_after"},
    "silent": {"action": "hang"},
    "too late": {"action": "delay", "seconds": 2 * TIMEOUT},
}


class Clock:
    """The real clock, which a test may put forward."""

    skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(proxy: FaultProxy, clock: Clock) -> DockerSessions:
    return DockerSessions("lab", {"base_url": proxy.host}, timeout=TIMEOUT, clock=clock)


Launch = Callable[..., Container]


@pytest.fixture
def launch(engine: Engine, session_image: str) -> Launch:
    """Launch a container as a spawner would, and wait until it has said that it listens."""

    def launch(name: str, *command: str, start: bool = True, pool: str = "lab", **given: Any) -> Container:
        labels = {"pool": pool, "lease": f"lease-of-{name}", "epoch": "1", "user": "ada", "server": "second"}
        labels |= {"profile": "half", "owner": "7@1.5", "devices": "GPU-1", "cells": '{"GPU-1":"0-59"}'}
        labels |= given.pop("labels", {})
        told = {"JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/", "JUPYTERHUB_API_TOKEN": "secret"}
        made = engine.client.containers.create(
            session_image,
            list(command) or None,
            name=name,
            labels={LABEL + key: value for key, value in labels.items()},
            environment={**told, **given.pop("environment", {})},
            ports={"8888/tcp": ("127.0.0.1", None)},
            **given,
        )
        if start:
            made.start()
            until(lambda: command or b"listens" in made.logs(), f"{name} to listen")
            made.reload()
        return made

    return launch


def there(engine: Engine, name: str) -> bool:
    with contextlib.suppress(docker.errors.NotFound):
        engine.client.containers.get(name)
        return True
    return False


# --- the way to the GPU --------------------------------------------------------------------------------


def test_a_container_that_may_not_open_its_gpu_is_told_from_one_that_can(
    sessions: DockerSessions, launch: Launch
) -> None:
    """A node that is there and whose opening the device rules forbid is what `systemctl daemon-reload` leaves."""
    made = launch("reaches", user="0", cap_add=["MKNOD"])
    assert sessions.reaches("reaches") is None, "there is no driver in it"
    made.exec_run(["mknod", "-m", "666", "/dev/nvidiactl", "c", "195", "255"])
    assert sessions.reaches("reaches") is False
    made.exec_run(["rm", "/dev/nvidiactl"])
    made.exec_run(["mknod", "-m", "666", "/dev/nvidiactl", "c", "1", "3"])
    assert sessions.reaches("reaches") is True
    made.pause()
    assert sessions.reaches("reaches") is None
    made.unpause()
    assert sessions.reaches("never") is None


# --- look and list -------------------------------------------------------------------------------------


def test_what_runs_is_present_and_nothing_else(
    sessions: DockerSessions, launch: Launch, engine: Engine
) -> None:
    launch("runs")
    launch("paused").pause()
    launch("made", start=False)
    launch("ended").stop()
    launch("crashes", "false", restart_policy={"Name": "always"})
    until(
        lambda: engine.client.containers.get("crashes").status == "restarting", "the engine to start it again"
    )
    launch("another-pools", pool="other")
    engine.client.containers.run("gpupool-test-session", name="nobodys", detach=True, command=["sleep", "60"])
    names = ["runs", "paused", "made", "ended", "crashes", "never", "another-pools", "nobodys"]
    assert sessions.look(names) == {
        "runs": PRESENT,
        "paused": PRESENT,
        "crashes": PRESENT,
        "made": ABSENT,
        "ended": ABSENT,
        "never": ABSENT,
        "another-pools": ABSENT,
        "nobodys": ABSENT,
    }
    assert {one.name: one.running for one in sessions.list() or ()} == {
        "runs": True,
        "paused": True,
        "crashes": True,
        "made": False,
        "ended": False,
    }


def test_a_session_is_read_from_its_labels_and_its_processes(
    sessions: DockerSessions, launch: Launch
) -> None:
    made = launch("whole-story")
    made.exec_run(["sleep", "600"], detach=True)
    until(lambda: len(made.top()["Processes"]) == 2, "the second process")
    [found] = sessions.list() or ()
    port = made.ports["8888/tcp"][0]["HostPort"]
    assert (found.name, found.lease, found.user, found.server) == (
        "whole-story",
        "lease-of-whole-story",
        "ada",
        "second",
    )
    assert (found.profile, found.owner) == ("half", "7@1.5")
    assert found.cells == {"GPU-1": tuple(range(60))}
    assert found.url == f"http://127.0.0.1:{port}"
    assert found.runtime["id"] == made.id
    assert found.processes is not None
    pids = {one.pid: one for one in found.processes}
    server = made.attrs["State"]["Pid"]
    assert set(pids) == {int(row[1]) for row in made.top()["Processes"]}
    assert [pid for pid, one in pids.items() if one.server] == [server]
    [again] = sessions.list() or ()
    assert {(one.pid, one.created) for one in again.processes or ()} == {
        (pid, one.created) for pid, one in pids.items()
    }
    assert sessions.token("whole-story") == "secret"


@pytest.mark.parametrize("cells", ["", "no json", "[]", '{"GPU-1": "0-500"}', "[" * 100_000])
def test_labels_that_cannot_be_read_hide_no_session(
    sessions: DockerSessions, launch: Launch, cells: str
) -> None:
    launch("odd", "sleep", "60", labels={"cells": cells})
    [found] = sessions.list() or ()
    assert (found.name, found.cells, found.running) == ("odd", {}, True)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_an_engine_that_fails_says_nothing(
    sessions: DockerSessions, launch: Launch, proxy: FaultProxy, clock: Clock, fault: dict[str, Any]
) -> None:
    launch("runs", "sleep", "600")
    assert sessions.look(["runs", "never"]) == {"runs": PRESENT, "never": ABSENT}
    with proxy.fault(method="GET", path=LIST, **fault) as rule:
        assert sessions.look(["runs", "never"]) == {"runs": UNKNOWN, "never": UNKNOWN}
        assert sessions.list() is None
        assert rule.hits >= 2
    after_an_error(sessions, clock)


def of_lease(lease: Lease, *devices: str) -> dict[str, Any]:
    """A launch as a spawner makes it for this lease, with these devices."""
    labels = labels_of(lease, "lab") | {ACCESS: "runtime", UNSAFE: "", PORT: "8888"}
    asked = docker.types.DeviceRequest(driver="nvidia", device_ids=list(devices), capabilities=[["gpu"]])
    return {
        "labels": {key.removeprefix(LABEL): value for key, value in labels.items()},
        "device_requests": [asked],
        "pids_limit": 1024,
        "environment": {"NVIDIA_VISIBLE_DEVICES": ",".join(item.visible for item in lease.slices)},
    }


def test_a_container_is_compared_with_its_lease(
    sessions: DockerSessions, launch: Launch, engine: Engine, proxy: FaultProxy
) -> None:
    lease = held("GPU-1")
    assert sessions.differs(lease) is None  # there is none
    launch(lease.session, **of_lease(lease, "GPU-1"))
    assert sessions.differs(lease) == ()
    for path in (LIST, INSPECT):
        with proxy.fault("status", "GET", path, status=500):
            assert sessions.differs(lease) is None
    engine.client.containers.get(lease.session).remove(force=True)
    launch(lease.session, **{**of_lease(lease, "GPU-1", "GPU-2"), "privileged": True, "environment": {}})
    said = "; ".join(sessions.differs(lease) or ())
    for wrong in ("the devices GPU-1, GPU-2", "the danger privileged", "NVIDIA_VISIBLE_DEVICES is 'all'"):
        assert wrong in said
    other = held("GPU-1", "GPU-2")
    assert "its label" in (sessions.differs(other) or ("",))[0]


def after_an_error(sessions: DockerSessions, clock: Clock) -> None:
    """What is there is seen at once; that something is not there is believed a little later."""
    assert sessions.look(["runs"]) == {"runs": PRESENT}
    assert [one.name for one in sessions.list() or ()] == ["runs"]
    assert sessions.look(["never"])["never"] in (UNKNOWN, ABSENT)
    clock.skipped += RECOVERY + 0.1
    assert sessions.look(["never"]) == {"never": ABSENT}


def test_an_engine_that_refuses_connections_says_nothing(
    sessions: DockerSessions, launch: Launch, proxy: FaultProxy, clock: Clock
) -> None:
    launch("runs", "sleep", "600")
    with proxy.refusing():  # not even asked before
        assert sessions.look(["runs", "never"]) == {"runs": UNKNOWN, "never": UNKNOWN}
        assert sessions.list() is None
        assert sessions.foreign() is None
        assert not sessions.remove("runs", timeout=1)
        assert sessions.token("runs") is None
    assert sessions.look(["never"]) == {"never": UNKNOWN}
    after_an_error(sessions, clock)


def test_an_engine_that_is_killed_and_comes_back(
    sessions: DockerSessions, launch: Launch, engine: Engine
) -> None:
    launch("runs")
    assert sessions.look(["runs"]) == {"runs": PRESENT}
    engine.kill()
    assert sessions.look(["runs", "never"]) == {"runs": UNKNOWN, "never": UNKNOWN}
    engine.start()  # without live-restore it ends what ran
    assert sessions.look(["never"]) == {"never": UNKNOWN}
    until(lambda: sessions.look(["runs"])["runs"] is ABSENT, "the container to be seen as ended", 10)
    [found] = sessions.list() or ()
    assert (found.name, found.running) == ("runs", False)


def test_what_happens_behind_our_back_is_seen(
    sessions: DockerSessions, launch: Launch, engine: Engine
) -> None:
    made = launch("runs")
    made.restart()
    assert sessions.look(["runs"]) == {"runs": PRESENT}
    [restarted] = sessions.list() or ()
    assert restarted.runtime["id"] == made.id
    made.pause()
    assert sessions.look(["runs"]) == {"runs": PRESENT}
    made.unpause()
    made.kill()
    assert sessions.look(["runs"]) == {"runs": ABSENT}
    made.remove()
    assert sessions.look(["runs"]) == {"runs": ABSENT}
    assert sessions.list() == ()


# --- remove ----------------------------------------------------------------------------------------------


def test_remove_ends_what_is_ours_in_any_state(
    sessions: DockerSessions, launch: Launch, engine: Engine
) -> None:
    launch("runs")
    launch("paused").pause()
    launch("made", start=False)
    launch("ended").stop()
    launch(
        "stubborn", "python3", "-c", "import time; time.sleep(600)"
    )  # as first process it hears no SIGTERM
    for name in ("runs", "paused", "made", "ended", "stubborn", "never"):
        began = time.monotonic()
        assert sessions.remove(name, timeout=4), name
        assert time.monotonic() - began < 6, name
        assert not there(engine, name)


def test_remove_takes_the_last_lines_and_the_nameless_volumes(
    sessions: DockerSessions, launch: Launch, engine: Engine
) -> None:
    engine.client.volumes.create("kept")
    script = f"for n in range({LOG_LINES + 50}): print('line', n)\nprint('\\udcff'.encode('utf8','surrogateescape'))"
    volumes = ["kept:/home/jovyan", "/extra"]  # the second has no name
    made = launch("talks", "python3", "-uc", script, volumes=volumes)
    assert len(engine.client.volumes.list()) == 2
    made.wait()
    lines: list[str] = []
    assert sessions.remove("talks", timeout=4, keep=lines.append)
    [text] = lines
    assert len(text.splitlines()) == LOG_LINES and f"line {LOG_LINES + 49}" in text
    assert [one.name for one in engine.client.volumes.list()] == ["kept"]


def test_remove_leaves_what_is_not_ours(sessions: DockerSessions, launch: Launch, engine: Engine) -> None:
    launch("theirs", "sleep", "600", pool="other")
    engine.client.containers.run(
        "gpupool-test-session", name="nobodys", detach=True, command=["sleep", "600"]
    )
    for name in ("theirs", "nobodys"):
        assert not sessions.remove(name, timeout=2)
        assert engine.client.containers.get(name).status == "running"


STOP, DELETE = ("POST", r"/stop"), ("DELETE", r"^/containers/")


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        pytest.param(at, fault, id=f"{at[0]} {name}")
        for at in (STOP, DELETE, ("GET", INSPECT))
        for name, fault in FAULTS.items()
        if (at[0], name) != ("GET", "404")  # that is the engine's definite word
    ],
)
def test_remove_claims_nothing_without_proof(
    sessions: DockerSessions,
    launch: Launch,
    proxy: FaultProxy,
    engine: Engine,
    clock: Clock,
    at: tuple[str, str],
    fault: dict[str, Any],
) -> None:
    launch("runs")
    method, path = at
    with proxy.fault(method=method, path=path, **fault) as rule:
        claimed = sessions.remove("runs", timeout=3)
        assert rule.hits
        # A stop that failed or a lost answer may leave it gone; to say so needs to have seen it.
        assert not (claimed and there(engine, "runs"))
    until(lambda: not proxy_busy(proxy), "late requests to be done", 10)
    clock.skipped += RECOVERY + 0.1
    assert sessions.remove("runs", timeout=4)
    assert not there(engine, "runs")


def proxy_busy(proxy: FaultProxy) -> bool:
    """Whether a request that was delayed is still on its way."""
    return any(one.answer == "delay" and time.time() - one.at < 3 * TIMEOUT for one in proxy.seen())


def test_an_engine_that_lies_about_the_removal_is_not_believed(
    sessions: DockerSessions, launch: Launch, proxy: FaultProxy, engine: Engine
) -> None:
    """404 and 409 to the removal mean "on its way already": the look afterwards decides."""
    launch("runs")
    for status in (404, 409):
        with proxy.fault("status", "DELETE", "^/containers/", status=status):
            assert not sessions.remove("runs", timeout=2)
        assert there(engine, "runs")


def test_gone_between_look_and_stop(sessions: DockerSessions, launch: Launch, proxy: FaultProxy) -> None:
    made = launch("runs")
    with proxy.fault("delay", "POST", r"/stop", seconds=1, count=1):
        worker = threading.Thread(target=lambda: results.append(sessions.remove("runs", timeout=6)))
        results: list[bool] = []
        worker.start()
        until(lambda: proxy.seen("POST", r"/stop"), "the stop to be asked for")
        made.remove(force=True)
        worker.join(20)
    assert results == [True]


def test_one_silent_answer_holds_up_nobody_else(proxy: FaultProxy, launch: Launch, engine: Engine) -> None:
    patient = DockerSessions("lab", {"base_url": proxy.host}, timeout=30)
    for name in ("hangs", "runs"):
        launch(name, "sleep", "600")
    with proxy.fault("hang", "POST", r"/containers/[^/]+/stop"):
        threads = [
            threading.Thread(target=patient.remove, args=("hangs",), kwargs={"timeout": 4}, daemon=True)
            for _ in range(12)  # more than a pool of connections holds
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(proxy.seen("POST", "/stop")) == len(threads), "all of them to hang")
        began = time.monotonic()
        assert patient.look(["runs"]) == {"runs": PRESENT}
        assert patient.list() is not None
        assert time.monotonic() - began < 2


# --- log, run, foreign -------------------------------------------------------------------------------------


def test_the_log_is_the_tail_and_that_of_nobody_is_empty(sessions: DockerSessions, launch: Launch) -> None:
    launch("wide", "python3", "-uc", "for n in range(300): print(str(n) * 300)").wait()
    text = sessions.log("wide")
    assert len(text) <= 64 * 1024 and text.endswith("299" * 300 + "\n")
    assert sessions.log("never") == ""


def test_run_gives_status_and_output_and_does_not_wait_for_ever(
    sessions: DockerSessions, launch: Launch, proxy: FaultProxy
) -> None:
    launch("runs")
    script = "import os,sys; print(os.getuid(), os.getgid()); print('noise', file=sys.stderr); sys.exit(3)"
    ran = sessions.run("runs", ["python3", "-c", script], timeout=10)
    assert (ran.status, ran.out, ran.err) == (3, "1000 100\n", "noise\n")
    began = time.monotonic()
    with pytest.raises(ENGINE_ERRORS):
        sessions.run("runs", ["sleep", "60"], timeout=1)
    assert time.monotonic() - began < 5
    with pytest.raises(ENGINE_ERRORS):
        sessions.run("never", ["true"], timeout=5)
    with proxy.fault("status", "POST", "/exec", status=500), pytest.raises(ENGINE_ERRORS):
        sessions.run("runs", ["true"], timeout=5)


@pytest.fixture
def gpus() -> Iterator[Callable[..., list[Any]]]:
    def asked(*ids: str) -> list[Any]:
        some = {"device_ids": list(ids)} if ids else {"count": -1}
        return [docker.types.DeviceRequest(driver="nvidia", capabilities=[["gpu"]], **some)]

    yield asked


def test_foreign_containers_on_gpus_are_told_of(
    sessions: DockerSessions,
    launch: Launch,
    engine: Engine,
    proxy: FaultProxy,
    gpus: Callable[..., list[Any]],
) -> None:
    launch("ours", "sleep", "600", device_requests=gpus("GPU-1"))
    run = engine.client.containers.run
    given: dict[str, Any] = {"detach": True, "command": ["sleep", "600"]}
    run("gpupool-test-session", name="nobodys", device_requests=gpus("GPU-2", "GPU-3"), **given)
    run("gpupool-test-session", name="greedy", device_requests=gpus(), **given)
    run("gpupool-test-session", name="modest", **given)
    launch("theirs", "sleep", "600", pool="other", device_requests=gpus("GPU-4"))
    expected = {"nobodys": {"GPU-2", "GPU-3"}, "greedy": {"all"}, "theirs": {"GPU-4"}}
    assert {one.name: set(one.visible) for one in sessions.foreign() or ()} == expected
    with proxy.fault("status", "GET", INSPECT, status=500):  # they are known by now
        assert {one.name: set(one.visible) for one in sessions.foreign() or ()} == expected
    with proxy.fault("status", "GET", LIST, status=500):
        assert sessions.foreign() is None
    engine.client.containers.get("greedy").remove(force=True)
    del expected["greedy"]
    assert {one.name: set(one.visible) for one in sessions.foreign() or ()} == expected


def test_sessions_of_two_pools_do_not_see_each_other(
    sessions: DockerSessions, proxy: FaultProxy, launch: Launch
) -> None:
    launch("ours", "sleep", "600")
    other = DockerSessions("lab-2", {"base_url": proxy.host}, timeout=TIMEOUT)
    assert other.look(["ours"]) == {"ours": ABSENT} and other.list() == ()
    assert not other.remove("ours", timeout=2)
    [found] = sessions.list() or ()
    assert isinstance(found, Session) and found.name == "ours"
