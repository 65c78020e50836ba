"""A real ledger in a file of its own; its rules are checked after every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


Make = Callable[..., Ledger]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    made: list[Ledger] = []

    def make(policy: Policy | None = None, devices: tuple[Device, ...] = DEVICES, name: str = "l") -> Ledger:
        ledger = Ledger(f"sqlite:///{tmp_path / name}.sqlite", policy, clock=clock)
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


def run(ledger: Ledger, user: str, wish: Wish = HALF, **kwargs: object) -> Lease:
    """Take a lease to ACTIVE."""
    lease = ledger.enqueue("hub", request_of(user, wish, **kwargs))  # type: ignore[arg-type]
    assert lease.state == "starting", f"{user} has to wait: {lease}"
    return ledger.activate(lease.id, actor=user)


def end(ledger: Ledger, lease: Lease) -> Lease:
    ledger.begin_stop(lease.id, actor=lease.user, reason="test")
    return ledger.close(lease.id, actor=lease.user)
