"""How a refusal of the pool reaches a person through JupyterHub, on every supported version."""

from __future__ import annotations

from typing import Any

from tornado import web

from ..errors import GPUPoolError, LeaseConflict, Unavailable

try:
    from jupyterhub.spawner import SpawnException

    COUNTS_AS_FAILURE = False
except ImportError:  # before JupyterHub 6 a refusal counts as a failed start whatever it is
    SpawnException = None
    COUNTS_AS_FAILURE = True


if SpawnException is not None:

    class Refusal(SpawnException):
        """A refusal with its sentence; never counts as a failed start."""

        def __init__(self, problem: GPUPoolError) -> None:
            super().__init__(problem.message, reason=problem.reason, status_code=problem.status)
            self.jupyterhub_message = problem.message

else:

    class Refusal(web.HTTPError):  # type: ignore[no-redef]
        """A refusal with its sentence."""

        def __init__(self, problem: GPUPoolError) -> None:
            super().__init__(problem.status, problem.message)
            self.reason = problem.reason
            self.jupyterhub_message = problem.message

        def __str__(self) -> str:
            return self.jupyterhub_message


class Notice(web.HTTPError):
    """Shows the form instead of starting anything.  Not an error, so it has no text: the form says why."""

    jupyterhub_message = ""

    def __init__(self) -> None:
        super().__init__(200)

    def __str__(self) -> str:
        return self.jupyterhub_message


def refuse(problem: GPUPoolError, handler: Any) -> Refusal:
    """The exception for a refusal.  On JupyterHub 5 its count as a failed start is taken back first."""
    if isinstance(problem, LeaseConflict):  # its own words are for the log
        problem = Unavailable(
            "Your request was ended while it was being served. Please start again.", reason=problem.reason
        )
    if COUNTS_AS_FAILURE and handler is not None:
        settings = handler.settings
        settings["failure_count"] = settings.get("failure_count", 0) - 1
    return Refusal(problem)


def refuse_other(differences: list[str]) -> None:
    """Raise Unavailable when a session differs from its lease."""
    if differences:
        raise Unavailable(
            f"The session did not get what its lease says ({'; '.join(differences)}) and was ended.",
            reason="wrong-slice",
        )
