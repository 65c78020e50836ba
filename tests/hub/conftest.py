"""A real hub with its real proxy and service, on free ports, that a test may kill and start again."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import jupyterhub
import psutil
import pytest
import requests

from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import Lease

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parent / "jupyterhub_config.py"
T = TypeVar("T")


def until(probe: Callable[[], T], what: str, seconds: float = 90) -> T:
    """Wait for a probe to give something true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HubUnderTest:
    """The hub of one test: its state directory lives as long as the test, its processes may die."""

    def __init__(self, state: Path, config: Path = CONFIG, **given: Any) -> None:
        self.state, self.config = state, config
        self.token = secrets.token_hex(16)
        self.given = {"token": self.token, **given}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.password = "sesame"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = state.parent / f"{state.name}.log"
        self.fault = ""
        self.database_url = str(given.get("database_url") or f"sqlite:///{self.state / 'ledger.sqlite'}")
        self.environ = {"GPUPOOL_BACKEND": "local"}  # what the demo reads, whatever this machine has

    # --- processes -----------------------------------------------------------------------------

    def start(self, wait: bool = True) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GPUPOOL_STATE_DIR": str(self.state),
            "GPUPOOL_PORT": str(self.port),
            "GPUPOOL_PASSWORD": self.password,
            "GPUPOOL_TEST": json.dumps(self.given),
            "GPUPOOL_FAULT": self.fault,
            "TEST_HUB_VERSION": jupyterhub.__version__,
            **self.environ,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self.config)],
                env=env,
                cwd=self.state.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait_up()

    def started(self) -> bool:
        """Whether the hub's start is over: its own handlers are the only ones for SIGUSR1, and come last of all."""
        assert self.process is not None
        if not self.alive():
            pytest.fail(f"the hub has ended:\n{self.tail()}")
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        return bool(caught >> (signal.SIGUSR1 - 1) & 1)

    def wait_up(self) -> None:
        until(lambda: self.alive() or pytest.fail(f"the hub has ended:\n{self.tail()}"), "the process")
        until(self.answers, "the hub to answer", 60)
        until(self.service_answers, "the service to answer", 60)
        # A route that comes and goes while the hub still starts can end it: it waits for all that it has seen.
        until(self.started, "the hub's start to be over", 90)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def answers(self) -> bool:
        if not self.alive():
            pytest.fail(f"the hub has ended:\n{self.tail()}")
        try:
            return requests.get(f"{self.url}/hub/api/", timeout=5).ok
        except requests.RequestException:
            return False

    def service_answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/services/gpupool/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """SIGKILL to the hub process alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def wait_dead(self, seconds: float = 90) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def processes(self, part: str) -> list[psutil.Process]:
        """Live processes of this hub's state directory whose command line has this part."""
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                # The service has an environment of its own, but is told a file of the state directory.
                mine = process.environ().get("GPUPOOL_STATE_DIR") == str(self.state)
                mine = mine or f"{self.state}/" in command
                if mine and part in command and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def kill_service(self) -> None:
        for process in self.processes("jupyterhub_gpupool service"):
            process.kill()

    def kill_proxy(self) -> None:
        for process in self.processes("traefik"):
            process.kill()

    def sessions(self, lease: str = "") -> list[psutil.Process]:
        """Every live process that carries the mark of a lease of this pool."""
        pool_leases = {x.id for x in self.ledger().snapshot().leases} | {
            x.id for x in self.ledger().closed(None)
        }
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get("GPUPOOL_LEASE", "")
                wanted = mark == lease if lease else mark in pool_leases
                if mark and wanted and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def stop(self) -> None:
        """Orderly end, as Ctrl-C."""
        if self.alive():
            assert self.process is not None
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def clean(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.alive():
            assert self.process is not None
            self.process.kill()
            self.process.wait(20)
        left = [*self.processes(""), *self.sessions()]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=10)

    def tail(self, lines: int = 80) -> str:
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""
        )

    # --- ledger --------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        if not hasattr(self, "_ledger"):
            self._ledger = Ledger(self.database_url)
        return self._ledger

    def lease_of(self, user: str, server: str = "") -> Lease | None:
        for lease in self.ledger().snapshot().leases:
            if (lease.user, lease.server) == (user, server):
                return lease
        return None

    def wait_state(self, user: str, state: str, server: str = "", seconds: float = 40) -> Lease:
        def probe() -> Lease | None:
            lease = self.lease_of(user, server)
            return lease if lease is not None and lease.state == state else None

        return until(probe, f"{user}'s lease to be {state}", seconds)

    def wait_gone(self, user: str, server: str = "", seconds: float = 40) -> None:
        until(lambda: self.lease_of(user, server) is None, f"{user}'s lease to be closed", seconds)

    # --- REST ----------------------------------------------------------------------------------

    def api(self, method: str, path: str, token: str = "", **kwargs: Any) -> requests.Response:
        """The hub's REST API, with the tester's rights unless a token is given."""
        headers = {"Authorization": f"token {token or self.token}", **kwargs.pop("headers", {})}
        return requests.request(method, f"{self.url}/hub/api/{path}", headers=headers, timeout=60, **kwargs)

    def pool(self, method: str, path: str, token: str = "", **kwargs: Any) -> requests.Response:
        """The service's REST API."""
        headers = {"Authorization": f"token {token or self.token}", **kwargs.pop("headers", {})}
        return requests.request(
            method, f"{self.url}/services/gpupool/{path}", headers=headers, timeout=60, **kwargs
        )

    def token_of(self, user: str) -> str:
        """A token with the rights of this user."""
        self.api("POST", f"users/{quote(user, safe='')}")
        answer = self.api("POST", f"users/{quote(user, safe='')}/tokens", json={"note": "test"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def server_path(self, user: str, server: str = "") -> str:
        end = f"servers/{quote(server, safe='')}" if server else "server"
        return f"users/{quote(user, safe='')}/{end}"

    def spawn(self, user: str, profile: str = "whole", server: str = "", **options: Any) -> requests.Response:
        """Ask for a server; does not wait for it."""
        self.api("POST", f"users/{quote(user, safe='')}")
        body = {"user_options": {"profile": profile, **options}}
        return self.api("POST", self.server_path(user, server), json=body)

    def run(self, user: str, profile: str = "whole", server: str = "", **options: Any) -> Lease:
        """Ask for a server and wait until it is ready."""
        # A lease is closed before the hub has done with its server.
        before = f"the hub to be done with {user}'s server"
        until(lambda: (self.server(user, server) or {}).get("pending") != "stop", before)
        answer = self.spawn(user, profile, server, **options)
        assert answer.status_code in (201, 202), answer.text
        self.wait_ready(user, server)
        return self.wait_state(user, "active", server)

    def server(self, user: str, server: str = "") -> dict[str, Any] | None:
        model = self.api("GET", f"users/{quote(user, safe='')}?include_stopped_servers=1").json()
        found: dict[str, Any] | None = (model.get("servers") or {}).get(server)
        return found

    def wait_ready(self, user: str, server: str = "", seconds: float = 40) -> None:
        def probe() -> bool:
            model = self.server(user, server)
            return bool(model and model["ready"])

        until(probe, f"{user}'s server to be ready", seconds)

    def delete(self, user: str, server: str = "") -> requests.Response:
        return self.api("DELETE", self.server_path(user, server))

    def ask_session(self, user: str, path: str = "", server: str = "") -> requests.Response:
        """A request to the notebook server itself, through the proxy."""
        name = f"{quote(user, safe='')}/{quote(server, safe='')}" if server else quote(user, safe="")
        return requests.get(f"{self.url}/user/{name}/{path}", timeout=20)

    def browser_session(self, user: str) -> requests.Session:
        """A logged-in browser without a screen: cookies, and the hub's ``_xsrf``."""
        session = requests.Session()
        session.get(f"{self.url}/hub/login", timeout=20)
        form = {
            "username": user,
            "password": self.password,
            "_xsrf": session.cookies.get("_xsrf", path="/hub/"),
        }
        answer = session.post(f"{self.url}/hub/login", data=form, timeout=20, allow_redirects=False)
        assert answer.status_code == 302, answer.text[:500]
        return session


MakeHub = Callable[..., HubUnderTest]


@pytest.fixture
def make_hub(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeHub]:
    made: list[HubUnderTest] = []

    def make(**given: Any) -> HubUnderTest:
        hub = HubUnderTest(tmp_path / f"state{len(made)}", **given)
        made.append(hub)
        return hub

    yield make
    for hub in made:
        failed = getattr(request.node, "failed", False)
        if failed:
            print(f"--- hub log ---\n{hub.tail(200)}")
            for event in hub.ledger().events(count=1000)[-60:]:
                print(event)
        known = "database_url" in hub.given or (hub.state / "ledger.sqlite").exists()
        broken = hub.ledger().verify() if known else []
        hub.clean()
        assert broken == []


@pytest.fixture
def hub(make_hub: MakeHub) -> HubUnderTest:
    """A hub that runs."""
    made = make_hub()
    made.start()
    return made


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    if outcome.get_result().failed:
        item.failed = True  # type: ignore[attr-defined]
