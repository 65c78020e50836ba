"""A lease around a stock spawner: the mixin that every backend of the pool stands on.

The rule of every method: the ledger says what is about to exist before it exists, under which name, and
after any crash that name is looked up, never assumed.  Waiting happens inside ``start()``; a cancelled
coroutine awaits nothing, what it leaves behind is found by the row it wrote first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit

from jupyterhub.spawner import Spawner
from jupyterhub.utils import maybe_future
from traitlets import Float, default

from .. import faults, profiles, runtime
from ..errors import GPUPoolError, LeaseConflict, Rejected, Unavailable
from ..model import HOLDING, Device, Lease, Owner, Request, Session, State
from ..pool import GPUPool
from ..sessions import Sessions
from .adoption import UNSEEN, Adoption
from .choosing import granted_in_words, one_door, render_form
from .refusal import Notice, refuse, refuse_other
from .steps import Steps, pace_of, place_in_words

GONE = frozenset({State.CLOSED})
GRANTED = frozenset({State.STARTING})


class GPUPoolMixin(Adoption, Spawner):
    """Makes a stock spawner hold exactly the slice that the ledger granted.

    A backend names its stock spawner behind this class and defines ``_sessions`` (who is there), ``_provide``
    (what must be there before anything is claimed), ``_prepare`` (what must be known before the launch),
    ``_attach`` (take a running session over), ``_launched`` (what was really launched), ``_check`` (does it
    work) and ``_end`` (end it, and prove that it is gone).
    """

    start_timeout: int  # a trait of the stock spawner; named here for the type checker
    isolation_note: ClassVar[str] = ""
    """What a person should know of this backend before they start a session; empty when nothing."""

    adopt_timeout = Float(
        600,
        help="""Seconds for which a session that is there but silent is waited for after a restart of the hub,
        before the hub treats it like any server that does not answer. Must be positive. Example: ``120``.""",
    ).tag(config=True)

    _stock: ClassVar[ThreadPoolExecutor] = ThreadPoolExecutor(8, thread_name_prefix="gpupool-backend")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._launch_timeout: int = self.start_timeout
        self._lease: Lease | None = None
        self._entered = False  # this instance entered start(): a stop may mean "gave up"
        self._launching = False  # the stock start() was called for the lease at hand
        self._devices: tuple[Device, ...] = ()  # those of the lease at hand
        self._polled = False
        self._unseen = False  # this start failed because nobody could say what runs already
        self._steps = Steps()

    # --- what a backend defines ------------------------------------------------------------------

    @cached_property
    def _sessions(self) -> Sessions:
        """Who asks this backend about sessions."""
        raise NotImplementedError(f"{type(self).__name__} names no sessions backend")

    @property
    def _more_time(self) -> float:
        """Seconds that :meth:`_provide` and :meth:`_check` may take beside the launch."""
        return 0.0

    async def _provide(self, choice: profiles.Choice) -> None:
        """Have at hand what the launch will need; no slice is held while this takes its time."""

    def _prepare(self, lease: Lease) -> dict[str, Any]:
        """Decide what the ledger must know before the launch (a port, a name); nothing runs yet."""
        return {}

    async def _attach(self, session: Session) -> None:
        """Take over a session that runs already."""

    async def _launched(self, lease: Lease) -> tuple[dict[str, Any], list[str]]:
        """Return what to find the launched session by, and what differs from the lease, in words."""
        return {}, []

    async def _check(self, lease: Lease) -> None:
        """See that what runs works on its slice.  Raises Unavailable with the reason when it does not."""

    async def _end(self, lease: Lease, now: bool) -> bool:
        """End the session with everything that belongs to it; True on proof that it is gone."""
        await super().stop(now=now)
        return False

    # --- the pool --------------------------------------------------------------------------------

    @cached_property
    def pool(self) -> GPUPool:
        """The pool that this hub shares."""
        return GPUPool.shared(config=self.config, log=self.log)

    @property
    def _owner(self) -> Owner:
        created = self.user.orm_user.created
        # The hub stores UTC without saying so; the machine's own zone may change.
        stamp = created.replace(tzinfo=UTC).timestamp() if created else 0.0
        return Owner(self.user.name, self.user.id, stamp)

    @property
    def _groups(self) -> list[str]:
        return sorted(group.name for group in self.user.orm_user.groups)

    async def _backend(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        """Ask the backend on a thread of its own kind; a hanging engine never holds the ledger's."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._stock, lambda: verb(*args, **kwargs))

    async def _open_lease(self) -> Lease | None:
        owner = self._owner
        lease: Lease | None = await self.pool.ask("lease_of", owner.hub_id, owner.created, self.name)
        return lease

    # --- the choice ------------------------------------------------------------------------------

    def _resolve(self, options: Any) -> profiles.Choice:
        if "\0" in self.user.name:  # the session is told its user's name in its environment
            raise Rejected(
                f"The user name {self.user.name!a} has a NUL character, so no session can be started for it; "
                "allowed are names without one.",
                reason="bad-user",
            )
        return profiles.resolve(
            self.pool.offer,
            options,
            user=self.user.name,
            groups=self._groups,
            admin=bool(self.user.admin),
        )

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        return one_door

    @default("options_form")
    def _default_options_form(self) -> Any:
        return render_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        return self._from_form

    def _from_form(self, formdata: dict[str, list[str]]) -> dict[str, Any]:
        try:
            return profiles.parse_form(formdata)
        except GPUPoolError as problem:
            raise refuse(problem, self.handler) from problem

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, Any]:
        """Show the form with the link's choice filled in: a link may come from a foreign page."""
        raise Notice()

    # --- start -----------------------------------------------------------------------------------

    def start(self) -> Any:
        """Wait for the slice, launch the session, compare what runs with the lease.

        Not itself a coroutine: the hub reads ``start_timeout`` after this call and before the coroutine
        runs, so the time in the queue can be added to it here.
        """
        self._entered = self._polled = True
        self._launching = self._unseen = False
        self._lease = None
        self._steps = Steps()
        self.start_timeout = int(self.pool.max_wait + self._launch_timeout + self._more_time + 60)
        return self._start()

    async def _start(self) -> Any:
        try:
            lease, running = await self._claim()
            if running is not None:
                return await self._reattach(lease, running)
            faults.point("grant.seen")
            # What the lease was granted for, not what was asked for last; rights may have changed since.
            choice = self._resolve(dict(lease.options))
            return await self._launch(lease, choice)
        except GPUPoolError as problem:
            self._unseen = problem.reason == UNSEEN
            await self._abandon(problem.message)
            raise refuse(problem, self.handler) from problem
        except Exception as problem:
            await self._abandon(f"the launch failed: {type(problem).__name__}")
            raise

    async def _claim(self) -> tuple[Lease, Session | None]:
        """Wait until the lease holds its slices, or find that its session runs already."""
        choice = self._resolve(self.user_options)
        await self._provide(choice)
        request = Request(
            owner=self._owner,
            server=self.name,
            profile=choice.profile,
            wish=choice.wish,
            terms=choice.terms,
            groups=tuple(self._groups),
            options=choice.options,
        )
        self._steps.add(2, f"Asking the pool for: {choice.display_name}")
        while True:
            lease = await self.pool.enqueue(request)
            self._lease = lease
            if lease.state is State.QUEUED:
                faults.point("enqueue.done")
                return await self._granted(lease), None
            if lease.state is State.STOPPING:
                self._steps.add(3, "The session before this one is still being ended", replaces="place")
                async for _ in self.pool.follow(lease.id, GONE):
                    continue
                continue
            if lease.state is State.STARTING and not lease.runtime:
                return lease, None  # granted in the same transaction, nothing was launched for it
            session = await self._find(lease)
            if session is not None:
                return lease, session
            # A launch of an earlier hub that came to nothing: the sweep proves it and closes the lease.
            await self.pool.move("begin_stop", lease, actor="hub", reason="its session is gone")

    async def _granted(self, lease: Lease) -> Lease:
        """Wait in the queue, telling the place in it, and return the lease with its slices."""
        async for waiting in self.pool.follow(lease.id, GRANTED):
            if waiting.state is State.QUEUED:
                self._steps.add(5, place_in_words(waiting), replaces="place", pace=pace_of(waiting))
        # Another process's grant is seen in the queue, without the lease.
        granted: Lease | None = waiting.lease or await self.pool.ask("lease", lease.id)
        if granted is None or granted.state is not State.STARTING:
            raise LeaseConflict(f"Lease {lease.id} was taken back before its session was launched.")
        self._lease = granted
        return granted

    async def _launch(self, lease: Lease, choice: profiles.Choice) -> Any:
        self._steps.add(20, f"Granted: {granted_in_words(lease)}")
        self._choice = choice
        self._apply(choice)
        found = self._prepare(lease)
        devices = [item.device for item in lease.slices]
        self._devices = await self.pool.ask(
            "checkpoint", lease.id, found or {"launch": lease.epoch}, devices=devices
        )
        faults.point("launch.intent")
        self._steps.add(40, "Starting the notebook server")
        self._launching = True
        async with asyncio.timeout(self._launch_timeout):
            address = await super().start()
        faults.point("launch.done")
        running, differences = await self._launched(lease)
        refuse_other(differences)
        await self._check(lease)
        self._lease = await self.pool.move(
            "activate", lease, actor=self.user.name, runtime=found | running, url=self._url_of(address),
            tensorflow=choice.tensorflow,
        )  # fmt: skip
        faults.point("activate.done")
        self._steps.add(80, "Waiting for the notebook server to answer")
        return address

    async def _reattach(self, lease: Lease, session: Session) -> Any:
        self._steps.add(60, "Your session is still running; connecting to it")
        self._launching = True
        await self._attach(session)
        if lease.state is State.STARTING:  # an earlier hub launched it, and was gone before it looked
            refuse_other(await self._adopted(lease))
            lease = await self.pool.move("activate", lease, actor="hub", reason="found running")
        self._lease = lease
        return session.url

    def _url_of(self, address: Any) -> str:
        return address if isinstance(address, str) else "http://{}:{}".format(*address)

    def _apply(self, choice: profiles.Choice) -> None:
        """Give the stock spawner what the profile says; :func:`configure` has checked the names."""
        for name, value in {"cpu_limit": choice.cpu_limit, "mem_limit": choice.mem_limit}.items():
            if value is not None:
                setattr(self, name, value)
        for name, value in choice.spawner_override.items():
            now = getattr(self, name)
            both = isinstance(value, dict) and isinstance(now, dict)
            setattr(self, name, profiles.merge(now, value) if both else value)

    def get_env(self) -> dict[str, str]:
        """The stock environment, with what the session must know of its lease on top."""
        env: dict[str, str] = super().get_env()
        if self._lease is not None and self._lease.state in HOLDING:
            env |= runtime.environment(
                self._lease,
                pool=self.pool.name,
                owner=self._owner,
                tensorflow=self._choice.tensorflow,
                devices=self._devices,
            )
        return env

    async def _abandon(self, why: str) -> None:
        """A start has failed: give up the place, or end what was launched and free the slice on proof."""
        if self._lease is None or self._unseen:
            return
        try:
            lease = await self.pool.ask("lease", self._lease.id)
            if lease.state is State.QUEUED:
                await self.pool.ask("give_up", lease.id, actor="hub", reason=why)
            elif lease.state in HOLDING:
                await self._finish(lease, actor="hub", reason=why, now=True)
        except Exception:
            self.log.exception("lease=%s is left to the sweep after a failed start", self._lease.id)

    # --- stop ------------------------------------------------------------------------------------

    async def stop(self, now: bool = False) -> None:
        """End the session; returns only when it is proved that nothing of it is left."""
        if self._unseen:  # the hub's own cleaning up after that start
            return
        try:
            lease = await self._open_lease() or self._lease
        except Unavailable as problem:  # the session must be ended all the same, the sweep closes the lease
            self.log.warning("%s", problem.message)
            lease = self._lease
        if lease is None or lease.state not in HOLDING:
            await super().stop(now=now)
            return
        if not await self._finish(lease, actor=self.user.name, reason="stopped", now=now):
            raise RuntimeError(
                f"The session of lease {lease.id} could not be proved gone; its slice stays held until it is."
            )

    async def _finish(self, lease: Lease, *, actor: str, reason: str, now: bool) -> bool:
        """STOPPING, end, prove, CLOSED.  False when the proof failed: then the sweep goes on with it."""
        try:
            if lease.state is not State.STOPPING:
                lease = await self.pool.move("begin_stop", lease, actor=actor, reason=reason)
        except (Unavailable, LeaseConflict) as problem:
            self.log.warning("lease=%s is ended without the ledger: %s", lease.id, problem.message)
        faults.point("stop.intent")
        if not await self._end(lease, now):
            await self.pool.ask("doubt", lease.id, "its session could not be proved gone")
            return False
        faults.point("stop.done")
        try:
            await self.pool.move("close", lease, actor=actor)
        except (Unavailable, LeaseConflict) as problem:
            self.log.warning("lease=%s is closed by the sweep: %s", lease.id, problem.message)
        self._lease = None
        faults.point("close.done")
        return True

    async def run_post_stop_hook(self) -> None:
        """Give up the place of a person who cancelled.

        The hub runs this at boot too, for everybody who waited when it was killed: those instances never
        entered ``start()``, and their places stay.
        """
        if self._entered and not self._unseen:
            self._entered = False
            try:
                await self._leave()
            except GPUPoolError as problem:
                self.log.warning("%s's request is left to the sweep: %s", self._log_name, problem.message)
        await maybe_future(super().run_post_stop_hook())

    async def _leave(self) -> None:
        lease = await self._open_lease()
        if lease is None:
            return
        if await self.pool.ask("give_up", lease.id, actor=self.user.name, reason="cancelled"):
            return
        lease = await self.pool.ask("lease", lease.id)
        if lease.state is State.STARTING and not self._launching:
            # Granted in the last moment, nothing was launched for it: this instance alone could have.
            await self._finish(lease, actor=self.user.name, reason="cancelled", now=True)

    async def get_url(self) -> str:
        """The address that the lease has written: the hub's own row may hold the one before the launch."""
        lease = self._lease
        if lease is not None and lease.url:
            # An adopted session tells its address with the path, a launch without.
            address = urlsplit(lease.url)
            path = self.server.base_url if self.server else address.path
            return f"{address.scheme}://{address.netloc}{path}"
        return str(await super().get_url())

    # --- progress --------------------------------------------------------------------------------

    async def progress(self) -> AsyncIterator[Mapping[str, Any]]:
        """Place in the queue while it changes, then the steps of the launch.  Runs once for each open page."""
        async for step in self._steps.follow():
            yield step
