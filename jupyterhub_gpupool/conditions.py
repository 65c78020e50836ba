"""What a device tells beside its use: how warm it is, what it draws, how often its memory has erred."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """One look at a device; every field may be unknown."""

    power_watts: float | None = None
    temperature_celsius: float | None = None
    ecc_errors: int | None = None
    """Memory errors since the driver was loaded that could not be corrected."""

    @property
    def known(self) -> bool:
        """Whether the device tells any of it."""
        return (self.power_watts, self.temperature_celsius, self.ecc_errors) != (None, None, None)

    def describe(self) -> str:
        """All of it in words: ``62 W, 31 °C, 0 ECC errors``; what is unknown is called so."""
        power = "power unknown" if self.power_watts is None else f"{self.power_watts:.0f} W"
        warm = (
            "temperature unknown"
            if self.temperature_celsius is None
            else f"{self.temperature_celsius:.0f} °C"
        )
        errors = "ECC unknown" if self.ecc_errors is None else f"{self.ecc_errors} ECC errors"
        return f"{power}, {warm}, {errors}" if self.known else "unknown"


UNKNOWN = Condition()
