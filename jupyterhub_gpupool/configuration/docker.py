"""What the Docker backend needs of a hub: safe settings, allowed images, a network, and an address on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from traitlets.config import Config

from .. import containment, profiles
from ..pool import GPUPool
from ..profiles import Profile
from ..sessions.docker import ENGINE_ERRORS, connect
from ..spawners.docker import GPUPoolDockerSpawner, engine_settings, network_of
from ..spawners.network import ensure_network, is_here
from . import plain

SECTIONS = ("DockerSpawner", GPUPoolDockerSpawner.__name__)
"""Where settings of the spawner may stand; the later one wins."""

HUB_ADDRESS = ("hub_ip", "hub_bind_url", "hub_connect_ip", "hub_connect_url")
REACHED_AT = "hub-address"
"""File of the state folder: at which address of this machine containers reach the hub."""

TIMEOUT = 20.0
"""Seconds that the engine has to answer while the hub starts."""


def prepare(c: Config, pool: GPUPool, state: Path) -> None:
    """Check settings and images, make the network, and bind the hub where containers reach it.

    Raises ValueError with a sentence for the admin.
    """
    given = _settings(c)
    for sentence in _refused(given, pool.offer, pool.datasets):
        raise ValueError(sentence)
    _check_images(given, pool.offer)
    settings = engine_settings(given.get("client_kwargs") or {}, given.get("tls_config") or {})
    c.GPUPoolService.setdefault("engine", settings)
    if "network_name" in given:
        return  # the admin's own network, and so the hub's address
    address, kept = _address(settings, pool.name, state)
    if any(name in c.JupyterHub for name in HUB_ADDRESS):
        return
    if not is_here(address):
        raise ValueError(
            "The container engine does not answer, and its network is not there yet: start it first "
            "(`systemctl start docker`)."
            if kept
            else f"Containers look for the hub at {address}, which is no address of this machine: the engine runs "
            "elsewhere, in a virtual machine, rootless, or not at all. Name another engine with DOCKER_HOST, or "
            "say with c.JupyterHub.hub_ip and hub_connect_ip where its containers reach the hub."
        )
    c.JupyterHub.hub_ip = address


def _settings(c: Config) -> dict[str, Any]:
    """What the file has set of the spawner, both sections laid together."""
    found: dict[str, Any] = {}
    for section in SECTIONS:
        if section in c:
            found |= plain(c[section], GPUPoolDockerSpawner)
    return found


def _layers(offer: Mapping[str, Profile]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every profile with every choice: its name for a message, and what it comes to."""
    for profile in offer.values():
        for words, layer in profiles.variants(profile):
            yield f"Profile {profile.slug!r}{', ' if words else ''}{words}", layer


def _refused(
    given: Mapping[str, Any], offer: Mapping[str, Profile], datasets: Mapping[str, str]
) -> Iterator[str]:
    """Sentences for settings that belong to the pool, or are dangerous and not accepted."""
    accepted = tuple(given.get("unsafe") or ())
    for name in accepted:
        if name not in containment.DANGERS:
            yield (
                f"c.{SECTIONS[-1]}.unsafe names {name!r}, which is no danger that is known. "
                f"Allowed: {', '.join(containment.DANGERS)}."
            )
    mounted = {"read_only_volumes": dict.fromkeys(datasets.values(), "/datasets")}
    for sentence in containment.refusals(mounted, accepted):
        yield f"c.GPUPool.datasets: {sentence}"
    for sentence in containment.refusals(given, accepted):
        yield f"c.{SECTIONS[-1]}: {sentence}"
    for where, layer in _layers(offer):
        override = layer.get("spawner_override") or {}
        for sentence in containment.refusals(override, (*accepted, *(layer.get("unsafe") or ()))):
            yield f"{where}: spawner_override: {sentence}"


def _check_images(given: Mapping[str, Any], offer: Mapping[str, Profile]) -> None:
    own = given.get("image")
    listed = given.get("allowed_images") or ()
    if callable(listed):
        return  # asked at each start
    allowed = {
        **(listed if isinstance(listed, Mapping) else dict.fromkeys(listed, "")),
        **({own: own} if own else {}),
    }
    for where, layer in _layers(offer):
        image = layer.get("image") or own
        if not image:
            raise ValueError(
                f"{where} names no image, and there is no c.{SECTIONS[-1]}.image. `make image` builds one "
                "and prints the line to write."
            )
        if "{value}" in image:
            continue  # read when the person's text is in it
        if problem := containment.image_problem(image, "*" if listed == "*" else allowed):
            raise ValueError(f"{where}: {problem}")


def _address(settings: Mapping[str, Any], pool: str, state: Path) -> tuple[str, bool]:
    """Where containers reach this machine, and whether that is what an earlier start has kept.

    Kept, so that a hub also starts while the engine is away.
    """
    kept = state / REACHED_AT
    try:
        engine = connect(**{"timeout": TIMEOUT, **settings})
        try:
            address = ensure_network(engine, network_of(pool), pool)
        finally:
            engine.close()
    except ENGINE_ERRORS as problem:
        if not kept.exists():
            raise ValueError(
                f"The container engine does not answer ({problem}). Start it (`systemctl start docker`), let this "
                "account use it (group docker), or set DOCKER_HOST."
            ) from problem
        print(
            f"gpupool: the container engine does not answer, sessions wait for it: {problem}", file=sys.stderr
        )
        return str(json.loads(kept.read_text())), True
    kept.write_text(json.dumps(address))
    return address, False
