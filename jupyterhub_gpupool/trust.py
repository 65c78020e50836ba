"""On which GPUs somebody may be: those shared through MPS are for one group that trusts each other.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from .model import Device

MPS = "mps"
"""The rule against programs that go past the daemon, as a lease, a metric and a notice name it."""

EVERYBODY = "*"
"""The group of all: everybody who may use the pool trusts everybody else."""


def closed_to(devices: Iterable[Device], groups: Collection[str]) -> frozenset[str]:
    """The devices that nothing may be granted on to somebody of these groups."""
    return frozenset(
        device.id
        for device in devices
        if device.trust and device.trust != EVERYBODY and device.trust not in groups
    )


def open_to(devices: Sequence[Device], groups: Collection[str]) -> Sequence[Device]:
    """The devices for somebody of these groups: the very same sequence where none is closed to them.

    Else a list, as what placement works out for a tuple it remembers.
    """
    closed = closed_to(devices, groups)
    return [device for device in devices if device.id not in closed] if closed else devices
