"""What the tests on a real Docker Engine share: one engine of their own for each worker, and a proxy before it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import pytest_runtest_makereport, until  # noqa: F401
from tests.hub.kills import Watch

from .engine import Engine, Network, copy_image
from .fault_proxy import FaultProxy
from .hub import HubUnderDocker

HERE = Path(__file__).parent
BASES = ("gpupool-test-base", "gpupool-base:bookworm")
"""What the session image can stand on, if the machine's own engine has it."""
OWN_BASE = "gpupool-test-own:base"
SESSION = "gpupool-test-session:latest"
NETWORK = pytest.StashKey[Network]()

MakeHub = Callable[..., HubUnderDocker]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run each test that needs an engine, with all its fixtures, in the network of the tests' engine."""
    if item.get_closest_marker("docker") is None or not item.config.stash.get(NETWORK, None):
        yield
        return
    with item.config.stash[NETWORK].inside():
        yield


def pytest_configure(config: pytest.Config) -> None:
    # Without the right to make one, the tests are skipped or fail by their marker.
    with contextlib.suppress(OSError):
        config.stash[NETWORK] = Network()


@pytest.fixture
def own_network(request: pytest.FixtureRequest) -> Network:
    """The network in which this test runs."""
    return request.config.stash[NETWORK]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that all workers of a run share; while a worker has this fixture's lock it is alone in there."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if root.name.startswith("popen-") else root) / "docker"
    folder.mkdir(exist_ok=True)
    yield folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def bare_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that runs, without any image."""
    if NETWORK not in request.config.stash:  # beside the machine's own engine, both would lose their networks
        pytest.fail("no network namespace can be made here, and an engine of the tests' own needs one")
    engine = Engine()
    try:
        engine.start()
        yield engine
    finally:
        engine.destroy()


@pytest.fixture(scope="session")
def session_image(bare_engine: Engine, shared: Path, request: pytest.FixtureRequest) -> str:
    """The light session image, in this worker's engine; its base is made once for all workers."""
    saved = shared / "base.tar"
    with alone(shared):
        if not saved.exists():
            base = next((name for name in BASES if copy_image("", name, bare_engine)), "")
            if not base:
                env = {**os.environ, "DOCKER_HOST": bare_engine.host}
                with request.config.stash[NETWORK].outside():  # it downloads
                    subprocess.run([HERE / "make-base.sh"], env=env, check=True)
                base = BASES[0]
            bare_engine.client.images.get(base).tag(*OWN_BASE.split(":"))
            part = saved.with_suffix(".part")
            with part.open("wb") as file:
                file.writelines(bare_engine.client.api.get_image(OWN_BASE))
            part.rename(saved)
    if not bare_engine.has(OWN_BASE):
        with saved.open("rb") as file:
            bare_engine.client.images.load(file)
    bare_engine.client.images.build(
        path=str(HERE / "image"), tag=SESSION, buildargs={"BASE": OWN_BASE}, rm=True
    )
    return SESSION


@pytest.fixture
def engine(bare_engine: Engine, session_image: str) -> Iterator[Engine]:
    """The engine with the session image; it runs at the start, and what the test left is removed at the end."""
    if not bare_engine.answers():
        bare_engine.start()
    yield bare_engine
    if not bare_engine.answers():
        bare_engine.start()
    bare_engine.clean()


@contextlib.contextmanager
def fault_proxy(engine: Engine) -> Iterator[FaultProxy]:
    """A fault proxy before an engine; give its ``host`` to a client as DOCKER_HOST."""
    folder = Path(tempfile.mkdtemp(prefix="gpp-"))
    proxy = FaultProxy(folder / "docker.sock", engine.socket)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
        shutil.rmtree(folder)


@pytest.fixture
def proxy(engine: Engine) -> Iterator[FaultProxy]:
    """A fault proxy before the engine of this test."""
    with fault_proxy(engine) as proxy:
        yield proxy


@pytest.fixture
def make_hub(
    tmp_path: Path, engine: Engine, proxy: FaultProxy, session_image: str, request: pytest.FixtureRequest
) -> Iterator[MakeHub]:
    """Make hubs that are not started yet; what is given reaches ``jupyterhub_config.py``."""
    made: list[HubUnderDocker] = []

    def make(**given: Any) -> HubUnderDocker:
        hub = HubUnderDocker(tmp_path / f"state{len(made)}", engine, proxy, image=session_image, **given)
        made.append(hub)
        return hub

    yield make
    proxy.clear()
    for hub in made:
        if getattr(request.node, "failed", False):
            hub.explain()
        broken = hub.ledger().verify() if (hub.state / "ledger.sqlite").exists() else []
        hub.clean()
        assert broken == []


@pytest.fixture(scope="module")
def module_hub(
    bare_engine: Engine,
    session_image: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[HubUnderDocker]:
    """One hub for all tests of a module that end with nothing held; ``GIVEN`` of the module reaches it."""
    given = getattr(request.module, "GIVEN", {})
    folder = tmp_path_factory.mktemp("hub")
    with fault_proxy(bare_engine) as proxy:
        hub = HubUnderDocker(folder / "state", bare_engine, proxy, image=session_image, **given)
        hub.fault = f"@{folder / 'fault'}"
        yield hub
        hub.clean()
    bare_engine.kept.clear()
    bare_engine.clean()


@pytest.fixture
def hub(module_hub: HubUnderDocker, request: pytest.FixtureRequest) -> Iterator[HubUnderDocker]:
    """The module's hub, up and empty.  Whatever the test does, the rules hold all the time, and it ends empty."""
    if not module_hub.engine.answers():
        module_hub.engine.start()
    if not module_hub.alive():
        module_hub.start()
    module_hub.wait_up()
    module_hub.engine.kept.add(f"gpupool-{module_hub.pool_name}")
    watch = Watch(module_hub)
    watch.start()
    try:
        yield module_hub
        module_hub.proxy.clear()
        if not getattr(request.node, "failed", False):
            module_hub.end_all()
        until(lambda: watch.looks, "the rules to be looked at")
        watch.end()
    finally:
        module_hub.proxy.clear()
        if getattr(request.node, "failed", False) or watch.broken:
            module_hub.explain()
            module_hub.start_afresh()
