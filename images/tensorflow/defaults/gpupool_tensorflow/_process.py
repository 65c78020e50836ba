"""What has to be in the environment before TensorFlow is imported: thread pools and the compute cache.

Environment variables, since they hold for TF1 sessions and for children too, and come last: what the user set
stays, and a ``tf.config.threading`` call of theirs wins over them.
"""

from __future__ import annotations

import os

from gpupool_tensorflow import _say
from gpupool_tensorflow._state import Outcome, State

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
CACHE, CACHE_SIZE = "CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE"
CACHE_BYTES = str(2 * 2**30)
"""Room for what the driver compiles for a card that the wheel has no machine code for; CUDA takes 4 GiB at most."""


def apply_threads(state: State) -> None:
    """Size both thread pools by the CPU limit: TensorFlow sees the host's cores, not the quota."""
    cores = state.settings.cores
    if cores is None:
        return
    outcome = state.outcomes["threads"] = Outcome(asked=str(cores))
    kept = [f"{name}={os.environ[name]}" for name in THREADS if _differs(name, str(cores))]
    for name in THREADS:
        os.environ.setdefault(name, str(cores))
    if len(kept) < len(THREADS):
        outcome.applied = str(cores)
    if kept:
        outcome.note = f"you set {' and '.join(kept)}"


def apply_cache(state: State) -> None:
    """Keep what the driver compiles in the home, where it outlives the session."""
    if state.settings.kind == "cpu":
        return
    path = os.path.join(os.path.expanduser("~"), ".gpupool", "cuda-cache")
    outcome = state.outcomes["cache"] = Outcome(asked=path)
    if _differs(CACHE, path):
        outcome.note = f"you set {CACHE}={os.environ[CACHE]}"
        return
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        outcome.note = f"the folder cannot be made: {error.strerror}"
        _say.warn(f"the compute cache {path} is not used: {error.strerror}.")
        return
    os.environ[CACHE] = path
    os.environ.setdefault(CACHE_SIZE, CACHE_BYTES)
    outcome.applied = path


def _differs(name: str, value: str) -> bool:
    """Whether the user set it otherwise; our own value, inherited from a parent process, is ours."""
    return name in os.environ and os.environ[name] != value
