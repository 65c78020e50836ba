"""What was asked, applied, changed by the user and is in force; the last is read back, never assumed."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TypedDict

from gpupool_tensorflow import _context, _process, _state, _xla
from gpupool_tensorflow._state import Outcome, State

SETTINGS = ("precision", "memory", "xla", "threads", "cache")


class Row(TypedDict):
    """One setting; ``applied`` is null where nothing was, ``changed`` whether the user has it otherwise."""

    setting: str
    asked: str | None
    applied: str | None
    changed: bool
    in_force: str
    note: str


def rows() -> list[Row]:
    """The settings, each with what is in force now.  Imports TensorFlow and Keras; errors of that are raised."""
    import keras
    import tensorflow

    state = _state.current() if _state.armed() else None
    readers = {
        "precision": lambda: str(keras.config.dtype_policy().name),
        "memory": lambda: memory(tensorflow),
        "xla": lambda: xla(tensorflow, keras),
        "threads": lambda: threads(tensorflow),
        "cache": lambda: os.environ.get(_process.CACHE, "CUDA's own"),
    }
    return [_row(name, state, readers[name]()) for name in SETTINGS]


def as_json() -> str:
    """The report as one JSON object."""
    found = rows()
    return json.dumps({"armed": _state.armed(), "settings": found, "problems": list(_problems())}, indent=2)


def as_table() -> str:
    """The report as a table for people."""
    head = ("setting", "asked", "applied", "in force", "note")
    lines = [head]
    for row in rows():
        note = "; ".join(part for part in ("changed by you" if row["changed"] else "", row["note"]) if part)
        lines.append(
            (row["setting"], row["asked"] or "-", row["applied"] or "-", row["in_force"], note or "-")
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    table = ["  ".join([*map(str.ljust, line[:-1], widths), line[-1]]).rstrip() for line in lines]
    unarmed = [] if _state.armed() else ["GPUPOOL_LEASE is not set: no defaults are applied here."]
    return "\n".join([*unarmed, *table, *_problems()])


def memory(tf: Any) -> str:
    """What TensorFlow holds each visible GPU to, as configured."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "no GPU"
    words = []
    for gpu in gpus:
        logical = tf.config.get_logical_device_configuration(gpu)
        if logical is not None:
            words.append("limit of " + " + ".join(f"{device.memory_limit} MiB" for device in logical))
        elif tf.config.experimental.get_memory_growth(gpu) or os.environ.get(_context.GROWTH) == "true":
            words.append("growth")
        else:
            words.append("all of the GPU" if initialized() else "not decided yet")
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def xla(tf: Any, keras: Any) -> str:
    """What compiles with XLA: TensorFlow's autoclustering, and what ``jit_compile="auto"`` comes to in Keras."""
    on = tf.config.optimizer.get_jit() == "autoclustering" or bool(_xla.autoclusters(os.environ))
    compiles = bool(keras.Sequential(name="gpupool_report").jit_compile)
    return f"autoclustering {'on' if on else 'off'}, Keras' auto is {'on' if compiles else 'off'}"


def threads(tf: Any) -> str:
    """The sizes of the two pools: the user's call, else the variable, else TensorFlow's own choice."""
    calls = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    sizes = [
        str(call or os.environ.get(name) or "own") for call, name in zip(calls, _process.THREADS, strict=True)
    ]
    return sizes[0] if sizes[0] == sizes[1] else f"intra {sizes[0]}, inter {sizes[1]}"


def initialized() -> bool:
    """Whether TensorFlow has initialised its devices in this process."""
    module = sys.modules.get("tensorflow.python.eager.context")
    context = module.context_safe() if module is not None and hasattr(module, "context_safe") else None
    return getattr(context, "_context_handle", None) is not None


def _problems() -> tuple[str, ...]:
    return _state.current().settings.problems if _state.armed() else ()


def _row(name: str, state: State | None, in_force: str) -> Row:
    outcome = state.outcomes.get(name) if state is not None else None
    if outcome is None:
        return Row(setting=name, asked=None, applied=None, changed=False, in_force=in_force, note="")
    return Row(
        setting=name,
        asked=outcome.asked,
        applied=outcome.applied,
        changed=outcome.note.startswith("you ") or _changed(name, outcome, in_force),
        in_force=in_force,
        note="waits for TensorFlow's first use of its devices" if outcome.pending else outcome.note,
    )


def _changed(name: str, outcome: Outcome, in_force: str) -> bool:
    """Whether what is in force is neither ours nor what would be there without us."""
    if name == "xla":
        return not outcome.pending and (outcome.applied == "on") != in_force.startswith("autoclustering on")
    if name == "memory" and outcome.applied is None:
        return in_force.startswith(("limit", "growth"))
    return outcome.applied is not None and outcome.applied != in_force
