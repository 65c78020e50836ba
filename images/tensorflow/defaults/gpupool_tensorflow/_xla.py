"""XLA: on, off, or Keras' own choice; off where the wheel's XLA does not know the card."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from gpupool_tensorflow import _say
from gpupool_tensorflow._state import Outcome, State


def decide(state: State) -> tuple[str | None, str]:
    """What to apply: ``auto``, ``on``, ``off`` or None (nothing was asked), and a note; the build is looked at."""
    settings = state.settings
    if settings.xla in (None, "off") or not settings.has_gpu or settings.capability is None:
        return settings.xla, ""
    build = getattr(sys.modules.get("tensorflow.python.platform.build_info"), "build_info", {})
    newest = newest_major(build.get("cuda_compute_capabilities", ()))
    if newest is None or settings.capability[0] <= newest:
        return settings.xla, ""
    card = "{}.{}".format(*settings.capability)
    why = f"this TensorFlow is built for compute capabilities up to {newest}.x, and its XLA does not support {card}"
    return "off", why


def newest_major(capabilities: Iterable[str]) -> int | None:
    """The newest major compute capability among words such as ``sm_80`` and ``compute_90``."""
    found = (re.search(r"[0-9]+", word) for word in capabilities)
    return max((int(match[0]) // 10 for match in found if match), default=None)


def apply(keras: ModuleType, state: State) -> None:
    """Record the choice; where it is off, change what ``jit_compile="auto"`` of Keras means, and warn if need be."""
    chosen, why = decide(state)
    if chosen is None:
        return
    outcome = state.outcomes["xla"] = Outcome(asked=str(state.settings.xla), applied=chosen, note=why)
    if chosen == "on":
        outcome.applied, outcome.note = None, state.unknown_tensorflow
        outcome.pending = not state.unknown_tensorflow
    if why:
        _say.warn(f"XLA is off: {why}. Another image may know the card; jit_compile=True tries all the same.")
    if chosen == "off" and not _switch_off(keras):
        outcome.applied, outcome.note = None, f"Keras {_version(keras)} is not known"
        _say.warn(
            f"XLA is not off: Keras {_version(keras)} is not known to this version of gpupool-tensorflow. "
            "Pass jit_compile=False to compile()."
        )


def autoclusters(environ: Mapping[str, str]) -> str:
    """What the user's own TF_XLA_FLAGS say on autoclustering; empty when they do not."""
    flags = environ.get("TF_XLA_FLAGS", "")
    return flags if "tf_xla_auto_jit" in flags else ""


def _version(module: ModuleType) -> str:
    return str(getattr(module, "__version__", "of unknown version"))


def _switch_off(keras: Any) -> bool:
    name = "_resolve_auto_jit_compile"
    trainer = next((cls for cls in getattr(keras.Model, "__mro__", ()) if name in vars(cls)), None)
    if trainer is None:
        return False

    @functools.wraps(vars(trainer)[name])
    def resolve(self: Any) -> bool:
        return False

    setattr(trainer, name, resolve)
    return True
