"""What each scope holds, and the GPU-hours that it has used: counted by the database, read once in a transaction."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import and_, bindparam, case, func, literal, or_, select

from .. import fairness
from ..model import Limit, State
from . import rows
from . import schema as t
from .rules import Rules

Run = Callable[..., Any]
"""Executes a statement with its parameters."""

HOUR = 3600.0

_usage = select(func.count(), func.coalesce(func.sum(t.leases.c.gpus), 0.0)).where(t.leases.c.held == 1)
_usage_of = {
    "pool": _usage,
    "owner": _usage.where(t.leases.c.owner == bindparam("name")),
    "group": _usage.where(t.leases.c.group == bindparam("name")),
}
# A list of names is told apart here, and not by a search in its text: a name may hold whatever separates them.
_usage_of_members = (
    select(t.leases.c.group, t.leases.c.groups, func.count(), func.coalesce(func.sum(t.leases.c.gpus), 0.0))
    .where(t.leases.c.held == 1)
    .group_by(t.leases.c.group, t.leases.c.groups)
)
_usage_of_owners = (
    select(t.leases.c.owner, func.count(), func.coalesce(func.sum(t.leases.c.gpus), 0.0))
    .where(t.leases.c.held == 1)
    .group_by(t.leases.c.owner)
)


class UsageReader:
    """Usage of the scopes that matter, each read once in a round and kept up with its grants.

    It counts as :func:`fairness.tally` does, and leaves the counting to the database.
    """

    def __init__(self, run: Run, rules: Rules, guaranteed: Mapping[str, float]) -> None:
        self._run, self._rules = run, rules
        self._counted = {scope[6:] for scope in rules.limits if scope.startswith("group:")} | set(guaranteed)
        self._users = any(scope.startswith("user:") for scope in rules.limits)
        self._held: dict[tuple[str, str], tuple[int, float]] = {}
        self._all_owners = False
        self.changes = 0
        """Raised with each grant: what was worked out from these counts before holds no more."""
        self._charged_at: dict[str, int] = {}

    def read_owners(self) -> None:
        """Read what everybody holds at once, for who is about to ask for many."""
        if self._users and not self._all_owners:
            self._all_owners = True
            for owner, count, gpus in self._run(_usage_of_owners):
                self._held.setdefault(("owner", owner), (int(count), float(gpus)))

    def of(self, owner: str, user: str) -> dict[str, fairness.Usage]:
        """What the pool and this user hold, as far as a limit asks for it."""
        found = {}
        if fairness.POOL in self._rules.limits:
            found[fairness.POOL] = fairness.Usage(*self._read("pool", ""))
        if self._users:
            found[f"user:{user}"] = fairness.Usage(*self._read("owner", owner))
        return found

    def of_groups(self, groups: Collection[str]) -> dict[str, fairness.Usage]:
        """What these groups hold, as far as a limit or a share asks for it."""
        return {
            f"group:{group}": fairness.Usage(
                *self._read("strict" if group in self._rules.strict else "group", group)
            )
            for group in groups
            if group in self._counted
        }

    def of_owner(self, owner: str) -> tuple[int, float]:
        """Sessions and GPU-equivalents of a person; nothing where no limit asks for it."""
        return self._read("owner", owner) if self._users else (0, 0.0)

    def charged_at(self, groups: Collection[str]) -> int:
        """At which of the changes what one of these groups holds may have changed last; 0: never."""
        return max((self._charged_at.get(group, 0) for group in groups), default=0)

    def _read(self, kind: str, name: str) -> tuple[int, float]:
        key = kind, name
        if key not in self._held and kind == "owner" and self._all_owners:
            self._held[key] = 0, 0.0
        elif key not in self._held and kind == "strict":
            self._read_members()
        elif key not in self._held:
            count, gpus = self._run(_usage_of[kind], {"name": name}).one()
            self._held[key] = int(count), float(gpus)
        return self._held[key]

    def _read_members(self) -> None:
        """Read what the members of all strict groups hold at once."""
        sums = dict.fromkeys(self._rules.strict, (0, 0.0))
        for charged, groups, count, gpus in self._run(_usage_of_members):
            for name in {charged, *rows.load(groups)} & sums.keys():
                sums[name] = sums[name][0] + int(count), sums[name][1] + float(gpus)
        self._held.update({("strict", name): held for name, held in sums.items()})

    def add(self, owner: str, groups: Sequence[str], group: str, gpus: float) -> None:
        """Count a lease that was granted in this round."""
        self.changes += 1
        self._charged_at.update(dict.fromkeys((*groups, group), self.changes))
        strict = (("strict", name) for name in {*groups, group})
        for key in (("pool", ""), ("owner", owner), ("group", group), *strict):
            if key in self._held:
                count, held = self._held[key]
                self._held[key] = count + 1, held + gpus


def queue_usage(run: Run, owner: str, user: str, groups: Sequence[str]) -> dict[str, fairness.Usage]:
    """How many requests wait, for the pool, this owner and these groups."""
    waiting = run(
        select(t.leases.c.owner, t.leases.c.groups).where(t.leases.c.state == State.QUEUED.value)
    ).all()
    of_group = dict.fromkeys(groups, 0)
    for row in waiting:
        for group in rows.load(row.groups):
            if group in of_group:
                of_group[group] += 1
    return {
        "pool": fairness.Usage(queued=len(waiting)),
        f"user:{user}": fairness.Usage(queued=sum(row.owner == owner for row in waiting)),
        **{f"group:{group}": fairness.Usage(queued=count) for group, count in of_group.items()},
    }


# --- GPU-hours ---------------------------------------------------------------------------------------

_start = case((t.leases.c.granted_at > bindparam("since"), t.leases.c.granted_at), else_=bindparam("since"))
_end = case((t.leases.c.closed_at < bindparam("now"), t.leases.c.closed_at), else_=bindparam("now"))
_in_window = and_(
    t.leases.c.granted_at.is_not(None),
    t.leases.c.gpus > 0,
    or_(t.leases.c.held == 1, t.leases.c.closed_at > bindparam("since")),
)
_sums = (
    select(
        t.owners.c.name,
        t.leases.c.group,
        t.leases.c.groups,
        func.sum(t.leases.c.gpus * case((_end > _start, _end - _start), else_=literal(0.0))).label("seconds"),
    )
    .join(t.owners, t.owners.c.id == t.leases.c.owner)
    .where(_in_window)
    .group_by(t.owners.c.name, t.leases.c.group, t.leases.c.groups)
)
_spans = (
    select(
        t.owners.c.name,
        t.leases.c.group,
        t.leases.c.groups,
        t.leases.c.granted_at,
        t.leases.c.closed_at,
        t.leases.c.gpus,
    )
    .join(t.owners, t.owners.c.id == t.leases.c.owner)
    .where(_in_window)
)


def hours_used(run: Run, now: float, rules: Rules) -> dict[str, float]:
    """GPU-hours that each scope with a budget has used in its own window; who has used none is missing."""
    found: dict[str, float] = defaultdict(float)
    windows = {limit.window for limit in rules.limits.values() if limit.gpu_hours is not None}
    for window in windows:
        for row in run(_sums, {"since": now - window, "now": now}):
            for scope in _charged(row, rules):
                if _budget_of(scope, rules).window == window:
                    found[scope] += row.seconds / HOUR
    return dict(found)


def _budget_of(scope: str, rules: Rules) -> Limit:
    if scope.startswith("user:"):
        return fairness.user_limit(scope[5:], rules.limits)
    return rules.limits[scope]


def _charged(row: Any, rules: Rules) -> list[str]:
    """The scopes with a budget that a lease counts against.

    Of the groups those that :func:`fairness.pays` says.
    """
    limits = rules.limits
    found = [f"group:{name}" for name in fairness.pays(row.group, rows.load(row.groups), limits)]
    if limits.get(fairness.POOL, _NONE).gpu_hours is not None:
        found.append(fairness.POOL)
    if row.name is not None and fairness.user_limit(row.name, limits).gpu_hours is not None:
        found.append(f"user:{row.name}")
    return found


_NONE = Limit()


class Budgets:
    """How the budgets stand at one moment; sums are read at once, what they are made of where one is used up."""

    def __init__(self, run: Run, now: float, rules: Rules) -> None:
        self._run, self._now, self._rules = run, now, rules
        self._made_of: dict[str, list[fairness.Span]] = {}
        self._known: dict[tuple[str, tuple[str, ...]], fairness.Budget] = {}

    @cached_property
    def _used(self) -> dict[str, float]:
        return hours_used(self._run, self._now, self._rules) if self._rules.hours else {}

    def of(self, user: str, groups: Collection[str]) -> fairness.Budget:
        """The budget that decides for a person; one without bounds where nobody limits."""
        if not self._rules.hours:
            return fairness.Budget()
        key = user if self._rules.own_hours(user) else "", tuple(groups)
        if key not in self._known:
            self._known[key] = self._stand(user, groups)
        return self._known[key]

    @cached_property
    def left(self) -> dict[str, float]:
        """GPU-hours left by group, of those that have a budget."""
        return {
            scope[6:]: limit.gpu_hours - self._used.get(scope, 0.0)
            for scope, limit in self._rules.limits.items()
            if limit.gpu_hours is not None and scope.startswith("group:")
        }

    def _stand(self, user: str, groups: Collection[str]) -> fairness.Budget:
        used: dict[str, Any] = {**self._used, **self._made_of}
        found = fairness.budget(user, groups, used, self._rules.limits, self._now)
        if found.state is not fairness.BudgetState.EXHAUSTED:
            return found
        for scope in ("pool", f"user:{user}", *(f"group:{group}" for group in groups)):
            limit = _budget_of(scope, self._rules) if scope in used else None
            if (
                limit is not None
                and scope not in self._made_of
                and used[scope] >= (limit.gpu_hours or 0) - 1e-9
            ):
                used[scope] = self._made_of[scope] = self._spans(scope, limit.window)
        return fairness.budget(user, groups, used, self._rules.limits, self._now)

    def _spans(self, scope: str, window: float) -> list[fairness.Span]:
        found = self._run(_spans, {"since": self._now - window})
        return [
            fairness.Span(row.granted_at, row.closed_at, row.gpus)
            for row in found
            if scope in _charged(row, self._rules)
        ]


# --- the past, as the order "fair" weighs it ---------------------------------------------------------

HALF_LIVES = 10
"""What is older weighs less than a thousandth."""
SETTLED = 60.0
"""Seconds after which no transaction that began before can still be under way."""

_of_past = t.leases.c.user, t.leases.c.group, t.leases.c.granted_at, t.leases.c.closed_at, t.leases.c.gpus
_closed_since = select(*_of_past).where(
    t.leases.c.closed_at >= bindparam("since"), t.leases.c.granted_at.is_not(None), t.leases.c.gpus > 0
)
_holding = select(*_of_past).where(t.leases.c.held == 1, t.leases.c.gpus > 0)


class Past:
    """GPU-hours of the past, decayed.  Each closed lease is read a few times, and then only decays further."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._known: tuple[float, float, Mapping[str, float]] = -math.inf, -math.inf, {}

    def hours(self, run: Run, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """Decayed GPU-hours of leases that are over or held, and GPU-equivalents held; both by scope."""
        at, until, known = self._known
        if not at <= now:
            at, until, known = -math.inf, -math.inf, {}  # a clock that went back: read all of it again
        elapsed = now - at
        fades = 0.5 ** (elapsed / self._half_life) if math.isfinite(elapsed) else 0.0
        over = {scope: hours * fades for scope, hours in known.items()}
        fresh: list[Any] = []
        for row in run(_closed_since, {"since": max(until, now - HALF_LIVES * self._half_life)}):
            if row.closed_at < now - SETTLED:
                self._add(over, row, now)
            else:
                fresh.append(row)
        self._known = now, max(until, now - SETTLED), dict(over)
        held: dict[str, float] = {}
        for row in [*fresh, *run(_holding)]:
            self._add(over, row, now)
            if row.closed_at is None:
                scope = fairness.scope_of(row.user, row.group)
                held[scope] = held.get(scope, 0.0) + row.gpus
        return over, held

    def _add(self, hours: dict[str, float], row: Any, now: float) -> None:
        span = [fairness.Span(row.granted_at, row.closed_at, row.gpus)]
        weighs = fairness.decayed(span, now, self._half_life)
        for scope in {f"user:{row.user}", fairness.scope_of(row.user, row.group)}:
            hours[scope] = hours.get(scope, 0.0) + weighs
