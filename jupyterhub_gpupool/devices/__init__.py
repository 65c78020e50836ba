"""Which devices there are, and how busy they are: one small module for each way to know.

Only the service and the command line import this package: the hub process never loads a driver library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ..conditions import Condition
from ..model import Device, Process, Sample, Slice

__all__ = ["Condition", "Inventory", "Readings", "Telemetry"]


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at everything: samples by lease id, and by device id.  What is missing is unknown."""

    leases: Mapping[str, Sample] = field(default_factory=dict)
    devices: Mapping[str, Sample] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    strays: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    """By lease on a GPU with MPS: its processes there that are no clients of the daemon; None: unknown."""


@dataclass(frozen=True, slots=True)
class Residue:
    """What a device says of a part of it on which no session should be any more: of itself, or of a MIG instance."""

    answers: bool = False
    """Whether it says anything at all; nothing else is known where it does not."""
    trouble: str = ""
    """What is wrong with the device, in words."""
    processes: tuple[int, ...] = ()
    """Processes on the part that are of no session which runs."""
    memory_mib: int = 0
    """What is in use there beyond what is while nothing runs; 0 where this cannot be told."""


class Inventory(Protocol):
    """Knows the devices.  A protocol, because classes with traits have a metaclass of their own."""

    def devices(self) -> tuple[Device, ...]:
        """Find all devices of this node with their health.  Raises when the driver does not answer."""
        ...


class Telemetry(Protocol):
    """Knows how the slices are used."""

    def sample(
        self,
        slices: Mapping[str, tuple[Slice, ...]],
        processes: Mapping[str, tuple[Process, ...] | None],
    ) -> Readings:
        """Look at the slices of each lease, and at every device.

        Both mappings are keyed by lease id.  ``processes`` are those of the lease's session, None or
        missing where the backend did not answer; there may be more leases in it, whose use is not asked for.
        What cannot be told is unknown, never zero.
        """
        ...


@runtime_checkable
class Examiner(Protocol):
    """Knows what sessions leave behind.  Devices that say ``examined`` belong to one."""

    def recall(self, devices: tuple[Device, ...]) -> None:
        """Take what the ledger has kept of the devices, after a start and before anything is asked."""
        ...

    def residues(
        self,
        asked: Collection[tuple[str, str]],
        held: Collection[str],
        processes: Mapping[str, tuple[Process, ...] | None],
    ) -> Mapping[str, Residue]:
        """Look at parts of devices, each as (device, itself or its MIG instance); by the second of the pair.

        ``held`` are the parts on which there are leases of other sessions: there memory tells nothing.
        ``processes`` are those of all sessions, by lease.  Does not raise: what is silent does not answer.
        """
        ...
