"""Sessions that have lost their GPU while the GPU is well: noticed from inside, told to their owner, fenced nowhere.

A container loses the access to its devices when something rewrites its device rules, as ``systemctl daemon-reload``
does where systemd manages them.  Nothing outside shows it, so a session is asked whether it can open the driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import GPUPoolError
from ..ledger import Snapshot
from ..ledger.troubles import UNWELL
from ..model import Device, Lease, State

if TYPE_CHECKING:
    from .sweep import Sweep

EVERY = 60.0
"""Seconds between two looks into a session; one session is looked into in a sweep."""

CUT_OFF = (
    "This session can no longer open its GPU. The GPU is well: the container has lost the access to it, as happens "
    "when the machine's `systemctl daemon-reload` is run. Programs that use the GPU already may go on, new ones find "
    "none. Save your work, then stop the server and start it again."
)


class Reach:
    """The looks of one service process."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._log = sweep, sweep._log
        self._looked: dict[str, float] = {}  # lease → when it was last looked into, by our clock
        self._failed: set[str] = set()  # leases that could not open their GPU at the last look

    async def look(self, snapshot: Snapshot) -> None:
        """Look into the session that was not for the longest time, if it is its time."""
        devices = {device.id: device for device in snapshot.devices}
        asked = [lease for lease in snapshot.leases if _can_be_cut_off(lease, devices)]
        self._looked = {one.id: self._looked[one.id] for one in asked if one.id in self._looked}
        self._failed.intersection_update(self._looked)
        now = self._sweep._clock()
        again = [one for one in asked if one.id in self._failed and not one.trouble]
        due = again or [one for one in asked if now - self._at(one) >= EVERY]
        if not due:
            return
        lease = min(due, key=self._at)
        self._looked[lease.id] = now
        reached = await self._sweep.ask(self._sweep.sessions.reaches, lease.session)
        try:
            await self._told(lease, reached)
        except GPUPoolError as problem:
            self._log.info("lease=%s is looked into again: %s", lease.id, problem.message)

    def _at(self, lease: Lease) -> float:
        return self._looked.get(lease.id, float("-inf"))

    async def _told(self, lease: Lease, reached: bool | None) -> None:
        """Take an answer.  Two in a row tell that a session is cut off; None, which is unknown, tells nothing."""
        if reached is not False:
            self._failed.discard(lease.id)
        if reached is None:
            return
        if reached:
            if lease.trouble:
                await self._sweep.pool.ask("set_trouble", lease.id, "")
        elif lease.id not in self._failed:
            self._failed.add(lease.id)
        elif await self._sweep.pool.ask("set_trouble", lease.id, CUT_OFF):
            self._log.warning("lease=%s has lost the access to its GPU, which is well", lease.id)


def _can_be_cut_off(lease: Lease, devices: Mapping[str, Device]) -> bool:
    """Whether a session runs on GPUs that are real and well."""
    if lease.state is not State.ACTIVE or not lease.slices:
        return False
    held = [devices.get(part.device) for part in lease.slices]
    return all(one is not None and one.examined and one.health not in UNWELL for one in held)
