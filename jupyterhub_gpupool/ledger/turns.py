"""Whose turn it is: the rows of the queue as :mod:`..fairness` sees them, in the order of the policy.

The same for who grants and for who only looks: what a page shows as the next is what is granted next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select

from .. import fairness, placement, trust
from ..fairness.orders import HALF_LIFE, PATIENCE, step_within
from ..model import Device, Limit, State, Terms, Wish
from . import drains, rows
from . import schema as t
from .counts import Budgets, Past, Run, UsageReader
from .rules import Rules

Lent = dict[tuple[frozenset[str], frozenset[str]], Sequence[Device]]
"""The devices for a request, by those of the drained ones that it may have and those that are closed to it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a grant depends on besides the rows."""

    pool: str = "gpupool"
    """First part of every session's name."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """As configured; an edit in the ledger takes the place of its scope's."""
    launches: int = 10
    """Launches under way at once; 0: no bound."""
    beat_age: float = 15.0
    """Seconds after which a hub that has not said anything is taken as away."""
    queue_keep: float = 600.0
    """Seconds for which a request keeps its place while its hub is away."""
    suspect_for: float = 600.0
    """Seconds for which nothing is granted on a device that a launch check makes suspect; 0: none is."""
    order: str = "fifo"
    """Name of the order of the queue."""
    half_life: float = HALF_LIFE
    """Seconds after which used GPU-hours weigh half as much in the order ``fair``."""
    patience: float = PATIENCE
    """Seconds of waiting after which the order ``fair`` serves a request by its arrival alone."""


AT_ONCE = 50
"""Requests read at once; a ticket is given once, so the next part begins behind the last one's."""

_named = (
    "id", "ticket", "owner", "user", "state", "step", "profile", "wish", "terms", "groups", "reason", "requested_at",
)  # fmt: skip
_waiting = (
    select(*(t.leases.c[name] for name in _named))
    .join(t.hubs, t.hubs.c.name == t.leases.c.hub)
    .where(
        t.leases.c.state == State.QUEUED.value,
        t.leases.c.left_at.is_(None),
        t.hubs.c.beat_at >= bindparam("since"),
        t.leases.c.ticket > bindparam("after"),
    )
    .order_by(t.leases.c.ticket)
    .limit(bindparam("count"))
)


def waiting(run: Run, now: float, policy: Policy, at_once: int = AT_ONCE) -> Iterator[Any]:
    """Whoever can be granted something, as they came in, read in parts: mostly the head is all that is looked at."""
    since, after = now - policy.beat_age, 0
    more = True
    while more:
        part = run(_waiting, {"since": since, "after": after, "count": at_once}).all()
        yield from part
        more = len(part) == at_once  # fewer: these were the last, and no query need tell
        after = part[-1].ticket if part else after


class Turn(NamedTuple):
    """A request in its place."""

    row: Any
    wish: Wish
    queued: fairness.Queued
    allowed: bool
    """Whether limits, rights and budgets would let it be granted now."""


@dataclass(slots=True)
class _Kind:
    """Requests of which the limits say the same, where their owners hold as much and shares leave as much."""

    groups: tuple[str, ...]
    wish: Wish
    gpus: float
    level: int
    refused: fairness.Admission | None
    """What does not change in a round: profiles and budgets refuse them."""
    said: dict[tuple[Any, ...], fairness.Admission] = field(default_factory=dict)
    said_at: int = 0
    """At which count of changes of the usage."""
    groups_said: dict[tuple[float, ...], fairness.Admission] = field(default_factory=dict)
    """What their groups alone say, by what is left of the shares: it holds until one of them is charged."""
    groups_said_at: int = 0


class _Asked(NamedTuple):
    """A request as it was read."""

    row: Any
    kind: _Kind
    asking: fairness.Asking


class Line:
    """The queue at one moment, inside one transaction."""

    def __init__(
        self,
        run: Run,
        now: float,
        policy: Policy,
        rules: Rules,
        devices: Sequence[Device],
        lent: Lent,
        past: Past,
    ) -> None:
        self._run, self._now, self._policy, self._rules = run, now, policy, rules
        self._devices, self._lent, self._past = devices, lent, past
        self.draining = drains.planned(devices, now)
        self._trusted = [device for device in devices if device.trust]
        self.guaranteed = rules.guaranteed(now)
        self.usage = UsageReader(run, rules, self.guaranteed)
        self._budgets = Budgets(run, now, rules)
        self._wishes: dict[str, tuple[Wish, float]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._terms: dict[str, Terms] = {}
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._asked: dict[str, _Asked] = {}
        self._claims: fairness.Claims | None = None
        self._names: dict[str, str] = {}

    @property
    def by_arrival(self) -> bool:
        """Whether the order is that of arrival, so that a long queue need not be read to its end."""
        return self._policy.order == "fifo" and not self.guaranteed

    def wish(self, text: str) -> tuple[Wish, float]:
        """A wish, and what it costs at least; many rows have the same."""
        if text not in self._wishes:
            wish = rows.wish(text)
            self._wishes[text] = wish, placement.cost(wish, self._devices)
        return self._wishes[text]

    def groups(self, text: str) -> tuple[str, ...]:
        """The groups of a request."""
        if text not in self._groups:
            self._groups[text] = tuple(rows.load(text))
        return self._groups[text]

    def terms(self, row: Any) -> Terms:
        """The terms that a request gets with its grant: the limits may allow it less age than its profile."""
        if row.terms not in self._terms:
            self._terms[row.terms] = rows.terms(row.terms)
        terms = self._terms[row.terms]
        if self._rules.ages:
            groups = self.groups(row.groups)
            age = fairness.max_age(row.user, groups, self._rules.limits, terms.max_age).seconds
            terms = terms if age == terms.max_age else replace(terms, max_age=age)
        return terms

    def devices(self, row: Any) -> Sequence[Device]:
        """The devices for a request: of those that will be drained, those that it has left by then.

        Those that another group shares through MPS are not among them.
        """
        still, closed = frozenset[str](), frozenset[str]()
        if self.draining:
            still = drains.still_open(self.draining, self._now, self.terms(row).max_age)
        if self._trusted:
            closed = trust.closed_to(self._trusted, self.groups(row.groups))
        if not still and not closed:
            return self._devices
        key = still, closed
        if key not in self._lent:
            lent = drains.lent(self._devices, still) if still else self._devices
            self._lent[key] = tuple(device for device in lent if device.id not in closed)
        return self._lent[key]

    # --- what the limits say ---

    def admit(self, row: Any) -> fairness.Admission:
        """What limits, rights and budgets say of a request at this moment of the round."""
        asking = self._ask(row).asking
        return self._admit(asking, {}) if self._claims is None else self._claims.admit(asking)

    def alike(self, row: Any) -> tuple[Any, ...]:
        """What :meth:`admit` depends on between two grants: it says the same of all who have this in common."""
        if self._claims is not None and self._claims.claims(row.id):
            return (row.id,)
        return id(self._ask(row).kind), self.usage.of_owner(row.owner)

    def granted(self, row: Any, group: str, gpus: float) -> None:
        """Count a lease that was granted in this round."""
        self.usage.add(row.owner, self.groups(row.groups), group, gpus)
        if self._claims is not None:
            self._claims.granted(row.id)

    def _ask(self, row: Any) -> _Asked:
        known = self._asked.get(row.id)
        if known is None:
            kind = self._kind(row, row.user)
            asking = fairness.Asking(row.id, row.user, kind.groups, kind.gpus)
            known = self._asked[row.id] = _Asked(row, kind, asking)
        return known

    def _kind(self, row: Any, user: str) -> _Kind:
        key = self._named(user), row.groups, row.wish, row.profile if self._rules.profiles else ""
        kind = self._kinds.get(key)
        if kind is None:
            groups, (wish, gpus) = self.groups(row.groups), self.wish(row.wish)
            level = fairness.priority(user, groups, self._rules.limits)
            kind = self._kinds[key] = _Kind(groups, wish, gpus, level, self._refused(row, groups, gpus))
        return kind

    def _named(self, user: str) -> str:
        """Whose limits or budget are their own is like nobody else."""
        if user not in self._names:
            own = f"user:{user}" in self._rules.limits
            self._names[user] = user if own or (self._rules.hours and self._rules.own_hours(user)) else ""
        return self._names[user]

    def _refused(self, row: Any, groups: tuple[str, ...], gpus: float) -> fairness.Admission | None:
        allowed = not self._rules.profiles or fairness.profiles(row.user, groups, self._rules.limits).allows(
            row.profile
        )
        if not allowed:
            why = "the limits in force no longer allow you this profile"
            return fairness.Admission(False, why=why, room=0)
        if gpus and self._rules.hours:
            budget = self._budgets.of(row.user, groups)
            if budget.state is fairness.BudgetState.EXHAUSTED:
                return fairness.Admission(False, why=budget.message, room=0)
        return None

    def _admit(self, item: fairness.Asking, left: Mapping[str, float]) -> fairness.Admission:
        row, kind, _ = self._asked[item.lease]
        if kind.refused is not None:
            return kind.refused
        if kind.said_at != self.usage.changes:
            kind.said, kind.said_at = {}, self.usage.changes
        key = self.usage.of_owner(row.owner), *left.values()
        found = kind.said.get(key)
        if found is None:
            said = self._among_groups(kind, left)
            usage = self.usage.of(row.owner, row.user)
            found = kind.said[key] = fairness.within(said, row.user, kind.gpus, usage, self._rules.limits)
        return found

    def _among_groups(self, kind: _Kind, left: Mapping[str, float]) -> fairness.Admission:
        charged_at = self.usage.charged_at(kind.groups)
        if kind.groups_said_at < charged_at:
            kind.groups_said, kind.groups_said_at = {}, charged_at
        key = tuple(left.values())
        found = kind.groups_said.get(key)
        if found is None:
            usage, limits = self.usage.of_groups(kind.groups), self._rules.limits
            found = fairness.among_groups(kind.groups, kind.gpus, usage, limits, left, self._budgets.left)
            kind.groups_said[key] = found
        return found

    # --- the order ---

    def turns(self, arrived: Iterable[Any]) -> list[Turn]:
        """The requests, given in order of arrival, in the order of the policy; claims are dealt out among them."""
        self.usage.read_owners()
        asked = [self._ask(row) for row in arrived]
        said: Mapping[str, fairness.Admission]
        if self.guaranteed:
            self._claims = fairness.Claims((item.asking for item in asked), self.guaranteed, self._admit)
            said = self._claims.admissions
        else:
            said = {item.row.id: self._admit(item.asking, {}) for item in asked}
        queued = [self._queued(item, said[item.row.id]) for item in asked]
        found = []
        for item in fairness.order(self._policy.order, queued, self._context(queued)):
            row, kind, _ = self._asked[item.lease]
            found.append(Turn(row, kind.wish, item, said[item.lease].allowed))
        return found

    def _queued(self, item: _Asked, said: fairness.Admission) -> fairness.Queued:
        row, kind, (lease, user, _, gpus) = item
        return fairness.Queued(
            lease, user, gpus, row.requested_at, row.ticket, said.group, kind.level, said.own
        )

    def _context(self, asked: Sequence[fairness.Queued]) -> fairness.Context:
        if self._policy.order != "fair" or not asked:
            return fairness.Context(self._now, step=step_within(self._policy.patience))
        hours, held = self._past.hours(self._run, self._now)
        size, limits = float(len(self._devices)), self._rules.limits
        priorities: dict[str, float] = {}
        for item in asked:
            priorities[item.scope] = max(priorities.get(item.scope, 0.0), float(item.priority))
        left = {scope: fairness.remaining(scope, limits, held.get(scope, 0.0), size) for scope in priorities}
        return fairness.Context(
            self._now, hours, fairness.weights(priorities, left), patience=self._policy.patience
        )
