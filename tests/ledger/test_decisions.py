"""What a decision remembers while it is made changes nothing: it is the one that counts everything anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.errors import Rejected, Unavailable
from jupyterhub_gpupool.ledger import Ledger, Policy, grants, turns
from jupyterhub_gpupool.ledger.counts import UsageReader
from jupyterhub_gpupool.model import HOLDING, Limit, State

from .conftest import CPU, HALF, THIRD, WHOLE, Clock, Databases, Make, gpu, request_of

HOUR = 3600.0
GROUPS = ("a", "b", "c")
PEOPLE = ("ada", "bob", "eve", "kim")


class Straight(turns.Line):
    """Says of each request what the rules say of what the database holds at that moment."""

    def _admit(self, item: fairness.Asking, left: Mapping[str, float]) -> fairness.Admission:
        row = self._asked[item.lease].row
        refused = self._refused(row, tuple(item.groups), item.gpus)
        if refused is not None:
            return refused
        reader = UsageReader(self._run, self._rules, self.guaranteed)
        usage = {**reader.of(row.owner, row.user), **reader.of_groups(item.groups)}
        limits, hours = self._rules.limits, self._budgets.left
        return fairness.admit(item.user, item.groups, item.gpus, usage, limits, left, hours)

    def alike(self, row: Any) -> tuple[Any, ...]:
        return (row.id,)


caps = st.builds(
    Limit,
    sessions=st.sampled_from([None, None, 1, 3]),
    gpus=st.sampled_from([None, 0.5, 1.0, 2.0]),
    strict=st.booleans(),
    guaranteed_gpus=st.sampled_from([None, None, 0.5, 1.0]),
    priority=st.sampled_from([None, 1, 50]),
    gpu_hours=st.sampled_from([None, None, 1.0]),
    profiles=st.sampled_from([None, None, None, ("other",)]),
)
own = st.builds(Limit, sessions=st.sampled_from([None, 1, 2]), gpus=st.sampled_from([None, 1.0]))
asks = st.tuples(
    st.sampled_from(PEOPLE),
    st.lists(st.sampled_from(GROUPS), unique=True, max_size=2),
    st.sampled_from([CPU, WHOLE, WHOLE, HALF, HALF, THIRD]),
)


@pytest.mark.engine("sqlite")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.dictionaries(st.sampled_from(GROUPS), caps, max_size=3),
    users=st.dictionaries(st.sampled_from(["user:*", "user:ada"]), own, max_size=2),
    pool=st.sampled_from([None, None, 1.5, 2.0]),
    order=st.sampled_from(sorted(fairness.ORDERS)),
    asked=st.lists(asks, min_size=6, max_size=18),
    ends=st.lists(st.integers(0, 9), max_size=5),
)
def test_a_decision_is_that_of_counting_everything_anew(
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    groups: dict[str, Limit],
    users: dict[str, Limit],
    pool: float | None,
    order: str,
    asked: list[Any],
    ends: list[int],
) -> None:
    limits = {**{f"group:{name}": limit for name, limit in groups.items()}, **users}
    limits.update({} if pool is None else {"pool": Limit(gpus=pool)})
    told = []
    for line in (turns.Line, Straight):
        with monkeypatch.context() as patched:
            patched.setattr(grants, "Line", line)
            clock = Clock()
            ledger = Ledger(
                databases.again(), Policy(limits=limits, launches=0, order=order, beat_age=1e9), clock=clock
            )
            told.append(list(_story(ledger, clock, asked, ends)))
            ledger.close_database()
    assert told[0] == told[1]
    event(f"{max(sum(row[2] == State.QUEUED for row in rows) for rows in told[0])} wait at most")


def _story(ledger: Ledger, clock: Clock, asked: list[Any], ends: list[int]) -> Iterator[list[Any]]:
    """Who holds what, and what those who wait are told, after each step."""
    ledger.sync_inventory([gpu(0), gpu(1)])
    ledger.register_hub("hub")
    for number, (user, groups, wish) in enumerate(asked):
        request = request_of(user, wish, server=str(number), groups=tuple(groups))
        with suppress(Rejected, Unavailable):
            ledger.enqueue("hub", request)
    ledger.settle()  # one decision over all of them
    yield _rows(ledger)
    for number in ends:
        clock.forward(0.6 * HOUR)
        held = sorted(
            (lease for lease in ledger.snapshot().leases if lease.state in HOLDING),
            key=lambda lease: int(lease.server),
        )
        for lease in held[number % len(held) :][:2] if held else ():
            ledger.begin_stop(lease.id, actor="test", reason="")
            ledger.close(lease.id, actor="test")
            yield _rows(ledger)


def _rows(ledger: Ledger) -> list[Any]:
    return sorted(
        (
            int(lease.server),
            lease.user,
            lease.state,
            lease.group,
            lease.reason,
            tuple((item.device, item.cells) for item in lease.slices),
        )
        for lease in ledger.snapshot().leases
    )


@pytest.mark.parametrize("order", sorted(fairness.ORDERS))
def test_a_queue_whose_profiles_are_limited_can_be_watched(make: Make, order: str) -> None:
    limits = {"group:a": Limit(profiles=("profile",))}
    ledger = make(Policy(limits=limits, order=order, launches=0, beat_age=1e9), devices=(gpu(0),))
    held = ledger.enqueue("hub", request_of("kim", WHOLE))
    asked = ledger.enqueue("hub", request_of("ada", WHOLE, groups=("a",)))
    assert ledger.watch([asked.id])[asked.id].place == 1
    # A profile that is taken away is taken from who waits already.
    ledger.set_limit("group:a", {"profiles": ["other"]}, actor="admin", why="")
    ledger.begin_stop(held.id, actor="test", reason="")
    ledger.close(held.id, actor="test")
    assert [lease.state for lease in ledger.snapshot().leases] == [State.QUEUED]
    assert "no longer allow you this profile" in ledger.watch([asked.id])[asked.id].why
