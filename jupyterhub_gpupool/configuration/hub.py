"""What a configured hub is, for who looks at it from outside: written at each start, read by ``gpupool doctor``.

A configuration file is a program and cannot be read without running it, so what it came to is kept here.  No
secret goes in: of commands and arguments only what is asked about.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from traitlets.config import Config
from traitlets.config.loader import LazyConfigValue

from ..ledger import file_of
from ..spawners.base import GPUPoolMixin

HUB = "hub.json"
"""Name of the file, beside the ledger."""

CULLER = re.compile(r"idle[-_]culler|cull[-_]idle", re.IGNORECASE)
"""What the program of a service that ends idle servers is called."""

INNER_CULLER = re.compile(r"^--?(\S*(?:cull_idle_timeout|shutdown_no_activity_timeout))=(\S+)$")
"""An argument of a session that makes its own server end what is idle."""

WILDCARDS = ("", "0.0.0.0", "::", "*")
MODE = 0o600


def write(c: Config, spawner: type[GPUPoolMixin], state: Path) -> None:
    """Keep what the hub was configured to be in the state folder."""
    text = json.dumps(describe(c, spawner, Path.cwd()), indent=1)
    with open(
        os.open(state / HUB, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE), "w", encoding="utf-8"
    ) as file:
        file.write(text)


def describe(c: Config, spawner: type[GPUPoolMixin], folder: Path) -> dict[str, Any]:
    """The hub in plain words; ``folder`` is where it runs, which its file names are relative to."""
    proxy = _given(c.JupyterHub, "proxy_class", "configurable-http-proxy")
    services = [one for one in _given(c.JupyterHub, "services", []) if isinstance(one, Mapping)]
    roles = [one for one in _given(c.JupyterHub, "load_roles", []) if isinstance(one, Mapping)]
    command = _words(_given(c.ConfigurableHTTPProxy, "command", "configurable-http-proxy"))
    images = _setting(c, spawner, "allowed_images")
    return {
        "backend": c.GPUPoolService.get("backend"),
        "api": _api(c),
        "cleanup_servers": bool(_given(c.JupyterHub, "cleanup_servers", True)),
        "proxy": proxy if isinstance(proxy, str) else f"{proxy.__module__}.{proxy.__qualname__}",
        "proxy_command": "python" if any("configurable_http_proxy" in word for word in command) else "",
        "proxy_started": bool(_given(c.ConfigurableHTTPProxy, "should_start", True)),
        "cullers": [
            {"name": str(one.get("name")), "timeout": _timeout(one)} for one in services if _culls(one)
        ],
        "inner_cullers": _inner(_setting(c, spawner, "args")),
        "scopes": sorted(_scopes(roles, "gpupool")),
        "service_admin": any(one.get("name") == "gpupool" and one.get("admin") for one in services),
        "user_scopes": sorted(
            {x for one in roles if one.get("name") == "user" for x in one.get("scopes") or ()}
        ),
        "start_timeout": _setting(c, spawner, "start_timeout"),
        "http_timeout": _setting(c, spawner, "http_timeout"),
        "failure_limit": _setting(c, spawner, "consecutive_failure_limit"),
        "image": str(_configured(c, spawner, "image", "") or ""),
        "images": sorted(map(str, images)) if isinstance(images, list | tuple | set | dict) else [],
        "gpu_access": _setting(c, spawner, "gpu_access"),
        "network": str(_configured(c, spawner, "network_name", "") or ""),
        "secrets": [str(folder / one) for one in _files(c)],
    }


def _given(section: Any, name: str, default: Any) -> Any:
    value = section.get(name, default)
    return value.get_value(default) if isinstance(value, LazyConfigValue) else value


def _setting(c: Config, spawner: type[GPUPoolMixin], name: str) -> Any:
    """A setting of the spawner as its sections have it; None where that is a function or not known."""
    trait = spawner.class_traits().get(name)
    default = None if trait is None else trait.default_value
    return _configured(c, spawner, name, default if isinstance(default, str | int | float) else None)


def _configured(c: Config, spawner: type[GPUPoolMixin], name: str, default: Any) -> Any:
    for owner in spawner.mro():
        if owner.__name__ in c and name in c[owner.__name__]:
            found = _given(c[owner.__name__], name, default)
            return None if callable(found) else found
    return default


def _api(c: Config) -> str:
    """Where sessions find the hub's REST API; empty where only the hub knows."""
    hub = c.JupyterHub
    if _given(hub, "internal_ssl", False):
        return ""  # who has no certificate of the hub's is not let in
    bind = str(_given(hub, "bind_url", "") or "")
    path = str(_given(hub, "base_url", "") or re.sub(r"^\w+://[^/]*", "", bind) or "/").strip("/")
    prefix = f"/{path}/hub/api/" if path else "/hub/api/"
    if found := str(_given(hub, "hub_connect_url", "") or _given(hub, "hub_bind_url", "") or ""):
        origin = re.match(r"^https?://[^/]+", found)
        return f"{origin[0]}{prefix}" if origin else ""
    address = str(_given(hub, "hub_connect_ip", "") or _given(hub, "hub_ip", "127.0.0.1"))
    if address in WILDCARDS:
        return ""
    shown = f"[{address}]" if ":" in address else address
    return f"http://{shown}:{_given(hub, 'hub_port', 8081)}{prefix}"


def _words(command: Any) -> list[str]:
    return command.split() if isinstance(command, str) else [str(word) for word in command or ()]


def _culls(service: Mapping[str, Any]) -> bool:
    return any(
        CULLER.search(word) for word in [str(service.get("name", "")), *_words(service.get("command"))]
    )


def _timeout(service: Mapping[str, Any]) -> str:
    """Seconds after which a culler ends a server, as its command says; empty: it does not."""
    found = re.search(r"--timeout[= ](\d+)", " ".join(_words(service.get("command"))))
    return found[1] if found else ""


def _inner(arguments: Any) -> list[str]:
    """Arguments of a session by which it ends itself, without those that switch that off."""
    found = [INNER_CULLER.match(word) for word in _words(arguments)]
    return [one[0] for one in found if one and one[2] != "0"]


def _scopes(roles: Iterable[Mapping[str, Any]], service: str) -> set[str]:
    return {
        scope for one in roles if service in (one.get("services") or ()) for scope in one.get("scopes") or ()
    }


def _files(c: Config) -> list[str]:
    """Files of the hub that hold secrets."""
    secret = str(_given(c.JupyterHub, "cookie_secret_file", "jupyterhub_cookie_secret"))
    url = str(_given(c.JupyterHub, "db_url", "sqlite:///jupyterhub.sqlite"))
    try:
        database = file_of(url)
    except ValueError:
        database = None
    return [secret, *([str(database)] if database else [])]
