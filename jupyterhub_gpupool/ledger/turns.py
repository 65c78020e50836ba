"""Whose turn it is: the rows of the queue as :mod:`..fairness` sees them, in the order of the policy.

The same for who grants and for who only looks: what a page shows as the next is what is granted next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .. import fairness, placement
from ..fairness.orders import HALF_LIFE
from ..model import Device, Limit, Wish
from . import rows
from .counts import Past, Run, UsageReader
from .rules import Rules


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


class Turn(NamedTuple):
    """A request in its place."""

    row: Any
    wish: Wish
    groups: tuple[str, ...]
    queued: fairness.Queued
    allowed: bool
    """Whether the limits would let it be granted now."""


class Line:
    """The queue at one moment, inside one transaction."""

    def __init__(
        self, run: Run, now: float, policy: Policy, rules: Rules, devices: Sequence[Device], past: Past
    ) -> None:
        self._run, self._now, self._policy, self._rules = run, now, policy, rules
        self._devices, self._past = devices, past
        self.guaranteed = rules.guaranteed(now)
        self.usage = UsageReader(run, rules, self.guaranteed)
        self._wishes: dict[str, tuple[Wish, float]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._admitted: dict[tuple[str, tuple[int, float], str, float], fairness.Admission] = {}
        self._admitted_at = 0
        self._levels: dict[tuple[str, str], int] = {}

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

    def admit(self, row: Any, groups: Sequence[str], gpus: float) -> fairness.Admission:
        """What the limits say of a request at this moment of the round.

        The same for everybody who has no limit of their own, the same groups, and holds as much.
        """
        if self._admitted_at != self.usage.changes:
            self._admitted, self._admitted_at = {}, self.usage.changes
        own, holds = f"user:{row.user}", self.usage.of_owner(row.owner)
        named = row.user if own in self._rules.limits else ""
        key = named, holds, row.groups, gpus
        if key not in self._admitted:
            usage = self.usage.of(row.owner, row.user, groups)
            self._admitted[key] = fairness.admit(
                row.user, groups, gpus, usage, self._rules.limits, self.guaranteed
            )
        return self._admitted[key]

    def _level(self, row: Any, groups: Sequence[str]) -> int:
        named = row.user if f"user:{row.user}" in self._rules.limits else ""
        key = named, row.groups
        if key not in self._levels:
            self._levels[key] = fairness.priority(row.user, groups, self._rules.limits)
        return self._levels[key]

    def turns(self, waiting: Iterable[Any]) -> list[Turn]:
        """The requests in the order of the policy."""
        found = {}
        self.usage.read_owners()
        for row in waiting:
            wish, gpus = self.wish(row.wish)
            groups = self.groups(row.groups)
            said = self.admit(row, groups, gpus)
            level = self._level(row, groups)
            queued = fairness.Queued(
                row.id, row.user, gpus, row.requested_at, row.ticket, said.group, level, said.own
            )
            found[row.id] = Turn(row, wish, groups, queued, said.allowed)
        asked = [turn.queued for turn in found.values()]
        return [found[item.lease] for item in fairness.order(self._policy.order, asked, self._context(asked))]

    def _context(self, asked: Sequence[fairness.Queued]) -> fairness.Context:
        if self._policy.order != "fair" or not asked:
            return fairness.Context(self._now)
        hours, held = self._past.hours(self._run, self._now)
        size, limits = float(len(self._devices)), self._rules.limits
        priorities: dict[str, float] = {}
        for item in asked:
            priorities[item.scope] = max(priorities.get(item.scope, 0.0), float(item.priority))
        left = {scope: fairness.remaining(scope, limits, held.get(scope, 0.0), size) for scope in priorities}
        return fairness.Context(self._now, hours, fairness.weights(priorities, left))
