"""A lease around a stock spawner: the mixin that every backend of the pool stands on.

The rule of every method: the ledger says what is about to exist before it exists, under which name, and
after any crash that name is looked up, never assumed.  Waiting happens inside ``start()``; a cancelled
coroutine awaits nothing, what it leaves behind is found by the row it wrote first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from jupyterhub.spawner import Spawner
from jupyterhub.utils import maybe_future, wait_for_http_server
from traitlets import Float, default

from .. import faults, profiles, runtime
from ..errors import GPUPoolError, LeaseConflict, Rejected, Unavailable
from ..model import HOLDING, Lease, Owner, Presence, Request, Session, State
from ..pool import GPUPool
from ..sessions import Sessions
from .refusal import Notice, refuse
from .steps import Steps, place_in_words

GONE = frozenset({State.CLOSED})
GRANTED = frozenset({State.STARTING})


class GPUPoolMixin(Spawner):
    """Makes a stock spawner hold exactly the slice that the ledger granted.

    A backend names its stock spawner behind this class and defines ``_sessions`` (who is there),
    ``_prepare`` (what must be known before the launch), ``_attach`` (take a running session over),
    ``_launched`` (what was really launched) and ``_end`` (end it, and prove that it is gone).
    """

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
        self._launch_timeout = self.start_timeout
        self._lease: Lease | None = None
        self._entered = False  # this instance entered start(): a stop may mean "gave up"
        self._launching = False  # the stock start() was called for the lease at hand
        self._polled = False
        self._steps = Steps()

    # --- what a backend defines ------------------------------------------------------------------

    @cached_property
    def _sessions(self) -> Sessions:
        """Who asks this backend about sessions."""
        raise NotImplementedError(f"{type(self).__name__} names no sessions backend")

    def _prepare(self, lease: Lease) -> dict[str, Any]:
        """Decide what the ledger must know before the launch (a port, a name); nothing runs yet."""
        return {}

    def _attach(self, session: Session) -> None:
        """Take over a session that runs already."""

    async def _launched(self, lease: Lease) -> tuple[dict[str, Any], list[str]]:
        """Return what to find the launched session by, and what differs from the lease, in words."""
        return {}, []

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
        return Owner(self.user.name, self.user.id, created.timestamp() if created else 0.0)

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
        raise Notice("The link that brought you here has filled in the form. Nothing was started yet.")

    # --- start -----------------------------------------------------------------------------------

    def start(self) -> Any:
        """Wait for the slice, launch the session, compare what runs with the lease.

        Not itself a coroutine: the hub reads ``start_timeout`` after this call and before the coroutine
        runs, so the time in the queue can be added to it here.
        """
        self._entered = self._polled = True
        self._launching = False
        self._lease = None
        self._steps = Steps()
        self.start_timeout = int(self.pool.max_wait + self._launch_timeout + 60)
        return self._start()

    async def _start(self) -> Any:
        try:
            lease, running = await self._claim()
            if running is not None:
                return await self._reattach(lease, running)
            faults.point("grant.seen")
            choice = self._resolve(self.user_options)  # rights may have changed while it waited
            return await self._launch(lease, choice)
        except GPUPoolError as problem:
            await self._abandon(problem.message)
            raise refuse(problem, self.handler) from problem
        except Exception as problem:
            await self._abandon(f"the launch failed: {type(problem).__name__}")
            raise

    async def _claim(self) -> tuple[Lease, Session | None]:
        """Wait until the lease holds its slices, or find that its session runs already."""
        choice = self._resolve(self.user_options)
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
                async for waiting in self.pool.follow(lease.id, GRANTED):
                    if waiting.state is State.QUEUED:
                        self._steps.add(5, place_in_words(waiting), replaces="place")
                lease = await self._mine(lease)
                return lease, None
            if lease.state is State.STOPPING:
                self._steps.add(3, "The session before this one is still being ended", replaces="place")
                async for _ in self.pool.follow(lease.id, GONE):
                    continue
                continue
            if not lease.runtime:  # granted in the same transaction, nothing was launched for it
                return lease, None
            session = await self._find(lease)
            if session is not None:
                return lease, session
            # A launch of an earlier hub that came to nothing: the sweep proves it and closes the lease.
            await self.pool.move("begin_stop", lease, actor="hub", reason="its session is gone")

    async def _mine(self, lease: Lease) -> Lease:
        fresh: Lease | None = await self.pool.ask("lease", lease.id)
        if fresh is None or fresh.state is not State.STARTING:
            raise LeaseConflict(f"Lease {lease.id} was taken back before its session was launched.")
        self._lease = fresh
        return fresh

    async def _launch(self, lease: Lease, choice: profiles.Choice) -> Any:
        self._steps.add(20, f"Granted: {granted_in_words(lease)}")
        self._choice = choice
        self._apply(choice)
        found = self._prepare(lease)
        await self.pool.ask("checkpoint", lease.id, found or {"launch": lease.epoch})
        faults.point("launch.intent")
        self._steps.add(40, "Starting the notebook server")
        self._launching = True
        address = await asyncio.wait_for(super().start(), self._launch_timeout)
        faults.point("launch.done")
        running, differences = await self._launched(lease)
        if differences:
            raise Unavailable(
                f"The session did not get what its lease says ({'; '.join(differences)}) and was ended.",
                reason="wrong-slice",
            )
        await self.pool.ask("checkpoint", lease.id, found | running, self._url_of(address))
        faults.point("checkpoint.done")
        self._lease = await self.pool.move("activate", lease, actor=self.user.name)
        faults.point("activate.done")
        self._steps.add(80, "Waiting for the notebook server to answer")
        return address

    async def _reattach(self, lease: Lease, session: Session) -> Any:
        self._steps.add(60, "Your session is still running; connecting to it")
        self._launching = True
        self._attach(session)
        if lease.state is State.STARTING:
            lease = await self.pool.move("activate", lease, actor="hub", reason="found running")
        self._lease = lease
        return session.url

    def _url_of(self, address: Any) -> str:
        if isinstance(address, str):
            return address
        ip, port = address
        return f"http://{ip}:{port}"

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
            )
        return env

    async def _abandon(self, why: str) -> None:
        """A start has failed: give up the place, or end what was launched and free the slice on proof."""
        if self._lease is None:
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
        except Unavailable as problem:
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
        if self._entered:
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

    # --- poll ------------------------------------------------------------------------------------

    async def poll(self) -> int | None:
        """None while the session is there or while nobody can say; a number once it is certainly gone."""
        first, self._polled = not self._polled, True
        if first:
            await self._until_known(self.pool.register)
        lease = await self._until_known(self._open_lease) if first else await self._known_lease()
        if lease is None:
            return await self._poll_unknown(first)
        if lease.state is State.QUEUED:
            return 0
        presence = await self._presence(lease, wait=first)
        if presence is Presence.ABSENT:
            await self._note_gone(lease)
            return 0
        if presence is Presence.PRESENT and not self._launching:
            await self._adopt(lease, first)
        return None

    async def _known_lease(self) -> Lease | None:
        try:
            return await self._open_lease()
        except Unavailable as problem:
            self.log.warning("%s: %s", self._log_name, problem.message)
            return self._lease

    async def _until_known(self, ask: Any) -> Any:
        """Ask until there is an answer: at boot, "cannot see" must not become "is not there"."""
        pause = 0.5
        while True:
            try:
                return await ask()
            except Unavailable as problem:
                self.log.warning("%s waits for the ledger: %s", self._log_name, problem.message)
            await asyncio.sleep(pause)
            pause = min(10.0, pause * 2)

    async def _presence(self, lease: Lease, *, wait: bool) -> Presence:
        pause = 0.5
        while True:
            found = await self._backend(self._sessions.look, [lease.session])
            presence: Presence = found.get(lease.session, Presence.UNKNOWN)
            if presence is not Presence.UNKNOWN or not wait:
                return presence
            self.log.warning("%s: the backend does not say whether %s is there", self._log_name, lease.session)
            await asyncio.sleep(pause)
            pause = min(10.0, pause * 2)

    async def _poll_unknown(self, first: bool) -> int | None:
        """No open lease.  A session of this server may run all the same: the ledger may have been lost."""
        if first:
            for session in await self._backend(self._sessions.list) or ():
                if (session.user, session.server) == (self.user.name, self.name):
                    self._launching = True
                    self._attach(session)
                    self.log.warning("%s runs without a lease; the service adopts it", self._log_name)
        status: int | None = await super().poll()
        return status

    async def _find(self, lease: Lease) -> Session | None:
        """The running session of a lease.  Raises Unavailable while the backend does not say."""
        listed = await self._backend(self._sessions.list)
        if listed is None:
            raise Unavailable(
                "The backend does not say whether your last session is still there. Try again in a minute.",
                reason="backend",
            )
        return next((session for session in listed if session.name == lease.session), None)

    async def _adopt(self, lease: Lease, first: bool) -> None:
        """Take over a session that another process of this hub launched."""
        session = await self._find(lease)
        if session is None:
            return
        self._attach(session)
        self._lease = lease
        self._launching = True
        if lease.state is State.STARTING:
            self._lease = await self.pool.move("activate", lease, actor="hub", reason="adopted")
        elif lease.state is State.ACTIVE:
            await self.pool.ask("checkpoint", lease.id, session.runtime, session.url)
        if self.orm_spawner is not None:
            self.orm_spawner.state = self.get_state()
        self.log.info("lease=%s adopted, its session %s runs", lease.id, lease.session)
        if first:
            await self._answers(session)

    async def _answers(self, session: Session) -> None:
        """Wait until the session answers HTTP, whatever it says; it may be busy while the hub boots."""
        try:
            await wait_for_http_server(session.url, timeout=self.adopt_timeout)
        except TimeoutError:
            self.log.warning("%s did not answer for %g s", session.name, self.adopt_timeout)

    async def _note_gone(self, lease: Lease) -> None:
        """The session ended by itself.  The slice stays held until the sweep has proved it."""
        self._launching = False
        if lease.state in (State.STARTING, State.ACTIVE) and not self._start_pending:
            try:
                await self.pool.move("begin_stop", lease, actor="hub", reason="the session ended by itself")
            except (LeaseConflict, Unavailable) as problem:
                self.log.warning("lease=%s: %s", lease.id, problem.message)

    async def get_url(self) -> str:
        """The address that the lease has written: the hub's own row may hold the one before the launch."""
        lease = self._lease
        if lease is not None and lease.url:
            return f"{lease.url.rstrip('/')}{self.server.base_url}" if self.server else lease.url
        return str(await super().get_url())

    # --- progress --------------------------------------------------------------------------------

    async def progress(self) -> AsyncIterator[Mapping[str, Any]]:
        """Place in the queue while it changes, then the steps of the launch.  Runs once for each open page."""
        async for step in self._steps.follow():
            yield step


async def one_door(spawner: GPUPoolMixin, options: Any) -> None:
    """Resolve and authorise a choice: form, REST, query and stored options all come through here."""
    try:
        spawner._choice = spawner._resolve(options)
    except Rejected as problem:
        raise refuse(problem, spawner.handler) from problem


async def render_form(spawner: GPUPoolMixin) -> str:
    """The profile form with what is free and what is in the queue at this moment."""
    groups, notice, simulated, offered = spawner._groups, "", False, {}
    try:
        snapshot, offered = await spawner.pool.availability(
            spawner.user.name, groups, bool(spawner.user.admin)
        )
        simulated = any(device.simulated for device in snapshot.devices)
        owner = spawner._owner
        selected = await spawner.pool.ask("last_options", owner.hub_id, owner.created)
    except Unavailable as problem:
        notice, selected = problem.message, None
    if spawner.handler is not None:
        asked = {
            name.removeprefix("opt-"): [value.decode("utf8", "replace") for value in values]
            for name, values in spawner.handler.request.query_arguments.items()
            if name.startswith("opt-")
        }
        selected = profiles.parse_query(asked) or selected
    return profiles.render_form(
        spawner.pool.offer,
        user=spawner.user.name,
        groups=groups,
        availability=offered,
        selected=selected,
        notice=notice,
        simulated=simulated,
        isolation_note=spawner.isolation_note,
        admin=bool(spawner.user.admin),
    )


def granted_in_words(lease: Lease) -> str:
    """What was granted, for the person who waited for it."""
    if not lease.slices:
        return "a session without a GPU"
    what = {item.visible for item in lease.slices}
    memory = min(item.memory_mib for item in lease.slices)
    return f"{lease.gpus:.3g} GPU ({', '.join(sorted(what))}), {memory} MiB on each"


TEMPLATES = Path(__file__).parent.parent / "templates" / "hub"
"""Pages of the hub that the pool replaces: waiting, and not running after a restart of the hub."""
