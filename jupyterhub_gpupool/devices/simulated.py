"""GPUs that are not there: the same inventory at every start, and telemetry made from real processes.

Utilization is the CPU time of a session's kernels and jobs, memory is theirs; so a training shows up, and
its end does.  A file makes a device sick, lost or silent, for tests and demonstrations.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jupyterhub.traitlets import ByteSpecification
from traitlets import List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from ..model import CELLS_PER_GPU, Device, Health, Instance, Mode, Process, Sample, Slice
from . import Readings
from .simulated_layout import EIGHT, GIB_IN_MIB, PLACES, Place, connected, instance, layout, place_of

MIB = 1024 * 1024
KEYS = ("model", "memory", "compute_capability", "count", "mode", "mig", *PLACES)
MOST_GPUS = 1024
"""GPUs of one entry: more than any machine has, few enough to be looked at in one sweep."""

FAULTS = ("sick", "lost", "silent")
HEALTH = {"sick": Health.SICK, "lost": Health.LOST}

MEMORY_SLICES = {
    "A30*": 4,
    "A100*": EIGHT,
    "A800*": EIGHT,
    "H100*": EIGHT,
    "H200*": EIGHT,
    "H800*": EIGHT,
    "GH200*": EIGHT,
    "B200*": EIGHT,
}
"""Memory slices of the models that have MIG, by shell pattern.  Another model gets one for each 10 GiB."""


@dataclass(frozen=True, slots=True)
class _Model:
    """GPUs of one entry of the trait ``gpus``, checked; ``instances`` as (profile, first, cells)."""

    model: str
    memory_mib: int
    compute_capability: str
    count: int
    mode: Mode
    memory_slices: int
    instances: tuple[tuple[str, int, int], ...]
    place: Place


@dataclass(frozen=True, slots=True)
class _Look:
    """CPU seconds of a lease's processes at a time of the clock, by pid and time of creation."""

    at: float
    cpu: Mapping[tuple[int, float], float]


class SimulatedDevices(LoggingConfigurable):
    """The inventory and the telemetry of simulated GPUs.  Calls come one at a time.

    ``clock`` gives seconds that never go back.
    """

    gpus: List[Any] = List(
        help="""The GPUs to simulate, a list of dictionaries, one for each kind; without any there are none.

        Keys: ``model`` (text, needed); ``memory`` (needed: bytes, or text such as ``"80G"``);
        ``compute_capability`` (text such as ``"8.0"``; default: not known); ``count`` (GPUs of this kind,
        default 1); ``mode`` (``"any"``, the default: whole or in shares, whichever is asked for first;
        ``"whole"``; ``"share"``; ``"mig"``); ``mig`` (list of MIG instances of each of these GPUs, by
        NVIDIA's profile names, put at the places that NVIDIA allows; implies the mode ``"mig"``);
        ``numa`` (number of the NUMA node of these GPUs; default: not known); ``cpus`` (the CPUs of that node,
        a text such as ``"0-15"``; default: not known); ``links`` (how near these GPUs are to each other, in the
        words of ``nvidia-smi topo``: ``"NV12"``, ``"PIX"``, ``"PXB"``, ``"PHB"``, ``"NODE"``, ``"SYS"``; default:
        ``"NODE"`` where ``numa`` is known). GPUs of two entries are ``"NODE"`` or ``"SYS"``, by their ``numa``.

        Example: ``[{"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 2},
        {"model": "H100", "memory": "80G", "mig": ["3g.40gb", "1g.10gb", "1g.10gb"]}]``."""
    ).tag(config=True)

    faults_file = Unicode(
        "",
        help="""Path of a JSON file that makes devices fail, read at every look; empty (the default), or
        a file that is not there: none fails. It maps the index or the id of a device to ``"sick"`` (nothing
        new is granted on it), ``"lost"`` (it is gone from the bus) or ``"silent"`` (its use is unknown).
        A file with a mistake is logged once, and what was read before stays in force.
        Example: ``"faults.json"`` with the content ``{"0": "sick"}``.""",
    ).tag(config=True)

    node = Unicode(
        help="""Name of the machine that has these GPUs; part of every device's id, so that the ids stay the
        same as long as it does. Default: the host name. Example: ``"gpu1"``."""
    ).tag(config=True)

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._clock = clock
        self._looks: dict[str, _Look] = {}
        self._faults_text: bytes | None = None
        self._faults: dict[int, str] = {}

    @default("node")
    def _default_node(self) -> str:
        return socket.gethostname()

    @validate("gpus")
    def _validate_gpus(self, proposal: Mapping[str, Any]) -> Any:
        _models(proposal["value"])
        return proposal["value"]

    def devices(self) -> tuple[Device, ...]:
        """Build the devices; the same ids for the same node and places.  Health comes from the faults."""
        found = self._inventory()
        faults = self._read_faults(found)
        return tuple(
            replace(device, health=HEALTH[fault], health_reason=f"simulated fault: {fault}")
            if (fault := faults.get(device.index, "")) in HEALTH
            else device
            for device in found
        )

    def sample(
        self,
        slices: Mapping[str, tuple[Slice, ...]],
        processes: Mapping[str, tuple[Process, ...] | None],
    ) -> Readings:
        """Derive the use of slices and devices from the CPU time of kernels and jobs since the last look.

        One busy core is 100 percent. The first look at a lease with processes leaves its utilization
        unknown; a silent or lost device, or one that is not in the inventory, leaves everything unknown.
        """
        inventory = self._inventory()
        faults = self._read_faults(inventory)
        speaking = {device.id for device in inventory if faults.get(device.index) not in ("silent", "lost")}
        now = self._clock()
        self._looks = {lease: look for lease, look in self._looks.items() if lease in slices}
        leases: dict[str, Sample] = {}
        for lease, held in slices.items():
            found = processes.get(lease)
            known = found is not None and all(item.device in speaking for item in held)
            leases[lease] = self._sample(lease, found or (), now) if known else Sample()
        devices = {
            device.id: _device_sample(device, slices, leases) if device.id in speaking else Sample()
            for device in inventory
        }
        return Readings(leases=leases, devices=devices)

    def _sample(self, lease: str, processes: Iterable[Process], now: float) -> Sample:
        jobs = {(one.pid, one.created): one for one in processes if not one.server}
        last = self._looks.get(lease)
        if last is None or now > last.at:
            self._looks[lease] = _Look(now, {key: job.cpu_seconds for key, job in jobs.items()})
        if not jobs:
            return Sample(utilization=0.0, memory_mib=0, processes=0)
        utilization = None
        if last is not None and now > last.at:
            # By process, so that one that has ended takes nothing away from those that work.  A job that
            # ends may count twice, with its parent: the look errs towards busy, and only that once.
            used = sum(max(0.0, job.cpu_seconds - last.cpu.get(key, 0.0)) for key, job in jobs.items())
            utilization = min(100.0, 100.0 * used / (now - last.at))
        return Sample(utilization, sum(job.memory_mib for job in jobs.values()), len(jobs))

    def _inventory(self) -> tuple[Device, ...]:
        found: list[Device] = []
        places: list[tuple[int, Place]] = []
        for entry, kind in enumerate(_models(self.gpus)):
            for _ in range(kind.count):
                found.append(self._device(kind, len(found)))
                places.append((entry, kind.place))
        return connected(found, places)

    def _device(self, kind: _Model, index: int) -> Device:
        instances = tuple(
            Instance(
                id=self._id("MIG", index, profile, first),
                profile=profile,
                first=first,
                cells=cells,
                memory_mib=kind.memory_mib * cells // kind.memory_slices,
            )
            for profile, first, cells in kind.instances
        )
        return Device(
            id=self._id("GPU", index),
            node=self.node,
            index=index,
            model=kind.model,
            memory_mib=kind.memory_mib,
            compute_capability=kind.compute_capability,
            mode=kind.mode,
            cells=kind.memory_slices if instances else CELLS_PER_GPU,
            simulated=True,
            driver="simulated",
            instances=instances,
        )

    def _id(self, prefix: str, *place: Any) -> str:
        name = "/".join(["gpupool", "simulated", self.node, *map(str, place)])
        return f"{prefix}-{uuid.uuid5(uuid.NAMESPACE_URL, name)}"

    def _read_faults(self, devices: Sequence[Device]) -> dict[int, str]:
        """Read the faults by index of the device; the last good ones while the file has a mistake."""
        try:
            text = Path(self.faults_file).read_bytes() if self.faults_file else b""
        except FileNotFoundError:
            text = b""
        except OSError as error:
            text = str(error).encode()  # no JSON: reported below, once
        if text != self._faults_text:
            self._faults_text = text
            try:
                self._faults = _faults(text, devices)
            except ValueError as error:
                self.log.error(
                    "Faults file %s is not used, the last good one stays: %s", self.faults_file, error
                )
        return self._faults


def set_fault(path: str | Path, device: int | str, fault: str | None) -> None:
    """Make a device (its index or id) ``sick``, ``lost`` or ``silent``, or whole again with None.

    Readers see the old file or the new one, never a part.  Raises ValueError for another fault.
    """
    if fault is not None and fault not in FAULTS:
        raise ValueError(f"Fault {fault!r} is not known; allowed: {', '.join(FAULTS)}, or None for no fault.")
    path = Path(path)
    found = json.loads(path.read_bytes() or b"{}") if path.exists() else {}
    found.pop(str(device), None)
    if fault is not None:
        found[str(device)] = fault
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as new:
            json.dump(found, new)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _faults(text: bytes, devices: Sequence[Device]) -> dict[int, str]:
    """Parse a faults file.  Raises ValueError with a sentence that names what is wrong."""
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {text[:80].decode(errors='replace')!r}") from error
    if not isinstance(found, dict):
        raise ValueError('it must be an object such as {"0": "sick"}')
    places = {name: device.index for device in devices for name in (str(device.index), device.id)}
    for device, fault in found.items():
        if device not in places:
            raise ValueError(f"device {device!r} is not simulated; allowed: {', '.join(places) or 'none'}")
        if fault not in FAULTS:
            raise ValueError(
                f"fault {fault!r} of device {device!r} is not known; allowed: {', '.join(FAULTS)}"
            )
    return {places[device]: fault for device, fault in found.items()}


def _device_sample(
    device: Device, slices: Mapping[str, tuple[Slice, ...]], leases: Mapping[str, Sample]
) -> Sample:
    """Sum what the leases on a device do, by their part of it; unknown as soon as one of them is."""
    utilization, memory, processes = 0.0, 0, 0
    unknown = set[str]()
    for lease, held in slices.items():
        here = sum(item.gpus for item in held if item.device == device.id)
        if not here:
            continue
        sample = leases[lease]
        unknown |= {name for name in Sample.__slots__ if getattr(sample, name) is None}
        utilization += (sample.utilization or 0.0) * here
        memory += int((sample.memory_mib or 0) * here / sum(item.gpus for item in held))
        processes += sample.processes or 0
    return Sample(
        utilization=None if "utilization" in unknown else min(100.0, utilization),
        memory_mib=None if "memory_mib" in unknown else memory,
        processes=None if "processes" in unknown else processes,
    )


def _models(entries: Sequence[Any]) -> list[_Model]:
    """Check the entries of the trait ``gpus``.  Raises TraitError with a sentence."""
    return [_model(f"SimulatedDevices.gpus[{place}]", entry) for place, entry in enumerate(entries)]


def _model(where: str, entry: Any) -> _Model:
    if not isinstance(entry, dict):
        raise TraitError(f"{where} must be a dictionary with the keys {', '.join(KEYS)}; it is {entry!r}.")
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise TraitError(f"{where} has the unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}.")
    for key in ("model", "memory"):
        if key not in entry:
            raise TraitError(f"{where} lacks the key {key!r}.")
    for key in ("model", "compute_capability"):
        value = entry.get(key, "")
        if not isinstance(value, str) or (key == "model" and not value.strip()):
            raise TraitError(f"{where}: {key!r} must be a text; it is {value!r}.")
    count = entry.get("count", 1)
    if type(count) is not int or not 1 <= count <= MOST_GPUS:
        raise TraitError(f"{where}: 'count' must be a whole number from 1 to {MOST_GPUS}; it is {count!r}.")
    mig = entry.get("mig", [])
    if not isinstance(mig, list | tuple):
        raise TraitError(f"{where}: 'mig' must be a list such as [\"1g.10gb\"]; it is {mig!r}.")
    memory = _memory(where, entry["memory"])
    mode = _mode(where, entry.get("mode", Mode.MIG if mig else Mode.ANY), bool(mig))
    slices = next((n for pattern, n in MEMORY_SLICES.items() if fnmatchcase(entry["model"], pattern)), 0)
    slices = slices or max(1, round(memory / (10 * GIB_IN_MIB)))
    placed = layout(where, [instance(where, name, memory, slices) for name in mig], slices)
    return _Model(
        model=entry["model"],
        memory_mib=memory,
        compute_capability=entry.get("compute_capability", ""),
        count=count,
        mode=mode,
        memory_slices=slices,
        instances=tuple((name, first, cells) for name, (first, cells) in zip(mig, placed, strict=True)),
        place=place_of(where, entry),
    )


def _memory(where: str, value: Any) -> int:
    """A size in MiB."""
    try:
        size = ByteSpecification().validate(None, value) // MIB
    except (TraitError, TypeError, ValueError, OverflowError):
        size = 0
    if isinstance(value, bool) or size < 1:
        raise TraitError(f"{where}: 'memory' must be bytes or a text such as \"80G\"; it is {value!r}.")
    return int(size)


def _mode(where: str, value: Any, mig: bool) -> Mode:
    allowed = [mode.value for mode in Mode if mig == (mode is Mode.MIG)]
    if value not in allowed:
        why = "with" if mig else "without"
        raise TraitError(
            f"{where}: 'mode' {value!r} is not allowed {why} 'mig'; allowed: {', '.join(allowed)}."
        )
    return Mode(value)
