"""What comes between the decision for a reclaim and the stop: the owner's own script, once.

The lease is STOPPING by then and holds its slice.  That the script is due is written with that, so the service
that follows one that has crashed runs it; that it was begun is written before it runs, so no service runs it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .. import faults
from ..errors import GPUPoolError
from ..model import Lease, State
from ..notices import DUE
from ..sessions.script import ScriptEnd

if TYPE_CHECKING:
    from .sweep import Sweep

AT_ONCE = 16
"""Scripts that run at the same time; others wait for their turn."""


class Before:
    """The scripts of the sessions that are being taken back by this process."""

    def __init__(self, sweep: Sweep, *, clock: Callable[[], float] = time.time) -> None:
        self._sweep, self._log, self._clock = sweep, sweep._log, clock
        # Not the sweep's own threads: no script of anybody may hold the answers of the backend.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gpupool-script")
        self._running: dict[str, asyncio.Task[None]] = {}

    def holds(self, lease: str) -> bool:
        """Whether the stop of this lease waits for its owner's script."""
        return lease in self._running

    def begin(self, lease: Lease) -> None:
        """Run the owner's script, then end the session; returns at once."""
        task = asyncio.create_task(self._run(lease))
        self._running[lease.id] = task
        task.add_done_callback(lambda _: self._running.pop(lease.id, None))

    async def resume(self, lease: Lease) -> bool:
        """Begin the script of a lease whose stop another service has begun, if it is due and there is time for it.

        There is none once its server is being stopped: by its owner, an admin or the hub.
        """
        if self._sweep.rules.before_reclaim_timeout <= 0 or lease.stopped_by != "service":
            return False
        ending = await self._sweep.pool.ask("ending_of", lease.id)
        if ending.script.get("state") != DUE:
            return False
        server = await self._sweep.hub.server(lease.user, lease.server)
        if server is not None and server.pending:
            return False
        self.begin(lease)
        return True

    async def wait(self) -> None:
        """Wait for all that run now."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def stop(self) -> None:
        """Give up waiting; the stops are the next service's."""
        for task in self._running.values():
            task.cancel()
        await self.wait()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, lease: Lease) -> None:
        try:
            await self._script(lease)
        except GPUPoolError as problem:
            self._log.warning("lease=%s: its script is not told of: %s", lease.id, problem.message)
        except Exception:  # whatever a script does, the slice comes back
            self._log.exception("lease=%s: its script failed", lease.id)
        try:
            now: Lease = await self._sweep.pool.ask("lease", lease.id)
            # Its owner may have ended it meanwhile, and have a new session under the same name by now.
            if now.state is State.STOPPING:
                await self._sweep.tidy.stop(now)
        except GPUPoolError as problem:
            self._log.warning("lease=%s is ended by a later sweep: %s", lease.id, problem.message)
        faults.point("sweep.told")

    async def _script(self, lease: Lease) -> None:
        pool, timeout = self._sweep.pool, self._sweep.rules.before_reclaim_timeout
        if not await pool.ask("begin_script", lease.id):
            return
        run = self._sweep.sessions.before_reclaim

        def now() -> ScriptEnd | None:
            # Its time begins here, not while it waits for its turn.
            deadline = str(int(self._clock() + timeout))
            said = {"GPUPOOL_RULE": lease.warned_for, "GPUPOOL_REASON": lease.reason}
            return run(lease.session, {**said, "GPUPOOL_DEADLINE": deadline}, timeout=timeout)

        loop = asyncio.get_running_loop()
        found: ScriptEnd | None = await loop.run_in_executor(self._threads, now)
        if found is None:
            await pool.ask("end_script", lease.id, "none", None, "")
            return
        await pool.ask("end_script", lease.id, found.state, found.status, found.tail)
        self._log.info("lease=%s before-reclaim %s, exit status %s", lease.id, found.state, found.status)
