"""What the probes collect for the checks: plain values, no I/O.  Sizes are in bytes, durations in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..model import Device
from ..profiles import Profile
from .model import Unknown


@dataclass(frozen=True, slots=True)
class Driver:
    """What the system's files say of NVIDIA's driver."""

    cards: int | None
    """NVIDIA's display devices on the PCI bus; None where the bus cannot be read."""
    module: str
    """Version of the kernel module that is loaded; empty: none is."""
    libraries: tuple[str, ...]
    """Versions of NVIDIA's management library that are installed."""
    nouveau: bool = False
    """Whether the kernel's own driver has the cards."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as ``nvidia-smi`` shows it."""

    index: str
    uuid: str
    name: str
    compute_mode: str = "Default"
    persistence: str = "Enabled"
    mig: str = "[N/A]"
    mig_pending: str = "[N/A]"


@dataclass(frozen=True, slots=True)
class Smi:
    """What ``nvidia-smi`` answered: exit ``status`` (None: not in time), what it ``said``, GPUs and MIG instances."""

    status: int | None
    said: str = ""
    cards: tuple[Card, ...] = ()
    instances: tuple[str, ...] = ()
    """UUIDs of MIG instances."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """NVIDIA's container toolkit."""

    version: str
    """Empty: it is not installed."""
    hook_changed: float | None = None
    """When the runtime's hook was put there, seconds since 1970; None: there is none on the PATH."""
    accepts_variable: bool | None = None
    """``accept-nvidia-visible-devices-envvar-when-unprivileged``; None: its file cannot be read."""
    described: tuple[str, ...] = ()
    """UUIDs that files of the Container Device Interface name."""
    nodes_without_link: tuple[str, ...] = ()
    """Device nodes of NVIDIA that ``/dev/char`` has no link to."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the container engine says of itself."""

    version: str
    cgroup_driver: str
    default_runtime: str
    runtimes: tuple[str, ...]
    cdi: tuple[str, ...] = ()
    """Names of devices that the engine knows under CDI."""
    root: str = ""
    live_restore: bool = False
    warnings: tuple[str, ...] = ()
    security: tuple[str, ...] = ()
    started: float | None = None
    """When the daemon started, seconds since 1970; None: not known, or it runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images that sessions may be started from: name → its id on the engine, or None; and where each is named."""

    found: Mapping[str, str | None]
    used_by: Mapping[str, str]
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """The network of the sessions: ``isolated`` where they cannot talk to each other."""

    name: str
    isolated: bool
    gateway: str


@dataclass(frozen=True, slots=True)
class Reach:
    """What a container on that network got from the hub: an HTTP status, or None and why."""

    url: str
    status: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool's configuration, as ``configure`` handed it to the service."""

    name: str
    backend: str
    offer: Mapping[str, Profile]
    mode: str
    sweep_interval: float
    simulated: bool
    """Whether it is simulated GPUs that are configured."""
    engine: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Books:
    """What the ledger says."""

    place: str
    devices: tuple[Device, ...]
    swept_at: float | None
    clock_ahead: float
    """Seconds by which the database's clock is before this machine's."""
    now: float
    broken: tuple[str, ...] = ()
    """Rules of the ledger that its rows break."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file or folder that others must not read, or not write."""

    path: str
    mode: int
    folder: bool = False
    shielded: bool = False
    """Whether a folder above it keeps everybody else out."""


@dataclass(frozen=True, slots=True)
class Hub:
    """What the hub was configured to be at its last start; see ``configuration/hub.py``."""

    api: str
    cleanup_servers: bool
    proxy: str
    proxy_command: str
    """``python``: the program of that language; empty: whatever the PATH has."""
    proxy_started: bool
    cullers: tuple[tuple[str, str], ...]
    """Services that end idle servers, each with its time-out in seconds as text, or an empty one."""
    inner_cullers: tuple[str, ...]
    scopes: frozenset[str]
    service_admin: bool
    user_scopes: frozenset[str]
    start_timeout: float | None
    http_timeout: float | None
    failure_limit: int | None
    image: str
    images: tuple[str, ...]
    gpu_access: str
    network: str
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub's REST API answers on this machine: a version, or why there is none."""

    url: str
    version: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Processes:
    """What runs on this machine, as far as this account sees it."""

    cullers: int = 0
    python_proxies: int = 0
    mps_controls: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a folder."""

    what: str
    path: str
    kind: str
    free: int
    total: int
    nodes_left: float = 1.0
    """Part of its file entries that is free."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks look at."""

    driver: Driver | Unknown
    smi: Smi | Unknown
    toolkit: Toolkit | Unknown
    engine: Engine | Unknown
    images: Images | Unknown
    network: Network | Unknown
    reach: Reach | Unknown
    pool: Pool | Unknown
    books: Books | Unknown
    kept: tuple[Kept, ...] | Unknown
    hub: Hub | Unknown
    answer: Answer | Unknown
    jupyterhub: str | Unknown
    """Its version."""
    proxy_program: str | Unknown
    """What ``configurable-http-proxy`` on the PATH is: ``node`` or ``python``."""
    processes: Processes | Unknown
    engine_disk: Disk | Unknown
    state_disk: Disk | Unknown
    clock: bool | Unknown
    """Whether the machine's clock is kept in step with others."""
    gpus: str
    """``real``, ``simulated``, or empty where nothing says which the pool has."""
