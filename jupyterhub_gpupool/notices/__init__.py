"""Telling people what happens to their sessions: what, to whom, by which channel, and the ways out.

:mod:`.rules` decides and is pure; :mod:`.mail` and :mod:`.webhook` send; :mod:`.settings` is the configuration.
What was told and what still has to be is kept in the ledger.
"""

from .rules import (
    ACTIONS,
    CHANNELS,
    DUE,
    EVENTS,
    FAILED,
    FAILS,
    KEPT,
    LOST,
    RUNNING,
    SCRIPT_ENDS,
    SEEN_BY,
    Choice,
    NoAddress,
    Notice,
    Occasion,
    Rules,
    address_of,
    check_address,
    decide,
    pause,
    why_ended,
)

__all__ = [
    "ACTIONS",
    "CHANNELS",
    "DUE",
    "EVENTS",
    "FAILED",
    "FAILS",
    "KEPT",
    "LOST",
    "RUNNING",
    "SCRIPT_ENDS",
    "SEEN_BY",
    "Choice",
    "NoAddress",
    "NotTaken",
    "Notice",
    "Occasion",
    "Rules",
    "address_of",
    "check_address",
    "decide",
    "pause",
    "why_ended",
]


class NotTaken(Exception):
    """A receiver did not take a notice; ``final``: it never will."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
