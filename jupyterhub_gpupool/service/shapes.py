"""What REST, stream and pages show of the pool: leases and snapshots as JSON-ready dictionaries.

Pure.  Times are ISO 8601 with zone, durations seconds, memory MiB, states in lower case; what is unknown
is ``None``, never zero.  Who somebody else is, only an admin sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import books, fairness, rungs, signals
from ..cells import ranges
from ..conditions import UNKNOWN
from ..ledger import Event, Snapshot
from ..model import HOLDING, Device, Instance, Kind, Lease, Slice, State
from ..profiles import Availability, Profiles, wait_in_words
from . import telling
from .telling import iso
from .words import check_in_words, links_in_words, slice_in_words

Shape = dict[str, Any]

SWEEP_SLACK = 1.0
"""Seconds by which a reading may be older than the sweep that it belongs to."""

FOREIGN = "Containers that are not the pool's use this GPU."
"""What everybody may know of them; their names are for admins."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who looks.  A service has no name here: it owns nothing, whatever it is called."""

    name: str | None
    groups: tuple[str, ...] = ()
    admin: bool = False
    actor: str = ""
    """What the audit trail calls them."""

    def is_called(self, user: str) -> bool:
        """Whether this user name is the person's own."""
        return self.name is not None and self.name == user

    def may_see(self, user: str) -> bool:
        """Whether the person may know that it is this user."""
        return self.admin or self.is_called(user)


def wait(seconds: tuple[float, float] | None) -> Shape | None:
    """How long something will take, from and to; None: there is no ground for a figure."""
    return None if seconds is None else {"low": round(seconds[0], 1), "high": round(seconds[1], 1)}


def error(status: int, reason: str, message: str) -> Shape:
    """What every failing request gets."""
    return {"status": status, "reason": reason, "message": message}


# --- devices -----------------------------------------------------------------------------------------


def pool(snapshot: Snapshot, person: Person) -> Shape:
    """``api/pool``: devices with their slices, GPU-equivalents, and what the service does."""
    held: dict[str, list[tuple[Slice, Lease]]] = {device.id: [] for device in snapshot.devices}
    for item in snapshot.leases:
        for part in item.slices:
            held.setdefault(part.device, []).append((part, item))
    devices = [_device(device, held[device.id], snapshot, person) for device in snapshot.devices]
    service = {
        "mode": snapshot.mode or None,
        "swept_at": iso(snapshot.swept_at),
        "settled": snapshot.settled,
    }
    return {"devices": devices, "gpus": _gpus(snapshot, held), "service": service}


def _gpus(snapshot: Snapshot, held: Mapping[str, list[tuple[Slice, Lease]]]) -> Shape:
    """GPU-equivalents: ``total`` = ``leased`` + ``free`` + ``unusable``.

    Unusable is what nobody can be given: of devices that are sick, suspect, barred, lost or drained, and cells of a
    MIG GPU that no instance covers.
    """
    leased = free = 0.0
    for device in snapshot.devices:
        parts = held[device.id]
        leased += sum(part.gpus for part, _ in parts)
        if device.usable:
            taken = sum(len(part.cells) for part, _ in parts)
            whole = sum(i.cells for i in device.instances) if device.instances else device.cells
            free += max(0, whole - taken) / device.cells
    total = float(len(snapshot.devices))
    figures = {"total": total, "leased": leased, "free": free, "unusable": max(0.0, total - leased - free)}
    return {name: round(value, 4) for name, value in figures.items()}


def _device(device: Device, held: list[tuple[Slice, Lease]], snapshot: Snapshot, person: Person) -> Shape:
    reading = snapshot.readings.get(device.id)
    known = reading is not None and _belongs_to_last_sweep(reading.sampled_at, snapshot)
    told = reading.condition if reading and known else UNKNOWN
    return {
        "id": device.id,
        "node": device.node,
        "index": device.index,
        "model": device.model,
        "memory_mib": device.memory_mib,
        "compute_capability": device.compute_capability or None,
        "driver": device.driver or None,
        "health": device.health.value,
        "health_reason": device.health_reason or None,
        "foreign": (device.foreign if person.admin else FOREIGN) if device.foreign else None,
        "mode": device.mode.value,
        "utilization": reading.utilization if reading and known else None,
        "memory_used_mib": reading.memory_used_mib if reading and known else None,
        "power_watts": told.power_watts,
        "temperature_celsius": told.temperature_celsius,
        "ecc_errors": told.ecc_errors,
        "sampled_at": iso(reading.sampled_at) if reading else None,
        "drained": device.drained,
        "drain_at": iso(device.drain_at),
        "drain_by": (device.drain_by or None) if person.admin else None,
        "drain_why": device.drain_why or None,
        "simulated": device.simulated,
        "numa": device.numa,
        "cpus": device.cpus or None,
        "links": dict(device.links),
        "links_words": links_in_words(device, snapshot.devices) or None,
        "cells": device.cells,
        "cells_held": sum(len(part.cells) for part, _ in held),
        "slices": _slices(device, held, person),
    }


def _belongs_to_last_sweep(sampled_at: float | None, snapshot: Snapshot) -> bool:
    """Whether a device answered in the last whole sweep, or after it: older readings say nothing of now."""
    if sampled_at is None or snapshot.swept_at is None:
        return sampled_at is not None
    return snapshot.swept_at - sampled_at <= (snapshot.sweep_seconds or 0.0) + SWEEP_SLACK


def slice_id(part: Slice) -> str:
    """The name of a slice: of its MIG instance, or the device with the cells."""
    return part.instance or f"{part.device}::{ranges(part.cells)}"


def _slices(device: Device, held: list[tuple[Slice, Lease]], person: Person) -> list[Shape]:
    taken = {part.instance for part, _ in held}
    found = [(part.cells[0], _held_slice(part, item, person)) for part, item in held]
    found += [(i.first, _free_instance(i)) for i in device.instances if i.id not in taken]
    return [shape for _, shape in sorted(found, key=lambda pair: pair[0])]


def _held_slice(part: Slice, item: Lease, person: Person) -> Shape:
    return {
        "id": slice_id(part),
        "kind": part.kind.value,
        "cells": ranges(part.cells),
        "memory_mib": part.memory_mib,
        "compute": part.compute,
        "lease": item.id,
        "user": item.user if person.may_see(item.user) else None,
        "own": person.is_called(item.user),
        "profile": item.profile,
        "state": item.state.value,
    }


def _free_instance(instance: Instance) -> Shape:
    return {
        "id": instance.id,
        "kind": Kind.MIG.value,
        "cells": ranges(range(instance.first, instance.first + instance.cells)),
        "memory_mib": instance.memory_mib,
        "compute": None,
        "lease": None,
        "user": None,
        "own": False,
        "profile": None,
        "state": None,
    }


# --- leases ------------------------------------------------------------------------------------------


def leases(snapshot: Snapshot, person: Person) -> Shape:
    """``api/leases``: the person's own open ones; all for an admin."""
    shown = [item for item in snapshot.leases if person.may_see(item.user)]
    return {"leases": _of_view(shown, snapshot)}


def _of_view(shown: Iterable[Lease], snapshot: Snapshot) -> list[Shape]:
    """Open leases with what the rest of the pool means for them."""
    places, waits, borrowing = snapshot.places, snapshot.waits, _borrowing(snapshot)
    devices = {device.id: device for device in snapshot.devices}
    return [
        lease(
            item,
            devices,
            places.get(item.id),
            waits.get(item.id),
            borrowed=item.id in borrowing,
            now=snapshot.now,
            mode=snapshot.mode,
        )
        for item in shown
    ]


def _borrowing(snapshot: Snapshot) -> frozenset[str]:
    """Leases that hold what a group may want back: without guarantees nobody borrows."""
    if not any(snapshot.guaranteed.values()):
        return frozenset()
    held = [fairness.Held.of(item) for item in snapshot.leases if item.state in HOLDING]
    return fairness.borrowed(held, snapshot.guaranteed)


def closed(found: Iterable[Lease], count: int) -> Shape:
    """``api/leases?state=closed``: a page, and the value of ``before`` that gives the next one."""
    listed = list(found)
    full = len(listed) >= count
    return {
        "leases": [lease(item, {}, None) for item in listed],
        "next": repr(listed[-1].closed_at) if full and listed[-1].closed_at is not None else None,
    }


def one(item: Lease, snapshot: Snapshot) -> Shape:
    """``api/leases/{id}``."""
    (found,) = _of_view([item], snapshot)
    return found


def lease(
    item: Lease,
    devices: Mapping[str, Device],
    place: int | None,
    place_wait: tuple[float, float] | None = None,
    *,
    borrowed: bool = False,
    now: float = 0.0,
    mode: str = "",
) -> Shape:
    """A lease, for its owner or an admin; ``now`` and ``mode`` are of the moment that an open one is shown."""
    holds = [part.device for part in item.slices]
    simulated = any(map(_simulated, map(devices.get, holds)))
    rung = rungs.shown(item.rung, item.wish.kind, simulated=simulated)
    return {
        "id": item.id,
        "user": item.user,
        "server": item.server,
        "profile": item.profile,
        "group": item.group or None,
        "state": item.state.value,
        "kind": item.wish.kind.value,
        "slice": slice_in_words(item, devices),
        "devices": holds,
        "gpus": round(item.gpus, 4),
        "memory_mib": sum(part.memory_mib for part in item.slices) if item.slices else None,
        "compute": min(part.compute for part in item.slices) if item.slices else None,
        "rung": rung or None,
        "enforcement": rungs.in_words(rung, stops=mode not in ("observe", "warn")),
        "simulated": simulated,
        "requested_at": iso(item.requested_at),
        "granted_at": iso(item.granted_at),
        "active_at": iso(item.active_at),
        "closed_at": iso(item.closed_at),
        "place": place,
        "wait": wait(place_wait) if place else None,
        "wait_words": wait_in_words(place_wait) if place else None,
        "borrowed": borrowed,
        "note": item.note or None,
        "ends_at": iso(_ends_at(item)),
        "idle_seconds": item.idle_seconds if item.state is State.ACTIVE else None,
        **telling.warned_shape(item, now, mode),
        "verdict": _verdict(item),
        "utilization": item.utilization,
        "memory_used_mib": item.memory_used_mib,
        "sampled_at": iso(item.sampled_at),
        "doubt": item.doubt or None,
        "doubt_since": iso(item.doubt_since),
        "trouble": telling.trouble(item, devices),
        "reason": item.reason or None,
        "advice": books.advice(item, now) or None,
        "image": item.image or None,
        "checked": {**item.checked, "at": iso(item.checked["at"])} if item.checked else None,
        "check_words": _check_words(item),
    }


def _verdict(item: Lease) -> Shape | None:
    if item.verdict is None:
        return None
    return {
        "decision": item.verdict.value,
        "reason": item.verdict_reason,
        "at": iso(item.verdict_at),
        "signal": item.signal or None,
        "signal_words": signals.WORDS.get(item.signal),
    }


def _ends_at(item: Lease) -> float | None:
    """When an active session ends by its age; None: never by that."""
    if item.state is not State.ACTIVE or item.active_at is None or not item.terms.max_age > 0:
        return None
    return item.active_at + item.terms.max_age


def _check_words(item: Lease) -> Shape | None:
    """The launch check for a page: ``outcome``, then ``at`` where there is a time, then ``facts``."""
    words = check_in_words(item)
    return words and {"outcome": words[0], "at": iso(words[1]), "facts": words[2]}


def _simulated(device: Device | None) -> bool:
    return device is not None and device.simulated


# --- queue, availability, audit trail ------------------------------------------------------------------


def queue(snapshot: Snapshot, person: Person) -> Shape:
    """``api/queue``: the places."""
    return {
        "queue": [
            {
                "lease": item.id,
                "user": item.user if person.may_see(item.user) else None,
                "own": person.is_called(item.user),
                "profile": item.profile,
                "place": place,
                "since": iso(item.requested_at),
                "wait": wait(snapshot.waits.get(item.id)),
                "wait_words": wait_in_words(snapshot.waits.get(item.id)),
                "reason": (item.reason or None) if person.may_see(item.user) else None,
            }
            for place, item in enumerate(snapshot.queue, 1)
        ]
    }


def availability(offer: Profiles, found: Mapping[str, Availability]) -> Shape:
    """``api/availability``: what the person could have now, by profile."""
    return {
        "profiles": [
            {
                "slug": slug,
                "display_name": offer[slug].display_name,
                "allowed": answer.allowed,
                "reason": answer.reason or None,
                "free": answer.free,
                "queued": answer.queued,
                "wait": wait(answer.place_wait),
                "budget_left_hours": answer.budget_left_hours,
            }
            for slug, answer in found.items()
        ]
    }


def events(found: Iterable[Event], after: int) -> Shape:
    """``api/events``: a page of the audit trail, and the value of ``after`` that gives the next one."""
    listed = list(found)
    return {
        "events": [
            {
                "seq": event.seq,
                "at": iso(event.at),
                "actor": event.actor,
                "action": event.action,
                "lease": event.lease,
                "user": event.user,
                "device": event.device,
                "from": event.from_state,
                "to": event.to_state,
                "reason": event.reason,
            }
            for event in listed
        ],
        "next": listed[-1].seq if listed else after,
    }
