"""What ``gpupool status`` shows: devices, sessions, queue, in words and in places.  Pure.

What is unknown is called so.  Every name comes from outside: nothing reaches the terminal but by :data:`Clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ..conditions import Condition
from ..idleness import STEADY
from ..ledger import Snapshot
from ..model import Device, Kind, Lease, Slice, State
from ..service import shapes, telling
from ..watchdog import MEMORY
from .table import Column, lines, wrapped

Clean = Callable[[str], str]
"""Makes a text fit for a terminal."""

UNKNOWN = "unknown"
NOTHING = "-"
LOW_USE = "low but steady"

STALE = 60.0
"""Seconds after which the last sweep says nothing of now."""

ADMIN = shapes.Person(None, admin=True)
"""Who can read the ledger's file knows everything that is in it."""

DEVICES = (
    Column("GPU", 3),
    Column("MODEL", 10),
    Column("MODE", 5),
    Column("HEALTH", 8),
    Column("UTIL", right=True),
    Column("MEMORY MIB", 8, right=True),
    Column("SLICES", 8),
)
CONDITION = Column("CONDITION", 9)
"""Left out where no GPU tells any of it, as simulated ones."""

SESSIONS = (
    Column("USER", 8),
    Column("PROFILE", 8),
    Column("SLICE", 8),
    Column("STATE", 8),
    Column("AGE", right=True),
    Column("IDLE", right=True),
    Column("ENDS", 10),
)
QUEUE = (
    Column("#", right=True),
    Column("USER", 8),
    Column("PROFILE", 8),
    Column("WANTS", 8),
    Column("WAITS", right=True),
    Column("STILL", 6, right=True),
    Column("WHY", 12),
)


def frame(snapshot: Snapshot, total: int, clean: Clean) -> list[str]:
    """The whole picture in lines of ``total`` places."""
    found = [part for line in _head(snapshot) for part in wrapped(line, total)]
    if snapshot.devices:
        told = _conditions(snapshot)
        columns = (*DEVICES, CONDITION) if any(told) else DEVICES
        rows = [
            [clean(cell) for cell in [*row, *([words or UNKNOWN] if any(told) else [])]]
            for row, words in zip(_devices(snapshot), told, strict=True)
        ]
        found += ["", *lines(columns, rows, total)]
    sessions = [item for item in snapshot.leases if item.state is not State.QUEUED]
    found += ["", f"Sessions: {len(sessions)}"]
    if sessions:
        named = {device.id: device for device in snapshot.devices}
        rows = [[clean(cell) for cell in _session(item, named, snapshot.now)] for item in sessions]
        found += lines(SESSIONS, rows, total)
        for note in _notes(sessions):
            found += wrapped(clean(note), total)
    found += ["", f"Queue: {len(snapshot.queue)}"]
    if snapshot.queue:
        rows = [[clean(cell) for cell in row] for row in _queue(snapshot)]
        found += lines(QUEUE, rows, total)
    return found


def shape(snapshot: Snapshot) -> dict[str, Any]:
    """What ``--json`` prints: the shapes of REST's ``api/pool``, ``api/leases`` and ``api/queue``, as an admin."""
    age = None if snapshot.swept_at is None else round(snapshot.now - snapshot.swept_at, 1)
    return {
        "now": shapes.iso(snapshot.now),
        "sweep_age_seconds": age,
        **shapes.pool(snapshot, ADMIN),
        **shapes.leases(snapshot, ADMIN),
        **shapes.queue(snapshot, ADMIN),
    }


def duration(seconds: float) -> str:
    """A span of time in two units at most."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h" if days else f"{hours}h{minutes:02}m"


# --- head and devices ------------------------------------------------------------------------------


def _head(snapshot: Snapshot) -> Iterator[str]:
    gpus = shapes.pool(snapshot, ADMIN)["gpus"]
    simulated = sum(device.simulated for device in snapshot.devices)
    kind = ""
    if simulated:
        kind = ", simulated" if simulated == len(snapshot.devices) else f", {simulated} of them simulated"
    at = datetime.fromtimestamp(snapshot.now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield (
        f"{at}   GPUs: {len(snapshot.devices)}{kind}; {gpus['leased']:g} held, {gpus['free']:g} free, "
        f"{gpus['unusable']:g} unusable"
    )
    if snapshot.swept_at is None:
        yield "No sweep yet: the service has not looked at the GPUs."
    else:
        age = snapshot.now - snapshot.swept_at
        late = ": the service does not look, what is used now is unknown" if _stale(snapshot) else ""
        yield f"Mode: {snapshot.mode or UNKNOWN}. Last sweep {duration(age)} ago{late}."
    if not snapshot.settled:
        yield "Nothing is granted yet: the service has not looked at all running sessions."


def _stale(snapshot: Snapshot) -> bool:
    return snapshot.swept_at is None or snapshot.now - snapshot.swept_at > STALE


def _devices(snapshot: Snapshot) -> Iterator[list[str]]:
    several = len({device.node for device in snapshot.devices}) > 1
    some = len({device.simulated for device in snapshot.devices}) > 1
    found = {one["id"]: one for one in shapes.pool(snapshot, ADMIN)["devices"]}
    for device in snapshot.devices:
        seen = found[device.id]
        used, busy = seen["memory_used_mib"], seen["utilization"]
        if _stale(snapshot):
            used = busy = None
        yield [
            f"{device.node}:{device.index}" if several else str(device.index),
            device.model + (" (simulated)" if some and device.simulated else ""),
            device.mode.value,
            _health(device),
            UNKNOWN if busy is None else f"{busy:.0f}%",
            f"{UNKNOWN if used is None else used}/{device.memory_mib or UNKNOWN}",
            _slices(device, seen["slices"], seen["cells_held"]),
        ]


def _conditions(snapshot: Snapshot) -> list[str]:
    """What each device tells of power, temperature and errors; empty where that is nothing."""
    found = []
    for one in shapes.pool(snapshot, ADMIN)["devices"]:
        told = Condition(*(one[name] for name in ("power_watts", "temperature_celsius", "ecc_errors")))
        found.append(told.describe() if told.known and not _stale(snapshot) else "")
    return found


def _health(device: Device) -> str:
    words = device.health.value
    if device.health_reason and device.health != "ok":
        words += f": {device.health_reason}"
    if device.drained:
        words = "drained" if device.health == "ok" else f"{words}, drained"
    return f"{words}, foreign use" if device.foreign else words


def _slices(device: Device, slices: list[Mapping[str, Any]], cells_held: int) -> str:
    held = [one for one in slices if one["lease"]]
    if device.instances:
        return f"{len(held)} of {len(device.instances)} MIG held"
    if not held:
        return "free"
    shares = sum(one["kind"] == Kind.SHARE.value for one in held)
    if not shares:
        return "held whole"
    return f"{shares} share{'s' * (shares != 1)}, {cells_held}/{device.cells}"


# --- sessions and queue ----------------------------------------------------------------------------


def _session(item: Lease, devices: Mapping[str, Device], now: float) -> list[str]:
    since = item.active_at or item.granted_at
    idle = item.state is State.ACTIVE and item.wish.kind is not Kind.CPU
    return [
        item.user + (f"/{item.server}" if item.server else ""),
        item.profile,
        _held(item, devices),
        item.state.value + (", in doubt" if item.doubt else ""),
        UNKNOWN if since is None else duration(now - since),
        NOTHING if not idle else LOW_USE if item.low_samples >= STEADY else duration(item.idle_seconds),
        _end(item, now),
    ]


def _held(item: Lease, devices: Mapping[str, Device]) -> str:
    return ", ".join(_part(part, devices.get(part.device)) for part in item.slices) or "no GPU"


def _part(part: Slice, device: Device | None) -> str:
    where = f"GPU {device.index}" if device else part.device
    if part.kind is Kind.MIG:
        instances = device.instances if device else ()
        return f"{where} {next((one.profile for one in instances if one.id == part.instance), part.instance)}"
    return f"{where} {len(part.cells)}/{part.of}" if part.kind is Kind.SHARE else where


def _end(item: Lease, now: float) -> str:
    if item.state is State.STOPPING:
        return "now"
    if telling.warned(item):
        left = telling.seconds_left(item, now)
        if left is None and item.warned_for == MEMORY:
            return "warned (memory)"
        return f"warned ({item.warned_for or 'idle'}), {'not told yet' if left is None else f'{duration(left)} left'}"
    if item.terms.max_age and item.active_at is not None:
        return f"max_age, in {duration(item.active_at + item.terms.max_age - now)}"
    return NOTHING


def _notes(sessions: list[Lease]) -> Iterator[str]:
    for item in sessions:
        if item.doubt:
            yield f"! {item.user}, {item.profile}: {item.doubt}"
        elif item.trouble:
            yield f"! {item.user}, {item.profile}: {item.trouble}"
        elif item.state is State.STOPPING and item.reason:
            yield f"  {item.user}, {item.profile}: stopping, {item.reason}"
        elif item.warned_for == MEMORY and telling.warned(item):
            yield f"  {item.user}, {item.profile}: {item.verdict_reason}"


def _queue(snapshot: Snapshot) -> Iterator[list[str]]:
    for place, item in enumerate(snapshot.queue, 1):
        wait = snapshot.waits.get(item.id)
        yield [
            str(place),
            item.user + (f"/{item.server}" if item.server else ""),
            item.profile,
            item.wish.describe(),
            duration(snapshot.now - item.requested_at),
            UNKNOWN if wait is None else "–".join(dict.fromkeys(map(duration, wait))),
            item.reason or NOTHING,
        ]
