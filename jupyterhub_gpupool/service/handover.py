"""From one session to the next: what a session held is given again only once its device says that it is clean.

A lease whose session is gone waits here, STOPPING and in doubt, and is examined in each sweep.  What is not clean
in time, or on a device that is not well, is set aside with its device, which is examined on; so its last holder
can have another one meanwhile.  Devices that cannot tell what is left on them never come here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ..devices import Examiner, Residue
from ..errors import GPUPoolError
from ..ledger import Snapshot
from ..ledger.troubles import UNWELL
from ..model import Device, Lease, Process, Session, State

if TYPE_CHECKING:
    from .sweep import Sweep

MOST_PIDS = 5
"""Processes that a reason names."""

Part = tuple[str, str]
"""A device, and of it the part that was held: itself or a MIG instance."""


def not_clean(device: Device, residue: Residue) -> str:
    """Why a part of a device cannot be given again yet, as what is said of the device; empty: it can."""
    if device.health in UNWELL:
        return device.health_reason or f"it is {device.health}"
    if not residue.answers:
        return "it is not known what a session has left on it: the driver or the backend does not say"
    if residue.trouble:
        return residue.trouble
    if residue.processes:
        pids = ", ".join(map(str, residue.processes[:MOST_PIDS]))
        more = f" and {len(residue.processes) - MOST_PIDS} more" if len(residue.processes) > MOST_PIDS else ""
        return f"a session has ended, and processes of no session still use it (pid {pids}{more})"
    if residue.memory_mib > 0:
        return f"a session has ended, and {residue.memory_mib} MiB of its memory are still in use"
    return ""


class HandOver:
    """The examinations of one service process."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._log = sweep, sweep._log

    async def recall(self) -> None:
        """Tell the devices what the ledger has kept of them."""
        if isinstance(self._sweep.inventory, Examiner):
            snapshot: Snapshot = await self._sweep.pool.ask("snapshot")
            self._sweep.inventory.recall(snapshot.devices)

    async def examine(self, snapshot: Snapshot, listed: tuple[Session, ...] | None) -> None:
        """Close what is clean, hold or set aside what is not, and let devices be granted that are clean again."""
        examiner = self._sweep.inventory
        devices = {device.id: device for device in snapshot.devices if device.examined}
        if listed is None:
            return
        running = {one.lease for one in listed if one.running}  # one that was started again has not ended
        ended = [one for one in snapshot.leases if _waits(one) and one.id not in running]
        over = {one.id for one in ended}
        held = {part.visible for one in snapshot.leases if one.id not in over for part in one.slices}
        marked = {key: _free_parts(device, held) for key, device in devices.items() if device.unclean}
        asked = {part for lease in ended for part in _parts(lease, devices)}
        asked.update(part for parts in marked.values() for part in parts)
        processes: dict[str, tuple[Process, ...] | None] = {
            one.lease: one.processes for one in listed if one.running
        }
        found: Mapping[str, Residue] = {}
        if devices and isinstance(examiner, Examiner):  # else those of before, of which nobody can tell
            found = await self._sweep.ask(examiner.residues, asked, held, processes) or {}
        for lease in ended:
            left = _left(_parts(lease, devices), devices, found)
            try:
                await self._one(lease, left, devices, snapshot.now)
            except GPUPoolError as problem:
                self._log.info("lease=%s is examined again: %s", lease.id, problem.message)
        if marked and isinstance(examiner, Examiner):
            news = {key: _left(parts, devices, found).get(key, "") for key, parts in marked.items()}
            await self._sweep.pool.ask("mark_unclean", news)

    async def _one(
        self, lease: Lease, left: Mapping[str, str], devices: Mapping[str, Device], now: float
    ) -> None:
        pool = self._sweep.pool
        if not left:
            await pool.move("close", lease, actor="service", judged=lease.version, clean=True)
            return
        said = "; ".join(f"{device}: {why}" for device, why in left.items())
        unwell = all(devices[device].health in UNWELL for device in left)
        waited = now - (lease.gone_at or now)
        # Less than nothing: the clock was set back, and nobody knows for how long it has waited.
        if unwell or not 0 <= waited < self._sweep.rules.hand_over_timeout:
            self._log.error("lease=%s is closed, what it held is set aside: %s", lease.id, said)
            await pool.move("set_aside", lease, left=left, judged=lease.version)
        else:
            await pool.ask("doubt", lease.id, f"its session has ended, what it held is not clean yet: {said}")


def _waits(lease: Lease) -> bool:
    return lease.state is State.STOPPING and lease.gone_at is not None


def _parts(lease: Lease, devices: Mapping[str, Device]) -> list[Part]:
    return [(part.device, part.visible) for part in lease.slices if part.device in devices]


def _free_parts(device: Device, held: Collection[str]) -> list[Part]:
    """What is examined of a device that is set aside: all of it on which there is nobody.

    Of a GPU in shares that is the GPU, on which others may be.
    """
    if not device.instances:
        return [(device.id, device.id)]
    return [(device.id, one.id) for one in device.instances if one.id not in held]


def _left(
    parts: Collection[Part], devices: Mapping[str, Device], found: Mapping[str, Residue]
) -> dict[str, str]:
    """What is left on each device that is not clean."""
    left: dict[str, str] = {}
    for gpu, part in parts:
        if why := not_clean(devices[gpu], found.get(part, Residue())):
            left.setdefault(gpu, why)
    return left
