"""What a session is told of its lease: the environment that its launch puts in.

The same names serve the notebook (``GPUPOOL_MEMORY_LIMIT_MB`` …), the container runtime
(``NVIDIA_VISIBLE_DEVICES``) and the pool itself, which finds a session again by them after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from .model import Kind, Lease, Owner, ranges

NO_DEVICE = "void"
"""What NVIDIA_VISIBLE_DEVICES says so that the container runtime shows no GPU at all."""


def enforcement(lease: Lease, *, simulated: bool) -> str:
    """Which mechanism holds the session to its slice, in words for the page."""
    if simulated:
        return "nothing: the GPU is simulated"
    match lease.wish.kind:
        case Kind.CPU:
            return "no GPU"
        case Kind.MIG:
            return "the hardware (MIG)"
        case Kind.GPU:
            return "only these devices are visible"
        case Kind.SHARE:
            return "TensorFlow's limit, for each process"


def environment(lease: Lease, *, pool: str, owner: Owner, tensorflow: Mapping[str, str]) -> dict[str, str]:
    """The variables of the session, all of them; ``tensorflow`` holds ``precision``, ``xla``, ``memory``.

    Memory is in MiB for each GPU of the slice, compute in percent.  A session without a GPU sees none.
    """
    visible = ",".join(item.visible for item in lease.slices)
    values = {
        "GPUPOOL_POOL": pool,
        "GPUPOOL_LEASE": lease.id,
        "GPUPOOL_EPOCH": str(lease.epoch),
        "GPUPOOL_OWNER": owner.mark(),
        "GPUPOOL_PROFILE": lease.profile,
        "GPUPOOL_SLICE": lease.wish.kind.value,
        "GPUPOOL_DEVICES": ",".join(item.device for item in lease.slices),
        "GPUPOOL_CELLS": json.dumps(
            {item.device: ranges(item.cells) for item in lease.slices}, separators=(",", ":")
        ),
        "GPUPOOL_PRECISION": tensorflow.get("precision", "auto"),
        "GPUPOOL_XLA": tensorflow.get("xla", "auto"),
        "NVIDIA_VISIBLE_DEVICES": visible or NO_DEVICE,
        "CUDA_VISIBLE_DEVICES": visible or "-1",
    }
    if lease.slices:
        smallest = min(item.memory_mib for item in lease.slices)
        values["GPUPOOL_COMPUTE_PERCENT"] = str(min(item.compute for item in lease.slices))
        if tensorflow.get("memory", "limit") == "limit":
            values["GPUPOOL_MEMORY_LIMIT_MB"] = str(smallest)
    return values
