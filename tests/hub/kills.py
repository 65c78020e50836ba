"""What the kill tests look at: processes by their marks, the ledger beside them, and how a process is made to die."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import psutil
import requests
from sqlalchemy import update

from jupyterhub_gpupool.ledger import Event, Ledger, schema
from jupyterhub_gpupool.model import HOLDING, Lease, State
from jupyterhub_gpupool.sessions import marked_cells

from .conftest import HubUnderTest, until


def marks(hub: HubUnderTest) -> dict[tuple[int, float], tuple[str, dict[str, tuple[int, ...]]]]:
    """The living processes of all sessions: who they are → the lease and the cells that their mark names."""
    pool = json.loads((hub.state / "service.json").read_text())["GPUPool"]["name"]
    found = {}
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            raw = Path(f"/proc/{pid}/environ").read_bytes()  # empty for a zombie
            if f"GPUPOOL_POOL={pool}\0".encode() in raw:
                environ = dict(one.partition("=")[::2] for one in raw.decode().split("\0"))
                cells = dict(marked_cells(environ["GPUPOOL_CELLS"]))
                found[pid, psutil.Process(pid).create_time()] = environ["GPUPOOL_LEASE"], cells
    return found


class Watch(threading.Thread):
    """Looks again and again for what must never be, whoever is dead at that moment."""

    def __init__(self, hub: HubUnderTest) -> None:
        super().__init__(daemon=True)
        self.hub, self.broken, self.looks = hub, set[str](), 0
        self._over = threading.Event()

    def run(self) -> None:
        ledger = Ledger(f"sqlite:///{self.hub.state / 'ledger.sqlite'}")
        while not self._over.wait(0.4):
            self.looks += 1
            self.broken.update(ledger.verify())
            # In this order: what is closed stays closed, so whatever runs afterwards runs on free cells.
            closed = {lease.id for lease in ledger.closed(None, count=1000)}
            first, second = marks(self.hub), marks(self.hub)
            over = {lease for lease, _ in second.values()} & closed
            self.broken.update(f"a process of lease {lease} runs, it is closed" for lease in over)
            lived = dict(first[key] for key in first.keys() & second.keys())
            for (one, a), (other, b) in combinations(lived.items(), 2):
                if any(set(cells) & set(b.get(device, ())) for device, cells in a.items()):
                    self.broken.add(f"the sessions of {one} and {other} run on the same cells")
        ledger.close_database()

    def end(self) -> None:
        self._over.set()
        self.join(20)
        assert self.looks > 0
        assert self.broken == set()


def arm(hub: HubUnderTest, point: str) -> None:
    """Let the process that passes this point next die there."""
    new = hub.state.parent / "fault.new"
    new.write_text(f"{point}:kill:1")
    new.replace(hub.fault.removeprefix("@"))


def die_at(hub: HubUnderTest, point: str, act: Callable[[], object]) -> None:
    """Do what makes the hub pass this point, and see it die there."""
    arm(hub, point)
    with contextlib.suppress(requests.RequestException):  # nobody is left who could answer
        act()
    assert hub.wait_dead() == -signal.SIGKILL


def notebook(hub: HubUnderTest, lease: Lease) -> list[psutil.Process]:
    """The notebook server of a lease; one at most, or something was launched twice."""
    found = []
    for (pid, _), (name, _) in marks(hub).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if name == lease.id and any(word.endswith("jupyterhub-singleuser") for word in process.cmdline()):
                found.append(process)
    assert len(found) <= 1
    return found


def agree(hub: HubUnderTest) -> bool:
    """Whether ledger and machine say the same: who holds slices is active and runs, and nobody else runs."""
    held = [lease for lease in hub.ledger().snapshot().leases if lease.state in HOLDING]
    running = {lease for lease, _ in marks(hub).values()}
    return {lease.id for lease in held} == running and all(lease.state is State.ACTIVE for lease in held)


def reachable(hub: HubUnderTest, lease: Lease) -> None:
    """See that this lease's own session answers through the proxy."""

    def probe() -> bool:
        with contextlib.suppress(requests.RequestException):
            return hub.ask_session(lease.user, server=lease.server).text.startswith(f"{lease.id} ")
        return False

    until(probe, f"the session of {lease.user} to answer through the proxy")


def still(hub: HubUnderTest, lease: Lease) -> None:
    """See that a session went through it all: the same lease, the same process, at its address."""
    hub.wait_ready(lease.user, lease.server)
    now = hub.wait_state(lease.user, "active", lease.server)
    assert (now.id, now.slices) == (lease.id, lease.slices)
    assert len(notebook(hub, lease)) == 1
    reachable(hub, lease)


def sweeps(hub: HubUnderTest, lease: Lease, count: int) -> Lease:
    """Wait until an active lease was judged so often, and return it."""
    before = lease.version

    def probe() -> Lease | None:
        now = hub.ledger().lease(lease.id)
        assert now is not None and now.state is State.ACTIVE, f"the lease is {now}"
        return now if now.version >= before + count else None

    return until(probe, f"{count} sweeps")


def events_of(hub: HubUnderTest, lease: Lease, action: str) -> list[Event]:
    found, after = [], 0
    while page := hub.ledger().events(after, 1000):
        found += [event for event in page if (event.lease, event.action) == (lease.id, action)]
        after = page[-1].seq
    return found


def ask_brief(hub: HubUnderTest) -> Lease:
    """Ask for a session that is soon idle; its lease may be over before anybody sees it active."""
    before = {lease.id for lease in hub.ledger().closed("ada", count=1000)}
    hub.spawn("ada", "brief")
    found = [*hub.ledger().snapshot().leases, *hub.ledger().closed("ada", count=1000)]
    [lease] = [lease for lease in found if lease.id not in before]
    return lease


def forget_leader(hub: HubUnderTest) -> None:
    """As if the seconds had passed for which a service that was killed still counts as the leader."""
    with hub.ledger().store.write() as tx:
        tx.run(update(schema.pool).values(leader="", leader_until=0))


def services(hub: HubUnderTest) -> list[psutil.Process]:
    return hub.processes("jupyterhub_gpupool service")


def kill_service(hub: HubUnderTest) -> None:
    former = services(hub)
    assert former
    hub.kill_service()
    psutil.wait_procs(former, timeout=20)


def service_back(hub: HubUnderTest) -> None:
    """Wait until the hub has started a service again, and that one leads."""
    until(lambda: services(hub), "the hub to start its service again")
    forget_leader(hub)
    until(hub.service_answers, "the service to lead", 60)


def end_all(hub: HubUnderTest) -> None:
    """Stop every server, and see that nothing is left."""
    for lease in hub.ledger().snapshot().leases:
        hub.delete(lease.user, lease.server)
    for lease in hub.ledger().snapshot().leases:
        hub.wait_gone(lease.user, lease.server)
    assert hub.ledger().snapshot().leases == ()
    assert marks(hub) == {}
