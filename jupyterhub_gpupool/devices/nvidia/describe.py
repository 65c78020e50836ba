"""What the GPUs are, as the driver tells it: runs in the helper process, answers plain values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import binding
from .binding import Refused, ask, maybe

LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""How near two GPUs are, in the words of ``nvidia-smi topo``."""
MOST_LINKS = 36
TO_SWITCH = 2
"""What the driver says of a link whose other end is a switch, by which the GPU reaches all others on it."""
CPU_LIST = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")

Facts = dict[str, Any]


class Describer:
    """Describes GPUs; what cannot change while the driver is open is asked once."""

    def __init__(self) -> None:
        self._fixed: dict[str, Facts] = {}

    def forget(self) -> None:
        """Ask everything anew: the driver was opened again."""
        self._fixed.clear()

    def describe(self, handles: dict[int, Any]) -> list[Facts]:
        """Describe the GPUs behind these handles by index; one that is out of reach is told by its error."""
        uuids: dict[int, str] = {}
        found: dict[int, Facts] = {}
        for index, handle in handles.items():
            try:
                uuids[index] = binding.text(ask("nvmlDeviceGetUUID", handle))
                found[index] = {"index": index, "uuid": uuids[index], **self._facts(uuids[index], handle)}
            except Refused as refused:
                if refused.of_driver:
                    raise
                found[index] = {"index": index, "uuid": uuids.get(index), "fault": refused.code}
        self._add_links(handles, uuids)
        for index, uuid in uuids.items():
            if uuid in self._fixed:
                found[index]["links"] = self._fixed[uuid].get("links", {})
        return list(found.values())

    def _facts(self, uuid: str, handle: Any) -> Facts:
        if uuid not in self._fixed:
            self._fixed[uuid] = _fixed(handle)
        fixed = self._fixed[uuid]
        mode = maybe("nvmlDeviceGetMigMode", handle)
        instances = None
        if mode is not None and mode[0]:
            if fixed["slices"] is None:
                fixed["slices"] = binding.memory_slices(handle)
            instances = [facts for one in binding.mig_devices(handle) if (facts := _instance(handle, one))]
        return {**fixed, "mig": mode, "instances": instances, "health": _health(handle)}

    def _add_links(self, handles: dict[int, Any], uuids: dict[int, str]) -> None:
        """Find out how near the GPUs are to each other, where one of them is new."""
        if all("links" in self._fixed.get(uuid, {}) for uuid in uuids.values()):
            return
        places = {self._fixed[uuid]["bus"]: uuid for uuid in uuids.values() if uuid in self._fixed}
        known = {uuid: handles[index] for index, uuid in uuids.items() if uuid in self._fixed}
        told: dict[str, tuple[dict[str, str], dict[str, int]]] = {}
        for uuid, handle in known.items():
            others = {other: known[other] for other in known if other != uuid}
            try:
                told[uuid] = _levels(handle, others), _nvlinks(handle, places)
            except Refused as refused:
                if refused.of_driver:
                    raise
                told[uuid] = {}, {}
        for uuid, (levels, ends) in told.items():
            switched = {other: min(ends.get("", 0), told[other][1].get("", 0)) for other in told}
            counts = {other: ends.get(other, 0) or switched[other] for other in told if other != uuid}
            nearer = {other: f"NV{count}" for other, count in counts.items() if count}
            self._fixed[uuid]["links"] = levels | nearer


def _fixed(handle: Any) -> Facts:
    """What a GPU is and stays."""
    name = maybe("nvmlDeviceGetName", handle)
    capability = maybe("nvmlDeviceGetCudaComputeCapability", handle)
    bus = binding.bus_id(handle)
    numa = _numa(bus)
    memory = binding.memory(handle)
    return {
        "name": binding.text(name) if name is not None else "",
        # What the driver keeps for itself can be promised to nobody.
        "memory": memory["total"] - (memory["reserved"] or 0) if memory["total"] is not None else None,
        "capability": f"{capability[0]}.{capability[1]}" if capability else "",
        "bus": bus,
        "numa": numa,
        "cpus": _cpus(numa),
        "slices": None,
    }


def _numa(bus: str, sysfs: Path = Path("/sys/bus/pci/devices")) -> int | None:
    """The NUMA node of a GPU's bus, which the kernel knows (its domain has four digits).

    The driver's own answer is another one: the node that a GPU's memory is, on machines where it is one.
    """
    domain, _, rest = bus.lower().partition(":")
    try:
        node = int((sysfs / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _cpus(node: int | None, sysfs: Path = Path("/sys/devices/system/node")) -> str:
    """The CPUs of a NUMA node, as the kernel lists them; empty: unknown, or it has none."""
    if node is None:
        return ""
    try:
        listed = (sysfs / f"node{node}" / "cpulist").read_text().strip()
    except OSError:
        return ""
    return listed if CPU_LIST.fullmatch(listed) else ""


def _levels(handle: Any, others: dict[str, Any]) -> dict[str, str]:
    """The nearest part of the machine that a GPU has in common with each other one."""
    found: dict[str, str] = {}
    for uuid, other in others.items():
        level = maybe("nvmlDeviceGetTopologyCommonAncestor", handle, other)
        if level in LEVELS:
            found[uuid] = LEVELS[level]
    return found


def _nvlinks(handle: Any, places: dict[str, str]) -> dict[str, int]:
    """Active NVLinks of a GPU, counted by the GPU at the other end; under the empty name those to a switch."""
    counted: dict[str, int] = {}
    for link in range(MOST_LINKS):
        active = maybe("nvmlDeviceGetNvLinkState", handle, link)
        if active is None:
            break
        if not active:
            continue
        peer: str | None = ""
        if maybe("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link) != TO_SWITCH:
            remote = maybe("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
            peer = places.get(binding.text(remote.busId)) if remote is not None else None
        if peer is not None:
            counted[peer] = counted.get(peer, 0) + 1
    return counted


def _instance(parent: Any, handle: Any) -> Facts | None:
    """A MIG instance; None for one that was destroyed in this very moment."""
    uuid = maybe("nvmlDeviceGetUUID", handle)
    gpu_instance = maybe("nvmlDeviceGetGpuInstanceId", handle)
    if uuid is None or gpu_instance is None:
        return None
    name = maybe("nvmlDeviceGetName", handle)
    attributes = maybe("nvmlDeviceGetAttributes_v2", handle)
    return {
        "uuid": binding.text(uuid),
        "gi": gpu_instance,
        "name": binding.text(name) if name is not None else "",
        "memory": int(attributes.memorySizeMB) if attributes is not None else None,
        "compute": int(attributes.gpuInstanceSliceCount) if attributes is not None else None,
        "placement": binding.placement(parent, gpu_instance),
    }


def _health(handle: Any) -> Facts:
    """What the driver keeps about a GPU's condition; None: it does not say."""
    remapped = maybe("nvmlDeviceGetRemappedRows", handle)
    retired = maybe("nvmlDeviceGetRetiredPagesPendingStatus", handle) if remapped is None else None
    return {
        "recovery": binding.recovery_action(handle),
        "remapped": list(remapped) if remapped is not None else None,
        "retired": retired,
        "ecc": uncorrected(handle),
    }


def uncorrected(handle: Any) -> int | None:
    """Memory errors since the driver was loaded that could not be corrected."""
    count = maybe("nvmlDeviceGetTotalEccErrors", handle, binding.UNCORRECTED, binding.VOLATILE)
    return int(count) if count is not None else None
