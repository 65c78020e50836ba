"""What a session is told of its lease: the environment that its launch puts in.

The same names serve the notebook (``GPUPOOL_MEMORY_LIMIT_MB`` …), the container runtime
(``NVIDIA_VISIBLE_DEVICES``) and the pool itself, which finds a session again by them after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .cells import ranges
from .containment import NO_DEVICE
from .model import Device, Lease, Owner

PRECISIONS = ((8, "mixed_bfloat16"), (7, "mixed_float16"))
"""What ``auto`` means from a compute capability on, the highest first: where tensor cores take the type."""


def precision_for(capability: str) -> str:
    """Keras' precision policy that a GPU of this compute capability is fast with; float32 when unknown."""
    major = capability.partition(".")[0]
    if not major.isdecimal():
        return "float32"
    return next((policy for least, policy in PRECISIONS if int(major) >= least), "float32")


def environment(
    lease: Lease,
    *,
    pool: str,
    owner: Owner,
    tensorflow: Mapping[str, str],
    devices: Iterable[Device] = (),
) -> dict[str, str]:
    """The variables of the session, all of them; ``tensorflow`` holds ``precision``, ``xla``, ``memory``.

    ``devices`` are those of the slices.  Memory is in MiB for each GPU of the slice, compute in percent.  A
    session without a GPU sees none.
    """
    known = tuple(devices)
    visible = ",".join(item.visible for item in lease.slices)
    values = {
        "GPUPOOL_POOL": pool,
        "GPUPOOL_LEASE": lease.id,
        "GPUPOOL_EPOCH": str(lease.epoch),
        "GPUPOOL_OWNER": owner.mark(),
        "GPUPOOL_PROFILE": lease.profile,
        "GPUPOOL_SLICE": lease.wish.kind.value,
        "GPUPOOL_DEVICES": ",".join(item.device for item in lease.slices),
        "GPUPOOL_VISIBLE": visible,
        "GPUPOOL_CELLS": json.dumps(
            {item.device: ranges(item.cells) for item in lease.slices}, separators=(",", ":")
        ),
        "GPUPOOL_PRECISION": tensorflow.get("precision", "auto"),
        "GPUPOOL_XLA": tensorflow.get("xla", "auto"),
        "NVIDIA_VISIBLE_DEVICES": visible or NO_DEVICE,
        "CUDA_VISIBLE_DEVICES": visible or "-1",
    }
    capabilities = [device.compute_capability for device in known]
    lowest = min(capabilities, key=_version, default="") if all(capabilities) else ""
    values["GPUPOOL_PRECISION_AUTO"] = precision_for(lowest)
    if lowest:
        values["GPUPOOL_COMPUTE_CAPABILITY"] = lowest
    if any(device.simulated for device in known):
        values["GPUPOOL_SIMULATED"] = "1"
    if lease.slices:
        smallest = min(item.memory_mib for item in lease.slices)
        values["GPUPOOL_COMPUTE_PERCENT"] = str(min(item.compute for item in lease.slices))
        if tensorflow.get("memory", "limit") == "limit":
            values["GPUPOOL_MEMORY_LIMIT_MB"] = str(smallest)
    return values


def _version(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split(".") if part.isdecimal())
