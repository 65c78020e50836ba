"""A pool of whole GPUs through a month, on placement and the rules of fairness, event by event."""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from _month_trace import GROUPS, HOUR, MONTH, Notebook

from jupyterhub_gpupool import fairness, placement
from jupyterhub_gpupool.fairness import Asking, Claims, Context, Held, Queued, Room, Usage
from jupyterhub_gpupool.fairness.orders import HALF_LIFE
from jupyterhub_gpupool.model import Device, Kind, Limit, Wish

WARN, MIN_AGE, WINDOW = 600.0, 600.0, 1800.0
SWEEP = 300.0
RESTART = 120.0
"""Seconds that a session needs until it is where it was when its GPU was taken."""
PRIORITIES = {"robots": 30, "students": 5}
"""All others have 10."""
WANTS = 4
"""So many of the queue's first are made room for in one sweep."""


@dataclass(frozen=True)
class Arm:
    """One way to run the pool.  ``shares``: ``none``, ``fixed`` (no borrowing) or ``lent``."""

    order: str
    shares: str
    wanted: bool


@dataclass(eq=False)
class Job:
    """What is left of a notebook session: it asks, holds, and asks again when its GPU was taken."""

    of: Notebook
    wish: Wish
    cells: Sequence[tuple[float, float]]
    asked_at: float = 0.0
    ticket: int = 0
    granted_at: float = math.inf
    placed: tuple[placement.Placed, ...] = ()
    warned_at: float | None = None
    deadline: float = math.inf

    @property
    def lease(self) -> str:
        return f"l{self.ticket:06d}"

    @property
    def ends(self) -> float:
        return self.granted_at + self.cells[-1][1]

    def idle(self, now: float) -> float:
        """Seconds since its GPU was used."""
        age = now - self.granted_at
        n = bisect_right(self.cells, (age, math.inf))  # of the cells that have begun
        return max(0.0, age - self.cells[n - 1][1]) if n else age


@dataclass
class Books:
    """What a month came to."""

    waits: list[float] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """GPU-seconds of computing that was finished, by user."""
    lost: float = 0.0
    """GPU-seconds of computing that a taking broke off."""
    held: float = 0.0
    taken: int = 0
    forecasts: list[tuple[float, fairness.Wait, float, float]] = field(default_factory=list)
    """When, the forecast, the wait of the last who had to wait, and the wait that it came to."""


class Pool:
    """The pool of an arm.  ``forecast`` asks for the expected wait of everybody who has to wait."""

    def __init__(self, nodes: int, gpus: int, arm: Arm, *, forecast: bool = False) -> None:
        self.devices = tuple(
            Device(f"g{node}.{n}", f"n{node}", n, "GPU", 81920) for node in range(nodes) for n in range(gpus)
        )
        share = {group: part * len(self.devices) for group, part in GROUPS.items()}
        share = {group: float(max(gpus, round(gpus_of))) for group, gpus_of in share.items()}
        self.limits: dict[str, Limit] = {}
        self.priorities = {group: PRIORITIES.get(group, 10) for group in share}
        if arm.shares == "fixed":
            self.limits = {f"group:{group}": Limit(gpus=gpus_of) for group, gpus_of in share.items()}
        elif arm.shares == "lent":
            self.limits = {
                f"group:{group}": Limit(guaranteed_gpus=gpus_of) for group, gpus_of in share.items()
            }
        self.guaranteed = fairness.guarantees(self.limits, 0.0)
        self.arm, self.books, self.forecast = arm, Books(), forecast
        self.now, self.tickets = 0.0, itertools.count()
        self.waiting: dict[str, Job] = {}
        self.held: dict[str, Job] = {}
        self.used: dict[str, int] = {}
        self.usage: dict[str, Usage] = {}
        self.hours: dict[str, tuple[float, float]] = {}
        self.over: list[tuple[str, float, float]] = []
        """Kind, start and end of what held GPUs and does no more."""
        self.demand: list[fairness.waits.Span] = []
        """When somebody waited."""
        self.told: dict[str, tuple[float, fairness.Wait, float]] = {}
        self.last_wait = 0.0
        self.waited_since = math.inf
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._sweeping = False

    # --- time ---

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), do))

    def run(self, month: Sequence[Notebook]) -> Books:
        """Play the month; who waits at its end has waited until then."""
        for item in month:
            job = Job(item, Wish(Kind.GPU, item.gpus), item.cells)
            self.at(item.start, lambda job=job: self.ask(job))
        while self._events and self._events[0][0] <= MONTH:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.now = MONTH
        self.books.waits += [MONTH - job.asked_at for job in self.waiting.values()]
        for job in list(self.held.values()):
            self._release(job)
        return self.books

    # --- a session's life ---

    def ask(self, job: Job) -> None:
        job.asked_at, job.ticket = self.now, next(self.tickets)
        self.waiting[job.lease] = job
        self.serve()
        if job.lease in self.waiting:
            if self.forecast:
                self.waited_since = min(self.waited_since, self.now)
                self.told[job.lease] = (self.now, self._expect(job), self.last_wait)
            if not self._sweeping and (self.arm.wanted or self.arm.shares == "lent"):
                self._sweeping = True
                self.at(self.now + SWEEP, self.sweep)

    def _grant(self, job: Job, placed: tuple[placement.Placed, ...]) -> None:
        del self.waiting[job.lease]
        job.granted_at, job.placed, job.warned_at, job.deadline = self.now, placed, None, math.inf
        self.held[job.lease] = job
        waited = self.now - job.asked_at
        self.books.waits.append(waited)
        if waited > 0:
            self.last_wait = waited
        if not self.waiting and self.waited_since < self.now:
            self.demand.append((self.waited_since, self.now))
            self.waited_since = math.inf
        if job.lease in self.told:
            self.books.forecasts.append((*self.told.pop(job.lease), waited))
        for one in placed:
            self.used[one.device.id] = one.cells
        self._count_use(job, 1)
        lease = job.lease
        self.at(job.ends, lambda: self.end(lease))

    def end(self, lease: str) -> None:
        if lease in self.held:
            job = self.held[lease]
            self._release(job)
            self.serve()

    def _release(self, job: Job) -> None:
        age = self.now - job.granted_at
        done = sum(max(0.0, min(end, age) - begin) for begin, end in job.cells if begin < age)
        self.books.served[job.of.user] += done * job.of.gpus
        self.books.held += age * job.of.gpus
        self.over.append((self._kind(job), job.granted_at, self.now))
        del self.held[job.lease]
        for one in job.placed:
            del self.used[one.device.id]
        self._count_use(job, -1)

    def take(self, job: Job) -> None:
        """Take its GPUs: what it computes is lost, and it asks again when it wants to compute again."""
        age = self.now - job.granted_at
        self._release(job)
        self.books.taken += 1
        left = [(begin, end) for begin, end in job.cells if end > age]
        begin = left[0][0]
        if begin < age:
            broken = (age - begin) * job.of.gpus
            self.books.lost += broken
            self.books.served[job.of.user] -= broken
        job.cells = [(b - begin + RESTART, e - begin + RESTART) for b, e in left]
        self.at(max(self.now, job.granted_at + begin), lambda: self.ask(job))

    def _kind(self, job: Job) -> str:
        return f"{job.of.gpus} GPUs"

    def _count_use(self, job: Job, sign: int) -> None:
        for scope in (fairness.POOL, f"user:{job.of.user}", f"group:{job.of.group}"):
            was = self.usage.get(scope, Usage())
            self.hours[scope] = (self._hours(scope), self.now)
            self.usage[scope] = Usage(was.sessions + sign, was.gpus + sign * job.of.gpus)

    def _hours(self, scope: str) -> float:
        hours, since = self.hours.get(scope, (0.0, 0.0))
        part = math.exp(-math.log(2) * (self.now - since) / HALF_LIFE)
        rate = self.usage.get(scope, Usage()).gpus / HOUR
        return hours * part + rate * (1 - part) * HALF_LIFE / math.log(2)

    # --- the queue ---

    def queue(self, claims: Claims) -> list[Queued]:
        """What waits, in its order."""
        found = []
        for job in self.waiting.values():
            own = claims.admissions[job.lease].own
            given = (job.lease, job.of.user, float(job.of.gpus), job.asked_at, job.ticket, job.of.group)
            found.append(Queued(*given, priority=self.priorities[job.of.group], own=own))
        context = Context(self.now)
        if self.arm.order == "fair":
            scopes = {item.scope for item in found}
            total = float(len(self.devices))
            left = {
                scope: fairness.remaining(scope, self.limits, self.usage.get(scope, Usage()).gpus, total)
                for scope in scopes
            }
            hours = {scope: self._hours(scope) for scope in (*scopes, *(f"user:{q.user}" for q in found))}
            levels = {scope: float(self.priorities[scope.partition(":")[2]]) for scope in scopes}
            context = Context(self.now, hours, fairness.weights(levels, left))
        return fairness.order(self.arm.order, found, context)

    def _asking(self, job: Job) -> Asking:
        return Asking(job.lease, job.of.user, (job.of.group,), float(job.of.gpus))

    def _admit(self, item: Asking, left: Mapping[str, float]) -> fairness.Admission:
        return fairness.admit(item.user, item.groups, item.gpus, self.usage, self.limits, left)

    def _claims(self) -> Claims:
        asked = [self._asking(job) for job in self.waiting.values()]
        return Claims(asked, self.guaranteed, self._admit)

    def serve(self) -> None:
        reserved, head, claims = placement.Reserved(), True, self._claims()
        blocked: set[tuple[Wish, frozenset[str]]] = set()
        for item in self.queue(claims) if self.waiting else ():
            job = self.waiting[item.lease]
            said = claims.admit(self._asking(job))
            if not said.allowed:
                continue
            placed = None
            if (job.wish, reserved.devices) not in blocked:
                occupancy = placement.Occupancy(self.used)
                placed = placement.choose(job.wish, self.devices, occupancy, reserved, room=said.room)
            if placed:
                self._grant(job, placed)
                claims.granted(job.lease)
                continue
            blocked.add((job.wish, reserved.devices))
            if head:
                head = said.own
                free = tuple(device for device in self.devices if device.id not in reserved.devices)
                more = placement.reserve(job.wish, free, placement.Occupancy(self.used), self._holders())
                reserved = placement.Reserved(reserved.devices | more.devices)

    def _holders(self) -> dict[str, list[placement.Holding]]:
        return {
            one.device.id: [placement.Holding(one.cells, job.deadline)]
            for job in self.held.values()
            for one in job.placed
        }

    # --- the sweep ---

    def sweep(self) -> None:
        self._sweeping = bool(self.waiting)
        room, queue = Room(), self.queue(self._claims()) if self.waiting else []
        warned = {job.lease for job in self.held.values() if job.warned_at is not None}
        facts = self._facts() if queue else []
        if self.arm.shares == "lent":
            claims = [item for item in queue if item.own][:WANTS]
            room = fairness.make_room(claims, facts, self.guaranteed, self.now, self._fits, warned)
        if self.arm.wanted and not room.victims:
            total = float(len(self.devices))
            wants = queue[:WANTS]
            portion = fairness.portions(facts, self.guaranteed, total, waiting={item.scope for item in wants})
            room = fairness.victims(wants, facts, portion, self.now, self._fits, warned)
        self._act({victim.lease: victim.not_before for victim in room.victims})
        if self._sweeping:
            self.at(self.now + SWEEP, self.sweep)

    def _act(self, named: dict[str, float]) -> None:
        ended = False
        for job in list(self.held.values()):
            if job.lease not in named:
                job.warned_at, job.deadline = None, math.inf
            elif job.warned_at is None:
                job.warned_at, job.deadline = self.now, named[job.lease]
            elif self.now >= job.deadline:
                self.take(job)
                ended = True
        if ended:
            self.serve()

    def _facts(self) -> list[Held]:
        window = WINDOW if self.arm.wanted else math.inf
        return [
            Held(
                lease=job.lease,
                user=job.of.user,
                group=job.of.group if self.limits else "",
                gpus=float(job.of.gpus),
                granted_at=job.granted_at,
                active_at=job.granted_at,
                idle_seconds=job.idle(self.now),
                min_age=MIN_AGE,
                warn=WARN,
                window=window,
            )
            for job in self.held.values()
        ]

    def _fits(self, wants: Sequence[Queued], gone: frozenset[str]) -> bool:
        used = dict(self.used)
        of_group = {scope: usage.gpus for scope, usage in self.usage.items()}
        for lease in gone:
            of_group[f"group:{self.held[lease].of.group}"] -= self.held[lease].of.gpus
            for one in self.held[lease].placed:
                used.pop(one.device.id, None)
        for want in wants:
            of_group[want.scope] = of_group.get(want.scope, 0.0) + want.gpus
            cap = self.limits.get(want.scope, Limit()).gpus
            if cap is not None and of_group[want.scope] > cap:
                return False
            wish = self.waiting[want.lease].wish
            placed = placement.choose(wish, self.devices, placement.Occupancy(used))
            if placed is None:
                return False
            used.update({one.device.id: one.cells for one in placed})
        return True

    # --- the expected wait ---

    def _expect(self, job: Job) -> fairness.Wait:
        serves = {device.id: device.cells for device in self.devices}
        ordered = self.queue(self._claims())
        queue = [
            fairness.Wanted(serves, self._kind(self.waiting[item.lease]), int(item.gpus)) for item in ordered
        ]
        running = []
        for other in self.held.values():
            cells = {one.device.id: one.cells for one in other.placed}
            ends = max(0.0, other.deadline - self.now)
            if self.arm.wanted and other.idle(self.now) >= WINDOW:
                ends = min(ends, SWEEP + WARN)  # the next sweep warns it, if it is needed
            running.append(fairness.Running(cells, self.now - other.granted_at, self._kind(other), ends))
        devices = {device.id: (device.node, device.cells) for device in self.devices}
        place = [item.lease for item in ordered].index(job.lease)
        return fairness.expected_waits(queue[: place + 1], running, devices, self._past())[place]

    def _past(self) -> fairness.Past:
        """How long sessions have lasted, as the ledger would tell it."""
        lasted: dict[str, list[float]] = defaultdict(list)
        ages: dict[str, list[float]] = defaultdict(list)
        seen: dict[str, list[fairness.waits.Spell]] = defaultdict(list)
        demand = [*self.demand, (self.waited_since, self.now)]
        for kind, start, end in self.over:
            lasted[kind].append(end - start)
            seen[kind] += fairness.waits.watched(start, end, demand, WARN + 2 * SWEEP)
        for job in self.held.values():
            kind, start = self._kind(job), job.granted_at
            ages[kind].append(self.now - start)
            seen[kind] += fairness.waits.watched(start, self.now, demand, WARN + 2 * SWEEP, ended=False)
        return fairness.Past(lasted, ages, seen=seen)
