"""One sweep of the service over many active leases: seconds and memory.

The ledger, the sweep with its judging and tidying, and the simulated devices are the real ones; the backend
is one that knows a session with a notebook server and two kernels for every lease, and a hub that is never
asked.  Each number of leases runs in a process of its own, whose largest resident size is its memory.  The
first sweep, which also writes the inventory, is printed apart from those that follow; ten leases show what
a sweep costs by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from _hub import ROOT, VERDICTS, folder, load_note, parser, table, verdict

sys.path.insert(0, str(ROOT))

from prometheus_client import CollectorRegistry
from traitlets.config import Config

from jupyterhub_gpupool.devices.simulated import SimulatedDevices
from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import (
    Kind,
    Lease,
    Owner,
    Presence,
    Process,
    Request,
    Session,
    Terms,
    Wish,
)
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service import app  # noqa: F401  what a service process holds besides a sweep
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.metrics import Metrics
from jupyterhub_gpupool.service.sweep import Rules, Sweep
from jupyterhub_gpupool.sessions import Foreign

HALF = Wish(kind=Kind.SHARE, fraction="1/2")
PROCESSES = 3
MOST_GPUS = 500


class Known:
    """A backend that knows a session for every lease.  Half of them work more at every look."""

    trusted = False

    def __init__(self, leases: Collection[Lease]) -> None:
        self._leases, self._looks = list(leases), 0

    def _session(self, number: int, lease: Lease) -> Session:
        used = self._looks * 10.0 if number % 2 else 1.0
        processes = tuple(
            Process(pid=10 * number + n, created=1.0, cpu_seconds=used, memory_mib=200, server=n == 0)
            for n in range(PROCESSES)
        )
        cells = {item.device: item.cells for item in lease.slices}
        return Session(
            lease.session, lease.id, lease.user, lease.server, lease.profile, cells, processes=processes
        )

    def list(self) -> tuple[Session, ...]:
        self._looks += 1
        return tuple(self._session(number, lease) for number, lease in enumerate(self._leases))

    def look(self, names: Collection[str]) -> dict[str, Presence]:
        return dict.fromkeys(names, Presence.PRESENT)

    def remove(self, name: str, *, timeout: float, keep: Callable[[str], None] | None = None) -> bool:
        raise SystemExit(f"session {name} would be ended")

    def differs(self, lease: Lease) -> tuple[str, ...] | None:
        return ()

    def foreign(self) -> tuple[Foreign, ...]:
        return ()


class NoHub:
    """A hub that a sweep without reclaims has no reason to ask."""

    async def server(self, user: str, name: str) -> Server | None:
        raise SystemExit(f"the sweep asked the hub for the server of {user}")

    async def stop(self, user: str, name: str) -> None:
        raise SystemExit(f"the sweep stopped the server of {user}")


def fill(url: str, devices: SimulatedDevices, leases: int) -> tuple[Lease, ...]:
    """Make a ledger with so many active leases."""
    ledger = Ledger(url, Policy(launches=0))
    ledger.sync_inventory(devices.devices())
    ledger.settle()
    ledger.register_hub("hub")
    for number in range(leases):
        request = Request(Owner(f"user{number}", number + 1, 1.0), "", "half", HALF, Terms())
        ledger.activate(ledger.enqueue("hub", request).id, actor="bench")
    found = ledger.snapshot().leases
    if len(found) != leases or any(lease.state != "active" for lease in found):
        raise SystemExit(f"only {len(found)} of {leases} leases are active")
    ledger.close_database()
    return found


async def sweep(
    url: str, devices: SimulatedDevices, leases: tuple[Lease, ...], sweeps: int
) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each sweep."""
    config = Config({"GPUPool": {"database_url": url}})
    made = Sweep(
        GPUPool(config=config),
        devices,
        Known(leases),
        NoHub(),
        Rules(mode="reclaim", undelivered_max=0, before_reclaim_timeout=0),
        Metrics(CollectorRegistry()),
    )
    found = []
    for _ in range(sweeps):
        wall, cpu = time.perf_counter(), time.process_time()
        if not await made.run():
            raise SystemExit(made.last_problem)
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    kept = made.pool.ledger().snapshot().leases
    if len(kept) != len(leases) or any(lease.verdict is None for lease in kept):
        raise SystemExit("the sweep did not judge every lease")
    return found


def run_one(path: Path, leases: int, sweeps: int) -> None:
    """Fill and sweep in this process, and print what it took as JSON."""
    logging.basicConfig(level=logging.WARNING)
    gpu = {"model": "A100-SXM4-80GB", "memory": "80G"}
    gpus = (leases + 1) // 2
    kinds = [{**gpu, "count": min(MOST_GPUS, gpus - at)} for at in range(0, gpus, MOST_GPUS)]
    devices = SimulatedDevices(gpus=kinds)
    url = f"sqlite:///{path}"
    found = fill(url, devices, leases)
    times = asyncio.run(sweep(url, devices, found, sweeps))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"times": times, "memory": memory}))


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--leases", type=int, default=1000, help="active leases, two on each GPU (1000)")
    line.add_argument("--sweeps", type=int, default=12, help="sweeps after the first (12)")
    line.add_argument("--one", type=Path, help="for the benchmark itself: run in this process on this file")
    options = line.parse_args()
    if options.one:
        run_one(options.one, options.leases, options.sweeps + 1)
        return
    lines, figures = [], {}
    with folder(options.dir) as parent:
        for leases in (10, options.leases):
            command = [sys.executable, __file__, "--one", str(parent / f"{leases}.sqlite")]
            command += ["--leases", str(leases), "--sweeps", str(options.sweeps)]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            said = json.loads(ran.stdout)
            (first, _), *rest = said["times"]
            walls = [wall for wall, _ in rest]
            cpu = statistics.median(cpu for _, cpu in rest)
            figures[leases] = statistics.median(walls), max(walls), said["memory"]
            low, middle, high = statistics.quantiles(walls, n=4)
            cells = (f"{first:.3f} s", f"{middle:.3f} s ({low:.3f}–{high:.3f})", f"{max(walls):.3f} s")
            lines.append((f"{leases:,} leases", *cells, f"{cpu:.3f} s", f"{said['memory']:.0f} MB"))
    table("one sweep", ("", "first", "later: median (middle half)", "longest", "CPU", "memory"), lines)
    few, many = figures[10], figures[options.leases]
    what = f"(e) sweep over {options.leases:,} leases"
    ratios = (f"{many[0] / few[0]:.1f}", f"{many[2] / few[2]:.2f}")
    seconds = verdict(what, f"{many[0]:.3f} s", f"{few[0]:.3f} s (10)", ratios[0], "< 1 s", many[1] < 1)
    what = f"{what}: memory"
    memory = verdict(what, f"{many[2]:.0f} MB", f"{few[2]:.0f} MB (10)", ratios[1], "< 200 MB", many[2] < 200)
    table("", VERDICTS, [seconds, memory])
    print(load_note())


if __name__ == "__main__":
    main()
