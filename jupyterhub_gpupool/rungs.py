"""What holds a session to its slice, and how far that goes, in words.  Pure; the one home of these words."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from .model import Kind


class Rung(StrEnum):
    """What holds a session, as a lease keeps it."""

    UNKNOWN = ""
    """Not known yet, or not written down by an earlier version."""
    NONE = "none"
    """There is no GPU to be held to."""
    SIMULATED = "none (simulated)"
    WATCHED = "watchdog (simulated)"
    """A share of a simulated GPU."""
    DEVICES = "devices"
    """Whole GPUs: the others are not visible."""
    HARDWARE = "hardware"
    """A MIG instance."""
    MPS = "mps+watchdog"
    """A share of a GPU that its group shares through MPS."""
    FRAMEWORK = "framework+watchdog"
    WATCHDOG = "watchdog"


_WORDS = {
    Rung.UNKNOWN: "not known",
    Rung.NONE: "no GPU",
    Rung.SIMULATED: "nothing: the GPU is simulated",
    Rung.DEVICES: "only these devices are visible",
    Rung.HARDWARE: "the hardware (MIG): its memory and its computing units are its own",
}

_WATCH = {
    True: "a watchdog that stops a session whose processes together hold more",
    False: "a watchdog that notices a session whose processes together hold more, and stops nothing in this mode",
    None: "a watchdog over what its processes hold together",
}
_REST = "Others on the GPU are not held back from computing, and an error of theirs can reach this session"


def rung_of(kind: Kind, *, simulated: bool, limited: bool | None, mps: bool = False) -> Rung:
    """What holds a slice of this kind.

    ``limited``: whether TensorFlow in the session is told its limit and keeps to it; None: not known, so that
    no more is claimed than there is.  ``mps``: whether its GPU is shared through MPS.
    """
    if kind is Kind.CPU:
        return Rung.NONE
    if simulated:
        return Rung.WATCHED if kind is Kind.SHARE else Rung.SIMULATED
    match kind:
        case Kind.MIG:
            return Rung.HARDWARE
        case Kind.GPU:
            return Rung.DEVICES
        case _ if mps:
            return Rung.MPS
        case _:
            return Rung.FRAMEWORK if limited else Rung.WATCHDOG


def shown(rung: str, kind: Kind, *, simulated: bool) -> str:
    """The rung of a lease: what is written down, else what is certain of its kind before it runs."""
    if rung or (kind is Kind.SHARE and not simulated):
        return rung
    return rung_of(kind, simulated=simulated, limited=None).value


def is_limited(tensorflow: Mapping[str, str], checked: Mapping[str, Any]) -> bool:
    """Whether TensorFlow in a session keeps to a limit: the profile asks for it, and the image knows of it.

    ``checked`` is the launch check as a lease has it: an image that has no check has no defaults package.
    """
    return tensorflow.get("memory", "limit") == "limit" and not (checked and checked["passed"] is None)


def in_words(rung: str, *, stops: bool | None = True) -> str:
    """A rung for a person; ``stops``: whether the service stops sessions, None: not known here."""
    try:
        known = Rung(rung)
    except ValueError:  # a later version's
        return "not known"
    match known:
        case Rung.MPS:
            return (
                "MPS: a limit of GPU memory for each process by itself, and of its part of the computing where the "
                f"profile names one, and {_WATCH[stops]}. What is given up: sessions on this GPU share /dev/shm and "
                "one account, and a fatal error of one ends the GPU programs of all others on it"
            )
        case Rung.FRAMEWORK:
            return (
                f"TensorFlow's own limit, for each process by itself, and {_WATCH[stops]}. Other programs have no "
                f"limit of their own. {_REST}"
            )
        case Rung.WATCHDOG:
            return f"{_WATCH[stops]}; no other limit is known of. {_REST}"
        case Rung.WATCHED:
            return f"nothing: the GPU is simulated; main memory stands for its memory, under {_WATCH[stops]}"
        case _:
            return _WORDS[known]
