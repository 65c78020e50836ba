"""What keeps a session inside its container: what every container gets, and what no profile may ask for.

Pure: no engine, no I/O.  Settings are those of DockerSpawner, by their names there; keys of the host
configuration may be spelt as docker-py spells them (``pid_mode``) or as the engine does (``PidMode``).
"""

from __future__ import annotations

from .hardening import (
    GIVEN,
    LOG_FILES,
    LOG_SIZE,
    PIDS,
    SHM_SIZE,
    TMP_SIZE,
    binds_cpus,
    combine,
    host_config,
    reference,
)
from .names import LABEL, MPS_SHARED, NO_DEVICE, image_problem, user_problem, volume_name
from .paths import path_problem
from .rules import DANGERS, dangers, owned, refusals

__all__ = [
    "DANGERS",
    "GIVEN",
    "LABEL",
    "LOG_FILES",
    "LOG_SIZE",
    "MPS_SHARED",
    "NO_DEVICE",
    "PIDS",
    "SHM_SIZE",
    "TMP_SIZE",
    "binds_cpus",
    "combine",
    "dangers",
    "host_config",
    "image_problem",
    "owned",
    "path_problem",
    "reference",
    "refusals",
    "user_problem",
    "volume_name",
]
