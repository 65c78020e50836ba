"""SIGKILL of hub, service, proxy and session at named points: nothing leaks, nothing is held twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import requests

from jupyterhub_gpupool import faults
from jupyterhub_gpupool.model import State

from .conftest import HubUnderTest, MakeHub, free_port, until
from .kills import (
    Watch,
    agree,
    arm,
    ask_brief,
    die_at,
    end_all,
    events_of,
    forget_leader,
    kill_service,
    marks,
    notebook,
    reachable,
    service_back,
    services,
    still,
    sweeps,
)

ABSENCE = 1.0
"""``GPUPoolService.absence_interval`` of the tests' configuration."""
BRIEF = {
    "slug": "brief",
    "display_name": "Soon idle",
    "gpu": {"count": 1},
    "idle": {"window": 1, "warn": 1, "min_age": 0},
}

# point → whether a session runs when the hub dies there
WHILE_STARTING = {
    "grant.seen": False,
    "launch.intent": False,
    "launch.done": True,
    "activate.done": True,
}
WHILE_STOPPING = {"stop.intent": True, "stop.done": False, "close.done": False}
WHILE_SWEEPING = ("sweep.sampled", "sweep.judged", "sweep.tidied")
WHILE_RECLAIMING = ("sweep.intent", "sweep.told")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUnderTest]:
    """One state directory for all tests that end with a hub that runs and holds nothing."""
    folder = tmp_path_factory.mktemp("kills")
    hub = HubUnderTest(folder / "state", profiles=[BRIEF], sections={"Spawner": {"http_timeout": 4}})
    hub.fault = f"@{folder / 'fault'}"
    yield hub
    hub.clean()


@pytest.fixture
def pool(shared: HubUnderTest, request: pytest.FixtureRequest) -> Iterator[HubUnderTest]:
    """The shared hub, up and empty; whatever the test kills, the rules hold all the time."""
    if not shared.alive():
        shared.start()
    shared.wait_up()
    watch = Watch(shared)
    watch.start()
    try:
        yield shared
        if not getattr(request.node, "failed", False):
            end_all(shared)
        watch.end()
    finally:
        if getattr(request.node, "failed", False) or watch.broken:
            print(f"--- hub log ---\n{shared.tail(150)}")
            for event in shared.ledger().events(count=1000)[-40:]:
                print(event)
            for lease in shared.ledger().snapshot().leases:
                print(lease)
            shared.clean()  # the next test starts afresh
            shared.ledger().close_database()
            del shared._ledger
            shutil.rmtree(shared.state)


def test_every_point_is_killed_at() -> None:
    covered = {*WHILE_STARTING, *WHILE_STOPPING, *WHILE_SWEEPING, *WHILE_RECLAIMING, "enqueue.done"}
    of_containers = {"create.done", "check.done"}  # tests/docker kills there
    assert covered == set(faults.POINTS) - of_containers


# --- the hub, at its points ----------------------------------------------------------------------


def test_a_hub_that_dies_at_enqueue_done(pool: HubUnderTest) -> None:
    first = pool.run("ada")
    die_at(pool, "enqueue.done", lambda: pool.spawn("grace"))
    waiting = pool.lease_of("grace")
    assert waiting is not None and waiting.state is State.QUEUED
    pool.start()
    still(pool, first)
    pool.spawn("grace")
    until(lambda: (pool.lease_of("grace") or waiting).left_at is None, "somebody to wait for it again")
    pool.delete("ada")
    pool.wait_ready("grace")
    assert pool.wait_state("grace", "active").id == waiting.id
    reachable(pool, waiting)


@pytest.mark.parametrize("point", WHILE_STARTING)
def test_a_hub_that_dies_while_it_starts_a_session(pool: HubUnderTest, point: str) -> None:
    die_at(pool, point, lambda: pool.spawn("ada"))
    before = pool.lease_of("ada")
    assert before is not None and bool(notebook(pool, before)) == WHILE_STARTING[point]
    pool.start()
    if WHILE_STARTING[point]:
        still(pool, before)
        return
    pool.wait_gone("ada")
    again = pool.run("ada")
    assert again.id != before.id
    reachable(pool, again)


@pytest.mark.parametrize("point", WHILE_STOPPING)
def test_a_hub_that_dies_while_it_stops_a_session(pool: HubUnderTest, point: str) -> None:
    lease = pool.run("ada")
    die_at(pool, point, lambda: pool.delete("ada"))
    assert bool(notebook(pool, lease)) == WHILE_STOPPING[point]
    pool.start()
    pool.wait_gone("ada")
    assert notebook(pool, lease) == []
    again = pool.run("ada")
    assert again.id != lease.id
    reachable(pool, again)


# --- the service, at its points --------------------------------------------------------------------


@pytest.mark.parametrize("point", WHILE_SWEEPING)
def test_a_service_that_dies_in_a_sweep(pool: HubUnderTest, point: str) -> None:
    lease = pool.run("ada")
    former = services(pool)
    arm(pool, point)
    psutil.wait_procs(former, timeout=30)
    assert not any(process.is_running() for process in former)
    service_back(pool)
    sweeps(pool, lease, 3)
    still(pool, lease)


@pytest.mark.parametrize("point", WHILE_RECLAIMING)
def test_a_service_that_dies_in_a_reclaim(pool: HubUnderTest, point: str) -> None:
    former = services(pool)
    arm(pool, point)
    lease = ask_brief(pool)
    psutil.wait_procs(former, timeout=40)
    assert not any(process.is_running() for process in former)
    service_back(pool)
    pool.wait_gone("ada")
    [warned], [stopped] = events_of(pool, lease, "warn"), events_of(pool, lease, "stop")
    assert stopped.at - warned.at >= 1 and len(events_of(pool, lease, "close")) == 1


# --- whole processes ---------------------------------------------------------------------------------


def test_a_hub_that_is_killed_takes_its_service_along_and_leaves_sessions(pool: HubUnderTest) -> None:
    first, second = pool.run("ada"), pool.run("grace", "mig")
    pool.kill()
    until(lambda: not services(pool), "the service to end itself", 20)
    pool.start()
    still(pool, first)
    still(pool, second)


def test_a_service_that_is_killed_is_started_again_by_its_hub(pool: HubUnderTest) -> None:
    lease = pool.run("ada")
    kill_service(pool)
    until(lambda: services(pool), "the hub to start its service again")
    until(pool.service_answers, "the service to lead when the former one's time is over", 60)
    sweeps(pool, lease, 2)
    still(pool, lease)


def test_a_proxy_that_is_killed_is_back_with_the_hub_at_the_latest(pool: HubUnderTest) -> None:
    lease = pool.run("ada")
    former = pool.processes("traefik")
    pool.kill_proxy()
    psutil.wait_procs(former, timeout=20)
    pool.kill()
    pool.start()
    still(pool, lease)


def test_a_session_that_is_killed_is_proved_gone_and_the_next_is_granted(pool: HubUnderTest) -> None:
    first = pool.run("ada")
    pool.spawn("grace")
    pool.wait_state("grace", "queued")
    killed_at = time.time()
    [server] = notebook(pool, first)
    server.kill()
    pool.wait_ready("grace")
    [closed] = events_of(pool, first, "close")
    assert closed.at - killed_at >= ABSENCE  # one look proves nothing
    reachable(pool, pool.wait_state("grace", "active"))


def test_a_killed_session_holds_its_slice_while_anything_of_it_runs(pool: HubUnderTest) -> None:
    lease = pool.run("ada")
    pool.ask_session("ada", "detach")
    until(lambda: len(marks(pool)) == 2, "the detached child")
    [server] = notebook(pool, lease)
    server.kill()
    until(lambda: len(marks(pool)) == 1, "the server to be gone")
    sweeps(pool, lease, 6)
    pool.delete("ada")
    pool.wait_gone("ada")
    assert marks(pool) == {}


def test_a_session_that_dies_while_the_hub_is_away(pool: HubUnderTest) -> None:
    lost, kept = pool.run("ada"), pool.run("grace", "mig")
    pool.kill()
    [server] = notebook(pool, lost)
    server.kill()
    pool.start()
    pool.wait_gone("ada")
    still(pool, kept)


def test_hub_and_service_killed_at_once_while_two_people_wait(pool: HubUnderTest) -> None:
    first = pool.run("ada")
    for user in ("grace", "linus"):
        pool.spawn(user)
        pool.wait_state(user, "queued")
    places = [lease.id for lease in pool.ledger().snapshot().queue]
    for process in [psutil.Process(pool.process.pid if pool.process else 0), *services(pool)]:
        process.kill()
    pool.wait_dead()
    forget_leader(pool)
    pool.start()
    assert [lease.id for lease in pool.ledger().snapshot().queue] == places
    still(pool, first)
    for user in ("linus", "grace"):  # who comes back first does not pass the other
        pool.spawn(user)
    until(lambda: all(x.left_at is None for x in pool.ledger().snapshot().queue), "both to wait again")
    assert [lease.id for lease in pool.ledger().snapshot().queue] == places
    pool.delete("ada")
    pool.wait_ready("grace")
    assert pool.wait_state("grace", "active").id == places[0]
    pool.wait_state("linus", "queued")
    pool.delete("grace")
    pool.wait_ready("linus")
    assert pool.wait_state("linus", "active").id == places[1]


def test_everything_but_one_session_killed_at_once(pool: HubUnderTest) -> None:
    lost, kept = pool.run("ada"), pool.run("grace", "mig")
    for process in [*pool.processes(""), *notebook(pool, lost)]:
        process.kill()
    pool.wait_dead()
    forget_leader(pool)
    pool.start()
    still(pool, kept)
    pool.wait_gone("ada")
    until(lambda: agree(pool), "ledger and machine to agree")


# --- other ways in which processes fail ----------------------------------------------------------------


def test_a_session_that_is_silent_while_the_hub_restarts_is_kept(pool: HubUnderTest) -> None:
    lease = pool.run("ada")
    [server] = notebook(pool, lease)
    server.suspend()
    try:
        pool.kill()
        began = time.monotonic()
        pool.start()
        # The hub gives a server that it takes for running `http_timeout` (4 s) to answer, and then stops it.
        sweeps(pool, lease, 1)
        until(lambda: time.monotonic() - began > 10, "the hub's patience to be over")
        sweeps(pool, lease, 2)
        assert notebook(pool, lease) == [server]
    finally:
        server.resume()
    still(pool, lease)


def test_of_two_services_one_leads_and_nothing_happens_twice(pool: HubUnderTest) -> None:
    [first] = services(pool)
    port = free_port()
    env = {
        **first.environ(),
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}",
        "GPUPOOL_HUB_PID": str(os.getpid()),
    }
    log = pool.state.parent / "second.log"
    with log.open("wb") as out:
        second = subprocess.Popen(first.cmdline(), env=env, stdout=out, stderr=subprocess.STDOUT)

    def health() -> tuple[int, str]:
        with contextlib.suppress(requests.RequestException):
            answer = requests.get(f"http://127.0.0.1:{port}/services/gpupool/health", timeout=5)
            return answer.status_code, answer.text
        return 0, ""

    try:
        until(lambda: health()[0] == 503 and "another service leads" in health()[1], "the second to stand by")
        lease = ask_brief(pool)
        pool.wait_gone("ada")
        for action in ("warn", "stop", "close"):
            assert len(events_of(pool, lease, action)) == 1, action
        assert health()[0] == 503
        # The first is killed: the one that stands by takes over, the one that the hub starts stands by now.
        first.suspend()
        forget_leader(pool)
        until(lambda: health()[0] == 200, "the second to lead")
        first.kill()
        lease = ask_brief(pool)
        pool.wait_gone("ada")
        for action in ("warn", "stop", "close"):
            assert len(events_of(pool, lease, action)) == 1, action
    finally:
        if first.is_running():
            first.kill()
        second.terminate()
        second.wait(20)
    until(pool.service_answers, "the hub's own service to lead, the second has resigned", 60)


def test_a_second_hub_on_the_same_state_is_refused(pool: HubUnderTest) -> None:
    lease = pool.run("ada")
    other = HubUnderTest(pool.state)
    other.log = pool.state.parent / "other.log"
    other.start(wait=False)
    assert other.wait_dead() != 0
    assert pool.process is not None
    assert f"Another hub (process {pool.process.pid}) runs on the state directory" in other.tail()
    still(pool, lease)


def test_a_lost_ledger_kills_nobody(make_hub: MakeHub) -> None:
    hub = make_hub()
    hub.start()
    whole, mig = hub.run("ada"), hub.run("grace", "mig")
    hub.kill()
    until(lambda: not services(hub), "the service to end")
    hub.ledger().close_database()
    del hub._ledger
    for file in hub.state.glob("ledger.sqlite*"):
        file.unlink()
    hub.start()
    for lost, user in ((whole, "ada"), (mig, "grace")):
        found = hub.wait_state(user, "active")
        assert found.id == lost.id
        assert [(x.device, x.cells) for x in found.slices] == [(x.device, x.cells) for x in lost.slices]
        hub.wait_ready(user)
        reachable(hub, lost)
    hub.spawn("linus")
    assert hub.wait_state("linus", "queued").slices == ()
    hub.delete("ada")
    hub.wait_ready("linus")
    until(lambda: agree(hub), "ledger and machine to agree")


def test_ctrl_c_leaves_no_process_also_after_a_kill_of_the_hub(make_hub: MakeHub) -> None:
    hub = make_hub(cleanup=True)
    hub.start()
    lease = hub.run("ada")
    hub.ask_session("ada", "detach")
    until(lambda: len(marks(hub)) == 2, "the detached child")
    hub.kill()
    assert len(marks(hub)) == 2
    hub.start()
    still(hub, lease)
    # Only now: before its start is over a Ctrl-C ends all processes too, but leaves the leases to the next sweep.
    hub.stop()
    left: list[Any] = [*hub.processes(""), *hub.sessions()]
    assert left == []
    assert hub.ledger().snapshot().leases == ()
