"""The part of the launch check that uses TensorFlow: ``python -m gpupool_tensorflow._trial`` prints one JSON object.

It computes on every GPU, compiled by XLA and not, and reads back what is in force.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from gpupool_tensorflow import _context, _hook, _precision, _state, _xla

SIDE = 64
EXPECTED = float(SIDE**3)
"""The sum of a product of two square matrices of ones: exact in every precision that a matrix unit may use."""


def trial() -> dict[str, Any]:
    """Import TensorFlow, use it, and say what was found; what is wrong is in ``problems``, in sentences."""
    _hook.start()
    try:
        import keras
        import tensorflow as tf
    except Exception as error:
        return {"problems": [f"TensorFlow cannot be imported: {type(error).__name__}: {error}"]}
    problems: list[str] = []
    build = tf.sysconfig.get_build_info()
    state = _state.current()
    gpus = tf.config.list_physical_devices("GPU") if state.settings.has_gpu else []
    compiles = _compute(tf, [f"/GPU:{index}" for index in range(len(gpus))] or ["/CPU:0"], state, problems)
    limit, growth = _memory(tf, gpus, state, problems)
    wanted, why = _precision.decide(state.settings)
    policy = keras.config.dtype_policy().name
    if wanted is not None and policy != wanted:
        problems.append(f"the precision should be {wanted} ({why}), and Keras has {policy}.")
    return {
        "problems": problems,
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "precision": policy,
        "memory_limit_mib": limit,
        "memory_growth": growth,
        "xla": _xla_in_force(tf, state),
        "xla_compiles": compiles,
        "gpu": bool(gpus),
        "gpus": len(gpus),
    }


def _compute(tf: Any, devices: list[str], state: _state.State, problems: list[str]) -> bool:
    """Compute on each device, plainly and compiled by XLA; return whether XLA compiles on all of them."""
    chosen, why = _xla.decide(state)
    compiled = not (chosen == "off" and why)  # where the wheel's XLA does not know the card, it is not tried
    works = compiled
    for device in devices:
        for jit in (False, True) if compiled else (False,):
            wrong = _one(tf, device, jit)
            if wrong:
                problems.append(f"{'an XLA-compiled' if jit else 'a'} function on {device} {wrong}.")
                works = works and not jit
    return works


def _one(tf: Any, device: str, jit: bool) -> str:
    @tf.function(jit_compile=jit)  # type: ignore[untyped-decorator,unused-ignore]
    def product(matrix: Any) -> Any:
        return tf.reduce_sum(tf.matmul(matrix, matrix))

    try:
        with tf.device(device):
            result = product(tf.ones((SIDE, SIDE)))
        value, where = float(result), str(result.device)
    except Exception as error:
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if value != EXPECTED:
        return f"gives {value:g} instead of {EXPECTED:g}"
    return "" if where.endswith(device.removeprefix("/")) else f"ran on {where}"


def _memory(
    tf: Any, gpus: list[Any], state: _state.State, problems: list[str]
) -> tuple[int | None, bool | None]:
    """The lowest limit in force, and whether memory grows; None where there is no GPU to hold to anything."""
    if not gpus:
        return None, None
    limits = []
    for gpu in gpus:
        logical = tf.config.get_logical_device_configuration(gpu) or []
        limits.append(sum(device.memory_limit for device in logical) or None)
    growing = all(tf.config.experimental.get_memory_growth(gpu) for gpu in gpus)
    wanted = state.settings.usable
    if wanted is not None and any(limit is None or limit > wanted for limit in limits):
        shown = ", ".join("none" if limit is None else f"{limit} MiB" for limit in limits)
        problems.append(f"the memory limit should be {wanted} MiB for each GPU, in force: {shown}.")
    if state.settings.memory_growth and not growing and _context.GROWTH not in os.environ:
        problems.append("memory growth was asked and is not in force.")
    return min((limit for limit in limits if limit is not None), default=None), growing


def _xla_in_force(tf: Any, state: _state.State) -> str:
    """``on``, ``off`` or ``auto``, as read back."""
    if tf.config.optimizer.get_jit() == "autoclustering":
        return "on"
    outcome = state.outcomes.get("xla")
    return "off" if outcome is not None and outcome.applied == "off" else "auto"


if __name__ == "__main__":
    json.dump(trial(), sys.stdout)
    print()
