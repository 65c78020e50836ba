"""Sixty-four processes grant and free at once on one ledger, some are killed, and no limit is ever exceeded."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess

from sqlalchemy import text

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.ledger import Ledger, Policy, Snapshot
from jupyterhub_gpupool.model import HOLDING, Lease, Limit, State

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
    the_share_is_had(ledger)
    ledger.close_database()


def the_share_is_had(ledger: Ledger) -> None:
    """What others borrow of the share of ``a`` they give back to who asks for it, and no limit is exceeded."""
    ledger.beat("hub")
    for lease in ledger.snapshot().queue:
        ledger.give_up(lease.id, actor="test", reason="the others come first")
    for lease in held_of(ledger.snapshot()):
        if (
            lease.group == "a" or lease.state is State.STOPPING
        ):  # the share is free, and what is left borrows it
            ledger.begin_stop(lease.id, actor="test", reason="room")
            ledger.close(lease.id, actor="test")
    for number in range(8):  # borrowers, until the pool's limit is reached
        ledger.enqueue("hub", request_of(f"borrower{number}", HALF, server=str(number)))
    assert any(lease.state is State.QUEUED for lease in ledger.snapshot().leases), "the pool is full"
    for number in range(3):
        ledger.enqueue("hub", request_of(f"owner{number}", HALF, groups=("a",)))
    for _ in range(8):
        for lease in ledger.snapshot().leases:
            if lease.state is State.STARTING:
                ledger.activate(lease.id, actor="test")
        snapshot, wanted = ledger.snapshot(), ledger.wanted()
        limits = fairness.over_limits(fairness.tally(snapshot.holds, LIMITS), LIMITS)
        assert limits == {}
        assert wanted.unmet == {}, "somebody who borrows could make room"
        if not wanted.shares:
            break
        borrowed = fairness.borrowed(map(fairness.Held.of, held_of(snapshot)), snapshot.guaranteed)
        assert wanted.shares.keys() <= borrowed, "only who borrows makes room"
        for key in wanted.shares:
            ledger.begin_stop(key, actor="test", reason="share")
            ledger.close(key, actor="test")
    else:
        raise AssertionError("borrowers still make room")
    held = sum(lease.gpus for lease in held_of(ledger.snapshot()) if lease.group == "a")
    assert held >= 1 - 1e-9, "the share is had by those whose own it is"
    assert ledger.verify() == []


def held_of(snapshot: Snapshot) -> list[Lease]:
    return [lease for lease in snapshot.leases if lease.state in HOLDING]


def count(ledger: Ledger) -> int:
    with ledger.store.read() as (conn, _):
        return int(conn.execute(text("SELECT max(seq) FROM events")).scalar_one())
