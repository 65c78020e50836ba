"""The errors that may reach a person, and the one that may not.

::

    GPUPoolError
    ├── Rejected        never possible: unknown choice, no right, larger than the pool or a limit
    ├── Unavailable     not now: queue full, waited too long, ledger out of reach
    └── LeaseConflict   internal: the row is not what the caller believed

``message`` is the sentence for the person, ``reason`` a word from a small fixed set (it becomes a metric
label and the ``reason`` of a REST error), ``status`` the HTTP status.  Only ``spawners/base.py`` and
``service/handlers.py`` turn them into answers.
"""

from __future__ import annotations


class GPUPoolError(Exception):
    """Base of all errors of the pool."""

    status = 500

    def __init__(self, message: str, *, reason: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.status = status or self.status


class Rejected(GPUPoolError):
    """What was asked for can never be had, or not by this person."""

    status = 400


class Unavailable(GPUPoolError):
    """What was asked for cannot be had now; asking again later may help."""

    status = 503


class LeaseConflict(GPUPoolError):
    """The lease is in another state, or at another version, than the caller named."""

    status = 409

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="conflict")
