"""Eight processes grant and free at random on one ledger, and one is killed every 50 ms."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess

from sqlalchemy import text

from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import Wish

from .conftest import CPU, HALF, SMALL_MIG, THIRD, WHOLE, Make, request_of, run, url_of

WORKERS = 8
KILLS = {"sqlite": 60, "postgresql": 20}  # a server takes its time to end what a dead process has left
WISHES: list[Wish] = [WHOLE, HALF, THIRD, SMALL_MIG, CPU, Wish(kind=THIRD.kind, fraction="7/12")]


def work(url: str, seed: int) -> None:
    """Ask, launch, stop and close leases of whoever is there, until killed."""
    from jupyterhub_gpupool.errors import GPUPoolError

    dice = random.Random(seed)
    ledger = Ledger(url)
    ledger.register_hub("hub")
    while True:
        user = f"u{dice.randrange(12)}"
        try:
            lease = ledger.enqueue("hub", request_of(user, dice.choice(WISHES)))
            match lease.state:
                case "queued" if dice.random() < 0.2:
                    ledger.give_up(lease.id, actor=user, reason="random")
                case "starting" if dice.random() < 0.8:
                    ledger.activate(lease.id, actor=user)
                case "starting" | "active":
                    ledger.begin_stop(lease.id, actor=user, reason="random")
                case "stopping":
                    ledger.close(lease.id, actor=user)
        except GPUPoolError:
            continue  # another process was faster; that is what this test is for


def start(url: str, seed: int) -> BaseProcess:
    """A worker that begins at once: it is forked from a process that has imported everything."""
    worker = multiprocessing.get_context("fork").Process(target=work, args=(url, seed), daemon=True)
    worker.start()
    return worker


def count(ledger: Ledger) -> int:
    with ledger.store.read() as (conn, _):
        return int(conn.execute(text("SELECT max(seq) FROM events")).scalar_one())


def test_random_grants_with_kills(make: Make) -> None:
    ledger = make()
    kills = KILLS[ledger.store.url.get_backend_name()]
    url, dice = url_of(ledger), random.Random(1)
    workers = [start(url, seed) for seed in range(WORKERS)]
    try:
        for kill in range(kills):
            seen, deadline = count(ledger), time.monotonic() + 30
            time.sleep(0.05)  # the rate of kills
            while count(ledger) < seen + 8:  # a whole life is five events
                assert time.monotonic() < deadline, "the workers make no progress"
            victim = dice.randrange(WORKERS)
            assert workers[victim].is_alive(), "a worker has died by itself"
            workers[victim].kill()
            workers[victim].join(10)
            assert ledger.verify() == []
            workers[victim] = start(url, WORKERS + kill)
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10)
    events = ledger.events(count=1_000_000)
    assert sum(event.action == "grant" for event in events) > kills
    assert {event.to_state for event in events} >= {"queued", "starting", "active", "stopping", "closed"}


def die_inside(url: str) -> None:
    """Take the write lock, write what would be wrong if it stayed, and die."""
    ledger = Ledger(url)
    with ledger.store.write() as tx:
        tx.run(text("DELETE FROM claims"))
        tx.run(text("UPDATE devices SET used = 0"))
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_inside_its_transaction_leaves_nothing_and_holds_up_nobody(make: Make) -> None:
    ledger = make()
    held = run(ledger, "ada", HALF)
    version = ledger.snapshot().version
    worker = multiprocessing.get_context("fork").Process(target=die_inside, args=(url_of(ledger),))
    worker.start()
    worker.join(30)
    assert worker.exitcode == -signal.SIGKILL
    began = time.monotonic()
    assert ledger.enqueue("hub", request_of("grace", HALF)).state == "starting"
    assert time.monotonic() - began < 10, "the lock is not waited for until it times out"
    assert ledger.snapshot().version == version + 1
    assert ledger.lease(held.id) == held
