"""Who makes room, for what, and when: the real sweep over the real ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.model import Decision, Kind, Owner, Request, State, Terms, When, Wish

from .bench import INTERVAL, Bench
from .conftest import WHOLE, Databases

WARN = 60.0
SHARE: dict[str, Any] = {"group:vision": {"guaranteed_gpus": 2}}
Make = Callable[..., Bench]


@pytest.fixture
def bench(databases: Databases) -> Iterator[Make]:
    made: list[Bench] = []

    def make(gpus: int, **settings: Any) -> Bench:
        made.append(Bench(databases.url("bench"), gpus, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- a guaranteed share ------------------------------------------------------------------------------


def test_borrowed_sessions_are_warned_and_make_room_for_the_share(bench: Make) -> None:
    b = bench(2, limits=SHARE)
    b.busy = {"linus", "alan"}
    linus, alan = b.ask("linus", "students"), b.ask("alan", "students")
    ada = b.ask("ada", "vision")
    assert ada.state is State.QUEUED
    b.pass_time()
    warned = [lease for lease in (b.lease(linus), b.lease(alan)) if lease.warned_for == "share"]
    assert len(warned) == 1, "one GPU is wanted back, one session is warned"
    (victim,) = warned
    assert victim.deadline_seconds == WARN
    why = b.events(victim, "warn")[0].reason
    assert f"wanted by request {ada.id} for the share of vision" in why
    assert "it borrows: " in why
    with pytest.raises(Rejected, match="cannot be put off: 1 GPU wanted by request") as told:
        b.ledger.extend(victim.id, victim.user)
    for said in (why, str(told.value), b.lease(victim).verdict_reason):
        assert "ada" not in said.replace(ada.id, ""), "who somebody else is, is not told"
    b.pass_time(int(WARN / INTERVAL) + 1)
    assert b.lease(ada).state is State.ACTIVE
    stopped = b.events(victim, "stop")[0]
    assert stopped.at - b.events(victim, "warn")[0].at >= WARN
    assert (b.lease(ada).granted_at or 0) - ada.requested_at <= WARN + 2 * INTERVAL
    assert b.counters.reclaims == ["share"]
    kept = linus if victim.id == alan.id else alan
    assert b.events(kept, "warn") == []


def test_use_does_not_clear_it_and_an_empty_queue_does(bench: Make) -> None:
    b = bench(1, limits={"group:vision": {"guaranteed_gpus": 1}})
    b.busy = {"linus"}
    linus, ada = b.ask("linus"), b.ask("ada", "vision")
    b.pass_time(3)
    assert b.lease(linus).deadline_seconds == WARN - 2 * INTERVAL
    b.unknown = {"linus"}
    b.pass_time(1)
    assert b.lease(linus).deadline_seconds == WARN - 3 * INTERVAL, "nor does what is not known"
    b.ledger.give_up(ada.id, actor="ada", reason="left")
    b.pass_time(8)
    assert [event.action for event in b.events(linus, "warn", "unwarn", "stop")] == ["warn", "unwarn"]


def test_nobody_goes_before_min_age(bench: Make) -> None:
    b = bench(1, limits={"group:vision": {"guaranteed_gpus": 1}})
    linus = b.ask("linus", min_age=200)
    b.ask("ada", "vision")
    b.pass_time(25)
    (stopped,) = b.events(linus, "stop")
    assert 200 <= stopped.at - (linus.active_at or 0) <= 200 + 2 * INTERVAL


def test_the_idlest_goes_first_and_own_sessions_stay(bench: Make) -> None:
    b = bench(3, limits={"group:vision": {"guaranteed_gpus": 2}})
    b.busy = {"linus", "grace"}
    grace, linus, alan = b.ask("grace", "vision"), b.ask("linus"), b.ask("alan")
    b.pass_time(2)
    b.ask("ada", "vision")
    b.pass_time(1)
    assert [b.lease(lease).warned_for for lease in (grace, linus, alan)] == ["", "", "share"]
    assert "idle for" in b.lease(alan).verdict_reason


def test_a_reservation_is_a_share_from_its_start_to_its_end(bench: Make) -> None:
    b = bench(1)
    start, end = "1970-01-12T14:00:00+00:00", "1970-01-12T15:00:00+00:00"  # the clock of the bench: 13:46:40
    keys = {"reservations": [{"gpus": 1, "start": start, "end": end}]}
    b.ledger.set_limit("group:course", keys, actor="admin")
    linus, ada = b.ask("linus"), b.ask("ada", "course")
    b.pass_time(79)
    assert b.lease(linus).warned_for == ""
    b.pass_time(1)
    assert b.lease(linus).warned_for == "share", "it is 14:00"
    b.pass_time(7)
    assert b.lease(ada).state is State.ACTIVE


def test_a_borrower_does_not_settle_on_what_a_claim_waits_for(bench: Make) -> None:
    b = bench(2, limits=SHARE)
    first, second = b.ask("linus"), b.ask("alan")
    pair = b.ask("ada", "vision", wish=Wish(kind=Kind.GPU, count=2))
    late = b.ask("eve")
    b.ledger.begin_stop(first.id, actor="linus", reason="test")
    b.ledger.close(first.id, actor="linus")
    assert b.lease(late).state is State.QUEUED
    b.pass_time(8)
    assert b.lease(second).state is State.CLOSED
    assert b.lease(pair).state is State.ACTIVE
    assert b.lease(late).state is State.QUEUED


def test_one_share_is_claimed_once(bench: Make) -> None:
    """Two wait for the one GPU that is left of the share: one session makes room, not two."""
    b = bench(2, limits={"group:vision": {"guaranteed_gpus": 1}})
    linus, alan = b.ask("linus"), b.ask("alan")
    ada, grace = b.ask("ada", "vision"), b.ask("grace", "vision")
    b.pass_time(12)
    assert sorted(b.lease(lease).state for lease in (linus, alan)) == ["active", "closed"]
    assert [b.lease(lease).state for lease in (ada, grace)] == ["active", "queued"]


def test_nobody_makes_room_for_who_could_not_be_granted_it(bench: Make) -> None:
    b = bench(1, limits={"group:vision": {"guaranteed_gpus": 1}, "user:ada": {"gpu_hours": 0.001}})
    ada = b.ask("ada", "vision")
    b.pass_time(2)  # her hours are used up
    b.ledger.begin_stop(ada.id, actor="ada", reason="test")
    b.ledger.close(ada.id, actor="ada")
    b.ledger.set_limit("user:ada", {}, actor="admin")
    linus, again = b.ask("linus"), b.ask("ada", "vision")
    assert again.state is State.QUEUED
    b.ledger.clear_limit("user:ada", actor="admin")
    b.pass_time(3)
    assert b.events(linus, "warn") == []


def test_nobody_makes_room_for_who_has_left(bench: Make) -> None:
    """A hub that is away is granted nothing; its places are kept, and nobody is ended for them."""
    b = bench(1, limits={"group:vision": {"guaranteed_gpus": 1}})
    linus = b.ask("linus")
    b.ask("ada", "vision")
    b.away = True
    b.clock.forward(20)
    b.pass_time(8)
    assert b.events(linus, "warn") == []
    b.away = False
    b.pass_time(2)
    assert b.lease(linus).warned_for == "share"


def test_modes_observe_and_warn_end_nobody(bench: Make) -> None:
    b = bench(1, limits={"group:vision": {"guaranteed_gpus": 1}}, mode="observe")
    linus = b.ask("linus")
    b.ask("ada", "vision")
    b.pass_time(12)
    assert b.events(linus, "warn", "stop") == []
    assert b.lease(linus).verdict is Decision.WARN
    assert "mode observe" in b.lease(linus).verdict_reason


# --- idle, and wanted --------------------------------------------------------------------------------

IDLE: dict[str, Any] = {"window": 30, "when": When.WANTED}


def test_who_would_ask_now_waits_for_the_warning_of_what_is_idle(bench: Make) -> None:
    b = bench(1)
    b.busy = {"linus"}
    b.ask("linus", **IDLE)
    b.pass_time(6)
    b.ledger.expect({"gpu": WHOLE})
    assert b.ledger.snapshot().offers == {}, "nobody knows how long it computes"
    b.busy = set()
    b.pass_time(6)
    b.ledger.expect({"gpu": WHOLE})
    assert b.ledger.snapshot().offers == {"gpu": (60, 60)}


def test_of_the_idle_only_whom_the_head_needs_is_taken(bench: Make) -> None:
    b = bench(3)
    b.busy = {"linus"}
    linus = b.ask("linus", **IDLE)
    b.pass_time(2)
    grace = b.ask("grace", **IDLE)
    alan = b.ask("alan", **{**IDLE, "when": When.ALWAYS, "window": 0})
    b.pass_time(6)
    b.busy = set()
    b.pass_time(4)
    for lease in (linus, grace, alan):
        assert b.lease(lease).warned_for == ""
    assert b.lease(grace).verdict_reason == "nobody who waits needs this slice"
    ada = b.ask("ada")
    b.pass_time(1)
    assert [b.lease(lease).warned_for for lease in (linus, grace, alan)] == ["", "idle", ""]
    assert f"wanted by request {ada.id}: " in b.lease(grace).verdict_reason
    assert "score" in b.events(grace, "warn")[0].reason
    b.pass_time(7)
    assert b.lease(ada).state is State.ACTIVE
    assert b.events(linus, "warn") == []
    assert b.counters.reclaims == ["idle"]


def test_use_clears_it_and_the_next_one_is_asked(bench: Make) -> None:
    b = bench(2)
    linus, grace = b.ask("linus", **IDLE), b.ask("grace", **IDLE)
    b.pass_time(5)
    ada = b.ask("ada")
    b.pass_time(2)
    first = next(lease for lease in (linus, grace) if b.lease(lease).warned_for == "idle")
    other = grace if first is linus else linus
    b.busy = {first.user}
    b.pass_time(2)
    assert [b.lease(lease).warned_for for lease in (first, other)] == ["", "idle"]
    b.pass_time(8)
    assert [b.lease(lease).state for lease in (first, other, ada)] == ["active", "closed", "active"]


def test_nobody_is_asked_for_whom_a_limit_keeps_waiting(bench: Make) -> None:
    b = bench(1, limits={"user:ada": {"sessions": 1, "gpus": 1}})
    linus = b.ask("linus", **IDLE)
    b.pass_time(4)
    cpu = b.ask("ada", wish=Wish())
    assert cpu.state is State.ACTIVE
    b.ledger.enqueue(
        "hub", Request(Owner("ada", sum(map(ord, "ada")), 1.0), "two", "gpu", Wish(Kind.GPU), Terms())
    )
    b.pass_time(4)
    assert b.events(linus, "warn") == []


# --- drain -------------------------------------------------------------------------------------------


def test_a_drained_gpu_gets_nothing_new_and_its_sessions_end_after_a_warning(bench: Make) -> None:
    b = bench(2)
    b.busy = {"linus", "alan"}
    linus, alan = b.ask("linus"), b.ask("alan")
    assert b.ledger.drain("GPU-0", actor="admin", why="new fan") == ("GPU-0",)
    ada = b.ask("ada")
    b.pass_time(1)
    device = b.ledger.snapshot().devices[0]
    assert (device.drained, device.drain_by, device.drain_why) == (True, "admin", "new fan")
    assert b.lease(linus).warned_for == "drain"
    assert "GPU-0 is taken out of service: new fan" in b.events(linus, "warn")[0].reason
    b.pass_time(7)
    assert [b.lease(x).state for x in (linus, alan, ada)] == ["closed", "active", "queued"]
    assert b.counters.reclaims == ["drain"]
    assert b.ledger.undrain(None, actor="admin") == ("GPU-0",)
    b.launch()
    assert b.lease(ada).state is State.ACTIVE
    assert [e.action for e in b.ledger.events(count=1000) if e.device == "GPU-0"] == [
        "device-new",
        "drain",
        "undrain",
    ]
    assert b.ledger.snapshot().devices[0].drain_at is None


def test_a_drain_at_a_time_ends_sessions_then(bench: Make) -> None:
    b = bench(1)
    linus = b.ask("linus")
    at = b.clock.now + 300
    assert b.ledger.drain(None, at, actor="admin") == ("GPU-0",)
    b.pass_time(20)
    assert b.lease(linus).state is State.ACTIVE
    assert b.lease(linus).warned_for == "drain", "they are told when it is planned"
    b.ledger.undrain("GPU-0", actor="admin")
    b.pass_time(1)
    assert b.lease(linus).warned_for == ""
    b.ledger.drain(None, at, actor="admin")
    b.pass_time(12)
    (stopped,) = b.events(linus, "stop")
    assert at <= stopped.at <= at + 2 * INTERVAL


def test_until_a_drain_begins_only_those_start_who_have_ended_by_then(bench: Make) -> None:
    b = bench(1)
    linus = b.ask("linus", max_age=400)
    b.ledger.drain(None, b.clock.now + 1000, actor="admin", why="new fan")
    b.pass_time(1)
    assert b.lease(linus).warned_for == "", "his session has ended by then anyway"
    head, long, short = b.ask("ada"), b.ask("grace", max_age=900), b.ask("alan", max_age=300)
    assert [b.lease(x).state for x in (head, long, short)] == ["queued"] * 3
    b.ledger.begin_stop(linus.id, actor="linus", reason="test")
    b.ledger.close(linus.id, actor="linus")
    b.launch()
    assert [b.lease(x).state for x in (head, long, short)] == ["queued", "active", "queued"], (
        "who fits, in order"
    )
    b.ledger.begin_stop(long.id, actor="grace", reason="test")
    b.ledger.close(long.id, actor="grace")
    b.launch()
    b.pass_time(1)
    assert b.lease(short).state is State.ACTIVE
    assert b.lease(head).state is State.QUEUED, "nobody knows when it would end"
    b.pass_time(100)
    assert b.lease(short).state is State.CLOSED
    assert b.counters.reclaims == ["max_age"]
    assert b.ask("eve", max_age=10).state is State.QUEUED, "the drain has begun"
    b.ledger.undrain(None, actor="admin")
    b.launch()
    assert b.lease(head).state is State.ACTIVE


def test_an_age_that_limits_allow_counts_for_a_drain(bench: Make) -> None:
    b = bench(1, limits={"group:students": {"max_age": 100}})
    b.ledger.drain(None, b.clock.now + 150, actor="admin")
    assert b.ask("linus").state is State.QUEUED
    assert b.ask("ada", "students").state is State.ACTIVE


def test_a_session_that_came_up_late_is_warned_of_the_drain_all_the_same(bench: Make) -> None:
    b = bench(1)
    b.ledger.drain(None, b.clock.now + 100, actor="admin")
    lease = b.ledger.enqueue(
        "hub", Request(Owner("ada", 1, 1.0), "", "gpu", WHOLE, Terms(max_age=100, warn=30))
    )
    b.clock.forward(50)  # its image was pulled
    b.launch()
    b.pass_time(1)
    assert b.lease(lease).warned_for == "drain"
    b.pass_time(5)
    assert b.lease(lease).state is State.CLOSED


def test_a_drain_of_nothing_is_refused(bench: Make) -> None:
    b = bench(1)
    for device, at, said in (
        ("GPU-9", None, "There is no GPU 'GPU-9'"),
        (None, float("nan"), "A drain begins at a time"),
        (None, 1e18, "A drain begins at a time"),
    ):
        with pytest.raises(Rejected, match=said):
            b.ledger.drain(device, at, actor="admin")
    assert b.ledger.undrain("GPU-0", actor="admin") == ()
    assert not any(event.action in ("drain", "undrain") for event in b.ledger.events(count=1000))


# --- budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [False, True])
def test_a_budget_that_runs_out_is_noted_and_ends_sessions_only_where_it_is_set(
    bench: Make, end: bool
) -> None:
    b = bench(1, limits={"user:*": {"gpu_hours": 0.1}}, budget_end=end)
    ada = b.ask("ada")
    b.pass_time(28)
    assert b.lease(ada).note == ""
    b.pass_time(2)
    assert b.lease(ada).note.startswith("User ada has used 0.08 of 0.1 GPU-hours")
    b.pass_time(6)
    assert b.lease(ada).warned_for == ("budget" if end else "")
    b.pass_time(8)
    assert b.lease(ada).state == ("closed" if end else "active")
    assert b.counters.reclaims == (["budget"] if end else [])
