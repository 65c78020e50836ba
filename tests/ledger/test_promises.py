"""Every promise at once, over random days: the real ledger and the real sweep, on a clock of the test."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.errors import GPUPoolError
from jupyterhub_gpupool.ledger import schema as t
from jupyterhub_gpupool.ledger.turns import waiting
from jupyterhub_gpupool.model import Kind, Lease, State, When, Wish

from .bench import INTERVAL, Bench
from .conftest import HALF, WHOLE

GPUS, WARN, HOUR = 3, 30.0, 3600.0
PAIR = Wish(kind=Kind.GPU, count=2)
numbers = itertools.count()

people = st.sampled_from(["ada", "grace", "linus", "alan"])
member_of = st.sampled_from([(), ("a",), ("b",), ("a", "b"), ("c",)])
terms = st.fixed_dictionaries(
    {
        "warn": st.just(WARN),
        "min_age": st.sampled_from([0.0, 0.0, 70.0]),
        "window": st.sampled_from([0.0, 40.0]),
        "when": st.sampled_from([When.WANTED, When.ALWAYS]),
        "max_age": st.sampled_from([0.0, 0.0, 200.0]),
    }
)
caps = st.fixed_dictionaries(
    {},
    optional={
        "sessions": st.integers(1, 3),
        "gpus": st.sampled_from([0.5, 1.0, 2.0]),
        "gpu_hours": st.just(0.1),
    },
)
group_limits = st.fixed_dictionaries(
    {"priority": st.sampled_from([5, 10, 40])},
    optional={
        "sessions": st.integers(1, 3),
        "gpus": st.sampled_from([1.0, 2.0]),
        "strict": st.booleans(),
        "gpu_hours": st.sampled_from([0.05, 5.0]),
        "guaranteed_gpus": st.just(1.0),
    },
)
all_limits = st.fixed_dictionaries(
    {
        "group:a": st.fixed_dictionaries({"guaranteed_gpus": st.sampled_from([1.0, 2.0])}),
        "group:b": group_limits,
    },
    optional={
        "pool": st.fixed_dictionaries({"gpus": st.sampled_from([2.0, 3.0])}),
        "user:*": caps,
        "user:ada": caps,
    },
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), people, member_of, st.sampled_from([WHOLE, WHOLE, HALF, PAIR]), terms),
        st.tuples(st.just("ask"), people, member_of, st.just(WHOLE), terms),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("work"), people),
        st.tuples(st.just("time"), st.integers(1, 9)),
        st.tuples(st.just("time"), st.integers(4, 9)),
        st.tuples(st.just("edit"), st.sampled_from(["group:a", "group:b", "user:linus"]), caps),
        st.tuples(st.just("drain"), st.integers(0, GPUS - 1), st.sampled_from([None, 150.0])),
        st.tuples(st.just("undrain")),
    ),
    min_size=8,
    max_size=24,
)


class Day:
    """A random day, and all that was promised of it."""

    def __init__(self, bench: Bench) -> None:
        self.b, self.names = bench, itertools.count()
        self.granted: set[str] = set()
        self.claimed: dict[str, float] = {}
        self.late_end = WARN  # the longest of the warnings and ages that a claim may have to wait for
        self.disturbed = False  # whether a drain takes away what a claim could have had

    def do(self, step: tuple[Any, ...]) -> None:
        what, *args = step
        try:
            getattr(self, what)(*args)
        except GPUPoolError as refused:
            event(f"refused: {refused.reason}")
        self.look()

    # --- what happens ---

    def ask(self, user: str, groups: tuple[str, ...], wish: Wish, rules: dict[str, Any]) -> None:
        self.late_end = max(self.late_end, rules["min_age"])
        self.b.ask(user, *groups, wish=wish, server=str(next(self.names)), **rules)

    def end(self, number: int) -> None:
        self._take(number, State.ACTIVE, self.stop)

    def leave(self, number: int) -> None:
        self._take(number, State.QUEUED, lambda x: self.b.ledger.give_up(x.id, actor=x.user, reason="left"))

    def _take(self, number: int, state: State, act: Any) -> None:
        found = [lease for lease in self.b.ledger.snapshot().leases if lease.state is state]
        if found:
            act(found[number % len(found)])
            self.b.launch()

    def stop(self, lease: Lease) -> None:
        self.b.ledger.begin_stop(lease.id, actor=lease.user, reason="done")
        self.b.ledger.close(lease.id, actor=lease.user)

    def work(self, user: str) -> None:
        self.b.busy ^= {user}

    def time(self, sweeps: int) -> None:
        for _ in range(sweeps):
            self.b.pass_time()
            self.look()

    def edit(self, scope: str, keys: dict[str, Any]) -> None:
        try:
            self.b.ledger.set_limit(scope, keys, actor="admin")
        except ValueError as refused:
            event(f"no limit: {str(refused)[:40]}")
        self.b.launch()

    def drain(self, number: int, seconds: float | None) -> None:
        at = None if seconds is None else self.b.clock.now + seconds
        self.b.ledger.drain(self.b.gpus[number].id, at, actor="admin")
        self.disturbed = True

    def undrain(self) -> None:
        self.b.ledger.undrain(None, actor="admin")
        self.b.launch()
        self.disturbed = False

    # --- what was promised ---

    def look(self) -> None:
        snapshot = self.b.ledger.snapshot()
        held = [lease for lease in snapshot.leases if lease.state is not State.QUEUED]
        fresh = [lease for lease in held if lease.id not in self.granted]
        self.granted |= {lease.id for lease in held}
        for lease in fresh:
            self._fits_its_limits(lease, snapshot.limits, snapshot.over)
            self._nobody_was_passed_over(lease, snapshot.queue)
        self._claims_are_served(snapshot)

    def _fits_its_limits(self, lease: Lease, limits: Any, over: dict[str, str]) -> None:
        strict = {
            f"group:{name}"
            for name in lease.groups
            if f"group:{name}" in limits and limits[f"group:{name}"].strict
        }
        scopes = {"pool", f"user:{lease.user}", f"group:{lease.group}", *strict}
        assert not scopes & over.keys(), over

    def _nobody_was_passed_over(self, lease: Lease, queue: tuple[Lease, ...]) -> None:
        with self.b.ledger.store.read() as (conn, _):
            tickets = {row.id: row.ticket for row in conn.execute(select(t.leases.c.id, t.leases.c.ticket))}
        for other in queue:
            alike = (other.user, other.groups, other.wish) == (lease.user, lease.groups, lease.wish)
            if alike and (other.terms.max_age or math.inf) <= (lease.terms.max_age or math.inf):
                assert tickets[other.id] > tickets[lease.id], f"{other} came before {lease}"

    def _claims_are_served(self, snapshot: Any) -> None:
        """Who is within a share waits no longer than for a warning and the age that a session may have."""
        wanted, now = self.b.ledger.wanted(), self.b.clock.now
        with self.b.ledger.store.read() as (conn, at):
            grants = self.b.ledger._grants
            line = grants.line(conn, at, *_numbers(conn))
            turns = line.turns(waiting(conn.execute, at, grants.policy))
        own = {turn.row.id for turn in turns if turn.queued.own}
        for key in own:
            if self.disturbed or key in wanted.unmet:
                self.claimed[key] = now
            since = self.claimed.setdefault(key, now)
            assert now - since <= max(WARN, self.late_end) + 2 * INTERVAL, "a claim has waited for too long"
        for key, since in self.claimed.items():
            if key in self.granted and now > since:
                event("a claim was served after a wait")
        self.claimed = {key: at for key, at in self.claimed.items() if key in own}

    def finish(self) -> None:
        """Let all who wait have their turn: whoever is left could never have started, by limits or budgets."""
        self.b.ledger.undrain(None, actor="admin")
        self.b.launch()
        self.b.ledger.set_limit("user:linus", {}, actor="admin")
        for scope in ("group:a", "group:b"):
            self.b.ledger.clear_limit(scope, actor="admin")
        self.b.launch()
        for _ in range(60):
            snapshot = self.b.ledger.snapshot()
            held = [lease for lease in snapshot.leases if lease.state is not State.QUEUED]
            if not held and not snapshot.queue:
                return
            active = [lease for lease in held if lease.state is State.ACTIVE]
            if not active:
                if not held:  # budgets come back when the window has passed
                    self.b.clock.forward(8 * 86400)
                self.b.pass_time()  # what a sweep has begun to stop, it ends
                continue
            for lease in active:
                self.stop(lease)
            self.b.launch()
        assert not self.b.ledger.snapshot().queue, [x.reason for x in self.b.ledger.snapshot().queue]

    def check_ends(self) -> None:
        """Whoever was ended was warned for that reason for the whole time, and was old enough."""
        for lease in self.b.ledger.closed(None, count=1000):
            if lease.stopped_by != "service":
                continue
            stopped = self.b.events(lease, "stop")[0]
            warned = [item for item in self.b.events(lease, "warn", "unwarn") if item.at <= stopped.at]
            assert warned and warned[-1].action == "warn", "ended without a warning"
            event(f"ended for {lease.warned_for}")
            assert stopped.at - warned[-1].at >= WARN - 1e-6
            if lease.warned_for not in ("drain", "max_age"):
                assert stopped.at - (lease.active_at or 0) >= lease.terms.min_age - 1e-6

    def check_books(self) -> None:
        """What the books say is what the leases' times say, whichever way it is summed."""
        leases = self.b.ledger.closed(None, count=1000)
        first = min((lease.requested_at for lease in leases), default=self.b.clock.now)
        held = waited = 0.0
        for lease in leases:
            assert lease.closed_at is not None
            until = lease.closed_at if lease.granted_at is None else lease.granted_at
            waited += lease.gpus * (until - lease.requested_at) / HOUR
            held += lease.gpus * (lease.closed_at - until) / HOUR
        for by in ("user", "group", "profile"):
            entries = self.b.ledger.usage(by, first, self.b.clock.now + 1)
            assert sum(item.held for item in entries) == pytest.approx(held, abs=1e-6)
            assert sum(item.waiting for item in entries) == pytest.approx(waited, abs=1e-6)
            assert all(item.used >= -1e-9 and item.idle >= -1e-9 for item in entries)


def _numbers(conn: Any) -> tuple[int, int]:
    row = conn.execute(select(t.pool.c.inventory, t.pool.c.limits_version)).one()
    return row.inventory, row.limits_version


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    limits=all_limits,
    order=st.sampled_from(sorted(fairness.ORDERS)),
    todo=steps,
    ends=st.booleans(),
    full=st.booleans(),
)
def test_every_promise_holds_on_a_random_day(
    tmp_path: Path, limits: dict[str, Any], order: str, todo: list[tuple[Any, ...]], ends: bool, full: bool
) -> None:
    place = tmp_path / f"day{next(numbers)}"
    place.mkdir()
    bench = Bench(
        f"sqlite:///{place / 'ledger.sqlite'}",
        GPUS,
        limits=_sound(limits),
        queue_order=order,
        budget_end=ends,
    )
    day = Day(bench)
    try:
        if full:
            for user in ("linus", "alan", "eve"):
                day.do(("ask", user, ("c",), WHOLE, {"warn": WARN, "min_age": 0.0, "window": 0.0}))
        for step in todo:
            day.do(step)
        day.finish()
        day.check_ends()
        day.check_books()
    finally:
        bench.close()


def _sound(limits: dict[str, Any]) -> dict[str, Any]:
    """Guaranteed is no more than the pool may hold."""
    most = limits.get("pool", {}).get("gpus", GPUS)
    sound = sum(keys.get("guaranteed_gpus", 0) for keys in limits.values()) <= most
    return {
        scope: {key: value for key, value in keys.items() if sound or key != "guaranteed_gpus"}
        for scope, keys in limits.items()
    }
