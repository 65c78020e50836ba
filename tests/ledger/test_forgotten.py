"""A hub dies between launch and look, and forgets: the service holds the session, or ends what is not the lease's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jupyterhub_gpupool import faults
from jupyterhub_gpupool.model import Lease, State
from jupyterhub_gpupool.spawners.refusal import Refusal

from .world import World

OTHER = "it was given the devices GPU-9"


def forgotten(folder: Path, then: Callable[[World, str], Awaitable[None]]) -> Lease:
    """Let ada's hub die right after a launch and lose its rows, go on with ``then``; her lease at the end."""
    crash = {"launch.done"}

    def crash_at(name: str, passed: int) -> bool:
        return name in crash and not crash.clear()

    async def run() -> Lease:
        world = World(f"sqlite:///{folder / 'world.sqlite'}", crash_at)
        faults.install(world.point)
        try:
            await world.pass_time()
            await world._guarded(world.start("ada"))
            assert world.dead == {"hub"}
            world.rows.clear()
            await world.recover()
            [lease] = world._reader.snapshot().leases
            assert lease.state is State.STARTING and world.backend.live
            await then(world, lease.id)
            found = world._reader.lease(lease.id)
            assert found is not None
            return found
        finally:
            world.close()

    return asyncio.run(run())


def test_what_the_lease_says_is_held_and_judged(tmp_path: Path) -> None:
    async def then(world: World, lease: str) -> None:
        await world.pass_time()
        assert list(world.backend.live)

    assert forgotten(tmp_path, then).state is State.ACTIVE


def test_what_the_lease_does_not_say_is_ended_with_the_reason(tmp_path: Path) -> None:
    async def then(world: World, lease: str) -> None:
        world.backend.wrong[lease] = (OTHER, "it has the danger privileged, which nobody accepted")
        world.wants_end.add("ada")  # nobody is warned of a start that fails
        await world.pass_time()
        assert not world.backend.live

    lease = forgotten(tmp_path, then)
    assert lease.state is State.CLOSED and lease.active_at is None
    assert OTHER in lease.reason and "privileged" in lease.reason


@pytest.mark.parametrize("wrong", [(), (OTHER,)], ids=["right", "wrong"])
def test_without_an_answer_it_is_neither_held_for_good_nor_ended(
    tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    async def then(world: World, lease: str) -> None:
        world.backend.wrong[lease] = None
        await world.pass_time(5)
        now = world._reader.lease(lease)
        assert now is not None and now.state is State.STARTING and world.backend.live
        world.backend.wrong[lease] = wrong
        world.wants_end.add("ada")
        await world.pass_time()

    assert forgotten(tmp_path, then).state is (State.CLOSED if wrong else State.ACTIVE)


@pytest.mark.parametrize("state", [State.STARTING, State.ACTIVE])
def test_a_start_that_cannot_see_the_session_ends_nothing(tmp_path: Path, state: State) -> None:
    """The hub cleans up after a start that fails: it polls, stops, and runs its hook."""

    async def then(world: World, lease: str) -> None:
        if state is State.ACTIVE:
            await world.pass_time()
        [before] = world.backend.live
        world.backend.mute = True
        spawner = world.spawner("ada")
        with pytest.raises(Refusal, match="does not say"):
            await spawner.start()
        if await spawner.poll() is None:
            await spawner.stop()
        await spawner.run_post_stop_hook()
        now = world._reader.lease(lease)
        assert now is not None and now.state is state and list(world.backend.live) == [before]
        world.backend.mute = False
        assert await spawner.start() == world.backend.live[before].url

    assert forgotten(tmp_path, then).state is State.ACTIVE
