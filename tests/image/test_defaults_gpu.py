"""What only a real GPU can prove: that the limit is held, the reserve is enough, and the check passes.

Skipped where CUDA shows no device, or TensorFlow is built without CUDA.
"""

from __future__ import annotations

import functools
import json

import pytest
from gpupool_tensorflow import _cuda

from .conftest import CARD, Run, needs_tensorflow

LIMIT = 4096  # MiB


@functools.cache
def cards() -> tuple[str, ...]:
    return tuple(_cuda.look()["visible"] or ())


pytestmark = [needs_tensorflow, pytest.mark.skipif(not cards(), reason="CUDA shows no GPU here")]


@pytest.fixture
def session(run: Run) -> dict[str, str]:
    """A session on the first GPU of this machine; its compute capability is asked of TensorFlow."""
    code = """
import json, tensorflow as tf
gpus = tf.config.list_physical_devices("GPU") if tf.sysconfig.get_build_info()["is_cuda_build"] else []
print(json.dumps([tf.config.experimental.get_device_details(gpu)["compute_capability"] for gpu in gpus]))
"""
    first = {"CUDA_VISIBLE_DEVICES": cards()[0]}
    found = run(code, env=first).found
    if not found:
        pytest.skip("TensorFlow is built without CUDA, or cannot use the GPU")
    major, minor = found[0]
    auto = "mixed_bfloat16" if major >= 8 else "mixed_float16" if major == 7 else "float32"
    return {
        **CARD,
        **first,
        "GPUPOOL_VISIBLE": cards()[0],
        "GPUPOOL_COMPUTE_CAPABILITY": f"{major}.{minor}",
        "GPUPOOL_PRECISION_AUTO": auto,
        "GPUPOOL_MEMORY_LIMIT_MB": str(LIMIT),
    }


def test_the_check_passes_on_the_card(run: Run, session: dict[str, str]) -> None:
    done = run(env=session, command=("-I", "-m", "gpupool_tensorflow", "check"))
    found = json.loads(done.out.splitlines()[-1])
    assert found["passed"], found
    assert found["visible"] == [cards()[0]] and found["gpu"] and found["driver"]
    assert (
        found["memory_limit_mib"] == LIMIT - 1024 and found["precision"] == session["GPUPOOL_PRECISION_AUTO"]
    )


FILL = """
import ctypes, json, tensorflow as tf
free, total = ctypes.c_size_t(), ctypes.c_size_t()
x = tf.ones((8, 64, 64, 3))
layer = tf.keras.layers.Conv2D(32, 3)
layer(x)  # cuDNN, cuBLAS and the context are there now
tf.function(lambda a: a @ a, jit_compile=True)(tf.ones((512, 512)))
held = []
try:
    while len(held) < 400:
        held.append(tf.zeros((64, 2**18)))  # 64 MiB
except tf.errors.ResourceExhaustedError:
    pass
cuda = ctypes.CDLL("libcuda.so.1")
cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
used = tf.config.experimental.get_memory_info("GPU:0")["peak"]
print(json.dumps({"held": 64 * len(held), "tensorflow": used // 2**20, "gpu": (total.value - free.value) // 2**20}))
"""


def test_tensorflow_stops_at_the_limit_and_the_reserve_is_enough(run: Run, session: dict[str, str]) -> None:
    for growth in ({}, {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}):
        found = run(FILL, env={**session, **growth}).found
        assert LIMIT - 1024 - 512 < found["held"] <= LIMIT - 1024, found
        assert found["tensorflow"] <= LIMIT - 1024, found
        assert found["gpu"] <= LIMIT, f"the reserve is too small, or the GPU is used by others: {found}"


def test_memory_grows_where_there_is_no_limit(run: Run, session: dict[str, str]) -> None:
    code = """
import ctypes, json, tensorflow as tf
tf.ones((512, 512)) @ tf.ones((512, 512))
free, total = ctypes.c_size_t(), ctypes.c_size_t()
ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
print(json.dumps((total.value - free.value) / total.value))
"""
    assert run(code, env={**session, "GPUPOOL_MEMORY_LIMIT_MB": ""}).found < 0.5
