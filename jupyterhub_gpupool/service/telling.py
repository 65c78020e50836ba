"""What a shape says of a warning, of deliveries and of an end.  Pure, as :mod:`.shapes`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from ..ledger import Delivery, Ending
from ..ledger.troubles import UNWELL
from ..model import Device, Lease, State
from ..notices import DUE, FAILED, FAILS, KEPT, LOST, RUNNING, SCRIPT_ENDS, why_ended
from ..watchdog import MEMORY
from .words import UNEXTENDABLE, extension_in_words, rule_in_words, stands_in_words

Shape = dict[str, Any]

RUNS = (State.STARTING, State.ACTIVE)


def iso(seconds: float | None) -> str | None:
    """A time of the ledger as ISO 8601 with zone."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def warned(item: Lease) -> bool:
    """Whether a warning is in force."""
    return item.state is State.ACTIVE and item.deadline_seconds is not None


def counts(item: Lease) -> bool:
    """Whether the countdown of a warning runs; of one that was just delivered the ledger has not counted yet.

    The countdown of an overrun asks for no delivery, and runs only while there is one.
    """
    told = item.delivered_at is not None and item.warned_for != MEMORY
    return warned(item) and (item.counting or told)


def seconds_left(item: Lease, now: float | None) -> float | None:
    """What is left of a warning at this moment; the ledger's figure is as old as the last verdict."""
    if not counts(item) or item.deadline_seconds is None:
        return None
    since = item.verdict_at if item.counting else item.delivered_at
    return max(0.0, item.deadline_seconds - max(0.0, (now or 0.0) - (since or now or 0.0)))


def extend_seconds(item: Lease) -> float:
    """What an extension would give now."""
    return 0 if item.warned_for in UNEXTENDABLE else min(item.terms.extend, item.extendable_seconds)


def warning(item: Lease, now: float | None, mode: str) -> Shape | None:
    """The warning in force; ``deadline_seconds`` is null while its countdown does not run."""
    if not warned(item):
        return None
    return {
        "id": item.warning,
        "rule": item.warned_for,
        "reason": item.verdict_reason,
        "at": iso(item.warned_at),
        "delivered_at": iso(item.delivered_at),
        "delivered_by": item.delivered_by or None,
        "deadline_seconds": seconds_left(item, now),
        "stands": stands_in_words(item),
        "stops": mode == "reclaim",
        "extendable": extend_seconds(item) > 0,
        "lost": LOST,
        "kept": KEPT,
    }


def warned_shape(item: Lease, now: float | None, mode: str) -> Shape:
    """The fields of a lease that say how it is warned, how far it can be extended, and why it ends."""
    return {
        "deadline_seconds": item.deadline_seconds if counts(item) else None,
        "warning": warning(item, now, mode),
        "time_left_seconds": time_left(item, now, mode),
        "warned_at": iso(item.warned_at),
        "warned_for": item.warned_for or None,
        "rule_words": rule_in_words(item) or None,
        "extend_words": extension_in_words(item) or None,
        "extend_seconds": extend_seconds(item),
        "extended_seconds": item.extended_seconds,
        "extendable_seconds": item.extendable_seconds,
        "why": why(item),
    }


def time_left(item: Lease, now: float | None, mode: str) -> float | None:
    """Seconds until the session ends for certain: by a warning or by age; None: no end is in sight."""
    if item.state is not State.ACTIVE or now is None or mode != "reclaim":
        return None
    ends = [] if (left := seconds_left(item, now)) is None else [left]
    if item.terms.max_age and item.active_at is not None:
        ends.append(max(0.0, item.terms.max_age - max(0.0, now - item.active_at)))
    return round(min(ends), 1) if ends else None


def why(item: Lease) -> str | None:
    """Why a session ends or has ended, in plain words."""
    return why_ended(item) if item.state in (State.STOPPING, State.CLOSED) and item.granted_at else None


def trouble(item: Lease, devices: Mapping[str, Device]) -> str | None:
    """What has befallen a session, for its owner: its GPU is not well, or it cannot open it; None: nothing."""
    held = [devices.get(part.device) for part in item.slices] if item.state in RUNS else []
    for device in held:
        if device is not None and device.health in UNWELL:
            why = device.health_reason.rstrip(".") or "no reason is known"
            return f"The GPU of this session is {device.health}: {why}. {FAILS}"
    return item.trouble or None if item.state in RUNS else None


def again(item: Lease) -> str | None:
    """The hub's form with the choice of an ended session filled in, below the hub's own prefix."""
    if item.state is not State.CLOSED:
        return None
    path = "/".join(
        ["spawn", quote(item.user, safe=""), *([quote(item.server, safe="")] if item.server else [])]
    )
    chosen = {"profile": item.profile} | {
        name: value for name, value in item.options.items() if isinstance(value, str)
    }
    return f"{path}?{urlencode({f'opt-{name}': value for name, value in chosen.items()})}"


def delivery(item: Delivery) -> Shape:
    """One notice, arrived or on its way."""
    return {
        "event": item.event,
        "channel": item.channel,
        "state": item.state,
        "tries": item.tries,
        "at": iso(item.at),
        "done_at": iso(item.done_at),
        "error": item.error or None,
    }


def told(found: Iterable[Delivery]) -> list[Shape]:
    """What was told of a lease, and what is still to be."""
    return [delivery(item) for item in found]


def saved(ending: Ending) -> Shape | None:
    """What was saved before the end."""
    if not ending.saved:
        return None
    return {**ending.saved, "at": iso(ending.saved["at"])}


def script(ending: Ending, item: Lease) -> Shape | None:
    """What became of the owner's script; whether there is one is known once it is begun.  ``at``: null if never."""
    over = item.state is State.CLOSED
    if not ending.script or (ending.script["state"] == DUE and not over):
        return None
    found = {**ending.script, "at": iso(ending.script["at"])}
    if over and found["state"] in (DUE, RUNNING):
        said = SCRIPT_ENDS[found["state"]]
        begun = found["at"] if found["state"] == RUNNING else None
        found |= {"at": begun, "state": FAILED, "tail": f"{said[0].upper()}{said[1:]}."}
    return found
