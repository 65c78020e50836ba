"""Makes TensorFlow's own Python believe in GPUs, at the two narrowest places: its build, and its list of devices.

Everything between (TensorFlow's configuration, Keras' choices, ours) is the real thing, up to the ConfigProto
that TensorFlow's C++ is given.  What C++ and a driver make of it, only a real GPU can prove.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

BUILD = {
    "is_cuda_build": True,
    "cuda_version": "12.5.1",
    "cudnn_version": "9",
    "cuda_compute_capabilities": ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"],
}
"""What the GPU wheel of TensorFlow 2.21 says of itself."""


def card() -> None:
    """Before the import: the machine has the nodes of a GPU, and TensorFlow is built with CUDA."""
    from gpupool_tensorflow import _precision

    nodes = Path(tempfile.mkdtemp())
    (nodes / "nvidia0").touch()
    _precision.DEV = str(nodes)
    build = ModuleType("tensorflow.python.platform.build_info")
    build.build_info = BUILD  # type: ignore[attr-defined]
    sys.modules[build.__name__] = build


def devices(count: int) -> None:
    """After the import: TensorFlow finds so many GPUs."""
    from tensorflow.python import pywrap_tfe

    gpus = [f"/physical_device:GPU:{number}".encode() for number in range(count)]
    pywrap_tfe.TF_ListPhysicalDevices = lambda: [b"/physical_device:CPU:0", *gpus]


def config() -> dict[str, Any]:
    """What TensorFlow's C++ is given, after the context was initialised."""
    from tensorflow.python.eager import context

    context.ensure_initialized()
    given = context.context().config
    virtual = given.gpu_options.experimental.virtual_devices
    return {
        "limits": [list(device.memory_limit_mb) for device in virtual],
        "growth": given.gpu_options.allow_growth,
        "jit": given.graph_options.optimizer_options.global_jit_level,
        "intra": given.intra_op_parallelism_threads,
        "visible": given.gpu_options.visible_device_list,
    }
