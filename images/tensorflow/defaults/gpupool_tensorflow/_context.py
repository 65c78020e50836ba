"""What waits for TensorFlow's first use of its devices: memory, autoclustering, and a look whether a GPU is there.

Asking for the GPUs initialises CUDA, which an import must not do, and what the user configures between import
and first use has to win.  So ``Context.ensure_initialized``, which everything that computes goes through, is
wrapped until its first call.  It is private to TensorFlow: one that lacks it gets a line instead.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from types import ModuleType
from typing import Any

from gpupool_tensorflow import _say, _xla
from gpupool_tensorflow._precision import no_gpu
from gpupool_tensorflow._settings import Settings
from gpupool_tensorflow._state import Outcome, State

GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
ALLOCATOR = "TF_GPU_ALLOCATOR"


def hold(tensorflow: ModuleType, state: State) -> None:
    """Apply what is asked of the devices at TensorFlow's first use of them."""
    settings = state.settings
    asked = _asked_memory(settings)
    if asked:
        note = "" if settings.has_gpu else no_gpu(settings)
        state.outcomes["memory"] = Outcome(asked, note=note, pending=settings.has_gpu)
    if not settings.has_gpu and settings.xla != "on":
        return
    if not _wrap(tensorflow, state):
        _give_up(tensorflow, state, asked if settings.has_gpu else "")


def _give_up(tensorflow: ModuleType, state: State, memory: str) -> None:
    """Say what this TensorFlow could not be given."""
    version = getattr(tensorflow, "__version__", "of unknown version")
    state.unknown_tensorflow = f"TensorFlow {version} is not known to this version of gpupool-tensorflow"
    for outcome in state.outcomes.values():
        if outcome.pending:
            outcome.pending, outcome.note = False, state.unknown_tensorflow
    unmet = [memory] if memory else []
    unmet += ["XLA autoclustering"] if state.settings.xla == "on" else []
    if unmet:
        _say.warn(f"not applied: {', '.join(unmet)}. {state.unknown_tensorflow}.")


def configure(tf: Any, state: State) -> None:
    """Apply memory and autoclustering to a context that is about to be initialised."""
    xla = state.outcomes.get("xla")
    if xla is not None and xla.pending:
        xla.applied, xla.note = _autocluster(tf)
    for outcome in state.outcomes.values():
        outcome.pending = False
    if state.settings.has_gpu:
        gpus = tf.config.get_visible_devices("GPU")
        if gpus:
            _apply_memory(tf, gpus, state)
        else:
            _without_gpu(bool(tf.config.list_physical_devices("GPU")), state)


def _without_gpu(hidden: bool, state: State) -> None:
    lacking = no_gpu(state.settings)
    if "memory" in state.outcomes:
        state.outcomes["memory"].note = "you hid the GPUs" if hidden else lacking or "TensorFlow sees no GPU"
    if not hidden and not lacking:
        _say.warn(
            "TensorFlow sees no GPU although this session has one, and uses the CPU. "
            "Its log above says why; `python -m gpupool_tensorflow check` looks closer."
        )


def _asked_memory(settings: Settings) -> str:
    if settings.memory_limit is not None:
        return f"memory limit of {settings.memory_limit} MiB"
    return "memory growth" if settings.memory_growth else ""


def _wrap(tf: Any, state: State) -> bool:
    module = sys.modules.get("tensorflow.python.eager.context")
    context = getattr(module, "Context", None)
    original = getattr(context, "ensure_initialized", None)
    if module is None or context is None or original is None or not hasattr(module, "context_safe"):
        return False
    if hasattr(original, "gpupool"):  # TensorFlow was reloaded
        return True
    lock = threading.Lock()
    waiting = [True]

    @functools.wraps(original)
    def ensure_initialized(self: Any) -> None:
        if waiting and self is module.context_safe():
            with lock:  # other threads wait here, so that none initialises what is half configured
                if waiting:
                    _at_first_use(tf, state)
                    waiting.clear()
                    if context.ensure_initialized is ensure_initialized:
                        context.ensure_initialized = original
        original(self)

    ensure_initialized.gpupool = True  # type: ignore[attr-defined]
    context.ensure_initialized = ensure_initialized
    return True


def _at_first_use(tf: Any, state: State) -> None:
    try:
        configure(tf, state)
    except Exception as error:  # the user's computation goes on without our defaults
        _say.warn(f"memory and XLA defaults were not applied: {type(error).__name__}: {error}")


def _apply_memory(tf: Any, gpus: list[Any], state: State) -> None:
    outcome = state.outcomes.get("memory")
    if outcome is None:
        return
    limit = state.settings.usable
    growing = [gpu for gpu in gpus if tf.config.experimental.get_memory_growth(gpu)]
    if limit is None:
        outcome.applied, outcome.note = _apply_growth(tf, gpus, growing)
    elif growing:
        outcome.note = "you set memory growth"
        _say.warn(
            f"the memory limit of {limit} MiB is not applied, since you set memory growth: "
            "TensorFlow may take more than this session holds."
        )
    else:
        outcome.applied, outcome.note = _apply_limit(tf, gpus, limit, state.settings)


def _apply_limit(tf: Any, gpus: list[Any], limit: int, settings: Settings) -> tuple[str | None, str]:
    free = [gpu for gpu in gpus if tf.config.get_logical_device_configuration(gpu) is None]
    for gpu in free:
        tf.config.set_logical_device_configuration(
            gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)]
        )
    notes = (
        [f"{settings.memory_reserve} MiB of {settings.memory_limit} are the reserve for CUDA"] if free else []
    )
    if len(free) < len(gpus):
        notes.append(f"you configured the logical devices of {len(gpus) - len(free)} of {len(gpus)}")
    if os.environ.get(ALLOCATOR) == "cuda_malloc_async":
        notes.append(f"{ALLOCATOR}=cuda_malloc_async does not hold to a limit")
        _say.warn(f"the memory limit of {limit} MiB is not held: {notes[-1]}.")
    return (f"limit of {limit} MiB" if free else None), "; ".join(notes)


def _apply_growth(tf: Any, gpus: list[Any], growing: list[Any]) -> tuple[str | None, str]:
    if GROWTH in os.environ:
        return None, f"you set {GROWTH}={os.environ[GROWTH]}"
    if growing or any(tf.config.experimental.get_memory_growth(gpu) is not None for gpu in gpus):
        return None, "you set memory growth"
    if any(tf.config.get_logical_device_configuration(gpu) is not None for gpu in gpus):
        return None, "you configured the logical devices"
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return "growth", "no limit was asked"


def _autocluster(tf: Any) -> tuple[str | None, str]:
    context = sys.modules["tensorflow.python.eager.context"].context_safe()
    flags = _xla.autoclusters(os.environ)
    if flags:
        return None, f"you set TF_XLA_FLAGS={flags}"
    if getattr(context, "_optimizer_jit", None) is not None or getattr(context, "_config", None) is not None:
        return None, "you called set_jit, or gave TensorFlow a configuration"
    tf.config.optimizer.set_jit("autoclustering")
    return "on", ""
