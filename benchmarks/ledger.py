"""Grants and releases a second of the real ledger, with full durability.

Each worker process opens the ledger as a hub does and takes leases of a whole GPU through grant (`enqueue`),
`begin_stop` and release (`close`): three committed transactions, one grant and one release.  Half of the GPUs
are held by others all the while, nobody waits.  Rounds with 10 and with 1,000 devices, and with 1 and 4
processes, take turns, and the best and the median of them are printed.  The baseline is what this disk and
SQLite give to the same number of processes that commit one changed row at a time, three for each lease.
"""

from __future__ import annotations

import multiprocessing
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from _hub import ROOT, VERDICTS, folder, load_note, parser, table, verdict

sys.path.insert(0, str(ROOT))

from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import Device, Kind, Owner, Request, State, Terms, Wish

WHOLE = Wish(kind=Kind.GPU, count=1)
DEVICES, PROCESSES = (10, 1000), (1, 4)
TRANSACTIONS = 3  # of one grant and its release


def gpu(number: int) -> Device:
    return Device(id=f"GPU-{number}", node="bench", index=number, model="A100-SXM4-80GB", memory_mib=81920)


def request(user: str, number: int) -> Request:
    return Request(Owner(user, number, 1.0), "", "whole", WHOLE, Terms())


def open_ledger(path: Path) -> Ledger:
    return Ledger(f"sqlite:///{path}", Policy(launches=0))


def make(path: Path, devices: int) -> None:
    """A ledger whose every other GPU is held."""
    ledger = open_ledger(path)
    ledger.sync_inventory([gpu(n) for n in range(devices)])
    ledger.settle()
    ledger.register_hub("hub")
    for number in range(devices // 2):
        ledger.activate(ledger.enqueue("hub", request(f"holder{number}", 10_000 + number)).id, actor="holder")
    with sqlite3.connect(path) as raw:
        mode = raw.execute("PRAGMA journal_mode").fetchone()[0]
    with ledger.store.read() as (conn, _):
        sync = conn.exec_driver_sql("PRAGMA synchronous").scalar_one()
    if (mode, sync) != ("wal", 2):
        raise SystemExit(f"the ledger is not fully durable: journal_mode={mode} synchronous={sync}")
    ledger.close_database()


def lease(path: Path, number: int) -> Callable[[], None]:
    """Return what takes and gives back one lease."""
    ledger, mine = open_ledger(path), request(f"worker{number}", number)

    def cycle() -> None:
        granted = ledger.enqueue("hub", mine)
        if granted.state is not State.STARTING:
            raise SystemExit(f"worker {number} has to wait")
        ledger.begin_stop(granted.id, actor="bench", reason="")
        ledger.close(granted.id, actor="bench")

    return cycle


def commit(path: Path, number: int) -> Callable[[], None]:
    """Return what commits as often, with one changed row each."""
    raw = sqlite3.connect(path, timeout=20, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        raw.execute(f"PRAGMA {pragma}")
    raw.execute("CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, n INTEGER)")
    raw.execute("INSERT OR IGNORE INTO counter VALUES (1, 0)")

    def cycle() -> None:
        for _ in range(TRANSACTIONS):
            raw.execute("BEGIN IMMEDIATE")
            raw.execute("UPDATE counter SET n = n + 1")
            raw.execute("COMMIT")

    return cycle


def work(kind: Any, path: Path, number: int, seconds: float, ready: Barrier, done: Any) -> None:
    cycle = kind(path, number)
    for _ in range(3):
        cycle()
    ready.wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        cycle()
        count += 1
    done.put(count / (time.perf_counter() - began))


def rate(kind: Any, path: Path, processes: int, seconds: float) -> float:
    """Grants and releases a second of all processes together."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=work, args=(kind, path, number, seconds, ready, done))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = sum(done.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    return 2 * float(found)


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--seconds", type=float, default=3, help="length of one round (3)")
    line.add_argument("--rounds", type=int, default=4, help="rounds of each kind (4)")
    options = line.parse_args()
    rates: dict[tuple[str, int], list[float]] = {}
    with folder(options.dir) as parent:
        for devices in DEVICES:
            make(parent / f"{devices}.sqlite", devices)
        for _ in range(options.rounds):
            for processes in PROCESSES:
                for devices in DEVICES:
                    found = rate(lease, parent / f"{devices}.sqlite", processes, options.seconds)
                    rates.setdefault((str(devices), processes), []).append(found)
                bare = rate(commit, parent / "bare.sqlite", processes, options.seconds / 2)
                rates.setdefault(("bare", processes), []).append(bare)
        for devices in DEVICES:
            ledger = open_ledger(parent / f"{devices}.sqlite")
            if problems := ledger.verify():
                raise SystemExit(f"the ledger broke its rules: {problems}")
    head = (
        "",
        *(f"{n} process{'es' if n > 1 else ''}: {what}" for n in PROCESSES for what in ("median", "best")),
    )
    names = {"10": "10 devices", "1000": "1,000 devices", "bare": "bare commits (baseline)"}
    lines = []
    for key, name in names.items():
        figures = [pick(rates[key, n]) for n in PROCESSES for pick in (statistics.median, max)]
        lines.append((name, *(f"{figure:.0f}/s" for figure in figures)))
    table("grants and releases a second", head, lines)
    summary = []
    for processes in PROCESSES:
        few, many, bare = (statistics.median(rates[key, processes]) for key in names)
        for key, found in (("10", few), ("1000", many)):
            summary.append(
                verdict(
                    f"(b) {names[key]}, {processes} process{'es' if processes > 1 else ''}",
                    f"{found:.0f}/s",
                    f"{bare:.0f}/s",
                    f"{found / bare:.2f}",
                    "≥ 300/s",
                    found >= 300,
                )
            )
        summary.append(
            verdict(
                f"(b) cost at 1,000 devices, {processes} process{'es' if processes > 1 else ''}",
                f"{2000 / many:.2f} ms",
                f"{2000 / few:.2f} ms",
                f"{few / many:.2f}",
                "≤ 3",
                few / many <= 3,
            )
        )
    table("", VERDICTS, summary)
    print(load_note())


if __name__ == "__main__":
    main()
