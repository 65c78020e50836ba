"""The real hub, proxy and service with sessions in containers, behind a fault proxy before the engine."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import requests
from docker.models.containers import Container

from jupyterhub_gpupool.model import Lease
from tests.hub.conftest import HubUnderTest, until
from tests.hub.kills import marks

from .engine import Engine
from .fault_proxy import FaultProxy

CONFIG = Path(__file__).parent / "jupyterhub_config.py"
LABEL = "org.jupyterhub.gpupool."


class HubUnderDocker(HubUnderTest):
    """A hub whose engine is reached through ``proxy``; the test itself asks ``engine``, past every fault."""

    def __init__(self, state: Path, engine: Engine, proxy: FaultProxy, **given: Any) -> None:
        super().__init__(state, CONFIG, docker_host=proxy.host, **given)
        self.engine, self.proxy = engine, proxy

    @property
    def pool_name(self) -> str:
        return str(json.loads((self.state / "service.json").read_text())["GPUPool"]["name"])

    # --- containers ----------------------------------------------------------------------------------

    def containers(self, **labels: str) -> list[Container]:
        """The pool's containers in any state, by more of their labels where given (``user="ada"``)."""
        wanted = {"pool": self.pool_name, **labels}
        filters = {"label": [f"{LABEL}{key}={value}" for key, value in wanted.items()]}
        return list(self.engine.client.containers.list(all=True, filters=filters, ignore_removed=True))

    def container(self, lease: Lease) -> Container:
        """The container of a lease, found by its name.  Fails where there is none."""
        return self.engine.client.containers.get(lease.session)

    def exists(self, lease: Lease) -> bool:
        with contextlib.suppress(docker.errors.NotFound):
            self.container(lease)
            return True
        return False

    def inspect(self, lease: Lease) -> Mapping[str, Any]:
        """What ``docker inspect`` says of the container of a lease."""
        found: Mapping[str, Any] = self.container(lease).attrs
        return found

    def environment(self, lease: Lease) -> dict[str, str]:
        """The environment that the container of a lease was created with."""
        return dict(one.partition("=")[::2] for one in self.inspect(lease)["Config"]["Env"])

    def shown(self, lease: Lease) -> list[str]:
        """The devices that the runtime's hook was told to show, sorted; empty where it was not called."""
        starts = self.engine.hook.visible(self.container(lease).id)
        assert len(starts) <= 1, "a container was started twice"
        return sorted(starts[0].split(",")) if starts else []

    def wait_container(self, lease: Lease, status: str, seconds: float = 40) -> Container:
        """Wait until the container of a lease is ``created``, ``running``, ``paused`` or ``exited``."""

        def probe() -> Container | None:
            with contextlib.suppress(docker.errors.NotFound):
                found = self.container(lease)
                return found if found.status == status else None
            return None

        return until(probe, f"the container of lease {lease.id} to be {status}", seconds)

    def wait_removed(self, lease: Lease, seconds: float = 40) -> None:
        until(lambda: not self.exists(lease), f"the container of lease {lease.id} to be removed", seconds)

    def told(self, user: str, server: str = "") -> dict[str, Any]:
        """What a session says of itself: its environment without secrets, and as whom it runs."""
        answer: dict[str, Any] = self.ask_session(user, "env", server).json()
        return answer

    def reachable(self, lease: Lease) -> None:
        """See that this lease's own session answers through the hub's proxy."""

        def probe() -> bool:
            with contextlib.suppress(requests.RequestException):
                return self.ask_session(lease.user, server=lease.server).text.startswith(f"{lease.id} ")
            return False

        until(probe, f"the session of {lease.user} to answer")

    def still(self, lease: Lease, container: Container) -> None:
        """See that a session went through it all: the same lease, the same container, at its address."""
        self.wait_ready(lease.user, lease.server)
        now = self.wait_state(lease.user, "active", lease.server)
        assert (now.id, now.slices) == (lease.id, lease.slices)
        found = self.container(lease)
        assert (found.id, found.status) == (container.id, "running")
        assert found.attrs["State"]["StartedAt"] == container.attrs["State"]["StartedAt"], "it was restarted"
        assert [one.id for one in self.containers(user=lease.user, server=lease.server)] == [found.id]
        self.reachable(lease)

    # --- the end -------------------------------------------------------------------------------------

    def end_all(self) -> None:
        """Stop every server, and see that nothing is left of any."""
        for lease in self.ledger().snapshot().leases:
            self.delete(lease.user, lease.server)
        for lease in self.ledger().snapshot().leases:
            self.wait_gone(lease.user, lease.server)
        until(lambda: not self.containers(), "the last container to be removed")
        assert marks(self) == {}

    def start_afresh(self) -> None:
        """Forget everything: the next start finds an empty state directory and an empty engine."""
        if not self.engine.answers():
            self.engine.start()
        self.clean()
        self.engine.kept.clear()
        self.engine.clean()
        self.ledger().close_database()
        del self._ledger
        shutil.rmtree(self.state)

    def explain(self) -> None:
        """Print what a failed test needs to be understood."""
        print(f"--- hub log ---\n{self.tail(200)}")
        for event in self.ledger().events(count=1000)[-60:]:
            print(event)
        for lease in self.ledger().snapshot().leases:
            print(lease)
        print("--- requests to the engine ---")
        for seen in self.proxy.seen()[-40:]:
            print(f"{seen.method} {seen.path} {seen.answer}")
        if self.engine.answers():
            for container in self.engine.client.containers.list(all=True, ignore_removed=True):
                print(container.name, container.status, container.labels)
                print(container.logs(tail=10).decode(errors="replace"))
