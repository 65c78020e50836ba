"""What the container engine says, and what a container on the pool's network gets from the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psutil

from ..containment import LABEL
from ..profiles import variants
from .facts import Answer, Engine, Hub, Images, Network, Pool, Reach
from .model import Failed, Unknown

ENGINE_SECONDS = 10.0
"""For one answer of the engine."""

PACKAGES = ("docker", "dockerspawner")

MINE = LABEL + "doctor"
"""The label of the doctor's own containers.  They have none of a session's, so no sweep takes one for a session."""
LEFT_AFTER = 600.0
"""Seconds after which a container of a doctor counts as left behind."""

REACH_SECONDS = 8
WAIT_SECONDS = 20.0
REACH = f"""
import sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
try:
    print(opener.open(sys.argv[1], timeout={REACH_SECONDS}).status)
except urllib.error.HTTPError as problem:
    print(problem.code)
except Exception as problem:
    print(getattr(problem, "reason", problem))
"""
"""What the container runs: prints the status of the answer, or why there is none."""

PYTHON = "python3"
NOBODY = "65534:65534"
MEMORY = 256 * 1024 * 1024


def settings(pool: Pool | Unknown) -> dict[str, Any] | Unknown:
    """How to reach the engine; Unknown where this pool has none."""
    if not isinstance(pool, Unknown) and pool.backend != "docker":
        return Unknown(f"Sessions are no containers here (backend {pool.backend}).")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        why = f"The Python packages {' and '.join(missing)} are not installed."
        return (
            Unknown(why)
            if isinstance(pool, Unknown)
            else Failed(why, "pip install 'jupyterhub-gpupool[docker]'")
        )
    given = {} if isinstance(pool, Unknown) else dict(pool.engine)
    return {"timeout": ENGINE_SECONDS, **given}


def engine(pool: Pool | Unknown) -> Engine | Unknown:
    """Ask the engine about itself."""
    given = settings(pool)
    if isinstance(given, Unknown):
        return given
    from ..sessions.docker import ENGINE_ERRORS, connect

    try:
        client = connect(**given)
        try:
            info, is_here = client.info(), str(client.base_url).startswith("http+docker:")
        finally:
            client.close()
    except ENGINE_ERRORS as problem:
        if "Permission denied" in str(problem):
            return Unknown("This account may not ask the container engine: run the doctor as the hub's.")
        why = "The container engine does not answer."
        fix = "systemctl start docker; or DOCKER_HOST names another one"
        return Unknown(why) if isinstance(pool, Unknown) else Failed(why, fix)
    return Engine(
        version=str(info.get("ServerVersion", "")),
        cgroup_driver=str(info.get("CgroupDriver", "")),
        default_runtime=str(info.get("DefaultRuntime", "")),
        runtimes=tuple(info.get("Runtimes") or ()),
        cdi=tuple(str(one.get("ID", "")) for one in info.get("DiscoveredDevices") or ()),
        root=str(info.get("DockerRootDir", "")) if is_here else "",
        live_restore=bool(info.get("LiveRestoreEnabled")),
        warnings=tuple(map(str, info.get("Warnings") or ())),
        security=tuple(map(str, info.get("SecurityOptions") or ())),
        started=_started() if is_here else None,
    )


def _started() -> float | None:
    """When the one engine of this machine started; None where there is none, or more."""
    found = [one for one in psutil.process_iter(["name", "create_time"]) if one.info["name"] == "dockerd"]
    return float(found[0].info["create_time"]) if len(found) == 1 else None


def images(pool: Pool, hub: Hub | Unknown) -> Images | Unknown:
    """Ask the engine for every image that a profile, a choice or the hub names."""
    from ..sessions.docker import ENGINE_ERRORS, connect
    from ..spawners.images import image_id

    own = "" if isinstance(hub, Unknown) else hub.image
    used_by: dict[str, str] = {own: "c.GPUPoolDockerSpawner.image"} if own else {}
    for profile in pool.offer.values():
        for words, layer in variants(profile):
            image = str(layer.get("image") or "")
            if image and "{value}" not in image:
                used_by.setdefault(image, f"profile {profile.slug}{', ' if words else ''}{words}")
    try:
        client = connect(**{"timeout": ENGINE_SECONDS, **pool.engine})
        try:
            return Images({name: image_id(client, name) for name in used_by}, used_by)
        finally:
            client.close()
    except ENGINE_ERRORS:
        return Unknown("The container engine does not say which images it has.")


def network(pool: Pool, hub: Hub | Unknown) -> Network | Unknown:
    """Look at the network of the sessions."""
    from docker.errors import NotFound

    from ..sessions.docker import ENGINE_ERRORS, connect
    from ..spawners.docker import network_of
    from ..spawners.network import ICC

    name = network_of(pool.name) if isinstance(hub, Unknown) or not hub.network else hub.network
    try:
        client = connect(**{"timeout": ENGINE_SECONDS, **pool.engine})
        try:
            found = client.inspect_network(name)
        finally:
            client.close()
    except NotFound:
        return Unknown(f"There is no network {name} yet; the hub makes it at its start.")
    except ENGINE_ERRORS:
        return Unknown("The container engine does not say what the network is.")
    parts = (found.get("IPAM") or {}).get("Config") or ()
    gateway = next((str(part["Gateway"]) for part in parts if part.get("Gateway")), "")
    return Network(name, (found.get("Options") or {}).get(ICC) == "false", gateway)


def reach(pool: Pool, images: Images, network: Network, answer: Answer) -> Reach | Unknown:
    """Have a throw-away container on the sessions' network ask the hub's REST API.

    It is removed in any case, and so are those that a killed doctor has left.
    """
    from ..sessions.docker import ENGINE_ERRORS, connect

    image = next((key for key in images.found.values() if key), None)
    if image is None:
        return Unknown("The engine has none of the images, so no container can be tried.")
    if not answer.version:
        return Unknown(f"The hub does not answer on this machine either ({answer.url}: {answer.why}).")
    try:
        client = connect(**{"timeout": WAIT_SECONDS, **pool.engine})
        try:
            _tidy(client)
            return _try(client, image, network.name, answer.url)
        finally:
            client.close()
    except ENGINE_ERRORS as problem:
        words = " ".join(str(getattr(problem, "explanation", None) or type(problem).__name__).split())
        return Unknown(f"No container could be tried: {words[:200]}.")


def _try(client: Any, image: str, network: str, url: str) -> Reach:
    name = f"gpupool-doctor-{secrets.token_hex(4)}"
    host = client.create_host_config(
        network_mode=network,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=MEMORY,
        memswap_limit=MEMORY,
        pids_limit=64,
        read_only=True,
        restart_policy={"Name": "no"},
    )
    try:
        client.create_container(
            image,
            entrypoint=[PYTHON, "-I", "-c", REACH, url],
            command=[],
            name=name,
            user=NOBODY,
            labels={MINE: "reach"},
            environment={"NVIDIA_VISIBLE_DEVICES": "void"},
            host_config=host,
            healthcheck={"test": ["NONE"]},
        )
        client.start(name)
        client.wait(name, timeout=WAIT_SECONDS)
        said = client.logs(name, stdout=True, stderr=False, tail=1).decode(errors="replace").strip()
    finally:
        _remove(client, name)
    if said.isascii() and said.isdigit():
        return Reach(url, int(said))
    return Reach(url, None, said[:200] or "it ended without a word")


def _remove(client: Any, name: str) -> None:
    from ..sessions.docker import ENGINE_ERRORS

    with contextlib.suppress(*ENGINE_ERRORS):  # not there, or the next doctor's work
        client.remove_container(name, force=True, v=True)


def _tidy(client: Any) -> None:
    """Remove what doctors have left that were killed."""
    for one in client.containers(all=True, filters={"label": [MINE]}):
        if time.time() - _created(one) > LEFT_AFTER:
            _remove(client, str(one["Id"]))


def _created(container: Mapping[str, Any]) -> float:
    at = container.get("Created", 0)
    return datetime.fromisoformat(at).timestamp() if isinstance(at, str) else float(at)
