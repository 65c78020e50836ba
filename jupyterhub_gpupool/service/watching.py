"""How the watchdog over the memory of shares is configured."""

from __future__ import annotations

from jupyterhub.traitlets import ByteSpecification
from traitlets import TraitError

from ..watchdog import Patience, percent

MIB = 1 << 20
MOST = 10.0
"""Of the share: an excess beyond that is a mistake, as one beyond these bytes."""
MOST_BYTES = 1 << 44


def patience_of(excess: str, seconds: float) -> Patience:
    """The rule of ``memory_excess`` and ``memory_excess_time``.  Raises TraitError for what is no excess."""
    part = percent(excess)
    if part is not None and part <= MOST:
        return Patience(fraction=part, mib=0, seconds=seconds)
    try:
        size = int(ByteSpecification().validate(None, excess.strip())) if part is None else -1
    except (TraitError, ValueError, OverflowError):
        size = -1
    if not 0 <= size <= MOST_BYTES:
        raise TraitError(
            f"GPUPoolService.memory_excess is {excess!r:.80}; allowed are a part of the share such as '10%' "
            f"(at most {MOST * 100:g}%) and a size such as '512M'."
        )
    return Patience(fraction=0.0, mib=size // MIB, seconds=seconds)
