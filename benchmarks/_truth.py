"""What the pool says of a GPU beside what ``nvidia-smi`` says, while a workload does what it is told.

Nothing here loads the driver: the pool's own devices ask it, and ``nvidia-smi`` is another program.  So all of it
runs in the tests, too, over a stand-in for the driver's library.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jupyterhub_gpupool import idleness
from jupyterhub_gpupool.conditions import UNKNOWN, Condition
from jupyterhub_gpupool.devices.nvidia.inventory import NvidiaDevices
from jupyterhub_gpupool.model import Device, Kind, Process, Sample, Slice

AGREES, DIFFERS, OPEN = "agrees", "DIFFERS", "not compared"

QUERY = {
    "name": "name",
    "memory": "memory.total",
    "capability": "compute_cap",
    "driver": "driver_version",
    "power": "power.draw",
    "temperature": "temperature.gpu",
    "utilization": "utilization.gpu",
    "errors": "ecc.errors.uncorrected.volatile.total",
}
"""What ``nvidia-smi --query-gpu`` is asked for, and what it is called here."""

HELD = 1024
"""MiB that the workload takes."""
BUSY = 50.0
"""Percent that a GPU which computes without a pause is used at least."""
THRESHOLD = 5.0
"""Percent from which on the pool calls a GPU busy: the default of the profiles."""
RESERVED = 0.06
"""Part of the memory that a driver may keep for itself."""
WATTS, DEGREES = 30.0, 5.0
"""How far two looks at power and temperature may lie apart."""
NODE = "here"
LEASE, OTHER = "lease", "other"


@dataclass(frozen=True, slots=True)
class Row:
    """One question: what the pool answers, what ``nvidia-smi`` answers, and whether that is right."""

    asked: str
    pool: str
    smi: str
    verdict: str


class Load(Protocol):
    """A process that uses the GPU as it is told."""

    pid: int

    def hold(self, mib: int) -> None: ...

    def busy(self) -> None: ...

    def rest(self) -> None: ...

    def end(self) -> None: ...


class Smi:
    """``nvidia-smi``; ``run`` gets its arguments and returns what it prints, or None where it is not there."""

    def __init__(self, run: Callable[[Sequence[str]], str | None]) -> None:
        self._run = run

    def gpu(self, uuid: str) -> dict[str, str]:
        """What it says of a GPU, by our names; what it does not support is missing."""
        asked = [f"--id={uuid}", f"--query-gpu={','.join(QUERY.values())}", "--format=csv,noheader,nounits"]
        cells = [cell.strip() for cell in (self._run(asked) or "").strip().split(",")]
        if len(cells) != len(QUERY):
            return {}
        told = dict(zip(QUERY, cells, strict=True))
        return {name: text for name, text in told.items() if not text.startswith("[") and text != "N/A"}

    def processes(self, uuid: str) -> dict[int, str] | None:
        """Compute processes on a GPU with their MiB; None where it does not say."""
        asked = ["--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"]
        printed = self._run(asked)
        if printed is None:
            return None
        rows = [[cell.strip() for cell in line.split(",")] for line in printed.splitlines()]
        return {int(row[1]): row[2] for row in rows if len(row) == 3 and row[0] == uuid}


def nvidia_smi(arguments: Sequence[str]) -> str | None:
    """Run it; None where it is not there or fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def said(value: object, unit: str = "") -> str:
    return (
        "unknown" if value is None else f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}"
    )


def compared(asked: str, pool: object, smi: object, right: bool | None, unit: str = "") -> Row:
    """A row; ``right`` None: there is nothing to hold it against, or the pool says that it does not know."""
    verdict = OPEN if right is None else AGREES if right else DIFFERS
    return Row(asked, said(pool, unit), said(smi, unit), verdict)


def near(one: float | None, other: float | None, within: float) -> bool | None:
    return None if one is None or other is None else abs(one - other) <= within


def number(told: Mapping[str, str], name: str) -> float | None:
    return float(told[name]) if name in told else None


class Truth:
    """Asks one question after the other.  ``pause`` is the seconds from one look to the next."""

    def __init__(
        self,
        devices: NvidiaDevices,
        device: Device,
        smi: Smi,
        load: Callable[[str], Load],
        pause: float = 2.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.devices, self.device, self.smi, self.pause, self._sleep = devices, device, smi, pause, sleep
        self._start = load
        self.load: Load | None = None
        self.part = device.instances[0] if device.instances else None

    def rows(self) -> Iterator[Row]:
        """All questions with their answers; the workload is ended, whatever happens."""
        yield from self._inventory()
        yield from self._condition()
        yield self._idle("nothing runs", expected=0)
        self.load = self._start(self.part.id if self.part else self.device.id)
        try:
            self.load.hold(HELD)
            yield from self._holding()
            yield from self._computing()
            yield from self._resting()
            yield self._foreign()
        finally:
            self.load.end()
        self.load = None
        yield self._idle("the workload has ended", expected=0)
        after = self._now()
        yield compared("health afterwards", after.health.value, None, after.usable)

    # --- looking ------------------------------------------------------------------------------------------

    def _slice(self) -> Slice:
        device, part = self.device, self.part
        if part is not None:
            cells = tuple(range(part.first, part.first + part.cells))
            return Slice(device.id, Kind.MIG, cells, device.cells, part.memory_mib, 100, part.id)
        return Slice(device.id, Kind.GPU, tuple(range(device.cells)), device.cells, device.memory_mib, 100)

    def _own(self) -> dict[str, tuple[Process, ...] | None]:
        return {LEASE: (Process(self.load.pid, 1.0, 0.0, 0),) if self.load else ()}

    def _look(self) -> Sample:
        """Let time pass, and look at the slice as the session's own."""
        self._sleep(self.pause)
        return self.devices.sample({LEASE: (self._slice(),)}, self._own()).leases[LEASE]

    def _now(self) -> Device:
        return next(one for one in self.devices.devices() if one.id == self.device.id)

    def _told(self) -> str:
        """Utilization and processes by ``nvidia-smi``."""
        used = self.smi.gpu(self.device.id).get("utilization")
        listed = self.smi.processes(self.device.id)
        return f"{said(used, ' %')}, {said(None if listed is None else len(listed))} processes"

    @staticmethod
    def _seen(sample: Sample) -> str:
        return f"{said(sample.utilization, ' %')}, {said(sample.processes)} processes"

    # --- questions ----------------------------------------------------------------------------------------

    def _inventory(self) -> Iterator[Row]:
        device, told = self.device, self.smi.gpu(self.device.id)
        name, memory = told.get("name"), number(told, "memory")
        yield compared("UUID", device.id, device.id if told else None, True if told else None)
        yield compared("model", device.model, name, None if name is None else device.model in name)
        fits = None if memory is None else memory * (1 - RESERVED) <= device.memory_mib <= memory
        yield compared("memory that can be promised", device.memory_mib, memory, fits, " MiB")
        for asked, ours in (("capability", device.compute_capability), ("driver", device.driver)):
            theirs = told.get(asked)
            yield compared(asked, ours or None, theirs, None if theirs is None else ours == theirs)
        yield compared("NUMA node, CPUs", f"{said(device.numa)}, {device.cpus or 'unknown'}", None, None)

    def _condition(self) -> Iterator[Row]:
        told = self.smi.gpu(self.device.id)
        ours: Condition = self.devices.sample({}, {}).conditions.get(self.device.id, UNKNOWN)
        watts, degrees, errors = (number(told, name) for name in ("power", "temperature", "errors"))
        yield compared("power", ours.power_watts, watts, near(ours.power_watts, watts, WATTS), " W")
        warm = ours.temperature_celsius
        yield compared("temperature", warm, degrees, near(warm, degrees, DEGREES), " °C")
        yield compared("memory errors", ours.ecc_errors, errors, near(ours.ecc_errors, errors, 0))
        found = self._now()
        told_well = None if errors is None else f"{errors:g} errors"
        yield compared(
            "health", f"{found.health.value} {found.health_reason}".strip(), told_well, found.usable
        )

    def _idle(self, when: str, expected: int) -> Row:
        """Nobody computes, and there are so many processes."""
        for _ in range(2):  # what was busy just before counts once
            sample = self._look()
        quiet = idleness.is_busy(sample, THRESHOLD) is False
        return compared(
            f"idle: {when}", self._seen(sample), self._told(), quiet and sample.processes == expected
        )

    def _holding(self) -> Iterator[Row]:
        """It holds memory and computes nothing."""
        yield self._idle("memory is held, nothing computes", expected=1)
        assert self.load is not None
        sample, listed = self._look(), self.smi.processes(self.device.id)
        theirs = None if listed is None else listed.get(self.load.pid, "is not listed")
        held = None if sample.memory_mib is None else sample.memory_mib >= HELD
        yield compared(f"memory in use (at least {HELD})", sample.memory_mib, theirs, held, " MiB")
        there = None if listed is None else self.load.pid in listed and sample.processes == 1
        yield compared(f"process {self.load.pid} is the session's", sample.processes, theirs, there)

    def _computing(self) -> Iterator[Row]:
        assert self.load is not None
        self.load.busy()
        self._look()
        sample, told = self._look(), self._told()
        how = "by GPM" if self.part else "by rates and samples"
        used = None if sample.utilization is None else sample.utilization >= BUSY
        yield compared(f"busy: utilization {how}", self._seen(sample), told, used)
        if not self.part:
            yield compared("GPM", "asked for MIG instances only; this GPU has none", None, None)
            yield from self._shares()
        yield compared(
            "busy: the pool's word", said(idleness.is_busy(sample, THRESHOLD)), None,
            idleness.is_busy(sample, THRESHOLD) is True,
        )  # fmt: skip

    def _shares(self) -> Iterator[Row]:
        """Two shares of the GPU, of which one computes."""
        of, half = self.device.cells, self.device.cells // 2
        shares = {
            name: (Slice(self.device.id, Kind.SHARE, tuple(range(first, first + half)), of, HELD, 0),)
            for name, first in ((LEASE, 0), (OTHER, half))
        }
        self._sleep(self.pause)
        found = self.devices.sample(shares, {**self._own(), OTHER: ()}).leases
        mine, theirs = (idleness.is_busy(found[name], THRESHOLD) for name in (LEASE, OTHER))
        told = self._told()
        yield compared("share that computes", self._seen(found[LEASE]), told, None if mine is None else mine)
        yield compared(
            "share beside it", self._seen(found[OTHER]), told, None if theirs is None else not theirs
        )

    def _resting(self) -> Iterator[Row]:
        """A burst between two looks counts; then idle time is counted, and only then."""
        assert self.load is not None
        if not self.part:
            self.load.rest()
            self._look()
            self._look()
            self.load.busy()
            self._sleep(1.0)
            self.load.rest()
            burst = self._look()
            caught = None if burst.utilization is None else burst.utilization >= THRESHOLD
            yield compared("burst of 1 s between two looks", self._seen(burst), self._told(), caught)
        self.load.rest()
        self._look()
        idle, looks = 0.0, 3
        for _ in range(looks):
            busy = idleness.is_busy(self._look(), THRESHOLD)
            idle = idleness.fold(idle, busy, self.pause, self.pause)
        wanted = looks * self.pause
        yield compared(
            "idle time counted (of what passed)", f"{idle:g} of {wanted:g} s", self._told(), idle == wanted
        )

    def _foreign(self) -> Row:
        """The workload is nobody's: its GPU is not to be offered."""
        assert self.load is not None
        for _ in range(3):  # at the first it still was a session's, at the next it could be of a new one
            self._sleep(self.pause)
            self.devices.sample({}, {})
        found, listed = self._now(), self.smi.processes(self.device.id)
        named = str(self.load.pid) in found.health_reason
        return compared(
            "a process of no session", f"{found.health.value}: {found.health_reason}",
            None if listed is None else ", ".join(map(str, listed)) or "none", named and not found.usable,
        )  # fmt: skip
