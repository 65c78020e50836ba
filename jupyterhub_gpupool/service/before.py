"""What comes between the decision for a reclaim and the stop: the owner's own script, once.

The lease is STOPPING by then and holds its slice.  That the script was begun is written before it runs, so a
service that crashes meanwhile neither runs it again nor loses the reclaim: the next one just goes on.
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
        environment = {
            "GPUPOOL_RULE": lease.warned_for,
            "GPUPOOL_REASON": lease.reason,
            "GPUPOOL_DEADLINE": str(int(self._clock() + timeout)),
        }
        run = self._sweep.sessions.before_reclaim
        loop = asyncio.get_running_loop()
        found: ScriptEnd | None = await loop.run_in_executor(
            self._threads, lambda: run(lease.session, environment, timeout=timeout)
        )
        if found is None:
            await pool.ask("end_script", lease.id, "none", None, "")
            return
        await pool.ask("end_script", lease.id, found.state, found.status, found.tail)
        self._log.info("lease=%s before-reclaim %s, exit status %s", lease.id, found.state, found.status)
