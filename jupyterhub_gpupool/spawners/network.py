"""The containers' own network: they reach the hub and the world, but not each other."""

from __future__ import annotations

import socket

import docker
from docker.errors import APIError, NotFound

from ..sessions.docker import LABEL

ICC = "com.docker.network.bridge.enable_icc"


def is_here(address: str) -> bool:
    """Whether this is an address of this machine."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def ensure_network(engine: docker.APIClient, name: str, pool: str) -> str:
    """Find or create the network; returns the address at which its containers reach this machine.

    Raises ValueError with a sentence where the network cannot serve, and the engine's errors.
    """
    try:
        found = engine.inspect_network(name)
    except NotFound:
        try:
            engine.create_network(
                name,
                driver="bridge",
                options={ICC: "false"},
                labels={LABEL + "pool": pool},
                check_duplicate=True,
            )
        except APIError as problem:
            if problem.status_code != 409:  # somebody else was quicker
                raise
        found = engine.inspect_network(name)
    if (found.get("Options") or {}).get(ICC) != "false":
        raise ValueError(
            f"The network {name!r} lets containers talk to each other. Remove it with `docker network rm {name}` "
            "while no session runs; it is made anew."
        )
    for part in (found.get("IPAM") or {}).get("Config") or ():
        if gateway := part.get("Gateway"):
            return str(gateway)
    raise ValueError(
        f"The network {name!r} has no gateway, so its containers cannot reach the hub; allowed is a bridge network."
    )
