"""Which devices there are, and how busy they are: one small module for each way to know.

Only the service and the command line import this package: the hub process never loads a driver library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..conditions import Condition
from ..model import Device, Process, Sample, Slice

__all__ = ["Condition", "Inventory", "Readings", "Telemetry"]


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at everything: samples by lease id, and by device id.  What is missing is unknown."""

    leases: Mapping[str, Sample] = field(default_factory=dict)
    devices: Mapping[str, Sample] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)


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
