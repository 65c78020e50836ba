"""Sixty-four processes grant and free at once on one ledger, some are killed, and no limit is ever exceeded."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess

from sqlalchemy import text

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import Limit

from .conftest import CPU, HALF, THIRD, WHOLE, Make, gpu, request_of, url_of

PROCESSES, KILLS, EVENTS = 64, 8, 400
LIMITS = {
    "pool": Limit(gpus=3),
    "user:*": Limit(sessions=2, gpus=1),
    "group:a": Limit(gpus=1.5, guaranteed_gpus=1),
    "group:b": Limit(sessions=4, strict=True),
    "group:c": Limit(gpus=2, gpu_hours=50, priority=40),
}
POLICY = Policy(limits=LIMITS, order="priority", launches=0)
GROUPS = ("a", "b", "c")


def work(url: str, seed: int) -> None:
    """Ask, stop and close leases of whoever is there, until killed."""
    from jupyterhub_gpupool.errors import GPUPoolError

    dice = random.Random(seed)
    ledger = Ledger(url, POLICY)
    while True:
        number = dice.randrange(20)
        user, groups = f"u{number}", tuple(name for n, name in enumerate(GROUPS) if number >> n & 1)
        wish, server = dice.choice([WHOLE, HALF, THIRD, CPU]), str(dice.randrange(3))
        try:
            lease = ledger.enqueue("hub", request_of(user, wish, server=server, groups=groups))
            match lease.state:
                case "queued" if dice.random() < 0.3:
                    ledger.give_up(lease.id, actor=user, reason="random")
                case "starting" | "active":
                    ledger.begin_stop(lease.id, actor=user, reason="random")
                case "stopping":
                    ledger.close(lease.id, actor=user)
        except GPUPoolError:
            continue  # another process was faster, or the limits said no


def start(url: str, seed: int) -> BaseProcess:
    worker = multiprocessing.get_context("fork").Process(target=work, args=(url, seed), daemon=True)
    worker.start()
    return worker


def test_no_limit_is_exceeded_by_many_at_once(make: Make) -> None:
    # Time is the database's own here: the processes share it.
    first = make(POLICY, tuple(gpu(n) for n in range(4)))
    url = url_of(first)
    ledger, dice = Ledger(url, POLICY), random.Random(5)
    ledger.beat("hub")
    workers = [start(url, seed) for seed in range(PROCESSES)]
    looks, grants = 0, 0
    try:
        for kill in range(KILLS):
            seen, deadline = count(ledger), time.monotonic() + 60
            while count(ledger) < seen + EVENTS // KILLS:
                assert time.monotonic() < deadline, "the workers make no progress"
                snapshot = ledger.snapshot()
                assert fairness.over_limits(fairness.tally(snapshot.holds, LIMITS), LIMITS) == {}
                looks += 1
            victim = dice.randrange(PROCESSES)
            assert workers[victim].is_alive(), "a worker has died by itself"
            workers[victim].kill()
            workers[victim].join(10)
            assert ledger.verify() == []
            workers[victim] = start(url, PROCESSES + kill)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(10)
    grants = sum(event.action == "grant" for event in ledger.events(count=1_000_000))
    assert grants > 30
    assert looks > KILLS
    assert ledger.verify() == []
    ledger.close_database()


def count(ledger: Ledger) -> int:
    with ledger.store.read() as (conn, _):
        return int(conn.execute(text("SELECT max(seq) FROM events")).scalar_one())
