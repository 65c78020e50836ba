"""SIGKILL of the hub at its points, with sessions in containers: nothing leaks, nothing is held or started twice."""

from __future__ import annotations

from typing import Any

import docker
import pytest

from jupyterhub_gpupool import faults
from jupyterhub_gpupool.model import Lease, State
from tests.hub.conftest import until
from tests.hub.kills import die_at, events_of, service_back, services

from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

GIVEN: dict[str, Any] = {"check": "auto", "sections": {"Spawner": {"http_timeout": 6}}}

# point → what there is of the container when the hub dies there
WHILE_STARTING = {
    "grant.seen": "",
    "launch.intent": "",
    "create.done": "created",
    "launch.done": "running",
    "check.done": "running",
    "activate.done": "running",
}
WHILE_STOPPING = {"stop.intent": True, "stop.done": False, "close.done": False}


def test_every_point_of_the_hub_is_killed_at() -> None:
    hubs = {name for name in faults.POINTS if not name.startswith("sweep.")}
    assert hubs == {*WHILE_STARTING, *WHILE_STOPPING, "enqueue.done"}  # at that one there is no container yet


@pytest.mark.parametrize("point", WHILE_STARTING)
def test_a_hub_that_dies_while_it_starts_a_session(hub: HubUnderDocker, point: str) -> None:
    # On a GPU for which nothing is remembered: elsewhere no check is made, and its point not passed.
    profile = "mig" if point == "check.done" else "whole"
    die_at(hub, point, lambda: hub.spawn("ada", profile))
    before = hub.lease_of("ada")
    assert before is not None
    container = hub.container(before) if hub.exists(before) else None
    assert (container.status if container else "") == WHILE_STARTING[point]
    hub.start()
    if container is not None and container.status == "running":
        hub.still(before, container)
        assert len(hub.shown(before)) == 1
        return
    hub.wait_gone("ada")
    hub.wait_removed(before)
    again = hub.run("ada")
    assert again.id != before.id
    hub.reachable(again)


@pytest.mark.parametrize("point", WHILE_STOPPING)
def test_a_hub_that_dies_while_it_stops_a_session(hub: HubUnderDocker, point: str) -> None:
    lease = hub.run("ada")
    die_at(hub, point, lambda: hub.delete("ada"))
    assert hub.exists(lease) == WHILE_STOPPING[point]
    hub.start()
    hub.wait_gone("ada")
    assert not hub.exists(lease)
    again = hub.run("ada")
    assert again.id != lease.id
    hub.reachable(again)


def test_hub_and_service_killed_with_several_sessions_and_one_who_waits(hub: HubUnderDocker) -> None:
    leases = [hub.run("ada"), hub.run("grace", "mig"), hub.run("linus", "cpu")]
    containers = [hub.container(lease) for lease in leases]
    hub.spawn("alan")
    hub.wait_state("alan", "queued")
    hub.kill()
    for process in services(hub):
        process.kill()
    hub.start(wait=False)
    service_back(hub)
    hub.wait_up()
    for lease, container in zip(leases, containers, strict=True):
        hub.still(lease, container)
    assert hub.wait_state("alan", "queued").state is State.QUEUED
    hub.delete("ada")
    hub.spawn("alan")
    hub.wait_ready("alan")


def forgets(hub: HubUnderDocker) -> Lease:
    """Let the hub die right after a launch, and lose its own database."""
    die_at(hub, "launch.done", lambda: hub.spawn("ada"))
    until(lambda: not services(hub), "the service to end")
    for file in hub.state.glob("jupyterhub.sqlite*"):
        file.unlink()
    lease = hub.lease_of("ada")
    assert lease is not None and lease.state is State.STARTING
    return lease


def test_a_launch_that_the_hub_forgot_is_held_by_the_service(hub: HubUnderDocker) -> None:
    lease = forgets(hub)
    container = hub.container(lease)
    hub.start()
    assert hub.wait_state("ada", "active").id == lease.id
    [event] = events_of(hub, lease, "activate")
    assert (event.actor, event.reason) == ("service", "its hub has forgotten it")
    assert hub.container(lease).id == container.id
    container.remove(force=True)
    hub.wait_gone("ada")


def test_a_launch_that_the_hub_forgot_is_ended_where_it_got_another_gpu(hub: HubUnderDocker) -> None:
    lease = forgets(hub)
    found = hub.inspect(lease)
    hub.container(lease).remove(force=True)
    other = docker.types.DeviceRequest(driver="nvidia", device_ids=["GPU-other"], capabilities=[["gpu"]])
    hub.engine.client.containers.run(
        found["Image"],
        name=lease.session,
        labels=found["Config"]["Labels"],
        environment=found["Config"]["Env"],
        device_requests=[other],
        detach=True,
    )
    hub.start()
    hub.wait_gone("ada")
    hub.wait_removed(lease)
    closed = hub.ledger().lease(lease.id)
    assert closed is not None and closed.active_at is None
    assert "it did not get what its lease says (it was given the devices GPU-other" in closed.reason
    assert closed.stopped_by == "service"
    hub.reachable(hub.run("ada"))
