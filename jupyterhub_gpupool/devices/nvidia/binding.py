"""The only import of ``pynvml`` (the package nvidia-ml-py), with its defects worked around.

Only the helper process imports this module.  Every call ends in a plain value, in :class:`Refused`, or not at
all.  ``maybe`` answers None where the driver does not support or does not say something: unknown, never zero.
"""

from __future__ import annotations

import math
from typing import Any

import pynvml

from .codes import FUNCTION_NOT_FOUND, OF_DEVICE, OF_DRIVER

MIB = 1024 * 1024
NOT_FOUND, SUCCESS = 6, 0
EVENTS = 0x2 | 0x8 | 0x4000
"""Double-bit memory errors, XIDs, and a GPU that became unavailable."""
MOST_EVENTS = 100
"""Events taken at once: a GPU that dies can report thousands, and the first ones tell enough."""
GRAPHICS_UTIL = 1
"""GPM's name for: percent of the time in which anything ran."""
RECOVERY_ACTION = 230
UNCORRECTED, VOLATILE = 1, 0
NOT_AVAILABLE = 2**64 - 1
WANTED = {
    "nvmlDeviceGetComputeRunningProcesses_v2": "which processes use a GPU",
    "nvmlDeviceGetMemoryInfo_v2": "what the driver reserves of the memory",
    "nvmlGpmMetricsGet": "how MIG instances are used",
}
"""Functions without which something stays unknown, and what."""


COMPLETE = all(hasattr(pynvml, name) for name in ("NVMLError", "nvmlMemory_v2", "nvmlGpmMigSampleGet"))
"""Whether this is the package that is meant: old ones of another name put a folder over its module."""


class Refused(Exception):
    """The driver's answer is an error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML error {code}")
        self.code = code

    @property
    def of_driver(self) -> bool:
        return self.code in OF_DRIVER

    @property
    def of_device(self) -> bool:
        return self.code in OF_DEVICE


def ask(function: str, *args: Any) -> Any:
    """Call a function of the binding.  Raises Refused."""
    try:
        return getattr(pynvml, function)(*args)
    except pynvml.NVMLError as error:
        raise Refused(
            int(error.value)
        ) from None  # not the error itself: it cannot even be compared with None
    except (
        pynvml.NVMLLibraryMismatchError,
        AttributeError,
    ):  # a driver, or a package, older than the function
        raise Refused(FUNCTION_NOT_FOUND) from None


def maybe(function: str, *args: Any) -> Any:
    """Call a function; None where this GPU or driver does not say it.

    Raises Refused only where the GPU, or the whole driver, is out of reach.
    """
    try:
        return ask(function, *args)
    except Refused as refused:
        if refused.of_driver or refused.of_device:
            raise
        return None


def lacks() -> list[str]:
    """What stays unknown because this driver is older than the function that tells it."""
    library = pynvml.nvmlLib
    return [words for name, words in WANTED.items() if not hasattr(library, name)]


# --- what a device is ---------------------------------------------------------------------------------


def memory(device: Any) -> dict[str, int | None]:
    """Total and used MiB; ``reserved`` is None where the driver counts it among the used."""
    found = maybe("nvmlDeviceGetMemoryInfo", device, pynvml.nvmlMemory_v2)
    if found is not None:
        return {
            "total": found.total // MIB,
            "used": found.used // MIB,
            "reserved": found.reserved // MIB,
        }
    found = maybe("nvmlDeviceGetMemoryInfo", device)
    if found is None:
        return {"total": None, "used": None, "reserved": None}
    return {"total": found.total // MIB, "used": found.used // MIB, "reserved": None}


def bus_id(device: Any) -> str:
    """The place on the bus, ``00000000:07:00.0``; empty where it is not told."""
    found = maybe("nvmlDeviceGetPciInfo", device)
    return text(found.busId) if found is not None else ""


def text(value: Any) -> str:
    """A text of the binding, which is bytes in structures and text elsewhere."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def memory_slices(device: Any) -> int | None:
    """Into how many memory slices MIG divides this GPU; None without the right to ask."""
    most = 0
    for profile in (pynvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE, pynvml.NVML_GPU_INSTANCE_PROFILE_4_SLICE):
        info = maybe("nvmlDeviceGetGpuInstanceProfileInfo", device, profile, 1)
        if info is None:
            continue
        count = pynvml.c_uint(0)
        if (
            maybe("nvmlDeviceGetGpuInstancePossiblePlacements", device, info.id, None, pynvml.byref(count))
            is None
        ):
            continue
        places = (pynvml.c_nvmlGpuInstancePlacement_t * max(1, count.value))()
        if (
            maybe("nvmlDeviceGetGpuInstancePossiblePlacements", device, info.id, places, pynvml.byref(count))
            is not None
        ):
            most = max(most, *(place.start + place.size for place in places[: count.value]), 0)
    return most or None


def mig_devices(device: Any) -> list[Any]:
    """Handles of the MIG instances that there are now.  They have numbers with holes, and go stale."""
    found = []
    for index in range(maybe("nvmlDeviceGetMaxMigDeviceCount", device) or 0):
        handle = maybe("nvmlDeviceGetMigDeviceHandleByIndex", device, index)
        if handle is not None:
            found.append(handle)
    return found


def placement(device: Any, instance: int) -> tuple[int, int] | None:
    """First memory slice and number of them of a GPU instance; None without the right to ask."""
    handle = maybe("nvmlDeviceGetGpuInstanceById", device, instance)
    info = None if handle is None else maybe("nvmlGpuInstanceGetInfo", handle)
    return None if info is None else (int(info.placement.start), int(info.placement.size))


# --- how it is used -----------------------------------------------------------------------------------


def processes(device: Any) -> list[list[int | None]] | None:
    """Compute processes as [pid, MiB or None, GPU instance]; clients of MPS are among them."""
    found = maybe("nvmlDeviceGetComputeRunningProcesses_v3", device)
    if found is None:
        found = maybe("nvmlDeviceGetComputeRunningProcesses_v2", device)
    if found is None:
        return None
    clients = maybe("nvmlDeviceGetMPSComputeRunningProcesses_v3", device) or []
    listed: dict[int, list[int | None]] = {}
    for one in [*found, *clients]:
        used = one.usedGpuMemory
        known = used is not None and used != NOT_AVAILABLE
        listed[int(one.pid)] = [int(one.pid), used // MIB if known else None, int(one.gpuInstanceId)]
    return list(listed.values())


def clients(device: Any) -> list[int] | None:
    """Processes that compute through an MPS server; None where this driver does not tell them apart."""
    found = maybe("nvmlDeviceGetMPSComputeRunningProcesses_v3", device)
    return None if found is None else [int(one.pid) for one in found]


def samples(device: Any, since: int) -> list[tuple[int, int]] | None:
    """Samples of the utilization in percent after ``since``, with the driver's own times; None: unsupported."""
    try:
        kind, found = ask("nvmlDeviceGetSamples", device, pynvml.NVML_GPU_UTILIZATION_SAMPLES, since)
    except Refused as refused:
        if refused.of_driver or refused.of_device:
            raise
        return [] if refused.code == NOT_FOUND else None
    return [(int(one.timeStamp), int(one.sampleValue.uiVal)) for one in found] if kind == 1 else None


def process_use(device: Any, since: int) -> list[tuple[int, int, int]] | None:
    """Use of the GPU by process after ``since``: (pid, percent, time); None: unsupported."""
    try:
        found = ask("nvmlDeviceGetProcessUtilization", device, since)
    except Refused as refused:
        if refused.of_driver or refused.of_device:
            raise
        # The binding takes the success of a call that finds nothing for an error.
        return [] if refused.code in (NOT_FOUND, SUCCESS) else None
    return [(int(one.pid), int(one.smUtil), int(one.timeStamp)) for one in found]


def gpm_supported(device: Any) -> bool:
    """Whether the GPU measures its MIG instances (Hopper and later)."""
    found = maybe("nvmlGpmQueryDeviceSupport", device)
    return bool(found is not None and found.isSupportedDevice)


def gpm_sample(device: Any, instance: int) -> Any:
    """Take the counters of a GPU instance; None where this is not possible.  Give it back with :func:`gpm_free`."""
    sample = maybe("nvmlGpmSampleAlloc")
    if sample is None:
        return None
    if maybe("nvmlGpmMigSampleGet", device, instance, sample) is None:
        gpm_free(sample)
        return None
    return sample


def gpm_free(sample: Any) -> None:
    maybe("nvmlGpmSampleFree", sample)


def gpm_use(first: Any, second: Any) -> float | None:
    """Percent of the time between two samples in which the instance was used; None where that makes no sense."""
    wanted = pynvml.c_nvmlGpmMetricsGet_t()
    wanted.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    wanted.numMetrics = 1
    wanted.sample1, wanted.sample2 = first, second
    wanted.metrics[0].metricId = GRAPHICS_UTIL
    if maybe("nvmlGpmMetricsGet", wanted) is None or wanted.metrics[0].nvmlReturn != SUCCESS:
        return None
    value = float(wanted.metrics[0].value)
    return value if math.isfinite(value) and 0 <= value <= 100 else None


# --- health -------------------------------------------------------------------------------------------


def recovery_action(device: Any) -> int | None:
    """What the driver asks for before this GPU is used again; 0: nothing."""
    found = maybe("nvmlDeviceGetFieldValues", device, [RECOVERY_ACTION])
    return int(found[0].value.uiVal) if found is not None and found[0].nvmlReturn == SUCCESS else None


def events(event_set: Any) -> list[tuple[Any, int, int, int]]:
    """Take what has happened since the last look: (device, type, number, GPU instance).  Does not wait."""
    found: list[tuple[Any, int, int, int]] = []
    while len(found) < MOST_EVENTS:
        try:
            one = ask("nvmlEventSetWait_v2", event_set, 0)
        except Refused as refused:
            if refused.of_driver:
                raise
            break  # a time-out: there is no more; or a lost GPU, which its own calls tell
        found.append((one.device, int(one.eventType), int(one.eventData), int(one.gpuInstanceId)))
    return found


def register(device: Any, event_set: Any) -> bool:
    """Let a GPU's events come to the set; False where it has none."""
    supported = maybe("nvmlDeviceGetSupportedEventTypes", device) or 0
    return bool(supported & EVENTS) and (
        ask_quietly("nvmlDeviceRegisterEvents", device, supported & EVENTS, event_set)
    )


def ask_quietly(function: str, *args: Any) -> bool:
    """Call a function that answers nothing; whether it worked.  A lost GPU counts as no."""
    try:
        ask(function, *args)
    except Refused as refused:
        if refused.of_driver:
            raise
        return False
    return True
