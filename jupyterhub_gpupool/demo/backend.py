"""Containers or processes: what the demo can have on this machine, and why not the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..containment import image_problem
from ..sessions import Sessions
from ..sessions.local import LocalSessions
from .model import Backend, fail
from .state import kept

BACKENDS = ("auto", "docker", "local")
PACKAGES = ("docker", "dockerspawner")
VARIANTS = ("cpu", "gpu")
"""Of the image, the first that is there: the GPUs are simulated, so the small one does all that both can."""

ENGINE_TIMEOUT = 10.0
"""Seconds that the engine has to answer."""

LONGEST_REASON = 200


def read_backend(environ: Mapping[str, str]) -> str:
    """Read GPUPOOL_BACKEND (auto)."""
    wanted = environ.get("GPUPOOL_BACKEND") or "auto"
    if wanted not in BACKENDS:
        fail(f"GPUPOOL_BACKEND={wanted!r} is no backend of the demo; use {', '.join(BACKENDS)}.")
    return wanted


def choose_backend(wanted: str, image: str, images: Path | None, running: str = "") -> Backend:
    """Decide how sessions run, and say so where ``auto`` leaves it open.

    ``image`` is the one that was asked for, and where that is empty, one that `make image` has built in
    the folder ``images``.  ``running`` is the backend of sessions that still run: this start goes on with
    them.  Where that, or ``docker``, cannot be had, the process ends with a sentence.
    """
    if running and wanted not in (running, "auto"):
        fail(
            f"Sessions of this demo still run with GPUPOOL_BACKEND={running}, which would be lost to this start. "
            f"Start it with that one; Ctrl-C there ends them."
        )
    if wanted == "local" or running == "local":
        return Backend("local")
    try:
        found = Backend("docker", find_image(image, images))
    except ValueError as problem:
        if wanted == "docker" or running:
            fail(f"GPUPOOL_BACKEND=docker cannot be had, because {problem}")
        print(f"gpupool: sessions will be processes (backend local), because {problem}", flush=True)
        return Backend("local")
    if wanted == "auto":
        print(
            "gpupool: sessions will be containers (backend docker), because the engine answers and has their image. "
            "`GPUPOOL_BACKEND=local make demo` makes them processes.",
            flush=True,
        )
    return found


def find_image(image: str, images: Path | None) -> str:
    """Find the sessions' image on an engine that this demo can use, and return its id.

    Raises ValueError with what follows a "because": what is missing, and the command that mends it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the Python packages {' and '.join(missing)} are not installed. `GPUPOOL_BACKEND=docker make demo` "
            "installs them."
        )
    from ..sessions.docker import ENGINE_ERRORS, connect
    from ..spawners.images import image_id
    from ..spawners.network import is_here

    if image and (problem := image_problem(image, "*")):
        raise ValueError(f"GPUPOOL_IMAGE names none. {problem}")
    built = [kept(images / f"digest-{variant}") for variant in VARIANTS] if images else []
    wanted = [image] if image else built
    try:
        engine = connect(timeout=ENGINE_TIMEOUT)
        try:
            found = next((key for name in wanted if name and (key := image_id(engine, name))), "")
            here = all(map(is_here, gateways_of(engine)))
        finally:
            engine.close()
    except ENGINE_ERRORS as error:
        raise ValueError(
            f"the container engine does not answer ({reason_of(error)}). Start it (`systemctl start docker`), "
            "let this account use it (group docker), or set DOCKER_HOST."
        ) from error
    if not found and image:
        raise ValueError(
            f"the engine has no image {image!r}. `docker pull {image}` fetches one that is public."
        )
    if not found:
        raise ValueError("the engine has no image for the sessions. `make image VARIANT=cpu` builds it.")
    if not here:
        raise ValueError(
            "the engine's networks are not this machine's, so containers would not find the hub: it runs "
            "elsewhere, in a virtual machine, or rootless. DOCKER_HOST names another engine."
        )
    return found


def gateways_of(engine: Any) -> list[str]:
    """At which addresses containers of the engine's own network reach its machine."""
    found = [network for network in engine.networks(names=["bridge"]) if network["Name"] == "bridge"]
    parts = [part for network in found for part in (network.get("IPAM") or {}).get("Config") or ()]
    return [part["Gateway"] for part in parts if part.get("Gateway") and ":" not in part["Gateway"]]


def reason_of(error: BaseException) -> str:
    """What is at the bottom of an error, in a few words."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:LONGEST_REASON] or type(error).__name__


def sessions_of(backend: str, pool: str) -> Sessions | None:
    """Who asks and tells this backend about the demo's sessions; None where its packages are not installed."""
    if backend != "docker":
        return LocalSessions(pool)
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        return None
    from ..sessions.docker import DockerSessions

    return DockerSessions(pool)


def runs(backend: str, pool: str) -> bool:
    """Whether sessions of this demo run on a backend, as far as it says."""
    sessions = sessions_of(backend, pool)
    return sessions is not None and any(one.running for one in sessions.list() or ())
