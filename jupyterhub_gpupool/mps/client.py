"""What a session needs so that its programs go through the daemon of its GPU, and when it may not be launched."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Unavailable
from ..model import Device, Slice
from .places import Place, place_of

PIPES = "/run/gpupool-mps"
"""Where a session finds the daemon's sockets."""


def shared(slices: Sequence[Slice], devices: Sequence[Device]) -> Slice | None:
    """The slice of a session that goes through MPS; None: it has none."""
    through = {device.id for device in devices if device.trust}
    return next((part for part in slices if part.device in through), None)


def environment(part: Slice) -> dict[str, str]:
    """Variables that lead a session's programs to the daemon, with the limits of its slice.

    The one GPU that a session with a share sees has the number 0.  No guaranteed compute: no limit of it.
    """
    found = {"CUDA_MPS_PIPE_DIRECTORY": PIPES, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={part.memory_mib}M"}
    if part.compute:
        found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(part.compute)
    return found


def volumes(part: Slice) -> dict[str, str]:
    """What is mounted into a session: the daemon's sockets, and the memory that all on its GPU share."""
    place = place_of(part.device)
    return {str(place.pipe): PIPES, str(place.shm): "/dev/shm"}


def check(part: Slice, *, account: str, common: str | None, place: Place | None = None) -> None:
    """Refuse a launch that would not be held by MPS.

    ``account`` is the one that the session is to run under, ``common`` that of all sessions (None: everybody
    has their own).  A daemon serves one account at a time: a second one would wait, without a word, until every
    program of the first has ended.  Raises Unavailable.
    """
    if common is None or account.partition(":")[0] != common.partition(":")[0]:
        raise Unavailable(
            f"GPU {part.device} is shared through MPS, which serves one account at a time, and this session would "
            f"run under {account!r:.40} where others have another one: please tell an admin.",
            reason="mps",
        )
    if (place or place_of(part.device)).daemon() is None:
        raise Unavailable(
            f"GPU {part.device} is shared through MPS, and its daemon does not run, so nothing would hold this "
            "session to its share. Try again in a minute.",
            reason="mps",
        )
