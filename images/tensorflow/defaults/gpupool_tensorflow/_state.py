"""What this process knows of its defaults: one object, made at the first import of TensorFlow or Keras."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from gpupool_tensorflow import _say, _settings


@dataclass
class Outcome:
    """What became of one setting: what was applied (None: nothing), and a note on why or why not.

    ``pending``: it waits for TensorFlow's first use of its devices.
    """

    asked: str
    applied: str | None = None
    note: str = ""
    pending: bool = False


@dataclass
class State:
    """Settings as read at the first import, and what became of each that was asked.

    ``unknown_tensorflow`` is the version of a TensorFlow whose context cannot be waited for.
    """

    settings: _settings.Settings
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    prepared: bool = False
    unknown_tensorflow: str = ""


_state: State | None = None


def current() -> State:
    """The state of this process; the first call reads the variables and names the bad words, once."""
    global _state
    if _state is None:
        _state = State(_settings.read(os.environ))
        for problem in _state.settings.problems:
            _say.warn(problem)
    return _state


def armed() -> bool:
    """Whether the session still wants defaults: a user may delete the variable before the import."""
    return bool(os.environ.get("GPUPOOL_LEASE"))
