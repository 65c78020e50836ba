"""GPUs shared through MPS, as a sweep sees them: their daemons run, or nothing is granted on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import TraitError

from ..devices import Readings
from ..devices.nvidia.inventory import NvidiaDevices
from ..errors import GPUPoolError
from ..ledger import Snapshot
from ..model import Device, Health, Lease
from ..mps.manager import Daemons
from ..mps.strays import Strays
from ..rungs import Rung

if TYPE_CHECKING:
    from .sweep import Sweep

UNKNOWN = "it is not known whether its MPS daemon runs"


class Sharing:
    """The daemons and the strays of one service process."""

    def __init__(self, sweep: Sweep, daemons: Daemons | None) -> None:
        self._sweep, self._daemons = sweep, daemons
        self.strays = Strays()

    async def watch(self, devices: tuple[Device, ...] | None) -> tuple[Device, ...] | None:
        """The devices as found, those with MPS barred unless their daemon answers; it is started where it may be."""
        if devices is None or not any(device.trust for device in devices):
            return devices
        if self._daemons is None:
            return tuple(_barred(device) for device in devices)
        held = _held(await self._sweep.pool.ask("snapshot"))
        looked = await self._sweep.ask(self._daemons.look, devices, held)
        return looked if looked is not None else tuple(_barred(device) for device in devices)

    def note(self, readings: Readings, active: Mapping[str, Lease]) -> None:
        """Take one look at who goes past a daemon.  Whoever was launched before his GPU had one is not judged."""
        led = {key for key, lease in active.items() if lease.rung == Rung.MPS}
        self.strays.note({key: pids for key, pids in readings.strays.items() if key in led})

    async def end(self) -> None:
        """End the daemons on whose GPUs there is nobody, as far as the ledger can say so."""
        if self._daemons is None or not self._sweep.leads:
            return
        try:
            held = _held(await self._sweep.pool.ask("snapshot"))
        except GPUPoolError as problem:
            self._sweep._log.warning("MPS daemons are left running: %s", problem.message)
            return
        await self._sweep.ask(self._daemons.end, held)


def daemons_of(state: str, log: Any) -> Daemons:
    """The daemons of a service, with their logs in its folder."""
    return Daemons(Path(state), log=log)


def fit_for(devices: NvidiaDevices, backend: str) -> NvidiaDevices:
    """The devices, where this backend can share GPUs as they say.  Raises TraitError where it cannot."""
    if devices.mps and backend != "docker":
        raise TraitError(
            f"NvidiaDevices.mps is set, and the backend is {backend!r}; allowed with MPS is 'docker', whose sessions "
            "can share memory with a GPU's daemon and with nobody else."
        )
    return devices


def _held(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(part.device for lease in snapshot.leases for part in lease.slices)


def _barred(device: Device) -> Device:
    if not device.trust or device.health is not Health.OK:
        return device
    return replace(device, health=Health.BARRED, health_reason=UNKNOWN)
