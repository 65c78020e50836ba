"""A pool in memory: placement and the rules of fairness, put together as the ledger and the sweep do.

It holds every promise to account while it runs: limits at each grant, ``min_age`` and the warning at each
taking, order among equals.  Time passes in events; nothing waits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jupyterhub_gpupool import placement
from jupyterhub_gpupool.fairness import (
    POOL,
    Admission,
    Asking,
    Claims,
    Context,
    Held,
    Holds,
    Queued,
    Room,
    Span,
    Usage,
    admit,
    decayed,
    guarantees,
    make_room,
    order,
    portions,
    priority,
    scope_of,
    tally,
    user_limit,
    victims,
)
from jupyterhub_gpupool.model import Device, Limit, Wish

TOLERANCE = 1e-6


@dataclass
class Asked:
    """A person's wish, and what became of it."""

    ticket: int
    user: str
    groups: tuple[str, ...]
    wish: Wish
    life: float
    since: float
    busy: float = math.inf
    """Seconds for which its GPU is used once it has one; idle from then on."""
    group: str = ""
    gpus: float = 0.0
    cells: dict[str, int] = field(default_factory=dict)
    granted_at: float | None = None
    ended_at: float | None = None
    warned_at: float | None = None
    deadline: float = math.inf
    taken: bool = False
    own_since: float | None = None
    """Since when it has been waiting within a guaranteed share."""
    unmet: bool = False
    """Whether some sweep found that nobody could make room for it."""

    @property
    def lease(self) -> str:
        return f"l{self.ticket:05d}"

    def ends_at(self) -> float:
        return min((self.granted_at or 0.0) + self.life, self.deadline)


@dataclass
class Pool:
    """The pool.  ``known`` says whether the ends of sessions are known beforehand (as with ``max_age``)."""

    devices: tuple[Device, ...]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    order: str = "fifo"
    warn: float = 300.0
    min_age: float = 600.0
    sweep: float = 10.0
    window: float = math.inf
    known: bool = False
    context: Context = field(default_factory=lambda: Context(0.0))
    now: float = 0.0
    waiting: list[Asked] = field(default_factory=list)
    held: list[Asked] = field(default_factory=list)
    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    swept: float = 0.0
    asked: int = 0

    # --- what happens ---

    def ask(self, user: str, groups: Sequence[str], wish: Wish, life: float, busy: float = math.inf) -> Asked:
        found = Asked(self.asked, user, tuple(groups), wish, life, self.now, busy)
        self.asked += 1
        self.waiting.append(found)
        self.serve()
        return found

    def run(self, until: float) -> None:
        """Let time pass: sessions end, sweeps look."""
        while True:
            end = min((item.granted_at or 0.0) + item.life for item in self.held) if self.held else math.inf
            if not self._matters():  # a sweep would find nothing to do: go on to the next thing that happens
                self.swept += self.sweep * max(0.0, (min(end, until) - self.swept) // self.sweep)
            at = min(end, self.swept + self.sweep)
            if at > until:
                self.now = until
                return
            self.now = at
            if end <= at:
                for item in [item for item in self.held if (item.granted_at or 0.0) + item.life <= at]:
                    self._end(item)
                self.serve()
            else:
                self.swept = at
                self._sweep()

    def _matters(self) -> bool:
        if any(item.warned_at is not None for item in self.held):
            return True
        booked = any(limit.reservations for limit in self.limits.values())
        wanted = self.window < math.inf and bool(self.held)
        return any(booked or wanted or item.own_since is not None for item in self.waiting)

    def _end(self, item: Asked) -> None:
        item.ended_at = self.now
        self.held.remove(item)
        span = Span(item.granted_at or 0.0, self.now, item.gpus)
        for scope in {f"user:{item.user}", scope_of(item.user, item.group)}:
            self.spans[scope].append(span)

    # --- serve the queue ---

    def usage(self) -> dict[str, Usage]:
        held = [Holds(item.user, item.groups, item.group, item.gpus) for item in self.held]
        return tally(held, self.limits)

    def asking(self, item: Asked) -> Asking:
        return Asking(item.lease, item.user, item.groups, placement.cost(item.wish, self.devices))

    def claims(self) -> Claims:
        asked = [self.asking(item) for item in self.waiting]
        return Claims(asked, guarantees(self.limits, self.now), self.admit)

    def admit(self, item: Asking, guaranteed: Mapping[str, float]) -> Admission:
        return admit(item.user, item.groups, item.gpus, self.usage(), self.limits, guaranteed)

    def queue(self, claims: Claims) -> list[Asked]:
        """The requests in their order."""
        by_lease = {item.lease: item for item in self.waiting}
        hours = {scope: decayed(spans, self.now) for scope, spans in self.spans.items()}
        for item in self.held:
            span = [Span(item.granted_at or 0.0, None, item.gpus)]
            for scope in {f"user:{item.user}", scope_of(item.user, item.group)}:
                hours[scope] = hours.get(scope, 0.0) + decayed(span, self.now)
        context = replace(self.context, now=self.now, hours=hours)
        return [by_lease[item.lease] for item in order(self.order, self.queued(claims), context)]

    def queued(self, claims: Claims) -> list[Queued]:
        """What waits, as the order sees it; notes since when each has been within a share."""
        found = []
        for item in self.waiting:
            said = claims.admissions[item.lease]
            if not said.own:
                item.own_since, item.unmet = None, False
            elif item.own_since is None:
                item.own_since = self.now
            level = priority(item.user, item.groups, self.limits)
            gpus = placement.cost(item.wish, self.devices)
            found.append(
                Queued(item.lease, item.user, gpus, item.since, item.ticket, said.group, level, said.own)
            )
        return found

    def serve(self) -> None:
        """Grant what can be granted, in order; who is blocked keeps what it waits for."""
        reserved, blocked, kept = placement.Reserved(), set[tuple[Wish, bool]](), False
        head, claims = True, self.claims()
        for item in self.queue(claims):
            said = claims.admit(self.asking(item))
            if not said.allowed:
                kept = kept or said.own  # the pool's cap keeps it from its share: borrowers must not
                continue
            if kept and not said.own and placement.cost(item.wish, self.devices):
                continue
            placed = placement.choose(item.wish, self.devices, self.occupancy(), reserved, room=said.room)
            if placed is not None:
                assert (item.wish, said.own) not in blocked, "a later equal was served before an earlier one"
                self._grant(item, said, placed)
                claims.granted(item.lease)
                continue
            if placement.choose(item.wish, self.devices, self.occupancy(), reserved) is None:
                blocked.add((item.wish, said.own))
            if head:
                head = said.own  # every claim of a share keeps what it waits for, and the first of the others
                free = tuple(device for device in self.devices if device.id not in reserved.devices)
                more = placement.reserve(item.wish, free, self.occupancy(), self._holders())
                reserved = placement.Reserved(reserved.devices | more.devices)

    def occupancy(self, gone: frozenset[str] = frozenset()) -> placement.Occupancy:
        used: dict[str, int] = defaultdict(int)
        for item in self.held:
            if item.lease not in gone:
                for device, cells in item.cells.items():
                    used[device] += cells
        return placement.Occupancy(dict(used))

    def _holders(self) -> Mapping[str, Sequence[placement.Holding]]:
        found = defaultdict(list)
        for item in self.held:
            ends = item.ends_at() if self.known else item.deadline
            for device, cells in item.cells.items():
                found[device].append(placement.Holding(cells, ends))
        return found

    def _grant(self, item: Asked, said: Admission, placed: Sequence[placement.Placed]) -> None:
        item.granted_at, item.group = self.now, said.group
        item.cells = {one.device.id: one.cells for one in placed}
        item.gpus = sum(one.cells / one.device.cells for one in placed)
        self.waiting.remove(item)
        self.held.append(item)
        for device in self.devices:
            assert self.occupancy().used.get(device.id, 0) <= device.cells
        usage = self.usage()
        for scope in (POOL, f"user:{item.user}", f"group:{item.group}"):
            own = user_limit(item.user, self.limits) if scope.startswith("user:") else self.limits.get(scope)
            if own is not None and scope in usage:
                assert own.sessions is None or usage[scope].sessions <= own.sessions, scope
                assert own.gpus is None or usage[scope].gpus <= own.gpus + TOLERANCE or not item.gpus, scope
        for name in item.groups:
            limit = self.limits.get(f"group:{name}")
            if limit is not None and limit.strict and limit.gpus is not None and item.gpus:
                assert usage[f"group:{name}"].gpus <= limit.gpus + TOLERANCE

    # --- the sweep ---

    def facts(self) -> list[Held]:
        return [
            Held(
                item.lease,
                item.user,
                item.group,
                item.gpus,
                item.granted_at or 0.0,
                item.granted_at,
                max(0.0, self.now - (item.granted_at or 0.0) - item.busy),
                self.min_age,
                self.warn,
                self.window,
            )
            for item in self.held
        ]

    def fits(self, wants: Sequence[Queued], gone: frozenset[str]) -> bool:
        """Whether all of these requests fit, one after the other, once these leases are gone."""
        by_lease = {item.lease: item for item in self.waiting}
        used = dict(self.occupancy(gone).used)
        cap = self.limits.get(POOL, Limit()).gpus
        total = sum(item.gpus for item in self.held if item.lease not in gone)
        for want in wants:
            placed = placement.choose(by_lease[want.lease].wish, self.devices, placement.Occupancy(used))
            total += want.gpus
            if placed is None or (cap is not None and total > cap + TOLERANCE):
                return False
            for one in placed:
                used[one.device.id] = used.get(one.device.id, 0) + one.cells
        return True

    def _sweep(self) -> None:
        dealt = self.claims()
        ranked = {item.lease: n for n, item in enumerate(self.queue(dealt))}
        wants = sorted(self.queued(dealt), key=lambda item: ranked[item.lease])
        guaranteed = guarantees(self.limits, self.now)
        warned = {item.lease for item in self.held if item.warned_at is not None}
        claims, facts = [item for item in wants if item.own], self.facts()
        room = make_room(claims, facts, guaranteed, self.now, self.fits, warned)
        unmet = {lease for lease, _ in room.unmet}
        for item in self.waiting:
            item.unmet = item.unmet or item.lease in unmet
        if self.window < math.inf and not room.victims:
            others = [item for item in wants if not item.own and dealt.admissions[item.lease].allowed][:3]
            total = float(len(self.devices))
            room = victims(others, facts, portions(facts, guaranteed, total), self.now, self.fits, warned)
        self._act(room)

    def _act(self, room: Room) -> None:
        named = {victim.lease: victim for victim in room.victims}
        ended = False
        for item in list(self.held):
            victim = named.get(item.lease)
            if victim is None:
                item.warned_at, item.deadline = None, math.inf
            elif item.warned_at is None:
                item.warned_at, item.deadline = self.now, victim.not_before
            elif self.now >= item.deadline:
                assert self.now - item.warned_at >= self.warn, "taken without its warning"
                assert self.now - (item.granted_at or 0.0) >= self.min_age, "taken before min_age"
                item.taken = True
                self._end(item)
                ended = True
        if ended:
            self.serve()
