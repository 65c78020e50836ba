"""What follows from a verdict in each mode, and when an idle slice is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from jupyterhub_gpupool.model import Decision, Session

from . import world as worlds
from .conftest import Databases
from .world import World


def play(databases: Databases, script: Callable[[World], Awaitable[None]], mode: str = "reclaim") -> World:
    async def run() -> World:
        world = World(databases.again())
        world.sweep.rules.mode = mode
        try:
            await world.pass_time()
            await world.start("ada")
            await script(world)
        finally:
            world.close()
        return world

    return asyncio.run(run())


def actions(world: World) -> list[str]:
    return [event.action for event in world._reader.events(count=1000) if event.user == "ada"]


@pytest.mark.parametrize(
    ("mode", "warned", "stopped"), [("observe", False, False), ("warn", True, False), ("reclaim", True, True)]
)
def test_modes(databases: Databases, mode: str, warned: bool, stopped: bool) -> None:
    async def idle(world: World) -> None:
        await world.pass_time(10)

    world = play(databases, idle, mode)
    assert ("warn" in actions(world)) is warned
    assert ("stop" in actions(world)) is stopped
    if not stopped:
        (lease,) = world._reader.snapshot().leases
        assert lease.verdict is Decision.WARN
        assert f"mode {mode}" in lease.verdict_reason
        assert (lease.deadline_seconds == 0) is warned


def test_wanted_waits_until_somebody_does(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    idle: dict[str, Any] = {**worlds.PROFILE["idle"], "when": "wanted"}  # type: ignore[dict-item]
    monkeypatch.setitem(worlds.PROFILE, "idle", idle)

    async def script(world: World) -> None:
        await world.pass_time(10)
        assert "warn" not in actions(world)
        await world.start("grace")
        await world.pass_time(6)
        assert actions(world)[-3:] == ["warn", "stop", "close"]
        grace = next(lease for lease in world._reader.snapshot().leases if lease.user == "grace")
        assert grace.state == "active"

    play(databases, script)


def test_use_inside_the_countdown_takes_the_warning_back(databases: Databases) -> None:
    async def script(world: World) -> None:
        await world.pass_time(3)
        assert actions(world)[-1] == "warn"
        (lease,) = world._reader.snapshot().leases
        world.backend.busy.add(lease.id)
        await world.pass_time(1)
        assert actions(world)[-1] == "unwarn"
        world.backend.busy.clear()
        await world.pass_time(2)
        (lease,) = world._reader.snapshot().leases
        assert lease.idle_seconds <= 2 * worlds.INTERVAL, "the idle time began anew"

    play(databases, script)


def test_an_extension_holds_and_ends(databases: Databases) -> None:
    async def script(world: World) -> None:
        await world.pass_time(3)
        (lease,) = world._reader.snapshot().leases
        assert lease.deadline_seconds is not None
        assert await world.pool.ask("extend", lease.id, "ada") == 10
        await world.pass_time(1)
        (lease,) = world._reader.snapshot().leases
        assert lease.deadline_seconds == worlds.WARN, (
            "the extension has run out, a full warning is given again"
        )
        await world.pass_time(2)
        assert actions(world)[-1] == "close"

    play(databases, script)


def test_max_age_ends_a_busy_session_with_a_warning(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worlds.PROFILE, "max_age", 100)

    async def script(world: World) -> None:
        (lease,) = world._reader.snapshot().leases
        world.backend.busy.add(lease.id)
        await world.pass_time(20)
        events = {event.action: event.at for event in world._reader.events(count=1000) if event.user == "ada"}
        assert events["stop"] - events["warn"] >= worlds.WARN
        assert events["stop"] - events["activate"] >= 100

    play(databases, script)


def test_a_session_that_was_reattached_is_reclaimed_like_any_other(databases: Databases) -> None:
    async def script(world: World) -> None:
        del world.rows["ada"]  # the hub has forgotten the server, the session runs on
        world.spawners.clear()
        world.tasks.clear()
        await world.pass_time(1)
        await world.start("ada")
        assert world.backend.launched.total() == 1, "it was connected to, not started again"
        await world.pass_time(8)
        assert actions(world)[-3:] == ["warn", "stop", "close"]
        assert not world.backend.live

    play(databases, script)


def test_a_marker_that_appears_later_is_left_alone(databases: Databases) -> None:
    async def script(world: World) -> None:
        forged = Session(
            "gpupool-forged-9", "forged", "grace", "", "whole", {"GPU-0": (1, 2)}, "1" * 40 + ":0"
        )
        world.backend.live[forged.name] = forged
        world.check = lambda after: None  # type: ignore[method-assign]
        await world.pass_time(2)
        assert [lease.user for lease in world._reader.snapshot().leases] == ["ada"]
        assert world.sweep.last_problem == ""
        del world.backend.live[forged.name]

    play(databases, script)
