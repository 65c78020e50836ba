"""The pool as the hub uses it: configuration, and the ledger's verbs as coroutines.

The only thread boundary of the hub process: every call of the ledger runs on one worker thread, so the
event loop is never held by a database, and calls of one process keep their order even when the coroutine
that asked was cancelled.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from traitlets import Bool, Dict, Float, Integer, List, TraitError, Unicode, default, validate
from traitlets.config import Config, LoggingConfigurable

from .. import fairness
from ..errors import GPUPoolError, Unavailable
from ..fairness.orders import PATIENCE
from ..ledger import Ledger, Policy, Snapshot, Waiting
from ..model import Lease, Limit, Request, State
from ..profiles import Availability
from ..profiles import read as read_profiles
from .availability import available
from .claiming import claim, this_process
from .following import Watch, transition_line

__all__ = ["GPUPool", "available", "transition_line"]

P = ParamSpec("P")
T = TypeVar("T")

TOLD_AT_ONCE = 30
"""People who are told of their place in one pass of the event loop."""

DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

BEAT_INTERVAL = 4.0
"""Seconds between two signs of life of a hub."""


class GPUPool(LoggingConfigurable):
    """Configuration of the pool, shared by the hub and the service."""

    name = Unicode(
        "gpupool",
        help="""Name of the pool: letters, digits, dots and dashes. It is the first part of every session's name
        and tells the sessions of two pools on one machine apart. Example: ``"lab-a"``.""",
    ).tag(config=True)

    hub_name = Unicode(
        "hub",
        help="""Name of this hub in the ledger: 1 to 40 letters, digits, dots, dashes and underscores. One ledger
        serves one hub at a time, whatever their names: a second one does not start while the first says that it
        lives, and takes over when that one is gone. Example: ``"hub-a"``.""",
    ).tag(config=True)

    database_url = Unicode(
        "sqlite:///gpupool.sqlite",
        help="""Where the ledger is, as an SQLAlchemy URL. A SQLite file must lie on a local disk (not NFS); it is
        made with mode 0600. A PostgreSQL server (15 or later) needs the extra ``postgresql``; see
        ``docs/postgresql.md``. Examples: ``"sqlite:////srv/jupyterhub/gpupool.sqlite"``,
        ``"postgresql://gpupool@db.example.org/gpupool"``.""",
    ).tag(config=True)

    profiles = List(
        Dict(),
        help="""What people may choose, in KubeSpawner's ``profile_list`` format with the pool's own keys.
        ``docs/profiles.md`` has the table of all keys. Example:
        ``[{"display_name": "Half an A100", "gpu": {"memory": "1/2"}}]``.""",
    ).tag(config=True)

    limits = Dict(
        help="""Caps and rights by scope: ``"pool"``, ``"group:NAME"``, ``"user:NAME"``, ``"user:*"`` (everybody
        without an own entry, key by key). Keys: ``sessions`` (number), ``gpus`` (GPU-equivalents, may be a
        fraction), ``queued`` (requests that may wait), ``gpu_hours`` in each ``window`` (seconds, 604800),
        ``max_age`` (seconds), ``profiles`` (slugs), ``priority`` (1 to 100, usually 10), and for groups
        ``guaranteed_gpus``, ``reservations`` (a list of ``{"gpus", "start", "end"}``) and ``strict``. A missing key
        means no cap, 0 means nothing at all. A group's cap holds for its members together; of several groups the
        most generous one decides, unless one is ``strict``. An admin's edit at run time takes the place of a
        scope's entry. Example: ``{"user:*": {"sessions": 2}, "group:vision": {"guaranteed_gpus": 4}}``.""",
    ).tag(config=True)

    queue_order = Unicode(
        "fifo",
        help="""Order of the queue: ``"fifo"`` (first come, first served), ``"priority"`` (the limits' ``priority``;
        waiting 600 s is worth one level, or less, so that the lowest comes before all later ones within half of
        ``max_wait``) or ``"fair"`` (who has had least for their priority; who has waited for half of ``max_wait``,
        at most a day, is before all others). Requests within a guaranteed share come first in each.
        Example: ``"fair"``.""",
    ).tag(config=True)

    fair_half_life = Float(
        7 * 86400,
        help="""Seconds after which used GPU-hours weigh half as much in the order ``"fair"``. Must be positive.
        Example: ``86400``.""",
    ).tag(config=True)

    budget_end = Bool(
        False,
        help="""Whether sessions are ended, after a warning, when the budget (``gpu_hours``) that they count against
        is used up. False: they go on, and nothing more is granted.""",
    ).tag(config=True)

    datasets = Dict(
        help="""Data that every session may read: name → folder of this machine, or volume of the container engine.
        Mounted read-only as ``/datasets/NAME`` where the backend has containers; others see the machine's own
        files. Example: ``{"imagenet": "/srv/data/imagenet"}``.""",
    ).tag(config=True)

    suspect_for = Float(
        600,
        min=0,
        help="""Seconds for which a GPU is not handed out after the launch check of an image has failed on it that
        passes on another GPU. The next launch is the re-test. 0: no GPU is ever held back for it.""",
    ).tag(config=True)

    max_launches = Integer(
        10,
        min=0,
        help="""Launches that may be under way at once; further grants wait for one to finish. 0: no bound.""",
    ).tag(config=True)

    max_wait = Float(
        8 * 3600,
        help="""Seconds that a request may wait in the queue before it is given up with a message. Must be positive.
        Example: ``3600``.""",
    ).tag(config=True)

    queue_keep = Float(
        600,
        min=0,
        help="""Seconds for which a request keeps its place while its hub is away. 0: places are lost at once.""",
    ).tag(config=True)

    watch_interval = Float(
        0.5,
        help="""Seconds between two looks of the hub at the queue while somebody waits. Must be positive.""",
    ).tag(config=True)

    _shared: dict[str, GPUPool] = {}

    @classmethod
    def shared(cls, config: Config, log: Any) -> GPUPool:
        """The one pool of this process for a ledger; made at the first call."""
        url = str(config.GPUPool.get("database_url", ""))
        if url not in cls._shared:
            cls._shared[url] = cls(config=config, log=log)
        return cls._shared[url]

    @validate("name", "hub_name")
    def _valid_name(self, proposal: Any) -> str:
        value = str(proposal.value)
        if (
            not value
            or len(value) > 40
            or not all(c.isascii() and (c.isalnum() or c in ".-_") for c in value)
        ):
            raise TraitError(
                f"GPUPool.{proposal.trait.name} is {value!r}; allowed are 1 to 40 letters, digits, '.', '-', '_'."
            )
        return value

    @validate("datasets")
    def _valid_datasets(self, proposal: Any) -> dict[str, str]:
        for name, source in proposal.value.items():
            if not (isinstance(name, str) and DATASET.fullmatch(name)):
                raise TraitError(
                    f"GPUPool.datasets names {name!r:.80}; allowed are 1 to 63 letters, digits, '.', '-', '_'."
                )
            if not (isinstance(source, str) and (source.startswith("/") or DATASET.fullmatch(source))):
                raise TraitError(
                    f"GPUPool.datasets[{name!r}] is {source!r:.80}; allowed is an absolute path or a volume's name."
                )
        return dict(proposal.value)

    @validate("max_wait", "watch_interval", "fair_half_life")
    def _positive(self, proposal: Any) -> float:
        if not 0 < proposal.value < 366 * 86400:
            raise TraitError(
                f"GPUPool.{proposal.trait.name} is {proposal.value!r}; allowed are seconds above 0, up to a year."
            )
        return float(proposal.value)

    @validate("queue_order")
    def _valid_order(self, proposal: Any) -> str:
        try:
            return fairness.check_order(proposal.value)
        except ValueError as problem:
            raise TraitError(f"GPUPool.queue_order: {problem}") from problem

    @validate("profiles")
    def _valid_profiles(self, proposal: Any) -> list[dict[str, Any]]:
        try:
            read_profiles(proposal.value)
        except ValueError as problem:
            raise TraitError(f"GPUPool.profiles: {problem}") from problem
        return list(proposal.value)

    @validate("limits")
    def _valid_limits(self, proposal: Any) -> dict[str, Any]:
        try:
            fairness.read_limits(proposal.value)
        except ValueError as problem:
            raise TraitError(str(problem)) from problem
        return dict(proposal.value)

    @default("profiles")
    def _default_profiles(self) -> list[dict[str, Any]]:
        return [{"display_name": "A whole GPU", "slug": "gpu", "gpu": {"count": 1}}]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.offer = read_profiles(self.profiles)
        self.caps: dict[str, Limit] = fairness.read_limits(self.limits)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpupool-ledger")
        self._ledger: Ledger | None = None
        self._registered = False
        self._watched: dict[str, Watch] = {}
        self._moves: list[tuple[Lease, str]] = []  # of the verb that runs on the worker thread
        self._watcher: asyncio.Task[None] | None = None
        self._beats: asyncio.Task[None] | None = None
        self._process = this_process()

    # --- the worker thread ---------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """What the ledger has to know of the configuration."""
        return Policy(
            pool=self.name,
            limits=self.caps,
            launches=self.max_launches,
            queue_keep=self.queue_keep,
            suspect_for=self.suspect_for,
            order=self.queue_order,
            half_life=self.fair_half_life,
            patience=min(PATIENCE, self.max_wait / 2),  # nobody is given up who was never first
        )

    def ledger(self) -> Ledger:
        """The ledger; opened at the first call.  Blocks: for worker threads and commands only."""
        if self._ledger is None:
            self._ledger = Ledger(self.database_url, self.policy, on_move=self._moved)
        return self._ledger

    async def call(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function on the worker thread.  It goes on to its end even if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._run, loop, partial(verb, *args, **kwargs))

    def _run(self, loop: asyncio.AbstractEventLoop, verb: Callable[[], T]) -> T:
        """Run a verb; what it moved is told once it is true, since a verb that fails takes its moves back."""
        self._moves = []
        result = verb()
        for lease, before in self._moves:
            self.log.info("%s", transition_line(lease, before))
        awaited = [lease for lease, _ in self._moves if lease.id in self._watched]
        if awaited:
            loop.call_soon_threadsafe(self._tell, awaited)
        return result

    def _moved(self, lease: Lease, before: str) -> None:
        self._moves.append((lease, before))

    def _tell(self, moved: list[Lease]) -> None:
        """Wake those who wait in this process for a lease that this process has moved."""
        for lease in moved:
            if lease.id in self._watched:
                self._watched[lease.id].put(Waiting(lease.state, None, 0, lease.reason, lease))

    async def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a verb of the ledger by its name, as soon as the ledger can be opened."""
        return await self.call(lambda: getattr(self.ledger(), name)(*args, **kwargs))

    # --- a spawn -------------------------------------------------------------------------------

    async def enqueue(self, request: Request) -> Lease:
        """Ask for a slice; see :meth:`Ledger.enqueue`."""

        await self.register()
        lease: Lease = await self.ask("enqueue", self.hub_name, request, self._process)
        return lease

    def begin(self) -> None:
        """Say from now on that this hub lives.  Needs the event loop that runs."""
        if self._beats is None or self._beats.done():
            self._beats = asyncio.create_task(self._beat())

    async def register(self) -> None:
        """Begin a new epoch of this hub, once in a process.  Raises Unavailable while another hub serves the pool."""
        self.begin()
        if not self._registered:
            await self.call(self._register)

    def _register(self) -> None:
        if not self._registered:
            claim(self.ledger(), self.hub_name)
            self._registered = True

    async def _beat(self) -> None:
        """Say again and again that this hub lives, and take the pool back where it was lost and is free."""
        said = ""
        while True:
            try:
                if self._registered and not await self.ask("beat", self.hub_name, self._process):
                    self._registered = False
                if not self._registered:
                    await self.call(self._register)
                said = ""
            except GPUPoolError as problem:
                if problem.reason != said:
                    said = problem.reason
                    self.log.error("This hub cannot say that it lives: %s", problem.message)
            except Exception:  # whatever it is, a hub that falls silent would be taken as gone
                self.log.exception("This hub cannot say that it lives")
            await asyncio.sleep(BEAT_INTERVAL)

    async def follow(self, lease: str, until: frozenset[State]) -> AsyncIterator[Waiting]:
        """Yield state and place of a lease whenever they change, the last one in one of the states named.

        Raises Unavailable when the lease is closed and that was not waited for, or after ``max_wait``.
        """
        watch = self._watched.setdefault(lease, Watch())
        watch.readers += 1
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        give_up_at = time.monotonic() + self.max_wait
        seen: Waiting | None = None
        try:
            while True:
                if watch.latest is not None and watch.latest != seen:
                    seen = watch.latest
                    yield seen
                    if seen.state in until:
                        return
                    if seen.state is State.CLOSED:
                        raise Unavailable(
                            f"This request is no longer in the queue: {seen.why or 'it was closed'}.",
                            reason="left-queue",
                        )
                if time.monotonic() >= give_up_at:
                    raise Unavailable(
                        f"Nothing came free within {self.max_wait:g} s, the longest wait that this pool allows. "
                        "Choose a smaller profile, or try again later.",
                        reason="waited-too-long",
                    )
                await watch.wait(give_up_at - time.monotonic())
        finally:
            watch.readers -= 1
            if not watch.readers:
                self._watched.pop(lease, None)

    async def _watch(self) -> None:
        """Read the queue for everybody who waits in this process."""
        while self._watched:
            try:
                found = await self.ask("watch", tuple(self._watched))
            except GPUPoolError as problem:
                self.log.warning("The queue cannot be read, everybody keeps their place: %s", problem.message)
            except Exception:  # whatever it is, people wait and must be told when it is over
                self.log.exception("The queue cannot be read, everybody keeps their place")
            else:
                for number, (lease, waiting) in enumerate(found.items(), 1):
                    if number % TOLD_AT_ONCE == 0:
                        await asyncio.sleep(0)  # others' work comes in between
                    if lease in self._watched:
                        self._watched[lease].put(waiting)
            await asyncio.sleep(self.watch_interval)

    async def move(self, verb: str, lease: Lease, **kwargs: Any) -> Lease:
        """Run a transition of the ledger."""
        moved: Lease = await self.ask(verb, lease.id, **kwargs)
        return moved

    # --- reading -------------------------------------------------------------------------------

    async def availability(
        self, user: str, groups: list[str], admin: bool, snapshot: Snapshot | None = None
    ) -> tuple[Snapshot, dict[str, Availability]]:
        """What this person could have now, by profile; ``snapshot`` is the view where there is one already."""
        if snapshot is None:
            snapshot = await self.ask("snapshot")
        budget = await self.budget(snapshot, user, groups)
        return snapshot, available(self, snapshot, user, groups, admin, budget)

    async def budget(self, snapshot: Snapshot, user: str, groups: list[str]) -> fairness.Budget:
        """The budget that decides for a person; a used-up one says when a start works again."""
        budget = snapshot.budget(user, groups)
        if budget.state is fairness.BudgetState.EXHAUSTED:
            budget = await self.ask("budget", user, groups)  # the sums of the view do not tell when
        return budget
