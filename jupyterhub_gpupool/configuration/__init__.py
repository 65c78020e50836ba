"""What :func:`jupyterhub_gpupool.configure` does; all of it can also be written out by hand."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from jupyterhub.app import JupyterHub
from traitlets import Dict, List, TraitError
from traitlets.config import Config, Configurable
from traitlets.config.loader import LazyConfigValue

from .. import fairness, profiles
from ..devices.nvidia.inventory import NvidiaDevices
from ..devices.prometheus import PrometheusTelemetry
from ..devices.simulated import SimulatedDevices
from ..errors import Unavailable
from ..ledger import OTHER_HUB, HubRow, file_of, url_of
from ..notices import functions
from ..notices.settings import ENVIRONMENT as SECRETS
from ..notices.settings import GPUPoolNotices
from ..pool import GPUPool
from ..pool.claiming import claim
from ..service.app import GPUPoolService
from ..spawners.base import GPUPoolMixin
from . import hub

BACKENDS: dict[str, str] = {
    "docker": "jupyterhub_gpupool.spawners.docker:GPUPoolDockerSpawner",
    "local": "jupyterhub_gpupool.spawners.local:GPUPoolLocalSpawner",
}
"""The spawner of each backend; imported only where it is used, because each needs packages of its own."""

HANDED_ENVIRONMENT = (
    *("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"),
    *("PGPASSFILE", "PGSERVICEFILE", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGPASSWORD"),
)
"""The service speaks to the same engine as the spawners, and to the same database as the hub."""

SCOPES = ["read:servers", "delete:servers"]
"""``read:servers``: is a server known, and since when; ``delete:servers``: stop an idle one, cancel a start."""

TEMPLATES = Path(__file__).parent.parent / "templates" / "hub"
"""Pages of the hub that the pool replaces: waiting, and not running after a restart of the hub."""

SECTIONS: dict[str, type[Configurable]] = {
    "GPUPool": GPUPool,
    "GPUPoolService": GPUPoolService,
    "GPUPoolNotices": GPUPoolNotices,
    "NvidiaDevices": NvidiaDevices,
    "PrometheusTelemetry": PrometheusTelemetry,
    "SimulatedDevices": SimulatedDevices,
}
"""Sections of every backend; its spawner's comes with it."""


def spawner_of(backend: str) -> type[GPUPoolMixin]:
    """Import the spawner class of a backend; stop with a sentence where its packages are missing."""
    module, _, name = BACKENDS[backend].partition(":")
    try:
        found: type[GPUPoolMixin] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("jupyterhub_gpupool"):
            raise
        _stop(
            f"The backend {backend!r} needs the package {missing.name!r}, which is not installed: "
            f"pip install 'jupyterhub-gpupool[{backend}]'."
        )
    return found


def apply(c: Config, backend: str) -> None:
    """Set spawner, service, role, time-outs and templates; stop the hub with one sentence where a key is wrong."""
    if backend not in BACKENDS:
        _stop(f"configure(backend={backend!r}): this version knows {', '.join(map(repr, sorted(BACKENDS)))}.")
    spawner = spawner_of(backend)
    state = _state(c)
    if backend == "local":
        c.GPUPoolLocalSpawner.setdefault("homes", str(state / "homes"))
    c.GPUPoolService.state_dir = str(state)
    c.GPUPoolService.backend = backend
    c.GPUPoolService.devices = devices_of(c)
    pool = _check(c, spawner)
    if JupyterHub.initialized():  # not so for `jupyterhub token`, and for who only reads the file
        _claim(pool)  # before anything is written that the hub which serves the pool may use
    if backend == "docker":
        from .docker import prepare  # needs the extra "docker"

        try:
            prepare(c, pool, state)
        except ValueError as problem:
            _stop(str(problem))
    _hub(c, spawner)
    _service(c, state)
    hub.write(c, spawner, state)
    for sentence in (*profiles.warnings(pool.offer), *_slips(c, pool)):
        _say(sentence)


def _slips(c: Config, pool: GPUPool) -> list[str]:
    """What is probably a slip in the limits.  Groups are known only where the hub's configuration names them."""
    named = c.JupyterHub.get("load_groups")
    groups = set(named) if isinstance(named, dict) and named else None
    found = fairness.warnings(
        pool.caps, groups, [profile.slug for profile in pool.offer.values()], time.time()
    )
    return [f"GPUPool.limits: {sentence}" for sentence in found]


def devices_of(c: Config) -> str:
    """Which GPUs the pool shares out: the real ones, unless simulated ones are configured.

    Ends the process with a sentence where that cannot be told, or cannot be had.
    """
    simulated = "gpus" in c.SimulatedDevices
    if "devices" in c.GPUPoolService:
        chosen = str(c.GPUPoolService.devices)
    elif simulated and c.NvidiaDevices:
        _stop(
            "Both c.SimulatedDevices.gpus and c.NvidiaDevices are set. Say with c.GPUPoolService.devices which GPUs "
            "the pool shares out: 'nvidia' or 'simulated'."
        )
    else:
        chosen = "simulated" if simulated else "nvidia"
    if chosen == "simulated" and not simulated:
        _stop(
            "No simulated GPUs are configured: set c.SimulatedDevices.gpus, for example "
            '[{"model": "A100-SXM4-80GB", "memory": "80G", "count": 2}].'
        )
    if chosen == "nvidia" and importlib.util.find_spec("pynvml") is None:
        _stop(
            "Real GPUs need the package nvidia-ml-py, which is not installed: "
            "pip install 'jupyterhub-gpupool[nvidia]'. For simulated ones set c.SimulatedDevices.gpus."
        )
    return chosen


def _state(c: Config) -> Path:
    """The folder for what the pool keeps: the ledger's, or the one that is named for a ledger on a server."""
    url = str(c.GPUPool.get("database_url") or "sqlite:///gpupool.sqlite")
    try:
        file = file_of(url)
    except ValueError as problem:
        _stop(f"c.GPUPool.database_url: {problem}")
    if file is None:
        state = Path(c.GPUPoolService.get("state_dir") or ".").resolve()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return state
    file = file.resolve()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    c.GPUPool.database_url = url_of(file)  # the service has a working directory of its own
    return file.parent


def _hub(c: Config, spawner: type[GPUPoolMixin]) -> None:
    c.JupyterHub.spawner_class = spawner
    # People wait inside start(): the pool bounds its queue and its launches, these would refuse who waits.
    c.JupyterHub.concurrent_spawn_limit = 0
    c.JupyterHub.active_server_limit = 0
    # Sessions outlive an orderly stop of the hub and are adopted at its next start.
    c.JupyterHub.setdefault("cleanup_servers", False)
    c.Spawner.setdefault("http_timeout", 60)
    settings = dict(_given(c, "tornado_settings", {}))
    settings.setdefault("slow_spawn_timeout", 2)
    c.JupyterHub.tornado_settings = settings
    c.JupyterHub.template_paths = [*_given(c, "template_paths", []), str(TEMPLATES)]


def _service(c: Config, state: Path) -> None:
    handed = {
        name: {key: functions.name_of(v) if callable(v) else v for key, v in plain(c[name], owner).items()}
        for name, owner in SECTIONS.items()
        if name in c
    }
    path = state / "service.json"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(handed, file)
    c.JupyterHub.services = [
        *_given(c, "services", []),
        {
            "name": "gpupool",
            "url": f"http://127.0.0.1:{c.GPUPoolService.get('port') or _port(state)}",
            "command": [sys.executable, "-m", "jupyterhub_gpupool", "service", str(path)],
            "environment": {
                "GPUPOOL_HUB_PID": str(os.getpid()),
                # It alone knows the secrets of notices.
                **{name: os.environ[name] for name in (*HANDED_ENVIRONMENT, *SECRETS) if name in os.environ},
            },
            "oauth_no_confirm": True,
            "display": True,
        },
    ]
    roles = list(_given(c, "load_roles", []))
    roles.append({"name": "gpupool", "services": ["gpupool"], "scopes": SCOPES})
    access = "access:services!service=gpupool"
    mine = next((role for role in roles if role["name"] == "user"), None)
    if mine is None:
        roles.append({"name": "user", "scopes": ["self", access]})
    else:
        mine["scopes"] = [*mine.get("scopes", ["self"]), access]
    c.JupyterHub.load_roles = roles


def _given(c: Config, name: str, default: Any) -> Any:
    """A setting of the hub as the file has left it, also where it only appended to a default."""
    value = c.JupyterHub.get(name, default)
    return value.get_value(default) if isinstance(value, LazyConfigValue) else value


def plain(section: Config, owner: type[Configurable]) -> dict[str, Any]:
    """A section as plain values: what was only appended or updated is laid over the default."""
    found = {name: value for name, value in section.items() if not isinstance(value, Config)}
    for name, value in found.items():
        if isinstance(value, LazyConfigValue):
            found[name] = value.get_value({Dict: {}, List: []}.get(type(owner.class_traits()[name])))
    return found


def _port(state: Path) -> int:
    """The service's port: chosen once and kept, so that open pages find it again."""
    path = state / "service-port"
    if path.exists():
        return int(path.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    path.write_text(str(port))
    return port


def _check(c: Config, spawner: type[GPUPoolMixin]) -> GPUPool:
    """Check every key of the pool's sections, and every value, before anything starts."""
    sections: dict[str, type[Configurable]] = {**SECTIONS, spawner.__name__: spawner}
    for section, owner in sections.items():
        known = set(owner.class_trait_names(config=True))
        for key in c.get(section, {}):
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                own = sorted(owner.class_own_traits(config=True))
                _stop(f"c.{section}.{key} is not a setting.{hint} Allowed: {', '.join(own)}.")
    try:
        pool = GPUPool(config=c)
        SimulatedDevices(config=c)
        NvidiaDevices(config=c)
        PrometheusTelemetry(config=c)
        GPUPoolService(config=Config({"GPUPoolService": c.GPUPoolService}))
        GPUPoolNotices(config=c).check()
    except (TraitError, ValueError) as problem:
        _stop(str(problem))
    known = set(spawner.class_trait_names(config=True))
    for profile in pool.offer.values():
        for key in sorted(_overridden(profile) - known):
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            _stop(
                f"Profile {profile.slug!r}: spawner_override names {key!r}, which {spawner.__name__} does not have."
                f"{hint}"
            )
    return pool


def _overridden(profile: profiles.Profile) -> set[str]:
    """The spawner's settings that a profile or one of its choices sets."""
    layers = [profile.layer]
    for option in profile.options.values():
        layers += [choice.layer for choice in option.choices.values()]
        layers += [option.unlisted.entry] if option.unlisted else []
    return {name for layer in layers for name in layer.get("spawner_override") or {}}


def _claim(pool: GPUPool) -> None:
    """Let this hub serve the pool, and say so from now on; stop it while another one does.

    A ledger that cannot be opened now stops nobody: sessions are to be adopted once it can.
    """
    try:
        ledger = pool.ledger()
        try:
            claim(ledger, pool.hub_name, patience=ledger.policy.beat_age + 1, waits=_tell_wait)
        finally:
            ledger.close_database()
    except Unavailable as problem:
        if problem.reason == OTHER_HUB:
            _stop(problem.message)
        _say(problem.message)
    hub = JupyterHub.instance()
    # Not before the whole configuration is read: this is the pool of the spawners, too.
    asyncio.get_running_loop().call_soon(lambda: GPUPool.shared(config=hub.config, log=hub.log).begin())


def _tell_wait(other: HubRow) -> None:
    _say(
        f"The hub {other.name!r} on {other.host} served this pool {max(0.0, other.silent):.0f} s ago; waiting for it "
        "to be gone, or to say that it lives."
    )


def _say(sentence: str) -> None:
    print(f"gpupool: {sentence}", file=sys.stderr, flush=True)


def _stop(sentence: str) -> NoReturn:
    raise SystemExit(f"gpupool: {sentence}")
