"""The main job through a real hub: one spawn holds one slice, the rest waits, who frees grants."""

from __future__ import annotations

import json
import threading
import time

import requests

from .conftest import HubUnderTest, MakeHub, until


def test_one_spawn_holds_exactly_its_slice(hub: HubUnderTest) -> None:
    lease = hub.run("ada", "half")
    assert lease.gpus == 0.5
    said = hub.ask_session("ada").text
    assert said == f"{lease.id} {lease.slices[0].device}"
    model = hub.pool("GET", "api/pool").json()
    assert model["gpus"]["leased"] == 0.5
    assert hub.delete("ada").status_code in (202, 204)
    hub.wait_gone("ada")
    assert hub.sessions(lease.id) == []
    until(lambda: hub.pool("GET", "api/pool").json()["gpus"]["leased"] == 0, "the page to show it")


def test_who_waits_sees_the_place_change_and_lands(hub: HubUnderTest) -> None:
    hub.run("ada")
    hub.spawn("grace")
    hub.wait_state("grace", "queued")
    hub.spawn("linus")
    hub.wait_state("linus", "queued")
    events: list[dict[str, object]] = []

    def read() -> None:
        url = f"{hub.url}/hub/api/{hub.server_path('linus')}/progress"
        headers = {"Authorization": f"token {hub.token}"}
        with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    events.append({**json.loads(line[5:]), "at": time.monotonic()})

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    until(lambda: any("number 2" in str(e["message"]) for e in events), "the place in the queue")
    hub.delete("grace")
    until(lambda: any("next in the queue" in str(e["message"]) for e in events), "the next place")
    # Two places were told while the spawn still waited: nothing on the way holds the stream back.
    assert hub.wait_state("linus", "queued").state == "queued"
    hub.delete("ada")
    hub.wait_ready("linus")
    until(lambda: any(e.get("ready") for e in events), "the end of the stream")
    assert [e["message"] for e in events if "Granted" in str(e["message"])]


def test_an_idle_session_is_warned_stopped_and_the_next_is_granted(make_hub: MakeHub) -> None:
    hub = make_hub(idle={"window": 2, "warn": 8})
    hub.start()
    first = hub.run("ada")
    hub.spawn("grace")
    warned = until(
        lambda: next((x for x in hub.ledger().snapshot().leases if x.deadline_seconds is not None), None),
        "a warning",
    )
    assert warned.id == first.id
    mine = hub.pool("GET", "api/leases", hub.token_of("ada")).json()["leases"]
    assert mine[0]["deadline_seconds"] is not None
    hub.wait_ready("grace")
    closed = hub.ledger().lease(first.id)
    assert closed is not None and closed.state == "closed" and closed.stopped_by == "service"
    events = [e for e in hub.ledger().events(count=1000) if e.lease == first.id]
    warn = next(e for e in events if e.action == "warn")
    stop = next(e for e in events if e.action == "stop")
    assert stop.at - warn.at >= 8
    assert hub.sessions(first.id) == []


def test_extend_to_the_cap_and_release(make_hub: MakeHub) -> None:
    hub = make_hub(idle={"window": 1, "warn": 600})
    hub.start()
    token = hub.token_of("ada")
    lease = hub.run("ada")
    until(lambda: (hub.ledger().lease(lease.id) or lease).deadline_seconds is not None, "a warning")
    for status in (200, 200, 409):
        answer = hub.pool("POST", f"api/leases/{lease.id}/extend", token)
        assert answer.status_code == status, answer.text
    assert "most its profile allows" in answer.json()["message"]
    assert hub.pool("DELETE", f"api/leases/{lease.id}", token).status_code in (200, 202, 204)
    hub.wait_gone("ada")
    assert hub.pool("POST", f"api/leases/{lease.id}/extend", token).status_code == 409


def test_work_on_the_gpu_keeps_a_session(make_hub: MakeHub) -> None:
    hub = make_hub(idle={"window": 2, "warn": 2})
    hub.start()
    lease = hub.run("ada")
    hub.ask_session("ada", "burn?seconds=12")
    until(lambda: (hub.ledger().lease(lease.id) or lease).utilization or 0 > 50, "utilization to rise")
    stop_looking = time.monotonic() + 8
    while time.monotonic() < stop_looking:
        now = hub.ledger().lease(lease.id)
        assert now is not None and now.state == "active"
        time.sleep(0.2)
    hub.wait_gone("ada")  # the work has ended, and so does the session


def test_what_detaches_itself_ends_with_the_session(hub: HubUnderTest) -> None:
    lease = hub.run("ada")
    hub.ask_session("ada", "detach")
    until(lambda: len(hub.sessions(lease.id)) == 2, "the detached child")
    hub.delete("ada")
    hub.wait_gone("ada")
    assert hub.sessions(lease.id) == []


def test_a_cancel_leaves_the_queue_and_counts_as_no_failure(hub: HubUnderTest) -> None:
    hub.run("ada")
    for _ in range(3):
        hub.spawn("grace")
        hub.wait_state("grace", "queued")
        assert hub.delete("grace").status_code == 204
        hub.wait_gone("grace")
    assert hub.alive()
