"""What is known of a lease that somebody waits for, and how its moves are told."""

from __future__ import annotations

import asyncio
import contextlib

from ..ledger import Waiting
from ..model import Lease, State


class Watch:
    """The last thing known of a lease that somebody waits for."""

    def __init__(self) -> None:
        self.readers = 0
        self.latest: Waiting | None = None
        self._changed = asyncio.Event()

    def put(self, waiting: Waiting) -> None:
        if waiting != self.latest and not self._is_stale(waiting):
            self.latest = waiting
            self._changed.set()
            self._changed = asyncio.Event()

    def _is_stale(self, waiting: Waiting) -> bool:
        """Whether this was read before the grant that was told already: nobody comes back into the queue."""
        granted = self.latest is not None and self.latest.state is not State.QUEUED
        return granted and waiting.state is State.QUEUED

    async def wait(self, seconds: float) -> None:
        """Return at the next change, or when the time is over."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            # Not wait_for(): before Python 3.12 it swallows a cancel that comes together with the change.
            async with asyncio.timeout(max(0.01, seconds)):
                await changed.wait()


def transition_line(lease: Lease, before: str) -> str:
    """A transition as one log line; what would break it in a name, a blank too, is escaped."""
    held = ",".join(f"{item.visible}({len(item.cells)}/{item.of})" for item in lease.slices) or "-"
    user = f"{lease.user}/{lease.server}" if lease.server else lease.user
    shown = user.encode("unicode_escape").decode("ascii").replace(" ", r"\x20")
    why = lease.reason.encode("unicode_escape").decode("ascii") or "-"
    return f"lease={lease.id} user={shown} slices={held} {before}→{lease.state} reason={why}"
