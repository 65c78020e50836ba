"""A real ledger in a file or database of its own, once on each engine; its rules are checked after every test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import (
    Device,
    Instance,
    Kind,
    Lease,
    Mode,
    Owner,
    Request,
    Terms,
    Wish,
)

from .. import postgres

A100 = 81920
WHOLE = Wish(kind=Kind.GPU, count=1)
HALF = Wish(kind=Kind.SHARE, fraction="1/2")
THIRD = Wish(kind=Kind.SHARE, fraction="1/3")
SMALL_MIG = Wish(kind=Kind.MIG, mig="1g.10gb")
CPU = Wish()


def gpu(number: int, **changes: object) -> Device:
    values: dict[str, object] = {
        "id": f"GPU-{number}",
        "node": "n1",
        "index": number,
        "model": "A100-SXM4-80GB",
        "memory_mib": A100,
    }
    return Device(**{**values, **changes})  # type: ignore[arg-type]


def mig_gpu(number: int) -> Device:
    layout = (
        Instance(f"MIG-{number}-a", "3g.40gb", 0, 4, 40960),
        Instance(f"MIG-{number}-b", "1g.10gb", 4, 1, 10240),
        Instance(f"MIG-{number}-c", "1g.10gb", 5, 1, 10240),
    )
    return gpu(number, model="H100", mode=Mode.MIG, cells=8, instances=layout)


DEVICES = (gpu(0), gpu(1), mig_gpu(2))


def request_of(
    user: str, wish: Wish = HALF, server: str = "", terms: Terms | None = None, groups: tuple[str, ...] = ()
) -> Request:
    owner = Owner(user, sum(map(ord, user)), 1.0)
    return Request(owner, server, "profile", wish, terms or Terms(), groups)


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Databases:
    """Where the ledgers of one test are: one for each name."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine, self._folder = engine, folder
        self._made: dict[str, str] = {}

    def url(self, name: str = "l", *, empty: bool = False) -> str:
        """The URL of the ledger with this name; on a server a new one, in an ``empty`` database none."""
        if self.engine == "sqlite":
            return f"sqlite:///{self._folder / name}.sqlite"
        server = postgres.shared()
        if name not in self._made:
            self._made[name] = server.empty() if empty else server.ledger()
        return server.url(self._made[name])

    def again(self) -> str:
        """The URL of a new ledger, in the place of the one before."""
        for old in self._folder.glob("again.sqlite*"):
            old.unlink()
        if "again" in self._made:
            postgres.shared().drop(self._made.pop("again"))
        return self.url("again")

    def close(self) -> None:
        for database in self._made.values():
            postgres.shared().drop(database)


@contextmanager
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one: what is killed here is processes, and no disk need sync."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="gpupool-test-", dir=place) as folder:
        yield Path(folder)


ENGINES = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.postgresql)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whatever opens a ledger on both engines; the mark ``engine`` names one where a test is about that one."""
    if "databases" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("engine")
        wanted = [param for param in ENGINES if mark is None or param.values[0] in mark.args]
        metafunc.parametrize("databases", wanted, indirect=True)


@pytest.fixture
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    with memory(tmp_path) as folder:
        made = Databases(request.param, folder)
        yield made
        made.close()


Make = Callable[..., Ledger]


@pytest.fixture
def make(databases: Databases, clock: Clock) -> Iterator[Make]:
    made: list[Ledger] = []

    def make(policy: Policy | None = None, devices: tuple[Device, ...] = DEVICES, name: str = "l") -> Ledger:
        ledger = Ledger(databases.url(name), policy, clock=clock)
        made.append(ledger)
        ledger.sync_inventory(devices)
        ledger.settle()
        ledger.register_hub("hub")
        return ledger

    yield make
    for ledger in made:
        assert ledger.verify() == []
        ledger.close_database()


@pytest.fixture
def ledger(make: Make) -> Ledger:
    return make()


def url_of(ledger: Ledger) -> str:
    """Where the ledger is; for a second one on the same."""
    return ledger.store.url.render_as_string(hide_password=False)


def run(ledger: Ledger, user: str, wish: Wish = HALF, **kwargs: object) -> Lease:
    """Take a lease to ACTIVE."""
    lease = ledger.enqueue("hub", request_of(user, wish, **kwargs))  # type: ignore[arg-type]
    assert lease.state == "starting", f"{user} has to wait: {lease}"
    return ledger.activate(lease.id, actor=user)


def end(ledger: Ledger, lease: Lease) -> Lease:
    ledger.begin_stop(lease.id, actor=lease.user, reason="test")
    return ledger.close(lease.id, actor=lease.user)
