"""One pool of GPUs for a JupyterHub: exact slices, a fair queue, idle ones taken back after a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traitlets.config import Config

__version__ = "0.1.0"


def configure(c: Config, backend: str = "docker") -> None:
    """Turn a hub into a GPU pool: the last line of a ``jupyterhub_config.py``.

    Sets the spawner class, the service with its role of least scopes, time-outs and page templates, and
    checks every key of ``c.GPUPool``, ``c.GPUPoolService``, ``c.NvidiaDevices``, ``c.SimulatedDevices`` and the
    spawner: a wrong one stops the hub with a sentence.  Homes and the service's private files go beside the
    ledger, which ``GPUPool.database_url`` names, unless they are configured elsewhere.
    """
    from .configuration import apply

    apply(c, backend)
