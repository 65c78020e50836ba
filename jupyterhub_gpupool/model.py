"""The words of the pool as frozen types: devices, slices, profiles' wishes, leases, samples, verdicts.

No I/O, and no import of the rest of the package.  Memory is in MiB, durations are in seconds, utilization is in
percent of the slice, times are seconds since 1970 (UTC) by the database's clock; ``None`` is *unknown*, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

CELLS_PER_GPU = 120
"""Cells of a GPU that is not in MIG mode: halves to sixths, eighths, tenths and twelfths are exact."""


class State(StrEnum):
    """States of a lease; see :data:`LEGAL` for the moves."""

    QUEUED = "queued"
    STARTING = "starting"
    ACTIVE = "active"
    STOPPING = "stopping"
    CLOSED = "closed"


HOLDING = frozenset({State.STARTING, State.ACTIVE, State.STOPPING})
"""States in which a lease holds its slices."""

NEW = "none"  # what an event names as the state before a lease's first one

LEGAL: frozenset[tuple[str, str]] = frozenset(
    {
        (NEW, State.QUEUED),
        (NEW, State.ACTIVE),  # a running session that the ledger did not know is adopted
        (State.QUEUED, State.STARTING),
        (State.QUEUED, State.CLOSED),
        (State.STARTING, State.ACTIVE),
        (State.STARTING, State.STOPPING),
        (State.ACTIVE, State.STOPPING),
        (State.STOPPING, State.CLOSED),
    }
)
"""Every move a lease can make, as (from, to).  The ledger's table of transitions holds exactly these."""


class Kind(StrEnum):
    """What is handed out."""

    CPU = "cpu"
    GPU = "gpu"
    MIG = "mig"
    SHARE = "share"


class Mode(StrEnum):
    """What a device may be used for; ``any`` is whole or shares, whichever comes first."""

    ANY = "any"
    WHOLE = "whole"
    SHARE = "share"
    MIG = "mig"


class Health(StrEnum):
    """Whether a device may be handed out: only ``ok`` may."""

    OK = "ok"
    SICK = "sick"
    LOST = "lost"
    SUSPECT = "suspect"  # a launch check that passes elsewhere has failed on it, or a session left something
    BARRED = "barred"  # it is well, but others use it, or its mode is not the configured one


class Presence(StrEnum):
    """What a backend says of a session.  UNKNOWN is neither: it frees nothing and ends nothing."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Decision(StrEnum):
    """What a verdict says of a lease."""

    KEEP = "keep"
    WARN = "warn"
    RECLAIM = "reclaim"


class When(StrEnum):
    """When an idle slice is taken back: always, or only while somebody waits."""

    ALWAYS = "always"
    WANTED = "wanted"


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance: ``cells`` memory slices of its GPU from cell ``first`` on."""

    id: str
    profile: str
    first: int
    cells: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Device:
    """A physical GPU as the inventory sees it."""

    id: str
    node: str
    index: int
    model: str
    memory_mib: int
    compute_capability: str = ""
    mode: Mode = Mode.ANY
    cells: int = CELLS_PER_GPU
    health: Health = Health.OK
    health_reason: str = ""
    drained: bool = False
    simulated: bool = False
    instances: tuple[Instance, ...] = ()
    driver: str = ""  # its version; empty: unknown
    foreign: str = ""  # a sentence about containers on it that are not the pool's; it bars no grant
    examined: bool = False  # whether its driver tells what a session has left on it: then it is asked
    unclean: str = ""  # what a session has left on it, in words; until that has gone nothing is granted on it
    drain_at: float | None = None  # when sessions on it end at the earliest; None: it is not drained
    drain_by: str = ""
    drain_why: str = ""
    numa: int | None = None  # the NUMA node of its bus
    cpus: str = ""  # those of that node, as the kernel lists them; empty: unknown
    links: tuple[tuple[str, str], ...] = ()  # (other GPU, how near: NV12 (NVLinks), PIX, PXB, PHB, NODE, SYS)
    trust: str = ""  # the group whose shares of it go through MPS, "*": of everybody; empty: it has no MPS

    @property
    def usable(self) -> bool:
        """Whether something of it may be granted now."""
        return self.health is Health.OK and not self.drained


@dataclass(frozen=True, slots=True)
class Wish:
    """The slice a profile asks for.

    ``memory_mib`` or ``fraction`` (such as ``"1/3"``) and ``compute`` (percent, guaranteed) describe a share;
    ``count`` whole GPUs; ``mig`` an instance by its profile.  ``model`` is a shell pattern, case does not count.
    """

    kind: Kind = Kind.CPU
    count: int = 1
    memory_mib: int = 0
    fraction: str = ""
    compute: int = 0
    mig: str = ""
    model: str = "*"

    def memory_on(self, device: Device) -> int:
        """The wished memory in MiB on this device; 0 when the wish names none."""
        if self.fraction:
            return int(device.memory_mib * Fraction(self.fraction))
        return self.memory_mib

    def describe(self) -> str:
        """The wish in words, for messages: ``2 × A100*``, ``1/3 of a GPU``."""
        on = "GPU" if self.model == "*" else self.model
        match self.kind:
            case Kind.CPU:
                return "no GPU"
            case Kind.GPU:
                return f"{self.count} × {on}"
            case Kind.MIG:
                return f"a {self.mig} MIG instance of a {on}"
            case Kind.SHARE:
                parts = [self.fraction or (f"{self.memory_mib} MiB" if self.memory_mib else "")]
                parts += [f"{self.compute} % of the compute"] if self.compute else []
                return f"{' and '.join(p for p in parts if p)} of a {on}"


@dataclass(frozen=True, slots=True)
class Slice:
    """What a lease holds on one device: these cells, this memory limit, this guaranteed compute."""

    device: str
    kind: Kind
    cells: tuple[int, ...]
    of: int  # cells that the device has in all
    memory_mib: int
    compute: int
    instance: str = ""

    @property
    def gpus(self) -> float:
        """GPU-equivalents held: cells held / cells of the GPU."""
        return len(self.cells) / self.of

    @property
    def visible(self) -> str:
        """The UUID a session sees: of the MIG instance, or of the GPU."""
        return self.instance or self.device


@dataclass(frozen=True, slots=True)
class Terms:
    """The rules that a lease carries with it, in seconds (``threshold`` in percent).

    ``window`` 0 switches idle reclaim off for the lease; ``max_age`` 0 means no end by age.
    """

    window: float = 1800
    warn: float = 600
    extend: float = 1800
    extend_max: float = 14400
    min_age: float = 600
    threshold: float = 5
    when: When = When.ALWAYS
    max_age: float = 0


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks.  ``hub_id`` with ``created`` tells two users apart who had the same hub id in turn."""

    name: str
    hub_id: int
    created: float

    def mark(self) -> str:
        """Id and time of creation as a session's marker carries them."""
        return f"{self.hub_id}:{self.created!r}"

    @classmethod
    def from_mark(cls, name: str, mark: str) -> Owner:
        """The inverse of :meth:`mark`.  Raises ValueError for a text that is no mark."""
        hub_id, _, created = mark[:64].partition(":")
        owner = cls(name, int(hub_id), float(created))
        if not (0 <= owner.hub_id < 2**31 and 0 <= owner.created < 2**40):
            raise ValueError(f"{mark[:64]!r} is no mark of an owner")
        return owner


@dataclass(frozen=True, slots=True)
class Request:
    """A person's wish for a profile, resolved and authorised."""

    owner: Owner
    server: str
    profile: str
    wish: Wish
    terms: Terms
    groups: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # the choice as it is kept, for the next form


@dataclass(frozen=True, slots=True)
class Lease:
    """The record of truth: who holds which slices, in which state, since when, under which terms."""

    id: str
    user: str
    server: str
    profile: str
    state: State
    version: int
    epoch: int
    session: str  # its name; decided at the grant, written before anything is launched under it
    wish: Wish
    terms: Terms
    groups: tuple[str, ...]
    options: Mapping[str, Any]
    slices: tuple[Slice, ...]
    gpus: float  # GPU-equivalents held, or wished for while queued where that is certain, else 0
    group: str  # whose limit the grant was counted against; empty when no group has one
    url: str
    runtime: Mapping[str, Any]  # by which the backend finds the session again (pid, port, …); never a secret
    requested_at: float
    granted_at: float | None = None
    active_at: float | None = None
    closed_at: float | None = None
    idle_seconds: float = 0
    idle_samples: int = 0  # looks since the last use that saw none
    low_samples: int = 0  # looks in a row that saw little
    unseen_seconds: float = 0  # for which looks have seen nothing
    idle_total: float = 0  # idle seconds in all; ``idle_seconds`` begins anew with each use
    grace_seconds: float = 0  # left of an extension: until it has run out the lease is kept
    extended_seconds: float = 0
    warned_at: float | None = None
    warned_for: str = ""  # the rule: ``idle``, ``max_age``, ``share``, ``drain``, ``budget`` or ``memory``
    deadline_seconds: float | None = None  # left until the reclaim that is warned of; None without a warning
    warning: str = ""  # id of the last warning
    delivered_at: float | None = None  # when it reached somebody, and by which channel
    delivered_by: str = ""
    counting: bool = False  # whether its countdown runs; before that it stands still
    undelivered_seconds: float = 0  # for how long warnings have reached nobody
    verdict: Decision | None = None
    verdict_reason: str = ""
    verdict_at: float | None = None
    signal: str = ""  # which one decided the verdict; empty: none, such as for an end by age
    utilization: float | None = None
    memory_used_mib: int | None = None
    peak_utilization: float | None = None
    peak_memory_mib: int | None = None
    sampled_at: float | None = None
    absent_since: float | None = None
    doubt: str = ""
    doubt_since: float | None = None
    gone_at: float | None = None  # when its session was proved gone whose slices are still examined, or were
    trouble: str = ""  # what has befallen the session, in words for its owner; empty: nothing
    left_at: float | None = None  # since when no hub process has waited for it or launched it; None: one does
    reason: str = ""  # why it waits, is stopping or was closed
    stopped_by: str = ""
    image: str = ""  # what the session was launched from; empty: nothing of that kind
    checked: Mapping[str, Any] = field(default_factory=dict)  # the launch check, as the ledger keeps it
    note: str = ""  # what its owner should know, such as a budget that runs out; empty: nothing
    rung: str = ""  # what holds it to its slice, see :mod:`.rungs`; empty: not known
    over_seconds: float | None = None  # over its memory since its owner was warned of it; None: it is not

    @property
    def extendable_seconds(self) -> float:
        """How much more the owner may extend in all."""
        return max(0.0, self.terms.extend_max - self.extended_seconds)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the slices of a lease.  Every field may be unknown by itself."""

    utilization: float | None = None
    memory_mib: int | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """KEEP, WARN or RECLAIM, with the reason in words."""

    decision: Decision
    reason: str
    deadline_seconds: float | None = None
    warned_for: str = ""  # the rule behind a WARN or RECLAIM, as in a lease
    signal: str = ""  # which one decided, by its name in ``signals``; empty: none


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a session.  ``server`` marks the notebook server itself, whose use never counts."""

    pid: int
    created: float
    cpu_seconds: float
    memory_mib: int
    server: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A session that a backend found: what its marker (environment or labels) says of it."""

    name: str
    lease: str
    user: str
    server: str
    profile: str
    cells: Mapping[str, tuple[int, ...]]  # by device, as its marker names them
    owner: str = ""  # the hub's id of the person and when it was given out, see :meth:`Owner.mark`
    runtime: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    processes: tuple[Process, ...] | None = ()  # None: unknown
    running: bool = True  # False: what is left of it, a container that does not run


@dataclass(frozen=True, slots=True)
class Limit:
    """A cap or a right of a user, a group or the pool; ``None`` means no cap, 0 means nothing at all."""

    sessions: int | None = None
    gpus: float | None = None
    queued: int | None = None
    gpu_hours: float | None = None
    window: float = 604800.0  # seconds: of the sliding window that gpu_hours counts in
    max_age: float | None = None
    profiles: tuple[str, ...] | None = None
    priority: int | None = None
    strict: bool = False
    guaranteed_gpus: float | None = None
    reservations: tuple[tuple[float, float, float], ...] = ()  # (GPU-equivalents, start, end)


def plain(value: Any) -> dict[str, Any]:
    """A dataclass of this module as a JSON-ready dictionary (enums are strings already)."""
    return asdict(value)


def session_name(pool: str, lease: str, epoch: int) -> str:
    """The name under which a backend knows the session of a lease: pool, lease and epoch."""
    return f"{pool}-{lease}-{epoch}"
