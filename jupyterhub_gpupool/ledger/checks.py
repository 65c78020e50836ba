"""Launch checks: what an image showed on a device, and which devices fall under suspicion for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, literal, select, update

from ..model import Device, State
from . import rows
from . import schema as t
from .store import Transaction
from .text import bounded, last_lines, sentence, short_image
from .transitions import expect, note, row_of, set_columns

REPORT = 8 * 1024
"""Characters of a report as JSON; of a longer one only the problems are kept."""


@dataclass(frozen=True, slots=True)
class Check:
    """What the last launch check of an image said on a device with a driver."""

    image: str
    device: str
    driver: str
    passed: bool
    at: float
    report: Mapping[str, Any]


# Of a device as it is today: what was seen with another driver says nothing of it.
_today = and_(t.checks.c.device == t.devices.c.id, t.checks.c.driver == t.devices.c.driver)


def devices(conn: Connection, ids: Collection[str]) -> tuple[Device, ...]:
    """These devices by node and index; ids that are not known are left out."""
    query = select(t.devices).where(t.devices.c.id.in_(ids)).order_by(t.devices.c.node, t.devices.c.idx)
    return tuple(rows.device(row) for row in conn.execute(query))


def of(conn: Connection, image: str, ids: Collection[str]) -> dict[str, Check]:
    """The last check of an image on each of these devices with its present driver, passed or not."""
    query = select(t.checks).join(t.devices, _today)
    found = conn.execute(query.where(t.checks.c.image == image, t.checks.c.device.in_(ids)))
    return {
        row.device: Check(row.image, row.device, row.driver, bool(row.passed), row.at, rows.load(row.report))
        for row in found
    }


def record(
    tx: Transaction,
    lease: str,
    image: str,
    report: Mapping[str, Any],
    passed: bool | None,
    *,
    remembered: bool,
    suspect_for: float,
) -> bool:
    """Write the outcome of a launch check on its lease, and on each device of it.

    ``passed`` None: no check was made, and the first of the report's ``problems`` says why.  A remembered pass
    is only written on the lease, with the time of the check that it rests on; a failure is never remembered.

    Returns whether the devices of the lease became suspect.  They do, for ``suspect_for`` seconds (0: never),
    when the check failed and the last check of the same image passed on **another** device as that one is
    today, whatever its driver.  Then the image is good, and what is left is this device, its driver or its
    node.  A pass on this very device counts for nothing: where no other one has it, the image, the profile or
    the hub may be at fault just as well, and a pool must not lose its only GPU to a mistake in a profile.
    Nor does it clear the device: it passed once and fails now, which is what a card that goes bad does.

    Raises LeaseConflict unless the lease is STARTING or ACTIVE: a session that is being ended fails its check
    for that alone.
    """
    row = row_of(tx, lease)
    expect(row, State.STARTING, State.ACTIVE)
    held = list(dict.fromkeys(item.device for item in rows.slices_of(tx.conn, [lease]).get(lease, ())))
    remembered = remembered and passed is True
    at = (
        min((known.at for known in of(tx.conn, image, held).values()), default=tx.now)
        if remembered
        else tx.now
    )
    kept = _kept(report)
    outcome = {"passed": passed, "remembered": remembered, "at": at, "report": kept}
    set_columns(tx, lease, image=row.image or image, checked=rows.dump(outcome))
    if remembered:
        return False
    problem = _problem(kept)
    said = {True: "passed", False: f"failed: {problem}", None: f"not made: {problem}"}[passed]
    note(tx, "hub", "check", sentence(said), lease=lease, user=row.user)
    if passed is None or not held:
        return False
    _write(tx, image, held, passed, rows.dump(kept))
    if passed or suspect_for <= 0 or not _passes_elsewhere(tx, image, held):
        return False
    why = sentence(f"a launch check failed here that passes on another GPU: {short_image(image)}")
    until = tx.now + suspect_for
    tx.run(update(t.devices).where(t.devices.c.id.in_(held)).values(suspect_until=until, suspect_reason=why))
    for device in held:
        note(tx, "hub", "suspect", why, lease=lease, user=row.user, device=device)
    tx.run(update(t.pool).values(inventory=t.pool.c.inventory + 1))
    return True


def _kept(report: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = bounded(dict(report))
    if len(rows.dump(kept)) > REPORT:
        kept = {
            "problems": [_problem(kept), f"the report was longer than {REPORT} characters and is not kept"]
        }
    return kept


def _problem(report: Mapping[str, Any]) -> str:
    """The first problem that a report names."""
    problems = report.get("problems")
    first = problems[0] if isinstance(problems, list) and problems else None
    return sentence(first) if isinstance(first, str) and first.strip() else "no reason was given"


def _write(tx: Transaction, image: str, held: Collection[str], passed: bool, report: str) -> None:
    """One row for each device, in the place of the former one with the same driver."""
    drivers = tx.run(select(t.devices.c.id, t.devices.c.driver).where(t.devices.c.id.in_(held))).all()
    for device, driver in drivers:
        key = {"image": image, "device": device, "driver": driver}
        tx.run(delete(t.checks).where(*(t.checks.c[name] == value for name, value in key.items())))
        tx.run(insert(t.checks).values(passed=int(passed), at=tx.now, report=report, **key))


def _passes_elsewhere(tx: Transaction, image: str, held: Collection[str]) -> bool:
    query = select(literal(1)).select_from(t.checks).join(t.devices, _today)
    where = t.checks.c.image == image, t.checks.c.passed == 1, t.checks.c.device.not_in(held)
    return tx.run(query.where(*where).limit(1)).first() is not None


def end_suspicions(tx: Transaction, suspect_for: float) -> bool:
    """Let devices be granted again whose time is over; the next launch there is the test.  True if any was."""
    # A clock that went back must not keep a device for longer than the rule says.
    over = (t.devices.c.suspect_until <= tx.now) | (t.devices.c.suspect_until > tx.now + suspect_for)
    ended = tx.run(select(t.devices.c.id, t.devices.c.suspect_reason).where(over)).all()
    for device, why in ended:
        free = {"suspect_until": None, "suspect_reason": ""}
        tx.run(update(t.devices).where(t.devices.c.id == device).values(**free))
        note(tx, "service", "trust", f"its time is over: {why}", device=device)
    return bool(ended)


def note_foreign(tx: Transaction, found: Mapping[str, str]) -> None:
    """Write beside each device what others run on it; on devices that are not named there is nothing."""
    for device, before in tx.run(select(t.devices.c.id, t.devices.c.foreign).order_by(t.devices.c.id)).all():
        now = sentence(found.get(device, ""))
        if now != before:
            tx.run(update(t.devices).where(t.devices.c.id == device).values(foreign=now))
            note(tx, "service", "foreign", now or "nothing foreign is on it any more", device=device)


def keep_log(tx: Transaction, lease: str, text: str) -> None:
    """Keep these last lines in the place of those kept before."""
    row_of(tx, lease)
    tx.run(delete(t.logs).where(t.logs.c.lease == lease))
    tx.run(insert(t.logs).values(lease=lease, text=text, at=tx.now))


def log_of(conn: Connection, lease: str) -> str:
    """The last lines that a session wrote; empty when none are kept."""
    return conn.execute(select(t.logs.c.text).where(t.logs.c.lease == lease)).scalar_one_or_none() or ""


def problems(conn: Connection) -> list[str]:
    """Sentences for every broken rule of what is kept here."""
    found = []
    for row in conn.execute(select(t.devices)):
        if (row.suspect_until is None) != (row.suspect_reason == ""):
            found.append(f"{row.id} is suspect without a reason, or has a reason without being suspect")
    for row in conn.execute(select(t.checks)):
        if not isinstance(rows.load(row.report), dict) or not row.image or len(row.report) > REPORT:
            found.append(
                f"the check of {row.image!r} on {row.device} has no report that could have been kept"
            )
    for row in conn.execute(select(t.logs)):
        if row.text != last_lines(row.text):
            found.append(f"the log of lease {row.lease} is longer than allowed, or holds what none may")
    outcomes = conn.execute(select(t.leases.c.id, t.leases.c.checked, t.leases.c.state)).all()
    for key, text, state in outcomes:
        checked = rows.load(text)
        if checked and (sorted(checked) != ["at", "passed", "remembered", "report"] or state == State.QUEUED):
            found.append(f"lease {key} is {state}, its check is not one")
    return found
