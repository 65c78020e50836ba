"""Who uses a GPU, and how much: what was measured is brought together with the processes of the sessions.

The driver knows processes of the machine, and where several share a GPU only processes tell their use apart.
Whatever cannot be told apart is unknown, never zero.  "No compute process on the slice" is a definite zero,
but only where the list of processes can be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ...model import Device, Kind, Process, Sample, Slice
from .. import Condition, Readings

Facts = Mapping[str, Any]

BASE_MIB = 128
"""MiB that the driver itself may use on a GPU or instance on which nothing runs.  No CUDA program takes so little."""
GHOST_LOOKS = 3
"""Looks in a row after which a GPU that is busy with nobody on it is not believed to be busy."""
LONG_THERE = 60.0
"""Seconds after which a process is old enough to have been listed, were it a session's."""
MPS_SERVER = "nvidia-cuda-mps*"
"""A program that works for others: what they do looks as if it did it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A process as this machine shows it: its program, and for how many seconds it has lived."""

    name: str
    age: float


class Attribution:
    """Attributes use to leases; keeps what it needs of the last look."""

    def __init__(self, ignored: Sequence[str], shown: Callable[[int], Shown | None]) -> None:
        self._ignored, self._shown = ignored, shown
        self._ghosts: dict[
            str, int
        ] = {}  # device or instance → looks in a row at which it was busy with nobody
        self._owners: dict[int, str] = {}  # process → lease, as of the last look
        self._strangers: set[tuple[str, int]] = set()
        self.foreign: dict[str, tuple[tuple[int, str], ...]] = {}
        """Device → processes on it that are nobody's here, with their programs."""

    def look(
        self,
        gpus: Sequence[Facts],
        devices: Mapping[str, Device],
        slices: Mapping[str, tuple[Slice, ...]],
        processes: Mapping[str, tuple[Process, ...] | None],
    ) -> Readings:
        """Make the readings of one look.  ``processes`` are those of all sessions, not only of ``slices``."""
        there = {gpu["uuid"]: gpu for gpu in gpus if "fault" not in gpu and gpu["uuid"] in devices}
        current = {one.pid: lease for lease, found in processes.items() for one in found or ()}
        owners = self._owners | current  # who has ended since the last look may have been busy
        plain: dict[str, Sample] = {}
        for uuid, gpu in there.items():
            for part in gpu.get("instances") or ():
                plain[part["uuid"]] = self._of(part["uuid"], part["use"], part["use"], part)
            plain[uuid] = self._device(gpu, devices[uuid], plain)
        self._find_foreign(there, owners, all(found is not None for found in processes.values()))
        leases = {}
        for lease, held in slices.items():
            found = [
                self._share(part, lease, there[part.device], owners, processes.get(lease) is not None)
                if part.kind is Kind.SHARE and part.device in there
                else plain.get(part.visible, Sample())
                for part in held
            ]
            leases[lease] = _together(found)
        self._owners = current
        self._ghosts = {key: count for key, count in self._ghosts.items() if key in plain}
        strays = {
            lease: _past(listed, current, lease, [there.get(part.device) for part in through])
            for lease, held in slices.items()
            if (through := [part for part in held if _is_mps(devices.get(part.device))])
            for listed in [processes.get(lease)]
        }
        conditions = {
            uuid: Condition(gpu["power"], gpu["temperature"], gpu["ecc"]) for uuid, gpu in there.items()
        }
        seen = {uuid: plain[uuid] for uuid in there}
        return Readings(leases=leases, devices=seen, conditions=conditions, strays=strays)

    # --- one GPU, one instance -------------------------------------------------------------------------

    def _of(self, key: str, now: float | None, peak: float | None, facts: Facts) -> Sample:
        """The use of something that is one session's alone."""
        count = _count(facts)
        if count != 0:
            self._ghosts.pop(key, None)
            return Sample(_percent(peak), facts["used"], count)
        if now is not None and now >= 1:
            # Busy with nobody on it: a job that has just ended, or a figure that hangs at 100.
            self._ghosts[key] = self._ghosts.get(key, 0) + 1
            if self._ghosts[key] >= GHOST_LOOKS:
                return Sample(0.0, facts["used"], 0)
        else:
            self._ghosts.pop(key, None)
        if peak is not None and peak >= 1:
            return Sample(_percent(peak), facts["used"], None)  # used since the last look, by who is gone
        return Sample(0.0, facts["used"], 0)

    def _device(self, gpu: Facts, device: Device, plain: Mapping[str, Sample]) -> Sample:
        if gpu.get("instances") is None:
            return self._of(gpu["uuid"], gpu["now"], gpu["peak"], gpu)
        parts = [(plain[one.id], one.cells) for one in device.instances if one.id in plain]
        known = all(sample.utilization is not None for sample, _ in parts)
        used = sum((sample.utilization or 0.0) * cells for sample, cells in parts) / device.cells
        counts = [sample.processes for sample, _ in parts]
        count = None if None in counts else sum(one or 0 for one in counts)
        return Sample(used if known else None, gpu["used"], count)

    # --- shares ----------------------------------------------------------------------------------------

    def _share(
        self, part: Slice, lease: str, gpu: Facts, owners: Mapping[int, str], session_known: bool
    ) -> Sample:
        """The use of a share: of its session's own processes, in percent of what it holds."""
        listed, uses = gpu["processes"], gpu.get("uses")
        if listed is None or not session_known or _count(gpu) is None:
            return Sample()
        own = [one for one in listed if owners.get(one[0]) == lease]
        hidden = self._hidden(listed, owners)
        if not own and hidden:
            return Sample()  # one of those may be its own
        if uses is None:
            # The driver does not tell them apart; but where nobody does anything, neither does this one.
            quiet = not own or gpu.get("peak") == 0
            used: float | None = 0.0 if quiet else None
        else:
            used = float(sum(uses.get(str(pid), 0) for pid, owner in owners.items() if owner == lease))
            if not used and any(int(pid) not in owners and self._shown(int(pid)) is None for pid in uses):
                return Sample()  # somebody was busy who came and went between two looks
            if not used and any(self._serves(int(pid)) for pid, percent in uses.items() if percent):
                used = None  # an MPS server was busy, and it does not say for whom
        memory = None if any(one[1] is None for one in own) else sum(one[1] for one in own)
        if used is not None:
            used = min(100.0, used * part.of / len(part.cells))
        return Sample(used, memory, len(own) if own or not used else None)

    def _serves(self, pid: int) -> bool:
        """Whether a process is a server of MPS, on which the driver books what its clients do."""
        shown = self._shown(pid)
        return shown is not None and fnmatchcase(shown.name, MPS_SERVER)

    def _hidden(self, listed: Iterable[Sequence[Any]], owners: Mapping[int, str]) -> bool:
        """Whether a process on a GPU may be of a session although it is not listed there."""
        for pid, *_ in listed:
            if pid not in owners:
                shown = self._shown(pid)
                if shown is None or fnmatchcase(shown.name, MPS_SERVER):
                    return True
        return False

    # --- what is not ours ------------------------------------------------------------------------------

    def _find_foreign(self, there: Mapping[str, Facts], owners: Mapping[int, str], sure: bool) -> None:
        """Find processes that are no session's.  As long as some session's are unknown, nothing changes.

        One that is seen for the first time may be of a session and have started after those were listed.
        """
        if not sure:
            return
        strangers: set[tuple[str, int]] = set()
        self.foreign = {}
        for uuid, gpu in there.items():
            found = []
            for pid in sorted(_pids(gpu) - set(owners)):
                shown = self._shown(pid)
                if shown is not None and any(fnmatchcase(shown.name, name) for name in self._ignored):
                    continue
                strangers.add((uuid, pid))
                if (uuid, pid) in self._strangers or (shown is not None and shown.age >= LONG_THERE):
                    found.append((pid, shown.name if shown is not None else ""))
            if found:
                self.foreign[uuid] = tuple(found)
        self._strangers = strangers


def _is_mps(device: Device | None) -> bool:
    return device is not None and bool(device.trust)


def _past(
    listed: tuple[Process, ...] | None, owners: Mapping[int, str], lease: str, gpus: Sequence[Facts | None]
) -> tuple[int, ...] | None:
    """The processes of a lease that use a GPU past its MPS daemon; None where this cannot be told."""
    found: set[int] = set()
    for gpu in gpus:
        if listed is None or gpu is None or gpu["processes"] is None or gpu.get("clients") is None:
            return None
        found |= {pid for pid in _pids(gpu) - set(gpu["clients"]) if owners.get(pid) == lease}
    return tuple(sorted(found))


def _pids(gpu: Facts) -> set[int]:
    lists = [gpu["processes"], *(part["processes"] for part in gpu.get("instances") or ())]
    return {one[0] for listed in lists for one in listed or ()}


def _count(facts: Facts) -> int | None:
    """How many processes there are; unknown where the list is empty although something holds memory."""
    listed, used = facts["processes"], facts["used"]
    if listed is None:
        return None
    if not listed and facts["reserved"] is not None and used is not None and used > BASE_MIB:
        return None  # as in a container that may not see the machine's processes
    return len(listed)


def _percent(value: float | None) -> float | None:
    return None if value is None else float(value)


def _together(parts: Sequence[Sample]) -> Sample:
    """The sample of a lease: as busy as the busiest of its slices, unknown where one of them is."""
    if not parts:
        return Sample()
    used = [one.utilization for one in parts]
    memory = [one.memory_mib for one in parts]
    counts = [one.processes for one in parts]
    return Sample(
        utilization=None if None in used else max(one or 0.0 for one in used),
        memory_mib=None if None in memory else sum(one or 0 for one in memory),
        processes=None if None in counts else sum(one or 0 for one in counts),
    )
