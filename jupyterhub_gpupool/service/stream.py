"""The pool's present state for all who watch: one read of the ledger a second, however many they are."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from .. import fairness
from ..errors import GPUPoolError, Unavailable
from ..fairness import Usage
from ..ledger import Snapshot
from . import shapes
from .shapes import Person

UNWATCHED = 10
"""Intervals between two reads while nobody watches: metrics still want a state that is not old."""


class Reads(Protocol):
    """What a feed asks of the pool."""

    async def ask(self, name: str, *args: object, **kwargs: object) -> object: ...


class Watch:
    """One who watches.  Iterating yields True when something is new, False after ``keep_alive`` seconds."""

    def __init__(self, keep_alive: float) -> None:
        self._keep_alive = keep_alive
        self._changed = asyncio.Event()
        self._changed.set()  # the state at the beginning is news
        self._closed = False

    def announce(self) -> None:
        """Say that there is something new."""
        self._changed.set()

    def close(self) -> None:
        """End the iteration, also one that waits."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), self._keep_alive)
            changed = True
        except TimeoutError:
            changed = False
        if self._closed:
            raise StopAsyncIteration
        self._changed.clear()
        return changed


class Feed:
    """The last state of the pool, read again each ``interval`` seconds while somebody watches.

    While the ledger does not answer, ``latest`` stays what it was and ``problem`` says why.
    """

    def __init__(
        self, pool: Reads, interval: float = 1.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.latest: Snapshot | None = None
        self.problem: GPUPoolError | None = None
        self.interval = interval
        self._pool = pool
        self._clock = clock
        self._read_at = 0.0
        self._tried_at: float | None = None
        self._reading = asyncio.Lock()
        self._watches: set[Watch] = set()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rendered: dict[tuple[bool, str], dict[str, str]] = {}
        self._counted: tuple[dict[str, Usage], dict[str, str]] | None = None
        self._log = logging.getLogger(__name__)

    async def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop reading and end every watch."""
        for watch in self._watches:
            watch.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def age(self) -> float | None:
        """Seconds since the last read that succeeded; None before the first."""
        return None if self.latest is None else self._clock() - self._read_at

    async def fresh(self, max_age: float | None = None) -> Snapshot:
        """The state, at most ``max_age`` seconds old (the interval by default).  Raises Unavailable."""
        async with self._reading:
            limit = self.interval if max_age is None else max_age
            if self._tried_at is None or self._clock() - self._tried_at >= limit:
                await self._read()
            if self.problem is not None:
                raise self.problem
            assert self.latest is not None
            return self.latest

    def expire(self) -> None:
        """Let the next question be answered by a new read: something is known to have changed."""
        self._tried_at = None

    async def refresh(self) -> Snapshot:
        """Read again, after something was changed through the service."""
        self.expire()
        return await self.fresh()

    async def _read(self) -> None:
        self._tried_at = self._clock()
        try:
            found = await self._pool.ask("snapshot")
            assert isinstance(found, Snapshot)
        except GPUPoolError as problem:
            self._fail(problem)
            raise
        # Every write raises the version: the same one again is the same state, only read later.
        news = self.latest is None or self.problem is not None or found.version != self.latest.version
        self.latest, self.problem, self._read_at = found, None, self._clock()
        if news:
            self._rendered, self._counted = {}, None
            self._announce()

    def _fail(self, problem: GPUPoolError) -> None:
        self.problem = problem
        self._announce()

    def _announce(self) -> None:
        for watch in self._watches:
            watch.announce()

    async def _run(self) -> None:
        while True:
            try:
                # Somebody's request may just have read: then this turn has nothing to do.
                await self.fresh(self.interval / 2)
            except GPUPoolError as problem:
                self._log.warning("The pool's state cannot be shown: %s", problem.message)
            except Exception:
                self._log.exception("The pool's state cannot be shown")
                message = "The pool's state cannot be read; the service's log says why."
                self._fail(Unavailable(message, reason="feed"))
            await asyncio.sleep(self.interval)
            if not self._watches:
                await self._wait_for_watcher((UNWATCHED - 1) * self.interval)

    async def _wait_for_watcher(self, seconds: float) -> None:
        self._wanted.clear()
        try:
            await asyncio.wait_for(self._wanted.wait(), seconds)
        except TimeoutError:
            return

    @property
    def usage(self) -> dict[str, Usage]:
        """What each scope has, counted once for all who watch; nothing before the first read."""
        return self._count()[0]

    @property
    def over(self) -> dict[str, str]:
        """The scopes that hold more than they may, in words."""
        return self._count()[1]

    def _count(self) -> tuple[dict[str, Usage], dict[str, str]]:
        if self.latest is None:
            return {}, {}
        if self._counted is None:
            usage = self.latest.usage
            self._counted = usage, fairness.over_limits(usage, self.latest.limits)
        return self._counted

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watches)

    @contextmanager
    def watch(self, keep_alive: float) -> Iterator[Watch]:
        """Watch for as long as the block lasts."""
        watch = Watch(keep_alive)
        self._watches.add(watch)
        self._wanted.set()
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def rendered(self, person: Person) -> dict[str, str]:
        """The stream's events with their JSON, for this person; rendered once for all who see the same."""
        if self.latest is None:
            return {}
        key = (person.admin, "")
        if person.admin or any(person.is_called(lease.user) for lease in self.latest.leases):
            key = (person.admin, person.name or "")
        else:
            person = Person(None)
        if key not in self._rendered:
            made = {
                "pool": shapes.pool(self.latest, person),
                "leases": shapes.leases(self.latest, person),
                "queue": shapes.queue(self.latest, person),
            }
            texts = {name: json.dumps(shape, separators=(",", ":")) for name, shape in made.items()}
            self._rendered[key] = texts
        return self._rendered[key]
