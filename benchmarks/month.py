"""A simulated month on a notebook trace: waits, GPU-hours and fairness of each order of the queue.

The pool runs on the package's own placement and rules of fairness.  PATH is a CSV file (or .csv.gz) with a line
for each execution of a cell: session, gpus, start_min, dur_min.  ``--made-up`` takes sessions of the same shape
that are made up (seeded); then the figures are worth as much as that shape.  Without either, only the time of a
decision is measured.  A session asks for its GPUs when its first cell starts and gives them back after its last
one; when they are taken it asks again for its next cell.

Sessions of the trace are dealt out to 40 people in four groups, until they would hold ``--load`` times the pool's
GPU-hours if nobody ever waited.  Shares: ``fixed`` caps each group at its share, ``lent`` guarantees the share and
lends what is unused.  ``wanted`` takes sessions idle for 30 min while somebody waits (warned 10 min).

  wait       minutes from asking to having, all acquisitions; who waits at the end has waited until then
  delivered  GPU-hours of cells that were computed; lost: broken off by a taking, computed again later
  Jain       Jain's index, over users and over groups, of delivered / asked-for computing (1: all alike)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from _hub import ROOT, load_note, table

sys.path.insert(0, str(ROOT))

from _month_decision import Long
from _month_pool import Arm, Books, Pool
from _month_trace import DAY, HOUR, MONTH, Notebook, Session, make_up, month, read

from jupyterhub_gpupool import fairness

ARMS = [
    Arm(order, shares, wanted)
    for shares in ("fixed", "lent")
    for wanted in (False, True)
    for order in fairness.ORDERS
]
WEEKS_BEFORE = 2
"""Forecasts count from the third week on; before that there is little past."""


def progress(text: str) -> None:
    """Say on standard error what is under way: the whole takes minutes."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def jain(values: list[float]) -> float:
    """Jain, Chiu and Hawe (1984): 1 where all have alike, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if any(values) else 0.0


def asked(found: list[Notebook]) -> dict[str, float]:
    """GPU-seconds of computing by user, as the month would hold them if nobody waited."""
    sums: dict[str, float] = defaultdict(float)
    for item in found:
        left = MONTH - item.start
        sums[item.user] += item.gpus * sum(max(0.0, min(end, left) - begin) for begin, end in item.cells)
    return sums


def fairness_of(books: Books, found: list[Notebook]) -> tuple[float, float]:
    want = asked(found)
    group_of = {item.user: item.group for item in found}
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for user, seconds in want.items():
        groups[group_of[user]][0] += books.served[user]
        groups[group_of[user]][1] += seconds
    by_user = [min(1.0, books.served[user] / seconds) for user, seconds in want.items() if seconds]
    return jain(by_user), jain([min(1.0, had / all_of) for had, all_of in groups.values() if all_of])


def compare(months: list[list[Notebook]], nodes: int, gpus: int) -> None:
    """The table of all arms, each over the same months."""
    lines = []
    for n, arm in enumerate(ARMS, 1):
        progress(f"{n} of {len(ARMS)}: {arm.order}, {arm.shares}{', wanted' if arm.wanted else ''}")
        waits: list[float] = []
        served, lost, held, taken, users, groups = 0.0, 0.0, 0.0, 0, [], []
        for found in months:
            books = Pool(nodes, gpus, arm).run(found)
            waits += books.waits
            served += sum(books.served.values())
            lost, held, taken = lost + books.lost, held + books.held, taken + books.taken
            by_user, by_group = fairness_of(books, found)
            users.append(by_user)
            groups.append(by_group)
        n = len(months)
        minutes = [statistics.fmean(waits), quantile(waits, 0.95), quantile(waits, 0.99)]
        lines.append(
            (
                f"{arm.order:8} {arm.shares:5} {'wanted' if arm.wanted else '-'}",
                *(f"{value / 60:,.0f}" for value in minutes),
                f"{served / HOUR / n:,.0f}",
                f"{lost / HOUR / n:,.0f}",
                f"{100 * served / (nodes * gpus * MONTH * n):.1f}",
                f"{held / HOUR / n:,.0f}",
                f"{taken / n:,.0f}",
                f"{statistics.fmean(users):.3f}",
                f"{statistics.fmean(groups):.3f}",
            )
        )
    head = ("order, shares, reclaim", "wait: mean", "95th", "99th", "delivered", "lost", "% of pool", "held")
    title = f"a month on {nodes} × {gpus} GPUs (waits in minutes; GPU-hours), mean of {len(months)} draws"
    table(title, (*head, "taken", "Jain users", "Jain groups"), lines)
    wanted = statistics.fmean(sum(asked(found).values()) for found in months)
    print(
        f"asked for: {wanted / HOUR:,.0f} GPU-hours of computing, {len(months[0])} sessions in the first draw"
    )


def forecasts(months: list[list[Notebook]], nodes: int, gpus: int) -> None:
    """How good the expected wait was for who had to wait, on weeks that it had not seen."""
    lines = []
    for name, arm in (
        ("fifo, one pool", Arm("fifo", "none", False)),
        ("fifo, one pool, wanted", Arm("fifo", "none", True)),
        ("fair, lent, wanted", Arm("fair", "lent", True)),
    ):
        progress(f"forecasts: {name}")
        told = [
            item for found in months for item in Pool(nodes, gpus, arm, forecast=True).run(found).forecasts
        ]
        told = [item for item in told if item[0] >= WEEKS_BEFORE * 7 * DAY]
        grounded = [item for item in told if item[1].likely is not None]
        ours = [abs((item[1].likely or 0.0) - item[3]) for item in grounded]
        last = [abs(item[2] - item[3]) for item in grounded]
        ranged = [(wait, came) for _, wait, _, came in told if wait.low is not None]
        within = [
            (w.low or 0.0) <= came <= (float("inf") if w.high is None else w.high) for w, came in ranged
        ]
        closed = [(w, came) for w, came in ranged if w.high is not None]
        held = [(w.low or 0.0) <= came <= (w.high or 0.0) for w, came in closed]
        lines.append(
            (
                name,
                str(len(told)),
                f"{quantile([item[3] for item in told], 0.5) / 60:,.0f}",
                f"{quantile(ours, 0.5) / 60:,.0f}",
                f"{quantile(last, 0.5) / 60:,.0f}",
                f"{100 * statistics.fmean(within):.0f} %" if within else "-",
                f"{100 * statistics.fmean(held):.0f} % of {len(held)}" if held else "-",
                str(len(told) - len(grounded)),
            )
        )
    head = ("forecast when asking, from week 3", "waits", "median wait", "median error", "as the last one")
    table("expected wait (minutes)", (*head, "range held", "with both ends", "no forecast"), lines)


def decisions(waiting: int) -> None:
    """CPU milliseconds of one decision with a long queue: the pure part, as it runs under the write lock."""
    progress(f"a decision with {waiting} in the queue")
    queue, lines = Long(waiting), []
    for name in fairness.ORDERS:
        alone, whole = queue.times(name)
        figures = quantile(alone, 0.5), max(alone), quantile(whole, 0.5), max(whole)
        lines.append((name, *(f"{value:.1f}" for value in figures), "met" if figures[3] < 50 else "MISSED"))
    head = ("order", "order: median", "longest", "decision: median", "longest", "goal < 50")
    table(
        f"a decision with {waiting} in the queue, CPU ms (limits and budgets of all, order, placement on 64 GPUs)",
        head,
        lines,
    )
    seconds = queue.waits_ms() / 1000
    print(f"expected wait of all {waiting} places on 64 GPUs: {seconds:.2f} s CPU, outside every lock")


def sessions_of(options: argparse.Namespace) -> list[Session]:
    """The sessions to draw months from; none, and the reason in a table, where there is no trace."""
    path: Path | None = options.path
    if path and path.is_file():
        print(f"sessions from {path.name}")
        return read(path)
    if options.made_up and not path:
        print("sessions that are made up")
        return make_up(options.seed)
    why = f"skipped: there is no file {path}" if path else "skipped: no trace was given (PATH, or --made-up)"
    table("a simulated month", ("figure", "value"), [("waits, GPU-hours, fairness, forecasts", why)])
    return []


def main() -> None:
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("path", type=Path, nargs="?", help="the trace")
    line.add_argument(
        "--made-up", action="store_true", help="a month that is made up, where there is no trace"
    )
    line.add_argument("--nodes", type=int, default=8, help="machines (8)")
    line.add_argument("--gpus", type=int, default=8, help="GPUs of each (8)")
    line.add_argument(
        "--load", type=float, default=0.8, help="GPU-hours that sessions last / those there are (0.8)"
    )
    line.add_argument("--draws", type=int, default=3, help="months drawn from the trace (3)")
    line.add_argument("--seed", type=int, default=1, help="of the first of them (1)")
    options = line.parse_args()
    began = time.monotonic(), time.process_time()
    sessions = sessions_of(options)
    if sessions:
        seeds = range(options.seed, options.seed + options.draws)
        months = [month(sessions, options.nodes * options.gpus, options.load, seed) for seed in seeds]
        compare(months, options.nodes, options.gpus)
        forecasts(months, options.nodes, options.gpus)
    decisions(2000)
    took = time.monotonic() - began[0], time.process_time() - began[1]
    print(f"{took[0]:.0f} s in all, {took[1]:.0f} s CPU; {load_note()}")


if __name__ == "__main__":
    main()
