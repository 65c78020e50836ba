"""The order of the queue as the ledger serves it, and as it shows it; expected waits; random pools."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.errors import GPUPoolError
from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import Health, Limit, State, Terms, Wish

from .conftest import CPU, HALF, THIRD, WHOLE, Clock, Make, end, gpu, request_of, run

HOUR = 3600.0


def wait(ledger: Ledger, *users: str, **more: Any) -> list[str]:
    """People who have to wait; returns their leases."""
    found = [ledger.enqueue("hub", request_of(user, WHOLE, **more)) for user in users]
    assert all(lease.state is State.QUEUED for lease in found)
    return [lease.id for lease in found]


def drain_queue(ledger: Ledger, held: Any) -> list[str]:
    """Free the one GPU again and again; returns who gets it, in turn."""
    served = []
    while ledger.snapshot().queue:
        end(ledger, held)
        held = next(x for x in ledger.snapshot().leases if x.state is State.STARTING)
        served.append(held.user)
        held = ledger.activate(held.id, actor=held.user)
    return served


def test_priority_goes_first_and_the_places_say_so(make: Make, clock: Clock) -> None:
    limits = {"user:grace": Limit(priority=20), "group:staff": Limit(priority=90)}
    ledger = make(Policy(limits=limits, order="priority"), (gpu(0),))
    held = run(ledger, "eve", WHOLE)
    asked = wait(ledger, "ada", "linus", "grace")
    asked += wait(ledger, "alan", groups=("staff",))
    expected = ["alan", "grace", "ada", "linus"]
    assert [lease.user for lease in ledger.snapshot().queue] == expected
    found = ledger.watch(asked)
    assert [found[lease].place for lease in asked] == [3, 4, 2, 1]
    assert drain_queue(ledger, held) == expected


def test_waiting_makes_up_for_priority(make: Make, clock: Clock) -> None:
    ledger = make(
        Policy(limits={"user:grace": Limit(priority=20)}, order="priority", beat_age=math.inf), (gpu(0),)
    )
    held = run(ledger, "eve", WHOLE)
    wait(ledger, "ada")
    clock.forward(10 * 600 + 1)
    wait(ledger, "grace")
    assert drain_queue(ledger, held) == ["ada", "grace"]


def test_fair_serves_whom_had_least_and_forgets_with_time(make: Make, clock: Clock) -> None:
    limits = {"group:a": Limit(gpus=9), "group:b": Limit(gpus=9)}
    policy = Policy(limits=limits, order="fair", half_life=HOUR, beat_age=math.inf)
    ledger = make(policy, (gpu(0),))
    held = run(ledger, "ada", WHOLE, groups=("a",))
    clock.forward(5 * HOUR)
    end(ledger, held)
    held = run(ledger, "eve", WHOLE)
    wait(ledger, "ada", "alan", groups=("a",))
    wait(ledger, "ben", "bob", groups=("b",))
    # Group a has had 5 hours: b comes first, and of a whoever has had none.
    assert [lease.user for lease in ledger.snapshot().queue][:2] == ["ben", "bob"]
    before = [lease.user for lease in ledger.snapshot().queue]
    assert before == ["ben", "bob", "alan", "ada"]
    clock.forward(20 * HOUR)
    expected = ["ada", "ben", "alan", "bob"]
    assert [lease.user for lease in ledger.snapshot().queue] == expected, (
        "the past has faded: they take turns"
    )
    assert drain_queue(ledger, held)[0] == "ada"


def test_fair_lets_nobody_wait_beyond_its_patience(make: Make, clock: Clock) -> None:
    policy = Policy(order="fair", patience=2 * HOUR, beat_age=math.inf)
    ledger = make(policy, (gpu(0),))
    held = run(ledger, "ada", WHOLE)
    clock.forward(100 * HOUR)
    end(ledger, held)
    held = run(ledger, "eve", WHOLE)
    wait(ledger, "ada")
    clock.forward(HOUR)
    wait(ledger, "ben")
    assert [lease.user for lease in ledger.snapshot().queue] == ["ben", "ada"]
    clock.forward(HOUR)
    assert drain_queue(ledger, held) == ["ada", "ben"]


def test_priority_lets_nobody_wait_beyond_the_patience(make: Make, clock: Clock) -> None:
    limits = {"user:ada": Limit(priority=1), "user:eve": Limit(priority=100)}
    ledger = make(Policy(order="priority", patience=2 * HOUR, limits=limits, beat_age=math.inf), (gpu(0),))
    run(ledger, "ben", WHOLE)
    wait(ledger, "ada")
    clock.forward(2 * HOUR - 1)
    wait(ledger, "eve")
    assert [lease.user for lease in ledger.snapshot().queue] == ["eve", "ada"]
    clock.forward(2)
    ledger.enqueue("hub", request_of("eve", WHOLE, server="two"))
    assert [lease.user for lease in ledger.snapshot().queue] == ["eve", "ada", "eve"]


def test_the_past_is_the_same_read_at_once_or_bit_by_bit(make: Make, clock: Clock) -> None:
    policy = Policy(order="fair", half_life=HOUR, limits={"group:a": Limit(gpus=9)}, beat_age=math.inf)
    ledger = make(policy, (gpu(0), gpu(1)))

    def hours(one: Ledger) -> dict[str, float]:
        with one.store.read() as (conn, now):
            return one._grants.past.hours(conn.execute, now)[0]

    for n in range(6):
        lease = run(ledger, f"u{n % 2}", WHOLE, groups=("a",))
        clock.forward(700 * (n + 1))
        hours(ledger)
        end(ledger, lease)
        hours(ledger)
    bit_by_bit, at_once = hours(ledger), hours(Ledger(str(ledger.store.url), policy, clock=clock))
    assert bit_by_bit == pytest.approx(at_once)
    assert set(at_once) == {"user:u0", "user:u1", "group:a"}
    clock.now -= 3000
    assert hours(ledger) == pytest.approx(hours(Ledger(str(ledger.store.url), policy, clock=clock)))


def test_who_is_within_a_share_comes_first_in_every_order(make: Make) -> None:
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=1)}), (gpu(0),))
    held = run(ledger, "eve", WHOLE)
    wait(ledger, "linus", "alan")
    wait(ledger, "ada", groups=("vision",))
    assert [lease.user for lease in ledger.snapshot().queue] == ["ada", "linus", "alan"]
    assert drain_queue(ledger, held) == ["ada", "linus", "alan"]


def test_two_requests_do_not_claim_one_share(make: Make) -> None:
    """What is left of the share is the first one's; the second borrows, and waits behind who came before."""
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=1)}), (gpu(0), gpu(1)))
    held = [run(ledger, user, WHOLE) for user in ("eve", "mallory")]
    wait(ledger, "linus")
    wait(ledger, "ada", "grace", groups=("vision",))
    assert [lease.user for lease in ledger.snapshot().queue] == ["ada", "linus", "grace"]
    end(ledger, held[0])
    end(ledger, held[1])
    assert {lease.user: lease.group for lease in held_by(ledger)} == {"ada": "vision", "linus": ""}
    (last,) = ledger.snapshot().queue
    assert last.user == "grace"


def test_who_may_claim_either_share_leaves_the_other_ones_claim_alone(make: Make) -> None:
    """Ada claims b, since a is claimed before her; that she is served first does not change it."""
    shares = {"group:a": Limit(guaranteed_gpus=1), "group:b": Limit(guaranteed_gpus=1)}
    ledger = make(
        Policy(limits={**shares, "user:ada": Limit(priority=90)}, order="priority"), (gpu(0), gpu(1))
    )
    held = [run(ledger, user, WHOLE) for user in ("eve", "mallory")]
    wait(ledger, "grace", groups=("a",))
    wait(ledger, "ada", groups=("a", "b"))
    assert [lease.user for lease in ledger.snapshot().queue] == ["ada", "grace"]
    for lease in held:
        end(ledger, lease)
    assert {lease.user: lease.group for lease in held_by(ledger)} == {"grace": "a", "ada": "b"}


def test_a_claim_that_cannot_be_granted_keeps_the_share_from_nobody(make: Make, clock: Clock) -> None:
    """Grace has used up her hours: what she waits for is no claim, and her colleague has it."""
    limits = {"group:a": Limit(guaranteed_gpus=1), "user:grace": Limit(gpu_hours=1)}
    ledger = make(Policy(limits=limits, beat_age=math.inf), (gpu(0),))
    held = run(ledger, "grace", WHOLE)
    wait(ledger, "grace", groups=("a",), server="two")
    wait(ledger, "linus")
    wait(ledger, "ada", groups=("a",))
    assert [lease.user for lease in ledger.snapshot().queue] == ["grace", "linus", "ada"]
    clock.forward(HOUR)
    assert [lease.user for lease in ledger.snapshot().queue] == ["ada", "grace", "linus"]
    end(ledger, held)
    assert [(lease.user, lease.group) for lease in held_by(ledger)] == [("ada", "a")]


# --- expected waits ----------------------------------------------------------------------------------


def test_waits_are_told_where_there_is_ground(make: Make, clock: Clock) -> None:
    ledger = make(Policy(beat_age=math.inf), (gpu(0),))
    offers = {"profile": WHOLE, "cpu": CPU}
    ledger.expect(offers)
    assert ledger.snapshot().offers == {"profile": (0, 0)}, "it is free"
    held = run(ledger, "eve", WHOLE)
    (asked,) = wait(ledger, "ada")
    ledger.expect(offers)
    assert (ledger.snapshot().waits, ledger.snapshot().offers) == ({}, {}), "nobody knows how long eve stays"
    assert ledger.watch([asked])[asked].place_wait is None
    ledger.give_up(asked, actor="ada", reason="left")
    for _ in range(10):
        end(ledger, held)
        held = run(ledger, "eve", WHOLE)
        clock.forward(HOUR)
    end(ledger, held)
    held = run(ledger, "eve", WHOLE)
    clock.forward(HOUR / 4)
    (asked,) = wait(ledger, "ada")
    version = ledger.lease(asked)
    ledger.expect(offers)
    assert ledger.snapshot().waits == {asked: (2700, 2700)}
    assert ledger.watch([asked])[asked].place_wait == (2700, 2700)
    assert ledger.snapshot().offers == {"profile": (2700 + 3600, 2700 + 3600)}
    found = ledger.lease(asked)
    assert found is not None
    assert version is not None
    assert found.version == version.version, "nobody decides by a wait"
    ledger.drain(None, actor="admin")
    ledger.expect(offers)
    assert (ledger.snapshot().waits, ledger.snapshot().offers) == ({}, {})


def ten_hours(ledger: Ledger, clock: Clock) -> Any:
    """Ten sessions of an hour on the only GPU, and one more that has just begun."""
    for _ in range(10):
        held = run(ledger, "eve", WHOLE)
        clock.forward(HOUR)
        end(ledger, held)
    return run(ledger, "eve", WHOLE)


def test_waits_count_on_no_device_that_is_sick_lost_or_drained(make: Make, clock: Clock) -> None:
    ledger = make(Policy(beat_age=math.inf), (gpu(0),))
    held = ten_hours(ledger, clock)
    (asked,) = wait(ledger, "ada")
    ledger.expect({"profile": WHOLE})
    assert ledger.snapshot().waits == {asked: (HOUR, HOUR)}
    other = {"profile": (2 * HOUR, 2 * HOUR)}
    assert ledger.snapshot().offers == other
    ledger.drain("GPU-0", clock.now + 2 * HOUR, actor="admin")
    for gone in (replace(gpu(1), health=Health.SICK), replace(gpu(1), health=Health.LOST), None):
        ledger.sync_inventory([gpu(0), gone] if gone else [gpu(0)])
        ledger.expect({"profile": WHOLE})
        assert (ledger.snapshot().waits, ledger.snapshot().offers) == ({}, {}), gone
    ledger.undrain("GPU-0", actor="admin")
    ledger.sync_inventory([gpu(0), replace(gpu(1), health=Health.SICK)])
    ledger.expect({"profile": WHOLE})
    assert (ledger.snapshot().waits, ledger.snapshot().offers) == ({asked: (HOUR, HOUR)}, other)
    ledger.sync_inventory([gpu(0), gpu(1)])
    ledger.swept(0.1, "observe")
    assert ledger.snapshot().queue == (), "it is there again, and is given"
    end(ledger, held)


def test_a_drain_to_come_leaves_a_device_to_who_has_left_it_by_then(make: Make, clock: Clock) -> None:
    ledger = make(Policy(beat_age=math.inf), (gpu(0),))
    held = ten_hours(ledger, clock)
    (short,) = wait(ledger, "ada", terms=Terms(max_age=600.0))
    (long,) = wait(ledger, "grace", terms=Terms(max_age=2 * HOUR))
    ledger.drain(None, clock.now + HOUR + 600, actor="admin")
    ledger.expect({})
    assert ledger.snapshot().waits == {short: (HOUR, HOUR)}
    ledger.undrain(None, actor="admin")
    ledger.drain(None, clock.now + HOUR + 599, actor="admin")
    ledger.expect({})
    assert ledger.snapshot().waits == {}, "it would outlast the drain by a second"
    ledger.undrain(None, actor="admin")
    ledger.expect({})
    assert ledger.snapshot().waits == {short: (HOUR, HOUR), long: (HOUR + 600, HOUR + 600)}
    end(ledger, held)


# --- random pools ------------------------------------------------------------------------------------

GROUPS = ("a", "b", "c")
figures = st.one_of(st.none(), st.integers(0, 3))
names = itertools.count()


@st.composite
def limited(draw: st.DrawFn) -> dict[str, Limit]:
    found = {
        scope: Limit(sessions=draw(figures), gpus=draw(figures))
        for scope in draw(st.sets(st.sampled_from(["pool", "user:*", "user:u0"])))
    }
    for group in draw(st.sets(st.sampled_from(GROUPS))):
        gpus = draw(figures)
        most = 1.0 if gpus is None else min(1.0, float(gpus))
        found[f"group:{group}"] = Limit(
            sessions=draw(figures),
            gpus=gpus,
            strict=draw(st.booleans()),
            guaranteed_gpus=draw(st.sampled_from([None, most])),
            priority=draw(st.sampled_from([None, 1, 50])),
        )
    return found


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "end", "time"]),
        st.integers(0, 4),
        st.sampled_from([WHOLE, HALF, THIRD, CPU]),
        st.sets(st.sampled_from(GROUPS), max_size=2),
    ),
    max_size=14,
)


def held_by(ledger: Ledger) -> Iterator[Any]:
    return (lease for lease in ledger.snapshot().leases if lease.state is not State.QUEUED)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=limited(), order=st.sampled_from(["fifo", "priority", "fair"]), todo=steps)
def test_no_limit_is_exceeded_at_any_grant(
    make: Make,
    clock: Clock,
    limits: dict[str, Limit],
    order: str,
    todo: list[tuple[str, int, Wish, set[str]]],
) -> None:
    policy = Policy(limits=limits, order=order, beat_age=math.inf)
    ledger = make(policy, tuple(gpu(n) for n in range(3)), name=f"random{next(names)}")
    granted: set[str] = set()
    for action, who, wish, groups in todo:
        clock.forward(100)
        try:
            if action == "ask":
                ledger.enqueue(
                    "hub", request_of(f"u{who}", wish, server=str(clock.now), groups=tuple(sorted(groups)))
                )
            elif action == "end" and (held := list(held_by(ledger))):
                lease = held[who % len(held)]
                ledger.begin_stop(lease.id, actor="x", reason="x")
                ledger.close(lease.id, actor="x")
        except GPUPoolError:
            continue
        usage = fairness.tally(ledger.snapshot().holds, limits)
        now = {lease.id for lease in held_by(ledger)}
        # All grants of one step are counted before the next, so each must fit beside all the others.
        if now - granted:
            over = fairness.over_limits(usage, limits)
            assert over == {}, over
        granted = now
    ledger.close_database()
