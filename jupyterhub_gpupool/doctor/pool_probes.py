"""What the pool and the hub say: their files, the ledger, the hub's REST API, the proxy's program."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

from traitlets import TraitError
from traitlets.config import Config

from ..configuration.hub import HUB
from ..errors import GPUPoolError
from ..ledger import Ledger, file_of
from ..pool import GPUPool
from .asking import which
from .facts import Answer, Books, Hub, Pool
from .model import Failed, Unknown

HTTP_SECONDS = 5.0
MOST_ANSWER = 4096
SECRET = "service-cookie-secret"

NO_CONFIGURATION = "The hub's configuration is not known: there is no {}. Name the file with --config."


def pool(path: Path | None) -> Pool | Unknown:
    """Read what ``configure`` has handed to the service."""
    if path is None:
        return Unknown(NO_CONFIGURATION.format("service.json beside a ledger that is no file"))
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
        own, service = sections["GPUPool"], sections["GPUPoolService"]
        read = GPUPool(config=Config({"GPUPool": dict(own)}))
        return Pool(
            name=read.name,
            backend=str(service.get("backend", "local")),
            offer=read.offer,
            mode=str(service.get("mode", "observe")),
            sweep_interval=float(service.get("sweep_interval", 10)),
            simulated=bool((sections.get("SimulatedDevices") or {}).get("gpus")),
            engine=dict(service.get("engine") or {}),
        )
    except FileNotFoundError:
        return Unknown(NO_CONFIGURATION.format(path))
    except PermissionError:
        return Unknown(f"This account may not read {path}: run the doctor as the hub's.")
    except OSError as problem:
        return Failed(f"{path} cannot be read: {problem.strerror}.")
    except (ValueError, KeyError, TypeError, AttributeError, TraitError):
        return Failed(
            f"{path} is not a configuration that configure() wrote.", "restart the hub, which writes it"
        )


def hub(path: Path | None) -> Hub | Unknown:
    """Read what the hub was configured to be at its last start."""
    if path is None:
        return Unknown("The hub's settings are not known.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return _hub(said)
    except FileNotFoundError:
        return Unknown(
            f"The hub's settings are not known: there is no {path}, which configure() writes at its start."
        )
    except OSError as problem:
        return Unknown(f"The hub's settings are not known: {path} cannot be read: {problem.strerror}.")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unknown(f"{path} is not what configure() wrote; the next start of the hub writes it anew.")


def _hub(said: Any) -> Hub:
    def number(name: str) -> float | None:
        value = said[name]
        return float(value) if isinstance(value, int | float) else None

    limit = number("failure_limit")
    return Hub(
        api=str(said["api"]),
        cleanup_servers=bool(said["cleanup_servers"]),
        proxy=str(said["proxy"]),
        proxy_command=str(said["proxy_command"]),
        proxy_started=bool(said["proxy_started"]),
        cullers=tuple((str(one["name"]), str(one["timeout"])) for one in said["cullers"]),
        inner_cullers=tuple(map(str, said["inner_cullers"])),
        scopes=frozenset(map(str, said["scopes"])),
        service_admin=bool(said["service_admin"]),
        user_scopes=frozenset(map(str, said["user_scopes"])),
        start_timeout=number("start_timeout"),
        http_timeout=number("http_timeout"),
        failure_limit=None if limit is None else int(limit),
        image=str(said["image"]),
        images=tuple(map(str, said["images"])),
        gpu_access=str(said["gpu_access"] or ""),
        network=str(said["network"]),
        secrets=tuple(map(str, said["secrets"])),
    )


def books(url: str) -> Books | Unknown:
    """Look into the ledger, and see that its rows keep its rules."""
    file = file_of(url)
    if file is not None:
        try:
            if not file.is_file():
                return Unknown(f"There is no ledger {file}; the hub makes it at its first start.")
            file.open("rb").close()
        except PermissionError:
            return Unknown(f"This account may not read {file}: run the doctor as the hub's.")
    place = str(file) if file is not None else "The database of the ledger"
    try:
        ledger = Ledger(url, prepare=False)
        try:
            snapshot, here = ledger.snapshot(), time.time()
            broken = ledger.verify()
        finally:
            ledger.close_database()
    except GPUPoolError as problem:
        return Failed(problem.message, "start the hub, which opens it, and look at its log")
    return Books(
        place=place,
        devices=snapshot.devices,
        swept_at=snapshot.swept_at,
        clock_ahead=snapshot.now - here,
        now=snapshot.now,
        broken=tuple(broken),
    )


def files_of(ledger: Path | None, config: Path, hub: Hub | Unknown) -> list[Path]:
    """The files that nobody but the hub's account may read."""
    folder = config.parent
    found = [config, folder / HUB, folder / SECRET]
    if ledger is not None:
        found += [ledger, *(ledger.with_name(ledger.name + end) for end in ("-wal", "-shm"))]
    return found + ([] if isinstance(hub, Unknown) else [Path(one) for one in hub.secrets])


def answer(url: str) -> Answer | Unknown:
    """Ask the hub's REST API which version it is; that needs no right."""
    if not url.startswith("http://"):
        return Unknown("Where the hub's REST API answers is not known, or it wants a certificate.")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=HTTP_SECONDS) as response:
            said = json.loads(response.read(MOST_ANSWER))
        return Answer(url, str(said["version"])[:40])
    except urllib.error.HTTPError as problem:
        return Answer(url, "", f"something answers with status {problem.code}")
    except OSError as problem:
        reason = getattr(problem, "reason", problem)
        return Answer(url, "", str(getattr(reason, "strerror", None) or reason))
    except (ValueError, KeyError, TypeError):
        return Answer(url, "", "something else answers there")


def jupyterhub() -> str | Unknown:
    """The version of the hub's package here."""
    try:
        return metadata.version("jupyterhub")
    except metadata.PackageNotFoundError:
        return Unknown("JupyterHub is not installed in this Python.")


def proxy_program() -> str | Unknown:
    """What ``configurable-http-proxy`` on the PATH is, as its first line says."""
    path = which("configurable-http-proxy")
    if path is None:
        return Unknown(
            "There is no configurable-http-proxy on the PATH of this account; the hub's may have one."
        )
    try:
        with Path(path).open("rb") as file:
            first = file.readline(300).decode(errors="replace")
    except OSError as problem:
        return Unknown(f"{path} cannot be read: {problem.strerror}.")
    return "python" if "python" in first else "node"
