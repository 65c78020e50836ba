"""How the GPUs are used, as the driver tells it: runs in the helper process, answers plain values.

What is counted, is counted from look to look: this process keeps where the last look ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from . import binding
from .binding import Refused, ask, maybe
from .describe import Facts, uncorrected

GPM_LEAST = 0.15
"""Seconds that two samples of GPM must lie apart (the driver wants more than 0.1)."""
GPM_MOST = 600.0
"""Seconds after which the last sample of GPM is too old to measure from: nobody looked."""
STALE = 30.0
"""Seconds without a new sample of the utilization after which the driver's figures stand still."""


class Meter:
    """Measures; its state is what the next look is measured from."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._wall = clock, wall
        self._sampled: dict[str, tuple[int, float]] = {}  # GPU → the driver's time of the newest sample, ours
        self._used: dict[str, int] = {}  # GPU → the driver's time of the newest use by a process
        self._gpm: dict[tuple[str, int], tuple[str, Any, float, float | None]] = {}
        self._has_gpm: dict[str, bool] = {}

    def forget(self) -> None:
        """Begin anew: the driver was opened again, and handles of before mean nothing."""
        self._sampled.clear()
        self._used.clear()
        self._gpm.clear()
        self._has_gpm.clear()

    def measure(self, handles: dict[int, Any]) -> list[Facts]:
        """Measure the GPUs behind these handles; one that is out of reach is told by its error."""
        seen: set[tuple[str, int]] = set()
        found = _each(handles, lambda uuid, handle: self._gpu(uuid, handle, seen))
        for key in set(self._gpm) - seen:
            binding.gpm_free(self._gpm.pop(key)[1])
        return found

    def remains(self, handles: dict[int, Any]) -> list[Facts]:
        """Say what uses the GPUs at this moment; changes nothing of what is measured from look to look."""
        return _each(handles, lambda _, handle: _remains(handle))

    def _gpu(self, uuid: str, handle: Any, seen: set[tuple[str, int]]) -> Facts:
        memory = binding.memory(handle)
        power = maybe("nvmlDeviceGetPowerUsage", handle)
        mode = maybe("nvmlDeviceGetMigMode", handle)
        facts: Facts = {
            "used": memory["used"],
            "reserved": memory["reserved"],
            "power": power / 1000 if power is not None else None,
            "temperature": maybe("nvmlDeviceGetTemperature", handle, 0),
            "ecc": uncorrected(handle),
            "processes": binding.processes(handle),
        }
        if mode is not None and mode[0]:
            return {**facts, "instances": self._instances(uuid, handle, seen)}
        now, peak = self._utilization(uuid, handle)
        uses, clients = self._process_use(uuid, handle), binding.clients(handle)
        return {**facts, "now": now, "peak": peak, "uses": uses, "clients": clients}

    def _utilization(self, uuid: str, handle: Any) -> tuple[int | None, int | None]:
        """Utilization now, and at its highest since the last look; unknown where the figures stand still."""
        rates = maybe("nvmlDeviceGetUtilizationRates", handle)
        now = int(rates.gpu) if rates is not None else None
        last, at = self._sampled.get(uuid, (0, 0.0))
        found = binding.samples(handle, self._since(last))
        if found:
            newest = max(self._not_of_the_future(found))
            self._sampled[uuid] = newest[0], self._clock()
            # What lies in the buffer from before the first look is not of this look.
            peak = max(value for _, value in found) if last else newest[1]
            return now if now is not None else newest[1], max(peak, now or 0)
        if last and self._clock() - at > STALE:
            return None, None
        return now, now

    def _process_use(self, uuid: str, handle: Any) -> dict[int, int] | None:
        """Percent of the GPU by process, at the highest since the last look."""
        found = binding.process_use(handle, self._since(self._used.get(uuid, 0)))
        if found is None:
            return None
        uses: dict[int, int] = {}
        for pid, percent, _ in found:
            uses[pid] = max(uses.get(pid, 0), percent)
        if found:
            self._used[uuid] = max(self._not_of_the_future([(at, percent) for _, percent, at in found]))[0]
        return uses

    def _since(self, last: int) -> int:
        """From when on to ask the driver, whose times are the machine's.

        Where the machine's clock was set back, nothing would be newer than the last look for as long: then
        all that the driver still has is looked at, which errs towards use.
        """
        return last if last <= self._horizon() else 0

    def _horizon(self) -> int:
        return int((self._wall() + 1) * 1_000_000)

    def _not_of_the_future(self, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The samples of before now; all of them where there are no such."""
        horizon = self._horizon()
        return [one for one in found if one[0] <= horizon] or found

    # --- MIG -----------------------------------------------------------------------------------------

    def _instances(self, gpu: str, handle: Any, seen: set[tuple[str, int]]) -> list[Facts]:
        """Measure the instances of a GPU.  Their handles are asked for anew: old ones may mean others by now."""
        found = []
        for one in binding.mig_devices(handle):
            uuid = maybe("nvmlDeviceGetUUID", one)
            number = maybe("nvmlDeviceGetGpuInstanceId", one)
            if uuid is None or number is None:
                continue  # destroyed in this very moment
            memory = binding.memory(one)
            seen.add((gpu, number))
            found.append(
                {
                    "uuid": binding.text(uuid),
                    "gi": number,
                    "used": memory["used"],
                    "reserved": memory["reserved"],
                    "processes": binding.processes(one),
                    "use": self._gpm_use(gpu, handle, number, binding.text(uuid)),
                }
            )
        return found

    def _gpm_use(self, gpu: str, handle: Any, number: int, uuid: str) -> float | None:
        """Percent of the time since the last look in which the instance was used; None: not known (yet)."""
        if gpu not in self._has_gpm:
            self._has_gpm[gpu] = binding.gpm_supported(handle)
        if not self._has_gpm[gpu]:
            return None
        key, now = (gpu, number), self._clock()
        last = self._gpm.get(key)
        if last is not None and last[0] == uuid and now - last[2] < GPM_LEAST:
            return last[3]  # just measured
        sample = binding.gpm_sample(handle, number)
        if sample is None:
            return None
        use = None
        if last is not None:
            # Another instance may have got the same number: what it did before is not this one's.
            if last[0] == uuid and now - last[2] <= GPM_MOST:
                use = binding.gpm_use(last[1], sample)
            binding.gpm_free(last[1])
        self._gpm[key] = uuid, sample, now, use
        return use


def _each(handles: dict[int, Any], look: Callable[[str, Any], Facts]) -> list[Facts]:
    """Look at the GPUs behind these handles; one that is out of reach is told by its error."""
    found = []
    for index, handle in handles.items():
        uuid = None
        try:
            uuid = binding.text(ask("nvmlDeviceGetUUID", handle))
            found.append({"uuid": uuid, **look(uuid, handle)})
        except Refused as refused:
            if refused.of_driver:
                raise
            found.append({"index": index, "uuid": uuid, "fault": refused.code})
    return found


def _remains(handle: Any) -> Facts:
    """Memory and processes of a GPU, or of each of its instances."""
    mode = maybe("nvmlDeviceGetMigMode", handle)
    facts = _part(handle)
    if mode is None or not mode[0]:
        return facts
    parts = []
    for one in binding.mig_devices(handle):
        if (uuid := maybe("nvmlDeviceGetUUID", one)) is not None:
            parts.append({"uuid": binding.text(uuid), **_part(one)})
    return {**facts, "instances": parts}


def _part(handle: Any) -> Facts:
    memory = binding.memory(handle)
    return {
        "used": memory["used"],
        "reserved": memory["reserved"],
        "processes": binding.processes(handle),
    }
