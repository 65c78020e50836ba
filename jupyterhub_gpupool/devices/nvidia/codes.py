"""What error codes of the driver mean.  The numbers are NVML's and never change."""

from __future__ import annotations

UNINITIALIZED = 1
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
MISMATCH = 18
GPU_NOT_FOUND = 28
NO_PACKAGE = -1
OLD_PACKAGE = -2
"""Our own: the Python package is not installed, or is not the one that is meant."""

OF_DRIVER = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, MISMATCH})
"""Nothing can be asked any more: whoever got one of these has to open the driver anew."""

OF_DEVICE = frozenset({GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND})
"""This GPU does not answer, the others may."""

STATES = {
    NO_PACKAGE: "The Python package nvidia-ml-py is not installed: pip install 'jupyterhub-gpupool[nvidia]'.",
    OLD_PACKAGE: "The Python package nvidia-ml-py is too old, or the package pynvml lies over it: "
    "pip uninstall pynvml, then pip install --force-reinstall 'nvidia-ml-py>=12.575'.",
    LIBRARY_NOT_FOUND: "There is no NVIDIA driver on this machine: its library libnvidia-ml.so.1 is not found.",
    DRIVER_NOT_LOADED: "The NVIDIA driver is installed but not loaded; `modprobe nvidia` loads it.",
    MISMATCH: "The NVIDIA driver was upgraded while it was in use: its library and its kernel module differ. Reboot "
    "the machine, or reload the module.",
    FUNCTION_NOT_FOUND: "The NVIDIA driver is too old for this version of the pool: it needs R470 or later.",
    NO_PERMISSION: "This account may not use the NVIDIA driver: it has no access to /dev/nvidiactl.",
}
"""The state of the driver as a sentence for the admin."""


def state_of(code: int) -> str:
    """The state that an error of the whole driver stands for."""
    return STATES.get(
        code, f"The NVIDIA driver does not work: NVML answers with error {code}; `nvidia-smi` may say more."
    )
