"""The default precision policy of Keras: what ``auto`` means here, and how Keras is given it.

Keras keeps its policy for each thread, and forgets it on ``clear_session()``.  A default has to hold in all
threads and after it, so what is changed is the answer of Keras where nobody has set a policy.  From the first
``set_dtype_policy`` (or another ``floatx``) of the user on, Keras answers by itself again.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from gpupool_tensorflow import _say
from gpupool_tensorflow._settings import Settings
from gpupool_tensorflow._state import Outcome, State

DEV = "/dev"
HOW_OFF = "To turn it off: keras.config.set_dtype_policy('float32'), or GPUPOOL_PRECISION=float32 before the import."


def decide(settings: Settings) -> tuple[str | None, str]:
    """The policy to apply (None: none was asked) and why, in words.  Never touches CUDA."""
    if settings.precision is None:
        return None, "nothing was asked"
    if settings.precision != "auto":
        return settings.precision, "asked by the profile"
    lacking = no_gpu(settings)
    if lacking:
        return "float32", f"auto: {lacking}, so TensorFlow uses the CPU"
    if settings.precision_auto is None:
        return "float32", "auto: the compute capability is unknown"
    known = settings.capability
    return settings.precision_auto, f"auto: compute capability {known[0]}.{known[1]}" if known else "auto"


def no_gpu(settings: Settings) -> str:
    """Why TensorFlow has no GPU here, as far as that is to be known without CUDA; empty when it may have one."""
    if settings.kind == "cpu":
        return "this session has no GPU"
    if settings.simulated:
        return "the GPUs of this session are simulated"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (not hidden.strip() or hidden.strip().startswith("-")):
        return "CUDA_VISIBLE_DEVICES hides the GPU"
    build = sys.modules.get("tensorflow.python.platform.build_info")
    if build is not None and not build.build_info.get("is_cuda_build", True):
        return "this TensorFlow is built without CUDA"
    try:
        nodes = os.listdir(DEV)
    except OSError:
        return ""
    if any(node.startswith("nvidia") or node in ("dxg", "nvhost-gpu", "nvgpu") for node in nodes):
        return ""
    return "no GPU is here"


def apply(keras: ModuleType, state: State) -> None:
    """Give Keras the default policy, and say so in one line."""
    policy, why = decide(state.settings)
    if policy is None:
        return
    outcome = state.outcomes["precision"] = Outcome(asked=str(state.settings.precision), note=why)
    if not hasattr(keras, "config") or keras.config.backend() != "tensorflow":
        outcome.note = "Keras does not compute with TensorFlow here"
        return
    own = _users_policy(keras)
    if own:
        outcome.note = own
        return
    outcome.applied = policy
    if policy == "float32":
        if state.settings.precision == "auto":
            _say.note(
                f"precision stays float32 ({why}). To change it: keras.config.set_dtype_policy('mixed_bfloat16')."
            )
        return
    _install(keras, policy)
    _say.note(f"Keras computes in {policy}, with variables in float32 ({why}). {HOW_OFF}")


def _users_policy(keras: Any) -> str:
    """What the user chose already: ``floatx`` in keras.json, or a policy where Keras was imported before.

    Keras' own ``dtype_policy()`` would keep its answer, and a later ``set_floatx`` of the user would do nothing.
    """
    if keras.config.floatx() != "float32":
        return f"you set floatx to {keras.config.floatx()}"
    held = keras.config.dtype_policy.__globals__.get("global_state")
    present = held.get_global_attribute("dtype_policy") if hasattr(held, "get_global_attribute") else None
    return "" if present is None or isinstance(held, _Default) else f"you set the policy to {present.name}"


def _install(keras: Any, policy: str) -> None:
    """Change Keras' own default; where this Keras is made otherwise, set the policy as a user would."""
    inside = keras.config.dtype_policy.__globals__
    real = inside.get("global_state")
    if isinstance(real, _Default):  # the top of Keras was imported again, over the same inside
        return
    if hasattr(real, "get_global_attribute") and hasattr(real, "set_global_attribute"):
        inside["global_state"] = _Default(real, keras.DTypePolicy(policy), keras.config.floatx)
    if keras.config.dtype_policy().name != policy:
        keras.config.set_dtype_policy(policy)
        _say.warn(
            f"Keras {keras.__version__} is not known to this version of gpupool-tensorflow: {policy} holds in the "
            "thread of the import only, until keras.utils.clear_session()."
        )


class _Default:
    """Stands before Keras' global state in its module of policies: knows the default, and when it is over."""

    def __init__(self, real: Any, policy: Any, floatx: Any) -> None:
        self.real, self.policy, self.floatx = real, policy, floatx
        self.users = False

    def get_global_attribute(self, name: str, default: Any = None, *rest: Any, **more: Any) -> Any:
        found = self.real.get_global_attribute(name, default, *rest, **more)
        if found is None and name == "dtype_policy" and not self.users and self.floatx() == "float32":
            return self.policy
        return found

    def set_global_attribute(self, name: str, value: Any) -> None:
        self.users = self.users or name == "dtype_policy"
        self.real.set_global_attribute(name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)
