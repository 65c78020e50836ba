"""The daemons of this machine: what of each GPU may be granted, by whether its daemon answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import Unavailable
from ..model import Device, Health
from .daemon import Daemon
from .places import place_of

GONE = "its MPS daemon does not run, and sessions are on it; it is started when these have ended"
SILENT = "its MPS daemon does not answer, and sessions are on it; it is started again when these have ended"


class Daemons:
    """The daemons of one service, each started when its GPU is first seen."""

    def __init__(
        self,
        state: Path,
        *,
        log: logging.Logger | None = None,
        make: Callable[[str, Path], Daemon] | None = None,
    ) -> None:
        self._state, self._log = state, log or logging.getLogger(__name__)
        self._make = make or (lambda device, logs: Daemon(device, place_of(device), logs))
        self._known: dict[str, Daemon] = {}
        self._said: dict[str, str] = {}

    def look(self, devices: Iterable[Device], held: Collection[str]) -> tuple[Device, ...]:
        """The devices, those barred whose daemon does not answer.  ``held``: on which there are sessions.

        A daemon on whose GPU there is nobody is started, or ended and started.  One with sessions is left as it
        is: the programs that still have it would fail.
        """
        return tuple(self._one(device, device.id in held) for device in devices)

    def _one(self, device: Device, held: bool) -> Device:
        if not device.trust or device.health is not Health.OK:
            return device
        if device.id not in self._known:
            self._known[device.id] = self._make(device.id, self._state / "mps" / device.id)
        why = self._problem(self._known[device.id], held)
        if why != self._said.get(device.id, ""):
            self._log.warning("GPU %s: %s", device.id, why or "its MPS daemon answers again")
        self._said[device.id] = why
        return replace(device, health=Health.BARRED, health_reason=why) if why else device

    def _problem(self, daemon: Daemon, held: bool) -> str:
        if daemon.answers():
            return ""
        if held:
            return SILENT if daemon.lives() else GONE
        daemon.end()
        try:
            daemon.start()
        except Unavailable as problem:
            return problem.message
        self._log.info("GPU %s: its MPS daemon runs", daemon.device)
        return ""

    def end(self, held: Collection[str]) -> None:
        """End the daemons of GPUs on which there is nobody; the others serve on, and are adopted."""
        for device, daemon in self._known.items():
            if device not in held:
                daemon.end()
