"""What others do on the machine, and what is missing there: held, told, cleaned up, and never guessed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
import requests

from jupyterhub_gpupool.model import Lease, State
from tests.hub.conftest import until
from tests.hub.kills import events_of, services

from .conftest import MakeHub
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

ABSENCE = 1.0
"""``GPUPoolService.absence_interval`` of the tests' configuration."""
NOWHERE = "sha256:" + "0" * 64
PROFILES = [
    {"slug": "nowhere", "display_name": "Its image is not there", "gpu": {"count": 1}, "image": NOWHERE},
    {
        "slug": "unknown",
        "display_name": "Its image cannot be fetched",
        "gpu": {"count": 1},
        "image": "registry.invalid/none@" + NOWHERE,
    },
    {
        "slug": "silent",
        "display_name": "It never answers",
        "gpu": {"count": 1},
        "spawner_override": {"cmd": ["sleep", "600"]},
    },
    {
        "slug": "fails",
        "display_name": "It ends at once",
        "gpu": {"count": 1},
        "spawner_override": {"cmd": ["sh", "-c", "echo these were its last words; exit 3"]},
    },
]
GIVEN: dict[str, Any] = {"profiles": PROFILES, "sections": {"Spawner": {"http_timeout": 5}}}


def refused(hub: HubUnderDocker, profile: str, user: str = "ada") -> str:
    """Ask for a session that cannot be started; why the person was told so.  Nothing stays behind."""
    before = {lease.id for lease in hub.ledger().closed(user, count=1000)}
    answer = hub.spawn(user, profile)
    until(lambda: not (hub.server(user) or {}).get("pending"), "the hub to give it up", 60)
    hub.wait_gone(user)
    until(lambda: not hub.containers(user=user), "its container to be removed")
    said = answer.text if answer.status_code >= 400 else ""
    closed = [lease for lease in hub.ledger().closed(user, count=1000) if lease.id not in before]
    return said + "".join(f"{lease.reason} {hub.ledger().log_of(lease.id)}" for lease in closed)


# --- containers that change without us ------------------------------------------------------------------


def test_a_container_that_is_removed_frees_its_slice_after_two_looks(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    hub.spawn("grace")
    hub.wait_state("grace", "queued")
    removed = time.time()
    hub.container(lease).remove(force=True)
    hub.wait_ready("grace")
    [closed] = events_of(hub, lease, "close")
    assert closed.at - removed >= ABSENCE
    until(lambda: not (hub.server("ada") or {}).get("ready"), "the hub to know")
    hub.delete("grace")
    hub.reachable(hub.run("ada"))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_container_that_is_ended_is_removed_and_never_started_again(hub: HubUnderDocker, how: str) -> None:
    lease = hub.run("ada")
    hub.ask_session("ada", "say?line=last+words")
    getattr(hub.container(lease), how)()
    hub.wait_gone("ada")
    hub.wait_removed(lease)
    assert "last words" in hub.ledger().log_of(lease.id)
    hub.reachable(hub.run("ada"))


def test_a_server_that_ends_itself(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    try:
        hub.ask_session("ada", "exit?status=0")
    finally:
        hub.wait_gone("ada")
    hub.wait_removed(lease)


def test_a_paused_container_is_held_and_goes_on(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    container = hub.container(lease)
    container.pause()
    version = lease.version
    until(lambda: (now := hub.ledger().lease(lease.id)) and now.version >= version + 6, "six sweeps")
    now = hub.ledger().lease(lease.id)
    assert now is not None and now.state is State.ACTIVE
    container.unpause()
    hub.still(lease, container)


def test_a_paused_container_can_be_ended(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    hub.container(lease).pause()
    assert hub.delete("ada").status_code in (202, 204)
    hub.wait_gone("ada")
    assert not hub.exists(lease)


def test_a_restarted_container_is_reached_again_or_ended_never_both(hub: HubUnderDocker) -> None:
    """Between the two a look may find that it does not run: then the session is over, with all that it holds."""
    lease = hub.run("ada")
    hub.container(lease).restart(timeout=1)

    def settled() -> bool:
        now = hub.ledger().lease(lease.id)
        assert now is not None
        if now.state is State.CLOSED:
            return not hub.exists(lease)
        # At a new port: the engine gives a published one anew.
        return now.state is State.ACTIVE and answers(hub, lease)

    until(settled, "the session to answer again, or to be ended", 60)


def answers(hub: HubUnderDocker, lease: Lease) -> bool:
    with contextlib.suppress(requests.RequestException):
        return hub.ask_session(lease.user).text.startswith(f"{lease.id} ")
    return False


def test_a_foreign_container_on_our_gpu_is_told_of_and_left_alone(hub: HubUnderDocker) -> None:
    lease = hub.run("ada", "half")
    device = lease.slices[0].device
    asked = docker.types.DeviceRequest(driver="nvidia", device_ids=[device], capabilities=[["gpu"]])
    foreign = hub.engine.client.containers.run(
        "gpupool-test-session",
        ["sleep", "600"],
        name="by-hand",
        detach=True,
        init=True,
        device_requests=[asked],
    )

    def told() -> str:
        return next(one.foreign for one in hub.ledger().snapshot().devices if one.id == device)

    try:
        until(lambda: "by-hand" in told(), "the device to say so")
        other = hub.run("grace", "half")
        assert other.slices[0].device == device
        foreign.reload()
        assert foreign.status == "running"
    finally:
        foreign.remove(force=True)
    until(lambda: not told(), "the sentence to go away")


# --- what is missing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("nowhere", "is not on this machine"),
        ("unknown", "cannot be fetched"),
        ("fails", "these were its last words"),
        ("silent", ""),
    ],
)
def test_what_cannot_start_says_why_and_holds_nothing(hub: HubUnderDocker, profile: str, said: str) -> None:
    assert said in refused(hub, profile)
    hub.reachable(hub.run("grace"))  # its slice is free again


@pytest.mark.parametrize("at", ["create", "start"])
def test_a_full_disk_says_so_and_holds_nothing(hub: HubUnderDocker, at: str) -> None:
    message = "write /var/lib/docker: no space left on device"
    with hub.proxy.fault("status", "POST", rf"^/containers/.*{at}", status=500, message=message):
        assert "no space left on device" in refused(hub, "whole")
    hub.reachable(hub.run("grace"))


FULL = {"containers": "create", "volumes": "create", "containers, when it was created": "start"}
"""Which part of the engine's disk is full, and at which request it is so."""


@pytest.mark.parametrize("where", FULL)
def test_a_disk_that_is_full_says_so_and_is_used_again_when_there_is_room(
    hub: HubUnderDocker, where: str
) -> None:
    remove_volumes(hub)  # with the homes of the tests before
    with hub.engine.small_disk(where.partition(",")[0]) as disk, late_start(hub) as started:
        if FULL[where] == "create":
            disk.fill()
        else:
            threading.Thread(target=lambda: (until(started, "a start"), disk.fill())).start()
        said = refused(hub, "whole", "linus")
        assert "no space left on device" in said
        assert started() == (FULL[where] == "start")
        page = hub.browser_session("linus").get(f"{hub.url}/hub/spawn-pending/linus", timeout=20)
        assert "The container engine could not start the session" in page.text
        assert "no space left on device" in page.text
        assert hub.ledger().verify() == [] and hub.ledger().snapshot().leases == ()
        assert hub.answers() and hub.service_answers()
        disk.empty()
        hub.reachable(hub.run("linus"))
        hub.delete("linus")
        hub.wait_gone("linus")
        remove_volumes(hub)


def remove_volumes(hub: HubUnderDocker) -> None:
    for volume in hub.engine.client.volumes.list():
        volume.remove()


@contextlib.contextmanager
def late_start(hub: HubUnderDocker) -> Iterator[Callable[[], bool]]:
    """Give time between creation and start of the next container; says whether the start was asked for."""
    with hub.proxy.fault("delay", "POST", r"^/containers/[^/]+/start$", seconds=2, count=1) as rule:
        yield lambda: rule.hits > 0


def test_a_runtime_that_cannot_show_the_gpu_says_so_and_holds_nothing(hub: HubUnderDocker) -> None:
    with hub.engine.hook.failing("nvidia-container-cli: device error: unknown device id"):
        assert "unknown device id" in refused(hub, "whole")
    hub.reachable(hub.run("grace"))


def test_a_lost_ledger_kills_nobody(make_hub: MakeHub) -> None:
    hub = make_hub()
    hub.start()
    lost = {user: hub.run(user, profile) for user, profile in (("ada", "whole"), ("grace", "mig"))}
    containers = {user: hub.container(lease) for user, lease in lost.items()}
    hub.kill()
    until(lambda: not services(hub), "the service to end")
    hub.ledger().close_database()
    del hub._ledger
    for file in hub.state.glob("ledger.sqlite*"):
        file.unlink()
    hub.start()
    for user, lease in lost.items():
        found = hub.wait_state(user, "active")
        assert found.id == lease.id
        assert [(x.device, x.cells) for x in found.slices] == [(x.device, x.cells) for x in lease.slices]
        assert hub.container(lease).id == containers[user].id
        hub.wait_ready(user)
        hub.reachable(lease)
    hub.spawn("linus")
    assert hub.wait_state("linus", "queued").slices == ()
    hub.delete("ada")
    hub.wait_ready("linus")
    assert not hub.exists(lost["ada"])


def test_a_container_of_a_closed_lease_is_removed_whoever_brings_it_back(hub: HubUnderDocker) -> None:
    """An old container with our labels, started by hand: its slice may be somebody else's by now."""
    lease = hub.run("ada", "mig")
    found = hub.inspect(lease)
    hub.delete("ada")
    hub.wait_gone("ada")
    ghost = hub.engine.client.containers.run(
        "gpupool-test-session",
        ["sleep", "600"],
        name=lease.session,
        detach=True,
        labels=found["Config"]["Labels"],
    )

    def gone() -> bool:
        return ghost.id not in {one.id for one in hub.containers()}

    until(gone, "the sweep to remove it")
