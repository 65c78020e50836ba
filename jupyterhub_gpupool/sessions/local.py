"""Sessions that are processes of this machine, found by the marker that their launch put in the environment.

A process belongs to a session when its environment names the session's lease and epoch, or when its parent
belongs to it: process groups and session ids are of no use, because kernels and terminals have their own.
A process that was once seen to belong stays so, whatever it does later.  What clears or hides its environment
*and* leaves its parent before anybody looked (``env -i setsid``) escapes: only a cgroup would hold it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..containment import NO_DEVICE
from ..model import Lease, Presence, Process, Session, session_name
from . import Foreign, marked_cells, script
from .ending import Identity, end
from .proc import Stat, created, read, stat_of

log = logging.getLogger(__name__)

SERVER_COMMANDS = ("jupyterhub-singleuser", "jupyter-labhub", "jupyterhub.singleuser")
"""Programs or modules (``python -m``) that are a notebook server."""

LEASE = re.compile(r"[A-Za-z0-9_.-]{1,128}")
EPOCH = re.compile(r"[0-9]{1,9}")
KEPT = ("GPUPOOL_", "NVIDIA_VISIBLE_DEVICES")
KEPT_OF_HUB = ("JUPYTERHUB_USER", "JUPYTERHUB_SERVER_NAME", "JUPYTERHUB_SERVICE_URL")
"""What is kept of an environment, by the start of the name.  No secret is among them."""

TOP = 1  # init, which inherits everybody's orphans

LOADING_LOOKS, LOADING_PAUSE = 20, 0.001  # while a program is loaded; what never shows either is let go
KILL_WAIT = 1.0  # seconds for killed processes to go before the next look


@dataclass(slots=True)
class _Seen:
    """A living process of a scan; ``name`` of the session that its own marker names, empty without one."""

    stat: Stat
    name: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        return self.stat.pid, self.stat.created


AGE = attrgetter("stat.created", "stat.pid")


class LocalSessions:
    """The sessions of one pool on this machine, started under the account that asks.

    ``server_commands`` are programs or modules that are a notebook server, whose own use never counts.
    """

    trusted = False  # whoever starts a process writes its environment

    def __init__(
        self, pool: str, *, server_commands: Iterable[str] = SERVER_COMMANDS, proc: str | Path = "/proc"
    ) -> None:
        self._pool = pool
        self._commands = frozenset(server_commands)
        self._proc = Path(proc)
        self._belongs: dict[Identity, str] = {}
        """What was found last.  Only helps: a dying process has lost its environment already."""
        self._markers: dict[str, Mapping[str, str]] = {}
        """The environment that says what each session is, as last read."""

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        """Say of each name whether any process of it lives; see :class:`Sessions`.

        One that was seen to belong and lives is proof of presence.  Without one it takes a scan of all
        processes, one for all names.
        """
        living = self._living()
        found = living if living.issuperset(names) else self._answer()
        if found is None:
            return {name: Presence.PRESENT if name in living else Presence.UNKNOWN for name in names}
        return {name: Presence.PRESENT if name in found else Presence.ABSENT for name in names}

    def _living(self) -> set[str]:
        """The sessions of which a process lives that was seen to belong."""
        try:
            return {name for (pid, since), name in self._belongs.items() if created(pid, self._proc) == since}
        except OSError as error:
            log.warning("The processes of sessions cannot be read: %s", error)
            return set()

    def list(self) -> tuple[Session, ...] | None:
        """Find all sessions of this pool with their processes.

        ``runtime`` holds ``pid``, ``created`` and ``port`` of the notebook server, and is empty where only
        what it has left behind still runs.
        """
        found = self._answer()
        if found is None:
            return None
        for name, members in found.items():
            # Whatever a person starts can carry a changed marker; the server's is the one that the launch wrote.
            named = [seen for seen in members if seen.name]
            if chief := self._server(named) or min(named, key=AGE, default=None):
                self._markers[name] = chief.environ
        # A process that is just ending has no environment any more: then what was read before counts.
        self._markers = {name: marker for name, marker in self._markers.items() if name in found}
        return tuple(self._session(name, found[name]) for name in sorted(self._markers))

    def members(self, name: str) -> frozenset[Identity]:
        """Name the processes of a session; a stop takes them first and gives them to :meth:`remove`.

        Afterwards a process that cleared its environment can no longer be told by its parent.  Empty when
        the processes cannot be listed.
        """
        return frozenset(seen.identity for seen in (self._answer() or {}).get(name, ()))

    def token(self, name: str) -> str | None:
        """Read the API token of a session's notebook server, for its adoption.  Never log or store it."""
        server = self._server_of(name)
        if server is None:
            return None
        token = _environ(read(self._proc, server.stat, "environ"), ("JUPYTERHUB_API_TOKEN",))
        same = created(server.stat.pid, self._proc) == server.stat.created
        return token.get("JUPYTERHUB_API_TOKEN") if same else None

    def environment_of(self, name: str, pid: int = 0) -> dict[str, str]:
        """Read the GPUPOOL_ names and NVIDIA_VISIBLE_DEVICES that the server was launched with, {} without one."""
        if pid and (stat := stat_of(self._proc, pid)) and (raw := read(self._proc, stat, "environ")):
            found = _environ(raw, KEPT)  # a scan of all processes costs much more
            if self._name(found) == name:
                self._belongs = {**self._belongs, (stat.pid, stat.created): name}
            return found
        server = self._server_of(name)
        return {key: at for key, at in (server.environ if server else {}).items() if key.startswith(KEPT)}

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        """Compare the environment of a notebook server with its lease; see :class:`Sessions`.

        Empty, too, where no server runs: what it left behind says nothing.
        """
        found = self._answer()
        if found is None:
            return None
        server = self._server(found.get(lease.session, ()))
        if server is None:
            return ()
        wanted = {
            "GPUPOOL_DEVICES": ",".join(item.device for item in lease.slices),
            "NVIDIA_VISIBLE_DEVICES": ",".join(item.visible for item in lease.slices) or NO_DEVICE,
        }
        told = server.environ
        return tuple(
            f"{name} is {told.get(name)!r}" for name, value in wanted.items() if told.get(name) != value
        )

    def reaches(self, name: str) -> None:
        """Not told: a process of the hub's own account can open what the hub can."""

    def foreign(self) -> tuple[Foreign, ...]:
        """Nothing: who else's processes are on a GPU is the driver's to say."""
        return ()

    def remove(
        self,
        name: str,
        *,
        timeout: float,
        keep: Callable[[str], None] | None = None,
        known: Collection[Identity] = frozenset(),
    ) -> bool:
        """End every process of a session and those of ``known``, with all that descends from them.

        They are asked to end (TERM) for half of ``timeout`` and killed after it.  True when two fresh scans
        in a row find none of them; with ``timeout`` 0 nothing is ended.
        """
        start = time.monotonic()
        roots, asked, empty = set(known), set[Identity](), 0
        try:
            while empty < 2:
                found = {seen.identity for seen in self._members(name, roots).get(name, ())}
                left = start + timeout - time.monotonic()
                if not found:
                    empty += 1  # a process that was being made during one scan is there in the next
                elif left <= 0:
                    return False
                elif left > timeout / 2:
                    end(found - asked, found & asked, signal.SIGTERM, left - timeout / 2)
                else:
                    end(found, set(), signal.SIGKILL, min(left, KILL_WAIT))
                empty = 0 if found else empty
                asked |= found
                roots |= found
        except OSError as error:
            log.error("The processes of session %s cannot be ended: %s", name, error)
            return False
        return True

    def before_reclaim(
        self, name: str, environment: Mapping[str, str], *, timeout: float
    ) -> script.ScriptEnd | None:
        """Run the owner's script with the environment and the account of the notebook server."""
        server = self._server_of(name)
        if server is None:
            return None
        raw = read(self._proc, server.stat, "environ")
        status = read(self._proc, server.stat, "status").decode("utf-8", "replace")
        if created(server.stat.pid, self._proc) != server.stat.created:
            return None  # it has ended, and what was read may be another's
        known = _environ(raw, ("",))
        home = Path(known.get("HOME") or "")
        if not home.is_absolute():
            return None
        try:
            account = script.account_of(status)
        except ValueError as error:
            return script.ScriptEnd("failed", tail=f"It was not run: {error}.")
        return script.run(home / script.SCRIPT, {**known, **environment}, account, timeout=timeout)

    def _server_of(self, name: str) -> _Seen | None:
        return self._server((self._answer() or {}).get(name, ()))

    def _answer(self) -> Mapping[str, Sequence[_Seen]] | None:
        try:
            return self._members()
        except OSError as error:
            log.warning("The processes of this machine cannot be listed: %s", error)
            return None

    def _session(self, name: str, members: Sequence[_Seen]) -> Session:
        server, environ = self._server(members), self._markers[name]
        runtime: dict[str, Any] = {}
        url = environ.get("JUPYTERHUB_SERVICE_URL", "")
        if server is not None:
            runtime = {"pid": server.stat.pid, "created": server.stat.created, "port": _port(url)}
        try:
            cells = marked_cells(environ.get("GPUPOOL_CELLS", "{}"))
        except ValueError as error:
            log.warning("The marker of session %s names no cells that can be read: %s", name, error)
            cells = {}
        return Session(
            name=name,
            lease=environ["GPUPOOL_LEASE"],
            user=environ.get("JUPYTERHUB_USER", ""),
            server=environ.get("JUPYTERHUB_SERVER_NAME", ""),
            profile=environ.get("GPUPOOL_PROFILE", ""),
            cells=cells,
            owner=environ.get("GPUPOOL_OWNER", ""),
            runtime=runtime,
            url=url,
            processes=tuple(_process(seen, seen is server) for seen in sorted(members, key=AGE)),
        )

    def _server(self, members: Iterable[_Seen]) -> _Seen | None:
        """Pick the notebook server: the oldest by far, for everything else in the session came from it."""
        return min((seen for seen in members if seen.name and self._is_server(seen)), key=AGE, default=None)

    def _is_server(self, seen: _Seen) -> bool:
        # The interpreter, its options and `-m` may come first; a job's own arguments come later.
        words = read(self._proc, seen.stat, "cmdline").split(b"\0")[:4]
        return any(os.fsdecode(word).rpartition("/")[2] in self._commands for word in words)

    def _members(self, name: str = "", roots: Collection[Identity] = ()) -> Mapping[str, Sequence[_Seen]]:
        """Scan once and sort the living processes by session; ``roots`` count as processes of ``name``.

        Raises OSError when the scan is not complete.
        """
        seen = self._scan()
        before = self._belongs | dict.fromkeys(roots, name)
        names: dict[int, str] = dict.fromkeys(_untouchable(seen), "")
        found: dict[str, list[_Seen]] = defaultdict(list)
        for pid in seen:
            path: list[int] = []
            at = pid
            while at not in names:
                path.append(at)
                process = seen[at]
                parent = seen.get(process.stat.parent)
                if process.name or process.identity in before:
                    names[at] = process.name or before[process.identity]
                elif parent is None or parent.stat.created > process.stat.created or parent.stat.pid in path:
                    names[at] = ""  # an orphan, or another process that has the pid of its parent by now
                else:
                    at = parent.stat.pid
            names.update(dict.fromkeys(path, names[at]))
            if names[pid]:
                found[names[pid]].append(seen[pid])
        self._belongs = {one.identity: key for key, members in found.items() for one in members}
        return found

    def _scan(self) -> dict[int, _Seen]:
        """Read every living process.  Raises OSError when one cannot be read for a reason of our own.

        An environment that we may not read is another account's, or that of a program that hides it; both
        are no error, or every machine with an ssh-agent would be unknown for ever.
        """
        pids = [int(entry) for entry in os.listdir(self._proc) if entry.isdecimal()]
        if os.getpid() not in pids:
            raise OSError(errno.EIO, "the list of processes lacks this one", str(self._proc))
        found: dict[int, _Seen] = {}
        for pid in pids:
            stat = stat_of(self._proc, pid)
            if stat is None or stat.gone:
                continue
            found[pid] = seen = _Seen(stat)
            raw = self._environment(stat)
            if b"GPUPOOL_LEASE=" in raw:
                seen.environ = _environ(raw, KEPT + KEPT_OF_HUB)
                seen.name = self._name(seen.environ)
        return found

    def _environment(self, stat: Stat) -> bytes:
        """Read the environment of a process; a program that is being loaded is waited for, it has none yet."""
        if stat.kernel:
            return b""
        for _ in range(LOADING_LOOKS):
            if raw := read(self._proc, stat, "environ"):
                return raw
            if read(self._proc, stat, "cmdline"):  # it is loaded, and has or shows no environment
                break
            time.sleep(LOADING_PAUSE)
        return read(self._proc, stat, "environ")

    def _name(self, environ: Mapping[str, str]) -> str:
        """The session that a marker names; empty for another pool's, and for no proper marker."""
        lease, epoch = environ.get("GPUPOOL_LEASE", ""), environ.get("GPUPOOL_EPOCH", "")
        if environ.get("GPUPOOL_POOL") != self._pool or not (
            LEASE.fullmatch(lease) and EPOCH.fullmatch(epoch)
        ):
            return ""
        return session_name(self._pool, lease, int(epoch))


def _environ(raw: bytes, kept: tuple[str, ...]) -> dict[str, str]:
    """Parse an environment; where a name is there twice the first one counts, as for ``getenv``."""
    found: dict[str, str] = {}
    for entry in raw.split(b"\0"):
        key, _, value = entry.decode("utf-8", "replace").partition("=")
        if key.startswith(kept):
            found.setdefault(key, value)
    return found


def _untouchable(seen: Mapping[int, _Seen]) -> set[int]:
    """Init, this process and all above it: never of a session, whatever their environment says."""
    found, at = {TOP}, os.getpid()
    while at in seen and at not in found:
        found.add(at)
        at = seen[at].stat.parent
    return found


def _process(seen: _Seen, server: bool) -> Process:
    """A process as the telemetry sees it.

    What its children used before they ended is part of a job's use, but the server's children are the
    kernels: counting them there would count them twice.
    """
    stat = seen.stat
    return Process(
        pid=stat.pid,
        created=stat.created,
        cpu_seconds=stat.cpu + (0 if server else stat.reaped),
        memory_mib=stat.memory_mib,
        server=server,
    )


def _port(url: str) -> int:
    try:
        return urlsplit(url).port or 0
    except ValueError:
        return 0
