"""`GPUPOOL_BACKEND=docker make demo`, as it is shipped, with light sessions: what starts it, and what ends it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from jupyterhub_gpupool.containment import volume_name
from jupyterhub_gpupool.model import Lease
from tests.hub.conftest import ROOT, until

from .engine import Engine
from .fault_proxy import FaultProxy
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker


class DemoUnderTest(HubUnderDocker):
    """The demo on an engine of the tests."""

    def __init__(self, state: Path, engine: Engine, proxy: FaultProxy, image: str) -> None:
        super().__init__(state, engine, proxy)
        self.config = ROOT / "jupyterhub_config.py"
        self.environ = {"GPUPOOL_BACKEND": "docker", "GPUPOOL_IMAGE": image, "DOCKER_HOST": proxy.host}
        self.read = 0

    def takes(self, user: str, profile: str) -> Lease:
        """Start a session and wait until it is active."""
        answer = self.asks(user, profile)
        assert answer.status_code in (201, 202), answer.text
        return self.wait_state(user, "active")

    def asks(self, user: str, profile: str) -> requests.Response:
        """Ask for a session with the rights of a person's page."""
        session = self.browser_session(user)
        session.get(f"{self.url}/hub/home", timeout=20)
        return session.post(
            f"{self.url}/hub/api/users/{user}/server",
            json={"profile": profile},
            headers={"X-XSRFToken": session.cookies.get("_xsrf", path="/hub/") or ""},
            timeout=60,
        )

    def says(self, words: str) -> None:
        """Wait until the console says this, after what was waited for before."""

        def heard() -> bool:
            self.alive()
            found = re.compile(re.escape(words)).search(self.log.read_text(), self.read)
            self.read = found.end() if found else self.read
            return found is not None

        until(heard, f"the console to say {words!r}", 60)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.wait_dead(60)


@pytest.fixture
def demo(
    tmp_path: Path, engine: Engine, proxy: FaultProxy, session_image: str, request: pytest.FixtureRequest
) -> Iterator[DemoUnderTest]:
    made = DemoUnderTest(tmp_path / "state", engine, proxy, session_image)
    made.start()
    yield made
    if getattr(request.node, "failed", False):
        made.explain()
    broken = made.ledger().verify()
    made.clean()
    assert broken == []


def test_sessions_outlive_a_killed_hub_and_end_with_ctrl_c(demo: DemoUnderTest) -> None:
    demo.says("Backend    docker: sessions are containers on this machine")
    demo.says(f"Homes      volumes {demo.pool_name}-home-")
    lease = demo.takes("ada", "t4")
    first = demo.wait_container(lease, "running")
    host = first.attrs["HostConfig"]
    assert (host["Memory"], host["CpuQuota"]) == (4 << 30, 200_000)

    demo.kill()
    # What still runs would be lost to another backend: that start is refused, and nothing is harmed.
    demo.environ["GPUPOOL_BACKEND"] = "local"
    demo.start(wait=False)
    assert demo.wait_dead() == 1
    demo.says("Sessions of this demo still run with GPUPOOL_BACKEND=docker")

    demo.environ["GPUPOOL_BACKEND"] = "auto"
    demo.start()
    demo.says("gpupool: sessions will be containers (backend docker)")
    assert demo.wait_state("ada", "active").id == lease.id
    assert [one.id for one in demo.containers()] == [first.id]
    demo.reachable(lease)

    # Ctrl-C ends what runs, and what is being launched; homes stay.
    with ThreadPoolExecutor(1) as page:
        asked = page.submit(demo.asks, "grace", "quarter-a100")
        until(lambda: demo.lease_of("grace"), "grace's request to arrive")
        demo.interrupt()
        asked.exception()  # whether it was answered does not matter
    assert demo.containers() == []
    assert demo.processes("") == []
    volumes = {volume.name for volume in demo.engine.client.volumes.list()}
    assert volume_name(demo.pool_name, "ada") in volumes


def test_an_interrupted_start_ends_what_runs(demo: DemoUnderTest) -> None:
    demo.says("Ctrl-C ends the hub")
    demo.wait_container(demo.takes("ada", "cpu"), "running")
    demo.kill()
    demo.start(wait=False)
    demo.says("Starting the hub; its state is in")
    assert demo.interrupt() == 128 + signal.SIGINT
    demo.says("gpupool: interrupted while starting")
    assert demo.containers() == []
    assert demo.processes("") == []
    demo.start()  # the ledger learns that the session is gone
    demo.wait_gone("ada")
    demo.interrupt()


def test_without_its_engine_the_demo_falls_back_only_if_it_may(demo: DemoUnderTest) -> None:
    demo.interrupt()
    demo.environ["DOCKER_HOST"] = "unix:///nowhere/docker.sock"
    demo.start(wait=False)
    assert demo.wait_dead() == 1
    demo.says("GPUPOOL_BACKEND=docker cannot be had, because the container engine does not answer")
    demo.environ["GPUPOOL_BACKEND"] = "auto"
    demo.start()
    demo.says(
        "gpupool: sessions will be processes (backend local), because the container engine does not answer"
    )
    demo.says("Backend    local")
    demo.interrupt()
