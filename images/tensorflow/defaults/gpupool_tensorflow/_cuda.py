"""What CUDA itself shows: asks the driver's library, in a process of its own that TensorFlow never shares.

``python -m gpupool_tensorflow._cuda`` prints one JSON object.  ``cuInit`` makes no context, so this works beside
a process that holds the GPU for itself, and takes no memory of it.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any, TypedDict

LIBRARY = "libcuda.so.1"
DRIVER_FILE = Path("/proc/driver/nvidia/version")
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
NAME_BYTES = 256


class Seen(TypedDict):
    """What CUDA shows; ``visible`` is None when that could not be found out, and ``reason`` says why."""

    visible: list[str] | None
    cuda: list[int] | None
    driver: str | None
    reason: str


class _Uuid(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 16)]


def look(library: Any = None) -> Seen:
    """Ask the driver for the devices that a CUDA program sees here.  Never raises for what the driver says."""
    seen = Seen(visible=None, cuda=None, driver=driver_version(), reason="")
    try:
        cuda = library or ctypes.CDLL(LIBRARY)
    except OSError:
        seen["reason"] = f"the driver's {LIBRARY} is not here"
        return seen
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        seen["cuda"] = [version.value // 1000, version.value % 1000 // 10]
    error = cuda.cuInit(0)
    if error == NO_DEVICE:
        seen["visible"], seen["reason"] = [], "CUDA finds no device"
    elif error:
        seen["reason"] = f"cuInit answers with error {error}"
    else:
        _devices(cuda, seen)
    return seen


def driver_version() -> str | None:
    """The version of the kernel's NVIDIA driver, or None."""
    try:
        text = DRIVER_FILE.read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\b([0-9]{3,}\.[0-9]+(?:\.[0-9]+)?)\b", text)
    return found[1] if found else None


def _devices(cuda: Any, seen: Seen) -> None:
    count = ctypes.c_int()
    error = cuda.cuDeviceGetCount(ctypes.byref(count))
    visible = []
    for ordinal in range(count.value):
        device, uuid, name = ctypes.c_int(), _Uuid(), ctypes.create_string_buffer(NAME_BYTES)
        # Version 2 gives the UUID of the MIG instance, version 1 that of the card around it.
        error = (
            error
            or cuda.cuDeviceGet(ctypes.byref(device), ordinal)
            or cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid), device)
            or cuda.cuDeviceGetName(name, NAME_BYTES, device)
        )
        if error:
            break
        visible.append(_text(bytes(uuid.bytes), name.value.decode(errors="replace")))
    if error:
        seen["reason"] = f"CUDA answers with error {error} when it is asked for its devices"
    else:
        seen["visible"] = visible


def _text(uuid: bytes, name: str) -> str:
    raw = uuid.hex()
    parts = (raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:])
    return ("MIG-" if " MIG " in name else "GPU-") + "-".join(parts)


if __name__ == "__main__":
    json.dump(look(), sys.stdout)
    print()
