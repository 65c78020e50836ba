"""SIGKILL of the hub at its points, with sessions in containers: nothing leaks, nothing is held or started twice."""

from __future__ import annotations

from typing import Any

import pytest

from jupyterhub_gpupool import faults
from jupyterhub_gpupool.model import State
from tests.hub.kills import die_at, service_back, services

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
