"""Two groups on one pool, through the real hub: a share lent and claimed back, limits edited, a budget, a drain."""

from __future__ import annotations

from typing import Any

import pytest

from jupyterhub_gpupool.demo import ADMIN
from jupyterhub_gpupool.ledger import Event
from jupyterhub_gpupool.model import Lease

from .conftest import HubUnderTest, MakeHub, until

WARN, MIN_AGE = 8, 12
A100S = {"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 2}
LIMITS = {
    "group:vision": {"guaranteed_gpus": 1},
    "group:students": {"gpus": 2},
}  # ada is of vision, linus a student


@pytest.fixture
def pool(make_hub: MakeHub) -> HubUnderTest:
    idle = {"window": 3600, "warn": WARN, "min_age": MIN_AGE}
    hub = make_hub(limits=LIMITS, idle=idle, sections={"SimulatedDevices": {"gpus": [A100S]}})
    hub.start()
    return hub


class Admin:
    """The admin, who has nothing but REST."""

    def __init__(self, hub: HubUnderTest) -> None:
        self._hub, self._token = hub, hub.token_of(ADMIN)

    def __call__(self, method: str, path: str, **body: Any) -> Any:
        answer = self._hub.pool(method, f"api/{path}", self._token, **({"json": body} if body else {}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def over(self, scope: str) -> str:
        found = {row["scope"]: row["over"] for row in self("GET", "limits")["limits"]}
        return str(found[scope] or "")


def events(hub: HubUnderTest, lease: Lease, action: str) -> list[Event]:
    return [e for e in hub.ledger().events(count=5000) if (e.lease, e.action) == (lease.id, action)]


def sweeps(hub: HubUnderTest, count: int) -> None:
    """Wait until the service has looked so many times more."""
    for _ in range(count):
        before = hub.ledger().snapshot().swept_at
        until(lambda at=before: hub.ledger().snapshot().swept_at != at, "a sweep")  # type: ignore[misc]


def why(hub: HubUnderTest, user: str, server: str = "") -> str:
    lease = hub.lease_of(user, server)
    return lease.reason if lease is not None and lease.state == "queued" else ""


def test_two_groups_share_a_pool(pool: HubUnderTest) -> None:
    admin = Admin(pool)
    a_share_is_lent_and_claimed_back(pool)
    a_limit_below_use_ends_nobody(pool, admin)
    an_edit_reaches_who_waits(pool, admin)
    a_budget_that_is_used_up_says_when(pool, admin)
    a_drain_ends_sessions_and_an_undrain_serves_the_queue(pool, admin)
    assert pool.alive()


def a_share_is_lent_and_claimed_back(pool: HubUnderTest) -> None:
    borrowed = [pool.run("linus"), pool.run("linus", server="two")]
    assert [lease.group for lease in borrowed] == ["students", "students"]
    pool.spawn("ada")
    pool.wait_state("ada", "queued")
    victim = until(
        lambda: next((x for x in pool.ledger().snapshot().leases if x.warned_for == "share"), None),
        "a warning",
    )
    assert victim.user == "linus"
    assert "wanted by request" in victim.verdict_reason and "for the share of vision" in victim.verdict_reason
    mine = pool.pool("GET", "api/leases", pool.token_of("linus")).json()["leases"]
    assert [x["group"] for x in mine] == ["students", "students"]
    (told,) = [x for x in mine if x["id"] == victim.id]
    assert (told["warned_for"], told["extend_seconds"]) == ("share", 0)
    extend = pool.pool("POST", f"api/leases/{victim.id}/extend", pool.token_of("linus"))
    assert extend.status_code == 409
    assert "cannot be put off: 1 GPU wanted by request" in extend.json()["message"]
    pool.wait_ready("ada")
    ada = pool.wait_state("ada", "active")
    assert (ada.group, ada.slices[0].device) == ("vision", victim.slices[0].device)
    (stopped,), (warned,) = events(pool, victim, "stop"), events(pool, victim, "warn")
    assert stopped.at - warned.at >= WARN
    assert stopped.at - (victim.active_at or 0) >= MIN_AGE
    (kept,) = [x for x in borrowed if x.id != victim.id]
    assert pool.wait_state("linus", "active", kept.server).warned_for == ""


def a_limit_below_use_ends_nobody(pool: HubUnderTest, admin: Admin) -> None:
    answer = admin("PUT", "limits/group:students", keys={"gpus": 0.5}, why="a course")
    assert [(x["scope"], x["users"]) for x in answer["touched"]] == [("group:students", ["linus"])]
    assert admin.over("group:students") == "over limit: holds 1 of its 0.5 GPUs"
    sweeps(pool, 3)
    student = next(x for x in pool.ledger().snapshot().leases if x.user == "linus")
    assert (student.state, student.warned_for) == ("active", "")
    assert student.group == "students"


def an_edit_reaches_who_waits(pool: HubUnderTest, admin: Admin) -> None:
    """One GPU is free again; the student's second session waits for the limit, and then does not."""
    admin("PUT", "limits/group:students", keys={"gpus": 1})
    assert admin.over("group:students") == ""
    assert pool.delete("ada").status_code in (202, 204)
    pool.wait_gone("ada")
    free = "two" if pool.lease_of("linus") else ""
    pool.spawn("linus", server=free)
    until(lambda: why(pool, "linus", free) == "group students holds 1 of its 1 GPU", "the reason")
    row = admin("DELETE", "limits/group:students")
    assert (row["edited"], row["effective"]) == (None, {"gpus": 2})
    pool.wait_ready("linus", free)
    trail = [e for e in pool.ledger().events(count=5000) if e.action == "limit"]
    assert {e.actor for e in trail} == {ADMIN}
    assert trail[0].reason == 'group:students: {"gpus":0.5} (a course)'


def a_budget_that_is_used_up_says_when(pool: HubUnderTest, admin: Admin) -> None:
    admin("PUT", "limits/user:ada", keys={"gpu_hours": 0.0002, "window": 3600})
    refused = pool.spawn("ada")
    assert refused.status_code == 429
    said = refused.json()["message"]
    assert said.startswith("User ada has used all of its 0.0002 GPU-hours in 60 min; a start works again in ")
    assert "UTC) at the earliest." in said
    offer = pool.pool("GET", "api/availability", pool.token_of("ada")).json()["profiles"]
    whole = next(x for x in offer if x["slug"] == "whole")
    assert (whole["allowed"], whole["budget_left_hours"]) == (False, 0)
    assert "a start works again in" in whole["reason"]
    assert pool.run("ada", "cpu").gpus == 0, "what needs no GPU needs no budget"
    pool.delete("ada")
    pool.wait_gone("ada")
    admin("DELETE", "limits/user:ada")


def a_drain_ends_sessions_and_an_undrain_serves_the_queue(pool: HubUnderTest, admin: Admin) -> None:
    lease = pool.wait_state("linus", "active")
    device = lease.slices[0].device
    assert admin("POST", f"devices/{device}/drain", why="new fan")["devices"] == [device]
    until(lambda: (pool.ledger().lease(lease.id) or lease).warned_for == "drain", "the warning")
    pool.wait_gone("linus")
    (stopped,), (warned,) = events(pool, lease, "stop"), events(pool, lease, "warn")
    assert f"{device} is taken out of service: new fan" in warned.reason, (
        "the owner need not know who drains it"
    )
    assert stopped.at - warned.at >= WARN
    pool.delete("linus", "two")
    pool.wait_gone("linus", "two")
    assert pool.run("linus", server="two").slices[0].device != device
    pool.spawn("grace")
    pool.wait_state("grace", "queued")
    sweeps(pool, 2)
    assert pool.wait_state("grace", "queued").state == "queued"
    assert admin("POST", "pool/undrain")["devices"] == [device]
    pool.wait_ready("grace")
    assert pool.wait_state("grace", "active").slices[0].device == device
