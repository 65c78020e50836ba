"""What went wrong with the stock spawners, each once more: appendix A of the reliability study, A1 to M.

The letters are those of the study.  There, each of these lost a session, leaked one, or ran two on one GPU.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from typing import Any

import pytest
import requests

from jupyterhub_gpupool.model import Lease, State
from tests.hub.conftest import until
from tests.hub.kills import die_at, events_of

from .conftest import MakeHub
from .engine import Engine, copy_image
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

CLIENT = 5
"""Seconds after which the pool's clients take the engine for silent; the stock 60 would be long for a test."""
LATE = CLIENT + 3
CREATE, START = ("POST", r"^/containers/create"), ("POST", r"^/containers/[^/]+/start$")
STOP = ("POST", r"^/containers/[^/]+/stop")
LOOKS = ("GET", r"^/containers/([^/]+/)?json")
GIVEN: dict[str, Any] = {
    "sections": {"GPUPoolDockerSpawner": {"client_kwargs": {"timeout": CLIENT}, "start_timeout": 40}}
}


def ends_nothing(hub: HubUnderDocker, since: int) -> None:
    """See that the engine was asked to end nothing since that many requests."""
    told = [one for one in hub.proxy.seen()[since:] if one.method == "DELETE" or "/stop" in one.path]
    assert told == []


def ask(hub: HubUnderDocker, user: str, profile: str = "whole") -> Lease:
    """Ask for a session whose launch the test disturbs; its lease, however far it is."""
    with contextlib.suppress(requests.RequestException):
        hub.spawn(user, profile)
    return until(lambda: hub.lease_of(user), f"{user}'s lease")


# --- A: answers that come too late --------------------------------------------------------------------


def test_a1_a_create_that_outlasts_the_start_leaves_nothing(make_hub: MakeHub) -> None:
    hub = make_hub(sections={"GPUPoolDockerSpawner": {"start_timeout": 6}})
    hub.start()
    with hub.proxy.fault("delay", *CREATE, seconds=10, count=1):
        first = ask(hub, "ada")
        hub.wait_gone("ada")
        closed = hub.ledger().lease(first.id)
        assert closed is not None and closed.reason
        until(
            lambda: [one for one in hub.proxy.seen(*CREATE) if one.answer],
            "the engine to create it after all",
        )
        time_of_create = time.time()
        until(lambda: hub.exists(first) or time.time() - time_of_create > 5, "the late container")
    hub.wait_removed(first)
    second = hub.run("ada")
    hub.reachable(second)
    assert [one.name for one in hub.containers()] == [second.session]


def test_a2_a_start_that_outlasts_the_client_is_waited_for(hub: HubUnderDocker) -> None:
    with hub.proxy.fault("delay", *START, seconds=LATE, count=1) as rule:
        lease = hub.run("ada")
        assert rule.hits == 1
    hub.still(lease, hub.container(lease))
    assert len(hub.shown(lease)) == 1  # started once


@pytest.mark.parametrize("at", [CREATE, START], ids=["create", "start"])
def test_a3_a_lost_answer_makes_no_second_container(hub: HubUnderDocker, at: tuple[str, str]) -> None:
    with hub.proxy.fault("drop_after", *at, count=1):
        lease = hub.run("ada")
    hub.still(lease, hub.container(lease))
    assert len(hub.shown(lease)) == 1


# --- B and C: the engine does not say -------------------------------------------------------------------


def test_b_a_hub_that_comes_back_while_the_engine_is_away_forgets_nobody(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    before = hub.container(lease)
    hub.kill()
    since = len(hub.proxy.seen())
    with hub.proxy.refusing():
        hub.start(wait=False)
        until(
            lambda: "does not say" in hub.tail(400) or "waits for" in hub.tail(400), "the hub to ask in vain"
        )
        now = hub.lease_of("ada")
        assert now is not None and now.state is State.ACTIVE
    hub.wait_up()
    hub.still(lease, before)
    ends_nothing(hub, since)


FAULTS: dict[str, dict[str, Any]] = {
    "500": {"action": "status", "status": 500},
    "dropped": {"action": "drop_before"},
    "silent": {"action": "hang"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_c_an_engine_that_errs_changes_nothing(hub: HubUnderDocker, fault: dict[str, Any]) -> None:
    lease = hub.run("ada")
    before = hub.container(lease)
    since = len(hub.proxy.seen())
    with hub.proxy.fault(method=LOOKS[0], path=LOOKS[1], **fault) as rule:
        until(lambda: rule.hits >= 4, "several looks of hub and service", 90)
        until(lambda: (now := hub.ledger().lease(lease.id)) and now.doubt, "the doubt to be shown")
        assert (hub.server("ada") or {})["ready"]
    until(lambda: (now := hub.ledger().lease(lease.id)) and not now.doubt, "the doubt to go away")
    hub.still(lease, before)
    ends_nothing(hub, since)
    assert events_of(hub, lease, "stop") == []


def test_c_an_engine_that_refuses_connections_changes_nothing(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    before = hub.container(lease)
    with hub.proxy.refusing():
        until(lambda: (now := hub.ledger().lease(lease.id)) and now.doubt, "the doubt to be shown", 60)
        assert (hub.server("ada") or {})["ready"]
        hub.reachable(lease)  # the session itself needs no engine
    hub.still(lease, before)
    assert events_of(hub, lease, "stop") == []


# --- D: the hub dies in the midst of it -------------------------------------------------------------------


def test_d1_a_hub_killed_while_a_container_is_created(hub: HubUnderDocker) -> None:
    with hub.proxy.fault("delay", *CREATE, seconds=4, count=1):
        lease = ask(hub, "ada")
        until(lambda: hub.proxy.seen(*CREATE), "the create to be on its way")
        hub.kill()
        hub.wait_container(lease, "created")
    hub.start()
    hub.wait_gone("ada")
    hub.wait_removed(lease)
    assert hub.engine.hook.calls() == [] or lease.session not in str(hub.engine.hook.calls())
    again = hub.run("ada")
    assert again.id != lease.id
    hub.reachable(again)


def test_d2_a_hub_killed_while_a_container_is_started(hub: HubUnderDocker) -> None:
    with hub.proxy.fault("delay", *START, seconds=4, count=1):
        lease = ask(hub, "ada")
        until(lambda: [one for one in hub.proxy.seen(*START) if lease_of(hub, one.path, lease)], "the start")
        hub.kill()
        before = hub.wait_container(lease, "running")
    hub.start()
    hub.still(lease, before)
    assert len(hub.shown(lease)) == 1


def lease_of(hub: HubUnderDocker, path: str, lease: Lease) -> bool:
    """Whether a request was about the container of this lease."""
    return hub.exists(lease) and str(hub.container(lease).id) in path


def test_d3_a_hub_killed_after_the_start(hub: HubUnderDocker) -> None:
    die_at(hub, "launch.done", lambda: hub.spawn("ada"))
    lease = hub.lease_of("ada")
    assert lease is not None
    before = hub.container(lease)
    hub.start()
    hub.still(lease, before)


# --- E to H: old containers, names, options ---------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [{"remove": False}, {"name_template": "mine-{username}"}, {"extra_host_config": {"auto_remove": True}}],
)
def test_e_what_would_use_a_container_again_stops_the_hub(make_hub: MakeHub, setting: dict[str, Any]) -> None:
    hub = make_hub(sections={"DockerSpawner": setting})
    hub.start(wait=False)
    assert hub.wait_dead() != 0
    [name] = setting
    assert f"{name}" in hub.tail() and "Traceback" not in hub.tail()


def test_e_an_old_container_is_never_started_again(hub: HubUnderDocker) -> None:
    old = hub.run("ada", "mig")
    hub.container(old).stop(timeout=1)
    hub.wait_gone("ada")
    new = hub.run("ada", "half")
    assert new.session != old.session and hub.shown(new) == [new.slices[0].device]
    hub.wait_removed(old)


def test_f_a_person_who_is_renamed_keeps_the_session_and_can_end_it(hub: HubUnderDocker) -> None:
    lease = hub.run("before", "half")
    container = hub.container(lease)
    assert hub.api("PATCH", "users/before", json={"name": "after"}).ok
    model = hub.api("GET", "users/after").json()
    assert model["servers"][""]["ready"]
    assert hub.container(lease).status == container.status == "running"
    assert hub.delete("after").status_code in (202, 204)
    hub.wait_gone("before")
    hub.wait_gone("after")
    hub.wait_removed(lease)
    assert hub.api("DELETE", "users/after").ok


def test_g_k_a_deleted_persons_session_is_nobody_elses(hub: HubUnderDocker) -> None:
    lease = hub.run("second", "half")
    number = hub.ledger().lease(lease.id)
    answer = hub.api("DELETE", "users/second")
    if answer.ok:  # the hub has stopped the server first
        hub.wait_removed(lease)
    else:  # or it refuses: then nothing has happened
        hub.still(lease, hub.container(lease))
        hub.delete("second")
        hub.wait_gone("second")
        assert hub.api("DELETE", "users/second").ok
    third = hub.run("third", "half")  # the hub gives it the number of the second
    assert number is not None and third.id != lease.id
    volumes = [mount["Name"] for mount in hub.inspect(third)["Mounts"]]
    assert len(volumes) == 1 and "second" not in volumes[0]
    hub.delete("third")
    hub.wait_gone("third")
    assert hub.api("DELETE", "users/third").ok


@pytest.mark.parametrize(
    "body",
    [
        '{"user_options": {"profile": NaN}}',
        '{"user_options": {"profile": "whole", "count": 1e999}}',
        '{"user_options": {"profile": "whole", "gpus": -1}}',
        '{"user_options": {"profile": "whole", "image": "evil"}}',
        '{"user_options": {"profile": "whole", "extra_host_config": {"privileged": true}}}',
        '{"user_options": ["whole"]}',
        '"whole"',
    ],
)
def test_h_odd_options_start_nothing(hub: HubUnderDocker, body: str) -> None:
    json.loads(body)
    since = len(hub.proxy.seen())
    headers = {"Content-Type": "application/json"}
    answer = hub.api("POST", hub.server_path("linus"), data=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert hub.lease_of("linus") is None
    assert not [one for one in hub.proxy.seen()[since:] if "create" in one.path]


# --- I and J: stops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_i_a_stop_that_fails_frees_nothing(hub: HubUnderDocker, fault: dict[str, Any]) -> None:
    lease = hub.run("ada")
    with hub.proxy.fault(method=STOP[0], path=STOP[1], **fault) as rule:
        hub.delete("ada")
        until(lambda: rule.hits, "the stop to be asked for")
        hub.spawn("grace")
        hub.wait_state("grace", "queued")
        until(lambda: rule.hits >= 2, "the stop to be asked for again", 60)
        held = hub.ledger().lease(lease.id)
        assert held is not None and held.state is State.STOPPING
        assert hub.container(lease).status == "running"
        assert hub.lease_of("grace") is not None
        assert hub.wait_state("grace", "queued").slices == ()
    hub.wait_removed(lease, 60)
    hub.wait_ready("grace")
    hub.reachable(hub.wait_state("grace", "active"))


def test_i_a_stop_whose_answer_is_lost_is_proved_by_looking(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    with hub.proxy.fault("drop_after", *STOP, count=1):
        hub.delete("ada")
        hub.wait_gone("ada", seconds=60)
    assert not hub.exists(lease)
    again = hub.run("ada")
    hub.reachable(again)


def test_j_an_orderly_end_of_the_hub_ends_no_session(hub: HubUnderDocker) -> None:
    lease = hub.run("ada")
    before = hub.container(lease)
    assert hub.process is not None
    hub.process.send_signal(signal.SIGTERM)
    hub.wait_dead(60)
    assert hub.container(lease).status == "running"
    hub.start()
    hub.still(lease, before)


# --- L and M: names, restarts of the engine -----------------------------------------------------------------


def test_l_people_with_alike_names_share_nothing(hub: HubUnderDocker) -> None:
    names = ["a-b", "a-2db", "a.b", "a b"]
    leases = {name: hub.run(name, "cpu") for name in names}
    volumes = {hub.inspect(lease)["Mounts"][0]["Name"] for lease in leases.values()}
    assert len(volumes) == len(names) == len({lease.session for lease in leases.values()})
    for name, lease in leases.items():
        assert hub.container(lease).labels["org.jupyterhub.gpupool.user"] == name


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_m_an_engine_that_restarts_ends_sessions_and_frees_them_once_it_answers(
    hub: HubUnderDocker, how: str
) -> None:
    leases = [hub.run("ada"), hub.run("grace", "mig")]
    if how == "kill":
        hub.engine.kill()
    else:
        hub.engine.stop()
    until(lambda: all(doubted(hub, lease) for lease in leases), "the doubt to be shown", 60)
    assert all(held(hub, lease) for lease in leases)
    back = time.time()
    hub.engine.start()
    for lease in leases:
        hub.wait_gone(lease.user, seconds=60)
        [closed] = events_of(hub, lease, "close")
        assert closed.at > back
        hub.wait_removed(lease)
    hub.reachable(hub.run("ada"))


def doubted(hub: HubUnderDocker, lease: Lease) -> bool:
    now = hub.ledger().lease(lease.id)
    return bool(now and now.doubt)


def held(hub: HubUnderDocker, lease: Lease) -> bool:
    now = hub.ledger().lease(lease.id)
    return now is not None and now.state is not State.CLOSED and now.slices == lease.slices


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_m_with_live_restore_sessions_go_through_it(
    make_hub: MakeHub, bare_engine: Engine, session_image: str, how: str
) -> None:
    engine = Engine("--live-restore")
    try:
        engine.start()
        assert copy_image(bare_engine.host, session_image, engine)
        hub = make_hub()
        hub.engine, hub.proxy.upstream = engine, engine.socket
        hub.start()
        lease = hub.run("ada")
        before = hub.container(lease)
        (engine.kill if how == "kill" else engine.stop)()
        until(lambda: doubted(hub, lease), "the doubt to be shown", 60)
        engine.start()
        until(lambda: not doubted(hub, lease), "the doubt to go away", 60)
        hub.still(lease, before)
        assert events_of(hub, lease, "stop") == []
        hub.clean()
    finally:
        engine.destroy()
