"""The pool as the hub uses it: who waits is told at once, and only of what is true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_gpupool.errors import LeaseConflict
from jupyterhub_gpupool.ledger import Ledger, Waiting
from jupyterhub_gpupool.model import Device, Health, Kind, Lease, Mode, Owner, Request, State, Terms, Wish
from jupyterhub_gpupool.pool import GPUPool

HOUR, DAY = 3600.0, 86400.0


def with_pool(folder: Path, work: Callable[[GPUPool], Coroutine[Any, Any, None]]) -> None:
    """Run work on a pool of one GPU whose hub looks at the queue once, and then not for a day."""

    async def run() -> None:
        pool = GPUPool(database_url=f"sqlite:///{folder}/ledger.sqlite", watch_interval=DAY)
        gpu = Device(
            id="GPU-0", node="n", index=0, model="A100", memory_mib=81920, compute_capability="8.0",
            mode=Mode.ANY, cells=120, health=Health.OK, simulated=True,
        )  # fmt: skip
        await pool.ask("sync_inventory", [gpu])
        await pool.ask("settle")
        try:
            await asyncio.wait_for(work(pool), 60)
        finally:
            if pool._watcher is not None:
                pool._watcher.cancel()
            pool._worker.shutdown()
            pool.ledger().close_database()

    asyncio.run(run())


def request(user: str, number: int) -> Request:
    return Request(Owner(user, number, 1.0), "", "whole", Wish(Kind.GPU), Terms(), (), {})


async def waits(pool: GPUPool, lease: Lease) -> tuple[asyncio.Task[Waiting], asyncio.Event]:
    """Follow a queued lease to its grant; the event says that its place was seen."""
    placed = asyncio.Event()

    async def follow() -> Waiting:
        seen = []
        async for waiting in pool.follow(lease.id, frozenset({State.STARTING})):
            seen.append(waiting)
            placed.set()
        return seen[-1]

    return asyncio.create_task(follow()), placed


def test_a_grant_by_a_move_of_this_hub_is_told_with_its_lease(tmp_path: Path) -> None:
    async def work(pool: GPUPool) -> None:
        first, second = [await pool.enqueue(request(user, n)) for n, user in enumerate(("ada", "grace"), 1)]
        task, placed = await waits(pool, second)
        await placed.wait()
        await pool.move("begin_stop", first, actor="ada", reason="stopped")
        await pool.move("close", first, actor="ada")
        told = await task  # the next look at the queue would be tomorrow
        assert told.lease is not None
        assert told.lease.state is State.STARTING
        assert [item.device for item in told.lease.slices] == ["GPU-0"]

    with_pool(tmp_path, work)


@pytest.mark.parametrize("max_wait", [60.0, 8 * HOUR, 40 * HOUR, 300 * HOUR])
def test_nobody_is_given_up_before_the_order_fair_puts_them_first(max_wait: float) -> None:
    policy = GPUPool(max_wait=max_wait).policy
    assert 0 < policy.patience <= min(DAY, max_wait / 2)


def test_a_place_that_was_read_before_the_grant_takes_nothing_back(tmp_path: Path) -> None:
    async def work(pool: GPUPool) -> None:
        first, second = [await pool.enqueue(request(user, n)) for n, user in enumerate(("ada", "grace"), 1)]
        task, placed = await waits(pool, second)
        await placed.wait()
        old = (await pool.ask("watch", [second.id]))[second.id]
        watch = pool._watched[second.id]
        await pool.move("begin_stop", first, actor="ada", reason="stopped")
        await pool.move("close", first, actor="ada")
        watch.put(old)
        assert (await task).state is State.STARTING

    with_pool(tmp_path, work)


def test_a_move_that_was_taken_back_is_neither_told_nor_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(pool: GPUPool) -> None:
        first, second = [await pool.enqueue(request(user, n)) for n, user in enumerate(("ada", "grace"), 1)]
        task, placed = await waits(pool, second)
        await placed.wait()
        await pool.move("begin_stop", first, actor="ada", reason="stopped")
        serve = Ledger._serve

        def refuses(self: Ledger, tx: Any) -> list[str]:
            assert serve(self, tx) == [second.id]
            raise LeaseConflict("the ledger refuses this")

        monkeypatch.setattr(Ledger, "_serve", refuses)
        caplog.clear()
        with pytest.raises(LeaseConflict):
            await pool.move("close", first, actor="ada")
        await asyncio.sleep(0)
        assert not task.done()
        assert "queued→starting" not in caplog.text
        monkeypatch.undo()
        await pool.move("close", first, actor="ada")
        assert (await task).state is State.STARTING
        assert "queued→starting" in caplog.text

    caplog.set_level("INFO")
    with_pool(tmp_path, work)
