"""What is told to whom, in which words, and when it is tried again.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..model import Lease, State
from ..trust import MPS
from ..watchdog import MEMORY

WARNING, RECLAIMED, STARTED, BUDGET, DEVICE = "warning", "reclaimed", "started", "budget", "device"
UNWELL = "unwell"
EVENTS = {
    WARNING: "A session of mine will be stopped",
    RECLAIMED: "A session of mine was stopped",
    STARTED: "A session that I waited for has started",
    BUDGET: "My GPU-hours run out",
    UNWELL: "The GPU of a session of mine fails",
}
"""What people are told, in the words of their choice."""

MAIL, WEBHOOK = "mail", "webhook"
CHANNELS = {MAIL: "Mail", WEBHOOK: "Chat"}
"""The ways out, in the words of the choice."""

SEEN_BY = ("page", "jupyterlab")
"""What can show a warning to the person themself."""

ACTIONS = frozenset({"warn", "close", "activate", "budget", "device-health", "unclean", "unwell", "cut-off"})
"""Events of the audit trail of which something may be told."""

FROM_THIS = "Counted from this message,"
FROM_OTHER = "Counted from when the pool's page, JupyterLab or a message of your own has told you,"
"""When the countdown of a warning begins: with a message that counts as delivered, and with any other."""

LOST = (
    "What is only in memory (running kernels, variables, unsaved changes) and files outside the home folder."
)
KEPT = "Files in the home folder."

FAILS = (
    "What is computed on it may be wrong or fail. Save your work, then stop the server and start it again: you get "
    "another GPU."
)
"""What the owner of a session on a GPU that is not well should know."""
DUE, RUNNING, FAILED = "due", "running", "failed"
"""States of the owner's script: to be run by whoever is there, begun and not known to have ended, not run."""

SCRIPT_ENDS = {
    DUE: "if you have one, it was not run: the session ended before",
    RUNNING: "its end is not known: the service ended while it ran",
    FAILED: "it has not run to its end",
    "timeout": "it took too long and was ended",
}
"""What is told of a script without an exit status once its session is over."""

LONGEST_PAUSE = 3600.0
"""Seconds between two tries at the most."""

MOST_TRIES = 10
"""After so many a notice is given up; a warning is tried for as long as it is in force."""

DAY = 86400.0
LINE = 400
"""Characters of a line of a notice."""

_ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?P<domain>[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*)",
    re.ASCII,
)
LONGEST_ADDRESS = 254


class NoAddress(ValueError):
    """Somebody has no mail address."""


AddressOf = Callable[[str], str | None]
"""Finds the mail address of a person by their name; None: they have none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What somebody does not want to be told, and where they want to be told the rest."""

    unwanted: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Events by channel."""
    address: str = ""
    """A mail address of their own; empty: the one that the admin's template makes."""

    def wants(self, event: str, channel: str) -> bool:
        """Whether this event may be told by this channel."""
        return event not in self.unwanted.get(channel, ())


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell somebody by one channel."""

    event: str = ""
    channel: str = ""
    lease: str | None = None
    warning: str = ""
    user: str = ""
    """Empty: those who run the pool."""
    subject: str = ""
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for machines."""
    once_in: float = 0.0
    """Seconds in which the same person is not told the same event again by the same channel."""


@dataclass(frozen=True, slots=True)
class Occasion:
    """An event of the audit trail with what is known around it."""

    action: str
    at: float
    reason: str = ""
    device: str = ""
    lease: Lease | None = None
    owner: str | None = None
    """The present name of the lease's owner; None when the person is gone."""
    choice: Choice = field(default_factory=Choice)
    saved: Mapping[str, Any] = field(default_factory=dict)
    script: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the admin lets be told."""

    events: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Channels by event."""
    mandatory: tuple[str, ...] = (WARNING,)
    """Events that nobody can choose not to be told."""
    started_after: float = 300.0
    """Seconds that somebody must have waited to be told of the start."""
    stops: bool = True
    """Whether a warning that runs out has a consequence."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What the profiles are called."""
    link: str = ""
    """Where the pool's page is; empty: unknown."""
    counted: tuple[str, ...] = tuple(CHANNELS)
    """Channels by which a warning counts as delivered to its person."""
    pool: str = "gpupool"


def decide(rules: Rules, seen: Occasion) -> list[Notice]:
    """Say what is to be told of an occasion, a notice for each channel; nothing to people who are gone."""
    notice = _device(rules, seen) if seen.lease is None else _of_lease(rules, seen.lease, seen)
    if notice is None:
        return []
    return [_by(rules, notice, channel) for channel in _channels(rules, notice, seen.choice)]


def _by(rules: Rules, notice: Notice, channel: str) -> Notice:
    """The notice for one channel: where it is no delivery, a countdown does not begin with it."""
    text = notice.text
    if notice.event == WARNING and channel not in rules.counted:
        text = text.replace(f"\n{FROM_THIS}", f"\n{FROM_OTHER}", 1)
    return replace(notice, channel=channel, text=text)


def _channels(rules: Rules, notice: Notice, choice: Choice) -> Iterator[str]:
    for channel in rules.events.get(notice.event, ()):
        if not notice.user or notice.event in rules.mandatory or choice.wants(notice.event, channel):
            yield channel


def _of_lease(rules: Rules, lease: Lease, seen: Occasion) -> Notice | None:
    if seen.owner is None:
        return None
    match seen.action:
        case "warn" if lease.state is State.ACTIVE and lease.deadline_seconds is not None:
            return _warning(rules, lease, seen)
        case "close" if lease.stopped_by == "service" and lease.warned_for:
            return _reclaimed(rules, lease, seen)
        case "activate" if _waited(lease) >= rules.started_after:
            return _started(rules, lease, seen)
        case "budget":
            return _budget(rules, lease, seen)
        case "unwell" | "cut-off" if lease.state in (State.STARTING, State.ACTIVE):
            return _unwell(rules, lease, seen)
    return None


def _waited(lease: Lease) -> float:
    return -1.0 if lease.granted_at is None else lease.granted_at - lease.requested_at


def _warning(rules: Rules, lease: Lease, seen: Occasion) -> Notice:
    name = _name(rules, lease)
    # Counted from the delivery, so the whole of it is still to come when this is read at once.
    left = max((lease.deadline_seconds or 0.0) if lease.warned_for == MEMORY else lease.terms.warn, 0.0)
    if lease.warned_for == MEMORY:
        subject = f"Your GPU session {name} holds more GPU memory than its share"
        then = "Free some, or end one of several notebooks, and it goes on."
        if rules.stops:
            then += f" It is stopped after {span(left)} with more than is tolerated."
    elif lease.warned_for == MPS:
        subject = f"Your GPU session {name} runs programs past MPS"
        then = "It is stopped now." if rules.stops else "Nothing is stopped at present; please end them."
    elif rules.stops:
        subject = f"Your GPU session {name} will be stopped"
        then = f"{FROM_THIS} it is stopped in {span(left)}, unless it is used again."
        if lease.warned_for != "idle":
            then = f"{FROM_THIS} it is stopped in {span(left)} at the earliest."
    else:
        subject = f"Your GPU session {name} leaves its GPU unused"
        then = "Nothing is stopped at present; please release what you do not need."
    lines = [
        f"Session: {name}",
        f"Reason: {seen.reason}.",
        then,
        *((f"Lost when it is stopped: {LOST}", f"Kept: {KEPT}") if rules.stops else ()),
        *_more(rules, "Its page" if lease.warned_for == MEMORY else "Extend or release it"),
    ]
    facts = {"rule": lease.warned_for, "seconds": left, "reason": line(seen.reason)}
    return _notice(rules, lease, seen, WARNING, subject, lines, facts, warning=lease.warning)


def _reclaimed(rules: Rules, lease: Lease, seen: Occasion) -> Notice:
    name = _name(rules, lease)
    lines = [f"Session: {name}", why_ended(lease), f"Lost: {LOST}", f"Kept: {KEPT}"]
    if documents := seen.saved.get("documents"):
        lines.append(f"Saved before the end: {', '.join(map(str, documents))}")
    if failed := seen.saved.get("failed"):
        lines.append(f"Could not be saved: {', '.join(map(str, failed))}")
    if seen.script:
        status, state = seen.script.get("status"), str(seen.script.get("state"))
        how = f"exit status {status}" if status is not None else SCRIPT_ENDS.get(state, state)
        lines.append(f"Your script before-reclaim: {how}")
    lines += _more(rules, "The whole story, and a new session")
    facts = {"rule": lease.warned_for, "reason": line(lease.reason)}
    return _notice(rules, lease, seen, RECLAIMED, f"Your GPU session {name} was stopped", lines, facts)


def _started(rules: Rules, lease: Lease, seen: Occasion) -> Notice:
    name = _name(rules, lease)
    lines = [
        f"Session: {name}",
        f"It has waited for {span(_waited(lease))} and runs now.",
        *_more(rules, "Open it"),
    ]
    facts = {"waited": round(_waited(lease), 1)}
    return _notice(rules, lease, seen, STARTED, f"Your GPU session {name} has started", lines, facts)


def _budget(rules: Rules, lease: Lease, seen: Occasion) -> Notice:
    lines = [seen.reason, *_more(rules, "What you use")]
    facts = {"reason": line(seen.reason)}
    made = _notice(rules, lease, seen, BUDGET, "Your GPU-hours run out", lines, facts)
    return replace(made, once_in=DAY)


def _unwell(rules: Rules, lease: Lease, seen: Occasion) -> Notice:
    """The GPU under a session fails, or the session has lost the access to it."""
    name = _name(rules, lease)
    lines = [f"Session: {name}", f"{seen.reason[:1].upper()}{seen.reason[1:].rstrip('.')}."]
    if seen.action == "unwell":
        lines.append(FAILS)
    facts = {"reason": line(seen.reason), "device_is_well": seen.action != "unwell"}
    lines += _more(rules, "The session")
    return _notice(rules, lease, seen, UNWELL, f"The GPU of your session {name} fails", lines, facts)


def _device(rules: Rules, seen: Occasion) -> Notice | None:
    """A device that is no longer well; for those who run the pool."""
    if seen.action not in ("device-health", "unclean") or "→ok" in seen.reason.partition(":")[0]:
        return None
    subject = f"GPU {seen.device} is not well"
    lines = [f"GPU: {seen.device}", f"Health: {seen.reason}.", *_more(rules, "The pool")]
    facts = {"device": seen.device, "reason": line(seen.reason)}
    return Notice(
        event=DEVICE, subject=line(subject), text=_text(lines), facts=_facts(rules, DEVICE, seen, facts)
    )


def _notice(
    rules: Rules,
    lease: Lease,
    seen: Occasion,
    event: str,
    subject: str,
    lines: list[str],
    facts: Mapping[str, Any],
    warning: str = "",
) -> Notice:
    about = {"user": seen.owner, "lease": lease.id, "server": lease.server, "profile": lease.profile}
    return Notice(
        event=event,
        lease=lease.id,
        warning=warning,
        user=seen.owner or "",
        subject=line(subject),
        text=_text(lines),
        facts=_facts(rules, event, seen, {**about, **facts}),
    )


def _facts(rules: Rules, event: str, seen: Occasion, more: Mapping[str, Any]) -> dict[str, Any]:
    at = datetime.fromtimestamp(seen.at, UTC).isoformat(timespec="seconds")
    return {"event": event, "pool": rules.pool, "at": at, "url": rules.link or None, **more}


def _name(rules: Rules, lease: Lease) -> str:
    title = rules.titles.get(lease.profile, lease.profile)
    return f"“{title}” ({lease.server})" if lease.server else f"“{title}”"


def _more(rules: Rules, what: str) -> tuple[str, ...]:
    return (f"{what}: {rules.link}",) if rules.link else ()


def _text(lines: list[str]) -> str:
    return "\n".join(line(one) for one in lines)


def line(text: str) -> str:
    """The text on one line without control characters, cut; so nothing that somebody wrote begins a new one."""
    shown = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return shown if len(shown) <= LINE else shown[: LINE - 1] + "…"


def span(seconds: float) -> str:
    """Seconds in words."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def why_ended(lease: Lease) -> str:
    """Why a session ends or has ended, in a sentence for its owner."""
    reason = line(lease.reason).rstrip(".")
    if lease.stopped_by == "service" and lease.warned_for:
        return f"The pool took the GPU back after a warning: {reason}."
    if lease.stopped_by == "service":
        return f"The pool ended it: {reason}." if reason else "The pool ended it."
    if lease.stopped_by:
        who = "You" if lease.stopped_by == lease.user else line(lease.stopped_by)
        return f"{who} ended it: {reason}." if reason else f"{who} ended it."
    return f"It ended: {reason}." if reason else "It ended."


def pause(tries: int, first: float) -> float:
    """Seconds until the next try after so many: ``first``, twice that, and so on up to an hour."""
    return float(min(LONGEST_PAUSE, first * 2.0 ** min(max(0, tries - 1), 30)))


def check_address(address: str, domains: tuple[str, ...]) -> str:
    """Check a mail address that a person has given; ``domains`` are allowed, ``*`` is any.

    Returns it, empty for none.  Raises ValueError with a sentence that names what is allowed.
    """
    address = address.strip()
    if not address:
        return ""
    if not domains:
        raise ValueError("Mail goes to the address that this hub knows; another one is not allowed here.")
    found = _ADDRESS.fullmatch(address) if len(address) <= LONGEST_ADDRESS else None
    if found is None:
        raise ValueError(f"{address!a:.80} is no mail address such as ada@lab.example.")
    if "*" not in domains and found["domain"].lower() not in domains:
        raise ValueError(f"{address!a:.80}: addresses at {', '.join(domains)} are allowed.")
    return address


def address_of(user: str, choice: Choice, known: str | AddressOf, domains: tuple[str, ...]) -> str:
    """The mail address of a person: their own, or what the admin's template or function makes of the name.

    Raises NoAddress with a sentence where there is none, and whatever the function raises.
    """
    try:
        if own := check_address(choice.address, domains):
            return own
    except ValueError:
        own = ""  # what was allowed when it was given is no longer: the admin's address counts again
    made = known.replace("{user}", user) if isinstance(known, str) else known(user)
    if made is None:
        raise NoAddress(f"no mail address is known of {user!a:.80}")
    if not isinstance(made, str) or len(made) > LONGEST_ADDRESS or not _ADDRESS.fullmatch(made):
        raise NoAddress(f"no mail address can be made of the name {user!a:.80}")
    return made
