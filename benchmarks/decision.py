"""Milliseconds of one decision: a GPU is released while 2,000 wait, and whose turn it is gets it.

The ledger is the real one, with full durability.  64 GPUs are held, as far as the limits let them be, and 700
users of 20 groups wait for four kinds of slices.  Timed is the whole transaction of a release: the rows are
read, limits, guarantees and budgets are counted, the queue is put in order, the next is placed, and
everybody who is told another reason for waiting is told so.  ``plain`` is a pool without limits.  ``with all``
has a limit, a priority and a budget for each group, a guaranteed share for every other one, and a limit for the
pool and for each user.  CPU is what the process needed of it: on a busy machine the rest is waiting for the
processor and for the disk.  The last column is the same release with nobody in the queue.
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from _hub import ROOT, folder, load_note, parser, table

sys.path.insert(0, str(ROOT))

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import Device, Kind, Limit, Owner, Request, State, Terms, Wish

GPUS, HELD, USERS = 64, 60, 700
GROUPS = [f"group{number}" for number in range(20)]
WISHES = [
    Wish(Kind.GPU),
    Wish(Kind.GPU, count=2),
    Wish(Kind.SHARE, fraction="1/2"),
    Wish(Kind.SHARE, fraction="1/4"),
]
ALL_OF_THEM = {
    "pool": Limit(gpus=60),
    "user:*": Limit(sessions=4, gpus=3),
    **{
        f"group:{name}": Limit(
            gpus=30, priority=5 + n, gpu_hours=100_000, guaranteed_gpus=2 if n % 2 else None
        )
        for n, name in enumerate(GROUPS)
    },
}
POOLS: Mapping[str, Mapping[str, Limit]] = {"plain": {}, "with all": ALL_OF_THEM}
GOAL = 50.0


def gpu(number: int) -> Device:
    return Device(id=f"GPU-{number}", node="bench", index=number, model="A100-SXM4-80GB", memory_mib=81920)


def request(draw: random.Random, user: int, server: str, wish: Wish, count: int) -> Request:
    groups = tuple(sorted(draw.sample(GROUPS, count)))
    return Request(Owner(f"user{user}", user + 1, 1.0), server, "profile", wish, Terms(), groups)


def fill(path: Path, limits: Mapping[str, Limit], waiting: int) -> None:
    """Make a ledger whose GPUs are held, as far as the limits let them be, and where so many wait."""
    draw = random.Random(1)
    # One launch at a time, and the last one goes on: no decision is made while the queue grows.
    ledger = Ledger(f"sqlite:///{path}", Policy(limits=limits, launches=1))
    ledger.sync_inventory([gpu(number) for number in range(GPUS)])
    ledger.settle()
    ledger.register_hub("hub")
    for number in range(HELD):
        held = ledger.enqueue("hub", request(draw, USERS + number, "", WISHES[0], 1))
        if held.state is not State.STARTING:
            raise SystemExit(f"a GPU is not granted: {held.reason}")
        if number < HELD - 1:
            ledger.activate(held.id, actor="bench")
    for number in range(waiting):
        wish, groups = draw.choice(WISHES), draw.choice([0, 1, 1, 2])
        ledger.enqueue("hub", request(draw, number % USERS, str(number), wish, groups))
    ledger.close_database()


def decide(path: Path, policy: Policy, rounds: int) -> list[tuple[float, float]]:
    """Milliseconds of each of so many releases: by the clock, and of CPU."""
    ledger = Ledger(f"sqlite:///{path}", policy)
    leases = ledger.snapshot().leases
    for lease in leases:
        if lease.state is State.STARTING:  # the first decision: what is left of the GPUs is granted
            ledger.activate(lease.id, actor="bench")
    held = [lease.id for lease in leases if lease.state is State.ACTIVE]
    found = []
    for key in held[:rounds]:
        ledger.begin_stop(key, actor="bench", reason="")
        began = time.perf_counter(), time.process_time()
        ledger.close(key, actor="bench")
        ended = time.perf_counter(), time.process_time()
        found.append((1000 * (ended[0] - began[0]), 1000 * (ended[1] - began[1])))
    if problems := ledger.verify():
        raise SystemExit(f"the ledger broke its rules: {problems}")
    ledger.close_database()
    return found


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--waiting", type=int, default=2000, help="requests in the queue (2000)")
    line.add_argument("--rounds", type=int, default=20, help="decisions of each kind (20)")
    options = line.parse_args()
    lines = []
    with folder(options.dir) as parent:
        for kind, limits in POOLS.items():
            for waiting in (0, options.waiting):
                fill(parent / f"{kind} {waiting}.sqlite", limits, waiting)
            for order in fairness.ORDERS:
                policy = Policy(limits=limits, launches=0, order=order, beat_age=1e9)
                figures = []
                for waiting in (options.waiting, 0):
                    copy = parent / f"{kind} {waiting} {order}.sqlite"
                    shutil.copy(parent / f"{kind} {waiting}.sqlite", copy)
                    figures.append(decide(copy, policy, options.rounds))
                (long, cpu), (empty, _) = (zip(*found, strict=True) for found in figures)
                median = statistics.median(long)
                columns = median, max(long), statistics.median(cpu), statistics.median(empty)
                lines.append(
                    (
                        f"{order}, {kind}",
                        *(f"{value:.1f}" for value in columns),
                        "met" if median < GOAL else "MISSED",
                    )
                )
    head = ("order of the queue, pool", "median", "longest", "CPU", "nobody waits", f"goal < {GOAL:g}")
    table(f"a decision with {options.waiting:,} in the queue, ms", head, lines)
    print(load_note())


if __name__ == "__main__":
    main()
