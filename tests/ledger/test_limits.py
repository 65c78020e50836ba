"""Limits, rights and budgets at work: edited at run time, counted inside the transaction that grants."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.errors import Rejected, Unavailable
from jupyterhub_gpupool.ledger import EDITED, Ledger, Policy, preview
from jupyterhub_gpupool.ledger.counts import UsageReader
from jupyterhub_gpupool.ledger.rules import Rules
from jupyterhub_gpupool.model import Limit, State, Terms, Wish

from .conftest import CPU, HALF, THIRD, WHOLE, Clock, Make, end, gpu, request_of, run

HOUR = 3600.0


def ask(ledger: Ledger, user: str, wish: Wish = WHOLE, **more: Any) -> Any:
    return ledger.enqueue("hub", request_of(user, wish, **more))


def state(ledger: Ledger, lease: Any) -> State:
    found = ledger.lease(lease.id)
    assert found is not None
    return found.state


# --- edits at run time -------------------------------------------------------------------------------


def test_an_edit_holds_at_once_and_leaves_who_when_and_why(make: Make, clock: Clock) -> None:
    ledger = make(Policy(limits={"user:*": Limit(sessions=1)}))
    run(ledger, "ada", HALF)
    second = ask(ledger, "ada", HALF, server="two")
    assert second.state is State.QUEUED
    clock.forward(5)
    row = ledger.set_limit("user:*", {"sessions": 2}, actor="admin", why="exam week")
    assert (row.configured, row.edited, row.effective) == (
        Limit(sessions=1),
        Limit(sessions=2),
        Limit(sessions=2),
    )
    assert (row.actor, row.at, row.why) == ("admin", clock.now, "exam week")
    assert state(ledger, second) is State.STARTING, "who raises a limit serves the queue"
    event = next(event for event in ledger.events() if event.action == "limit")
    assert (event.actor, event.at, event.reason) == ("admin", clock.now, 'user:*: {"sessions":2} (exam week)')
    assert ledger.snapshot().limits == {"user:*": Limit(sessions=2)}
    back = ledger.clear_limit("user:*", actor="admin", why="over")
    assert (back.edited, back.effective) == (None, Limit(sessions=1))
    assert ledger.events()[-1].reason == 'user:*: as configured, {"sessions":1} (over)'
    assert ask(ledger, "ada", HALF, server="three").state is State.QUEUED
    assert {lease.user for lease in ledger.snapshot().leases if lease.state is State.STARTING} == {"ada"}


def test_an_edit_that_was_not_looked_at_is_not_written_over(make: Make, clock: Clock) -> None:
    ledger, other = make(Policy(limits={"user:*": Limit(sessions=1)})), make()
    seen = ledger.limits()["user:*"].mark
    clock.forward(1)
    mine = other.set_limit("user:*", {"sessions": 2}, actor="other", seen=seen)
    before = ledger.events()
    with pytest.raises(Unavailable, match=r"user:\* was edited in the meantime, by other") as refused:
        ledger.set_limit("user:*", {"sessions": 3}, actor="admin", seen=seen)
    with pytest.raises(Unavailable, match="by other"):
        ledger.clear_limit("user:*", actor="admin", seen=seen)
    assert (refused.value.reason, refused.value.status) == (EDITED, 409)
    assert (ledger.limits()["user:*"].edited, ledger.events()) == (Limit(sessions=2), before)
    ledger.clear_limit("user:*", actor="admin", seen=mine.mark)
    with pytest.raises(Unavailable, match="by somebody who cleared it"):
        ledger.set_limit("user:*", {"sessions": 3}, actor="admin", seen=mine.mark)
    assert ledger.set_limit("user:*", {"sessions": 4}, actor="cli:root").edited == Limit(sessions=4)


def test_another_process_sees_an_edit(make: Make) -> None:
    ledger, other = make(), make()
    other.set_limit("user:ada", {"gpus": 0}, actor="cli:root")
    with pytest.raises(Rejected, match="user ada is allowed 0 GPUs at once"):
        ask(ledger, "ada", HALF)
    other.clear_limit("user:ada", actor="cli:root")
    assert ask(ledger, "ada", HALF).state is State.STARTING
    assert other.clear_limit("user:ada", actor="cli:root").effective is None
    assert [event.action for event in other.events()].count("limit") == 2, "clearing nothing is no event"


@pytest.mark.parametrize(
    ("scope", "keys", "said"),
    [
        ("users:ada", {}, "is not a scope"),
        ("user:ada", {"gpus": -1}, "gpus is -1"),
        ("user:ada", {"gpus": math.nan}, "gpus is nan"),
        ("user:ada", {"gpus": 10**400}, "a huge number"),
        ("user:ada", {"cores": 1}, "unknown key 'cores'"),
        ("group:vision", {"guaranteed_gpus": 4}, "4 GPUs are guaranteed .*and the pool has 3 GPUs"),
    ],
)
def test_what_is_no_limit_changes_nothing(
    ledger: Ledger, scope: str, keys: dict[str, Any], said: str
) -> None:
    before = ledger.events()
    with pytest.raises(ValueError, match=said):
        ledger.set_limit(scope, keys, actor="admin")
    assert (ledger.limits(), ledger.events()) == ({}, before)
    with pytest.raises(ValueError, match="is not a scope"):
        ledger.clear_limit("*", actor="admin")


def test_guaranteed_shares_that_are_configured_beyond_the_pool_are_named(make: Make) -> None:
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=4)}))
    assert "4 GPUs are guaranteed (4 to vision), and the pool has 3 GPUs" in ledger.check_shares()
    ledger.set_limit("group:vision", {"guaranteed_gpus": 1}, actor="admin")
    assert ledger.check_shares() == ""


def test_an_edit_that_guarantees_nothing_is_possible_while_too_much_is_guaranteed(make: Make) -> None:
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=4)}))
    assert ledger.set_limit("user:*", {"sessions": 1}, actor="admin").effective == Limit(sessions=1)


def test_the_pool_cannot_be_given_less_than_is_guaranteed(make: Make) -> None:
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=2)}))
    with pytest.raises(ValueError, match=r"2 GPUs are guaranteed .*and the pool has 1 GPU"):
        ledger.set_limit("pool", {"gpus": 1}, actor="admin")
    assert ledger.set_limit("pool", {"gpus": 2}, actor="admin").effective == Limit(gpus=2)
    assert ledger.set_limit("pool", {"sessions": 1}, actor="admin").effective == Limit(sessions=1)


def test_a_share_whose_room_another_has_taken_is_not_given_back(make: Make) -> None:
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=2)}))
    ledger.set_limit("group:vision", {"guaranteed_gpus": 1}, actor="admin")
    ledger.set_limit("group:students", {"guaranteed_gpus": 2}, actor="admin")
    with pytest.raises(ValueError, match=r"4 GPUs are guaranteed .*and the pool has 3 GPUs"):
        ledger.clear_limit("group:vision", actor="admin")
    assert ledger.limits()["group:vision"].effective == Limit(guaranteed_gpus=1), "nothing has changed"


def test_a_limit_lowered_below_use_ends_nobody_and_is_shown(make: Make) -> None:
    ledger = make()
    lease = run(ledger, "ada", WHOLE, groups=("vision",))
    limit = Limit(sessions=0)
    touched = preview(ledger.snapshot(), "user:ada", limit)
    assert [(item.scope, item.users) for item in touched] == [("user:ada", ("ada",))]
    assert "holds 1 of its 0 sessions" in touched[0].why
    ledger.set_limit("user:ada", {"sessions": 0}, actor="admin")
    assert state(ledger, lease) is State.ACTIVE
    assert ledger.snapshot().over == {"user:ada": "over limit: holds 1 of its 0 sessions"}
    assert preview(ledger.snapshot(), "user:ada", limit) == (), "who is over already is not touched"
    with pytest.raises(Rejected, match="no session at all"):
        ask(ledger, "ada", server="two")


def test_preview_names_the_members_of_a_strict_group(make: Make) -> None:
    ledger = make()
    run(ledger, "ada", WHOLE, groups=("vision", "staff"))
    run(ledger, "linus", WHOLE, groups=("staff",))
    (touched,) = preview(ledger.snapshot(), "group:vision", Limit(gpus=0.5, strict=True))
    assert (touched.scope, touched.users) == ("group:vision", ("ada",))
    (touched,) = preview(ledger.snapshot(), "pool", Limit(gpus=1))
    assert touched.users == ("ada", "linus")


# --- rights ------------------------------------------------------------------------------------------


def test_a_profile_that_limits_take_away_is_refused_and_waits_where_asked_before(make: Make) -> None:
    ledger = make(devices=(gpu(0),))
    first = run(ledger, "ada")
    run(ledger, "eve")
    waiting = ask(ledger, "linus", HALF)
    ledger.set_limit("user:*", {"profiles": ["other"]}, actor="admin")
    with pytest.raises(
        Rejected, match="profile is not open to user grace: user grace allows other"
    ) as refused:
        ask(ledger, "grace", HALF)
    assert (refused.value.reason, refused.value.status) == ("not-allowed", 403)
    end(ledger, first)
    assert state(ledger, waiting) is State.QUEUED
    assert "no longer allow you this profile" in ledger.watch([waiting.id])[waiting.id].why
    ledger.clear_limit("user:*", actor="admin")
    assert state(ledger, waiting) is State.STARTING


def test_the_age_that_limits_allow_is_part_of_the_terms_from_the_grant_on(make: Make) -> None:
    ledger = make(Policy(limits={"group:students": Limit(max_age=3600), "user:eve": Limit(max_age=60)}))
    ages = {
        user: ask(ledger, user, THIRD, groups=("students",), terms=Terms(max_age=most)).terms.max_age
        for user, most in (("ada", 0), ("linus", 7200), ("alan", 1800), ("eve", 0))
    }
    assert ages == {"ada": 3600, "linus": 3600, "alan": 1800, "eve": 60}


def test_a_strict_group_counts_every_session_of_a_member(make: Make) -> None:
    limits = {"group:exam": Limit(gpus=1, strict=True), "group:vision": Limit(gpus=9)}
    ledger = make(Policy(limits=limits))
    run(ledger, "ada", WHOLE, groups=("vision", "exam"))
    lease = ask(ledger, "linus", HALF, groups=("exam", "vision"))
    assert lease.state is State.QUEUED
    assert ledger.watch([lease.id])[lease.id].why == "group exam holds 1 of its 1 GPU"
    assert ask(ledger, "grace", HALF, groups=("vision",)).state is State.STARTING


NAMES = ("a", "B", "b", 'q"x', "ü")
LIMITED = {f"group:{name}": Limit(gpus=9, strict=n % 2 == 0) for n, name in enumerate(NAMES)}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=st.lists(st.lists(st.sampled_from(NAMES), unique=True, max_size=3), min_size=1, max_size=6))
def test_the_database_counts_as_the_rules_do(make: Make, people: list[list[str]]) -> None:
    limits = {**LIMITED, "pool": Limit(gpus=9), "user:*": Limit(sessions=9)}
    ledger = make(Policy(limits=limits), tuple(gpu(n) for n in range(6)), name=f"n{hash(str(people))}")
    for n, groups in enumerate(people):
        if ledger.lease_of(1000 + n, 1.0, "") is None:
            run(ledger, f"user{n}", WHOLE, groups=tuple(groups))
    expected = fairness.tally(ledger.snapshot().holds, limits)
    with ledger.store.read() as (conn, _):
        reader = UsageReader(conn.execute, Rules.of(limits), {})
        owners = {lease.user: conn.execute(
            text("SELECT owner FROM leases WHERE id = :id"), {"id": lease.id}).scalar_one()
            for lease in ledger.snapshot().leases}  # fmt: skip
        for user, owner in owners.items():
            for scope, found in {**reader.of(owner, user), **reader.of_groups(NAMES)}.items():
                assert found == expected.get(scope, fairness.Usage()), scope


@pytest.mark.parametrize("others", [("a", "b"), ("a,", ",b"), ('a"x', 'x"a'), ('"', "a"), ("\\", ",,")])
@pytest.mark.parametrize("name", [",", "x", '","'])
def test_only_its_members_count_for_a_strict_group_whatever_names_hold(
    make: Make, name: str, others: tuple[str, ...]
) -> None:
    ledger = make(Policy(limits={f"group:{name}": Limit(sessions=1, strict=True)}))
    run(ledger, "grace", THIRD, groups=others)
    assert ask(ledger, "ada", THIRD, groups=("z", name)).state is State.STARTING
    assert ask(ledger, "linus", THIRD, groups=(name, *others)).state is State.QUEUED, "one of it is there"


# --- budgets -----------------------------------------------------------------------------------------


def test_a_budget_that_is_used_up_names_when_a_start_works_again(make: Make, clock: Clock) -> None:
    ledger = make(Policy(limits={"user:*": Limit(gpu_hours=2, window=24 * HOUR)}), (gpu(0), gpu(1)))
    assert ledger.snapshot().budget("ada", ()).left == 2
    lease = run(ledger, "ada", WHOLE)
    clock.forward(1.7 * HOUR)
    stands = ledger.snapshot().budget("ada", ())
    assert (stands.state, round(stands.left, 6)) == ("warned", 0.3)
    assert (
        ledger.wanted().budgets[lease.id].message.startswith("User ada has used 1.7 of 2 GPU-hours in 24 h")
    )
    other = ask(ledger, "ada", WHOLE, server="two")
    assert other.state is State.STARTING, "there was something left"
    ledger.begin_stop(other.id, actor="ada", reason="test")
    ledger.close(other.id, actor="ada")
    clock.forward(0.3 * HOUR)
    with pytest.raises(
        Unavailable, match=r"used all of its 2 GPU-hours in 24 h; a start works again in 22 h"
    ) as no:
        ask(ledger, "ada", WHOLE, server="two")
    assert (no.value.reason, no.value.status) == ("budget", 429)
    assert ledger.budget("ada", ()).again_at == clock.now + 22 * HOUR
    assert ask(ledger, "ada", CPU, server="cpu").state is State.STARTING, "what needs no GPU needs no budget"
    assert ask(ledger, "grace", WHOLE).state is State.STARTING, "it is hers alone"
    end(ledger, lease)
    clock.forward(22 * HOUR + 1)
    assert ask(ledger, "ada", WHOLE, server="two").state is State.STARTING


def test_a_request_waits_for_its_budget_and_is_served_when_it_comes_back(make: Make, clock: Clock) -> None:
    limits = {"group:vision": Limit(gpu_hours=1, window=10 * HOUR)}
    ledger = make(Policy(limits=limits, beat_age=math.inf), (gpu(0),))
    lease = run(ledger, "ada", WHOLE, groups=("vision",))
    waiting = ask(ledger, "linus", WHOLE, groups=("vision",))
    assert ask(ledger, "eve", WHOLE).state is State.QUEUED
    clock.forward(HOUR)
    end(ledger, lease)
    assert "Group vision has used all of its 1 GPU-hours" in ledger.watch([waiting.id])[waiting.id].why
    assert {x.user: x.state for x in ledger.snapshot().leases} == {"eve": "starting", "linus": "queued"}
    eve = next(x for x in ledger.snapshot().leases if x.user == "eve")
    end(ledger, ledger.activate(eve.id, actor="eve"))
    clock.forward(9 * HOUR + 1)
    ledger.swept(1, "reclaim")
    assert state(ledger, waiting) is State.STARTING


def test_hours_of_a_strict_group_are_those_of_its_members(make: Make, clock: Clock) -> None:
    limits = {
        "group:exam": Limit(gpu_hours=9, strict=True),
        "pool": Limit(gpu_hours=100),
        "group:a": Limit(gpus=9),
    }
    ledger = make(Policy(limits=limits))
    run(ledger, "ada", WHOLE, groups=("a", "exam"))
    run(ledger, "linus", HALF)
    clock.forward(2 * HOUR)
    assert ledger.snapshot().used == pytest.approx({"group:exam": 2, "pool": 3})


# --- nothing that is not configured costs a query ----------------------------------------------------


def test_limits_that_nobody_set_cost_no_query(make: Make) -> None:
    from sqlalchemy import event

    ledger = make()
    ask(ledger, "warm", THIRD)
    said: list[str] = []
    event.listen(
        ledger.store.engine, "before_cursor_execute", lambda c, k, statement, *more: said.append(statement)
    )
    ask(ledger, "ada", THIRD)
    assert not [one for one in said if "limits" in one and not one.startswith("UPDATE pool")]
    assert not [one for one in said if "sum(" in one.lower()]
    assert len([one for one in said if one.startswith("SELECT")]) <= 18, said
