"""The doctor on a real engine: what it asks, the container that it tries, and that nothing is left of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from jupyterhub_gpupool import profiles
from jupyterhub_gpupool.__main__ import main
from jupyterhub_gpupool.doctor import Failed, Unknown, engine_probes
from jupyterhub_gpupool.doctor.facts import Answer, Engine, Images, Network, Pool, Reach
from jupyterhub_gpupool.spawners.network import ensure_network

from .engine import Engine as OwnEngine
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

MISSING = f"nowhere/at-all@sha256:{'0' * 64}"


@pytest.fixture(name="pool")
def a_pool(engine: OwnEngine, session_image: str) -> Pool:
    offer = profiles.read(
        [
            {"display_name": "One", "image": session_image},
            {"display_name": "Other", "image": MISSING},
        ]
    )
    return Pool("doctor", "docker", offer, "observe", 10, simulated=True, engine={"base_url": engine.host})


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub's REST API does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "6.1.1"}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(name="listening")
def listening_hub(engine: OwnEngine, pool: Pool) -> Iterator[int]:
    """A hub on every address of this machine; its port.  The pool's network is there."""
    ensure_network(engine.client.api, "gpupool-doctor", pool.name)
    with ThreadingHTTPServer(("0.0.0.0", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def left(engine: OwnEngine) -> list[Any]:
    filters = {"label": [engine_probes.MINE]}
    return list(engine.client.containers.list(all=True, filters=filters, ignore_removed=True))


def known(found: object) -> Any:
    assert not isinstance(found, Unknown), found
    return found


def test_what_the_engine_says(pool: Pool, session_image: str) -> None:
    found: Engine = known(engine_probes.engine(pool))
    assert found.version and found.default_runtime == "runc" and found.root
    images: Images = known(engine_probes.images(pool, Unknown("?")))
    assert str(images.found[session_image]).startswith("sha256:")
    assert images.found[MISSING] is None and images.used_by[MISSING] == "profile other"


def test_the_network_of_the_sessions(engine: OwnEngine, pool: Pool) -> None:
    assert isinstance(engine_probes.network(pool, Unknown("?")), Unknown)
    gateway = ensure_network(engine.client.api, "gpupool-doctor", pool.name)
    assert engine_probes.network(pool, Unknown("?")) == Network("gpupool-doctor", True, gateway)
    engine.client.networks.create("gpupool-open")
    opened: Network = known(engine_probes.network(replace(pool, name="open"), Unknown("?")))
    assert not opened.isolated


def test_a_container_tries_the_way_to_the_hub_and_is_removed(
    engine: OwnEngine, pool: Pool, listening: int
) -> None:
    images = known(engine_probes.images(pool, Unknown("?")))
    network: Network = known(engine_probes.network(pool, Unknown("?")))
    url = f"http://{network.gateway}:{listening}/hub/api/"
    assert engine_probes.reach(pool, images, network, Answer(url, "6.1.1")) == Reach(url, 200)
    only_here = f"http://127.0.0.1:{listening}/hub/api/"
    found = engine_probes.reach(pool, images, network, Answer(only_here, "6.1.1"))
    assert isinstance(found, Reach) and found.status is None and "refused" in found.why
    assert left(engine) == []
    assert isinstance(engine_probes.reach(pool, images, network, Answer(url, "", "refused")), Unknown)
    nothing = replace(images, found={MISSING: None})
    assert isinstance(engine_probes.reach(pool, nothing, network, Answer(url, "6.1.1")), Unknown)


def test_what_killed_doctors_left_is_removed_and_nothing_else(
    engine: OwnEngine, pool: Pool, listening: int, session_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = known(engine_probes.images(pool, Unknown("?")))
    network: Network = known(engine_probes.network(pool, Unknown("?")))
    answer = Answer(f"http://{network.gateway}:{listening}/", "6.1.1")
    other = engine.client.containers.create(session_image, ["sleep", "1"], name="of-somebody")
    engine.client.containers.create(session_image, ["sleep", "1"], labels={engine_probes.MINE: "reach"})
    assert isinstance(engine_probes.reach(pool, images, network, answer), Reach)
    assert len(left(engine)) == 1  # it may be of a doctor that is at work
    monkeypatch.setattr(engine_probes, "LEFT_AFTER", -3600.0)
    assert isinstance(engine_probes.reach(pool, images, network, answer), Reach)
    assert left(engine) == []
    other.reload()
    assert other.status == "created"


def test_an_image_that_cannot_try_says_nothing_of_the_network(
    engine: OwnEngine, pool: Pool, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_probes, "PYTHON", "python-of-nowhere")
    images = known(engine_probes.images(pool, Unknown("?")))
    network: Network = known(engine_probes.network(pool, Unknown("?")))
    answer = Answer(f"http://{network.gateway}:{listening}/", "6.1.1")
    assert isinstance(engine_probes.reach(pool, images, network, answer), Unknown)
    assert left(engine) == []


def test_an_engine_that_is_away(engine: OwnEngine, pool: Pool) -> None:
    engine.kill()
    assert isinstance(engine_probes.engine(pool), Failed)
    assert type(engine_probes.engine(Unknown("?"))) in (Unknown, Engine)  # the machine's own, if there is one


def test_the_command_beside_a_running_hub(
    hub: HubUnderDocker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(hub.state))
    monkeypatch.setenv("DOCKER_HOST", hub.engine.host)
    monkeypatch.delenv("GPUPOOL_DATABASE_URL", raising=False)
    began = time.monotonic()
    status = main(["doctor", "--json"])
    shape = json.loads(capsys.readouterr().out)
    found = {one["id"]: one for one in shape["checks"]}
    for name in ("engine-answers", "default-runtime", "image-present", "network", "container-network",
                 "hub-answers", "ledger", "sweep", "configuration", "profiles-served", "proxy-streams",
                 "service-scopes", "folder-mode", "cleanup-servers"):  # fmt: skip
        assert found[name]["level"] == "ok", found[name]
    assert found["image-digest"]["level"] == "warning"  # the tests' image is named by a tag
    assert status == 0, [one for one in shape["checks"] if one["level"] == "error"]
    assert time.monotonic() - began < 120
    assert left(hub.engine) == []
    assert main(["status"]) == 0
    assert "simulated" in capsys.readouterr().out
