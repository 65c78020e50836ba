"""The owner's own script between the decision for a reclaim and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from jupyterhub_gpupool import faults
from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Ending
from jupyterhub_gpupool.model import Decision, State, Verdict
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service.before import AT_ONCE, Before
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.metrics import Metrics
from jupyterhub_gpupool.service.sweep import Rules, Sweep
from jupyterhub_gpupool.sessions import script
from jupyterhub_gpupool.sessions.script import ScriptEnd
from jupyterhub_gpupool.signals import Work

from ..ledger.conftest import DEVICES, run


class Stage:
    """All that the scripts ask of a sweep; while one runs, ``meanwhile`` becomes the lease's state."""

    def __init__(self, meanwhile: State | None) -> None:
        self.lease: Any = SimpleNamespace(
            id="one", session="s", warned_for="idle", reason="idle", state=State.STOPPING
        )
        self._meanwhile, self._log = meanwhile, logging.getLogger("before")
        self.stopped: list[str] = []
        self.pool = self.sessions = self.tidy = self
        self.rules = SimpleNamespace(before_reclaim_timeout=5.0)

    async def ask(self, name: str, *args: Any) -> Any:
        if name == "lease" and self._meanwhile is None:
            raise Unavailable("The ledger is away.")
        return {"begin_script": True, "lease": self.lease}.get(name)

    def before_reclaim(self, name: str, environment: Any, *, timeout: float) -> ScriptEnd:
        self.lease = SimpleNamespace(**{**vars(self.lease), "state": self._meanwhile})
        return ScriptEnd("done", 0)

    async def stop(self, lease: Any) -> None:
        self.stopped.append(lease.id)


@pytest.mark.parametrize(
    ("meanwhile", "stopped"), [(State.STOPPING, ["one"]), (State.CLOSED, []), (None, [])]
)
async def test_what_ended_meanwhile_is_not_ended_again(meanwhile: State | None, stopped: list[str]) -> None:
    """Its owner may have a new session under the same name by then."""
    stage = Stage(meanwhile)
    before = Before(stage)  # type: ignore[arg-type]
    before.begin(stage.lease)
    assert before.holds("one")
    await before.wait()
    assert stage.stopped == stopped and not before.holds("one")
    await before.stop()


async def test_its_time_begins_when_it_does_and_not_while_it_waits_for_its_turn() -> None:
    stage, now = Stage(State.STOPPING), [1000.0]
    before = Before(stage, clock=lambda: now[0])  # type: ignore[arg-type]
    free, said = threading.Event(), []
    stage.before_reclaim = lambda name, environment, timeout: said.append(environment)  # type: ignore[method-assign]
    taken = threading.Semaphore(0)
    for _ in range(AT_ONCE):
        before._threads.submit(lambda: (taken.release(), free.wait()))
    for _ in range(AT_ONCE):
        assert taken.acquire(timeout=20)
    before.begin(stage.lease)
    while not before._threads._work_queue.qsize():  # noqa: ASYNC110 - until it waits for a thread
        await asyncio.sleep(0.01)
    now[0] += 500
    free.set()
    await before.wait()
    assert [one["GPUPOOL_DEADLINE"] for one in said] == ["1505"]
    await before.stop()


class House:
    """A ledger with a session in it, and the services that come and go; the hub and the backend are small."""

    def __init__(self, folder: Path, scripts: list[str]) -> None:
        self.url, self.ran = f"sqlite:///{folder}/ledger.sqlite", scripts
        self.stopped: list[str] = []
        self.pending = ""
        ledger = self.pool().ledger()
        ledger.sync_inventory(DEVICES)
        ledger.settle()
        ledger.register_hub("hub")
        self.lease = run(ledger, "ada")

    def pool(self) -> GPUPool:
        return GPUPool(database_url=self.url)

    def service(self, timeout: float = 5.0) -> Sweep:
        rules = Rules("reclaim", before_reclaim_timeout=timeout)
        return Sweep(self.pool(), SimpleNamespace(), self, self, rules, Metrics(CollectorRegistry()))  # type: ignore[arg-type]

    def before_reclaim(self, name: str, environment: Any, *, timeout: float) -> ScriptEnd:
        self.ran.append(name)
        return ScriptEnd("done", 0)

    async def server(self, user: str, name: str) -> Server:
        return Server(ready=True, pending=self.pending, started=1.0)

    async def stop(self, user: str, name: str) -> None:
        self.stopped.append(user)


VERDICT = Verdict(Decision.RECLAIM, "drained", 0.0, "drain")


async def crash(house: House, point: str) -> None:
    """Begin a reclaim with a service that dies at a point."""

    def die(name: str) -> None:
        if name == point:
            raise faults.InjectedFault(name)

    faults.install(die)
    try:
        sweep = house.service()
        with contextlib.suppress(faults.InjectedFault):
            await sweep._reclaim(house.lease, house.lease.version, VERDICT, {}, Work())
            await sweep.before.wait()
    finally:
        faults.install(None)


async def go_on(house: House, **more: float) -> Ending:
    """Let the next service look at the lease, twice."""
    sweep = house.service(**more)
    for _ in range(2):
        lease = await sweep.pool.ask("lease", house.lease.id)
        await sweep.tidy._go_on_stopping(lease)
        await sweep.before.wait()
    found: Ending = await sweep.pool.ask("ending_of", house.lease.id)
    return found


async def test_a_script_that_a_dead_service_has_not_begun_is_run_by_the_next_one_once(tmp_path: Path) -> None:
    house = House(tmp_path, [])
    await crash(house, "sweep.intent")
    assert (house.ran, house.stopped) == ([], [])
    assert house.pool().ledger().ending_of(house.lease.id).script["state"] == "due"
    ending = await go_on(house)
    assert house.ran == [house.lease.session] and ending.script["state"] == "done"
    assert house.stopped, "and then it is stopped"
    await go_on(house)
    assert len(house.ran) == 1


async def test_one_that_was_begun_is_not_run_again(tmp_path: Path) -> None:
    house = House(tmp_path, [])
    await crash(house, "sweep.told")
    assert len(house.ran) == 1
    await go_on(house)
    assert len(house.ran) == 1


@pytest.mark.parametrize("why", ["the hub is at it", "switched off", "its owner ends it"])
async def test_there_is_no_time_for_it(tmp_path: Path, why: str) -> None:
    house = House(tmp_path, [])
    if why == "its owner ends it":
        house.pool().ledger().begin_stop(house.lease.id, actor="ada", reason="released")
    else:
        await crash(house, "sweep.intent")
    house.pending = "stop" if why == "the hub is at it" else ""
    await go_on(house, timeout=0.0 if why == "switched off" else 5.0)
    assert house.ran == [] and bool(house.stopped) is (why != "the hub is at it")


def test_a_script_that_never_stops_writing_is_ended(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / script.SCRIPT
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    began = time.monotonic()

    def more(output: int) -> bytes:
        assert time.monotonic() - began < 20, "it is read for ever"
        return b"x"  # however fast we read

    monkeypatch.setattr(script, "_read", more)
    me = script.Account(os.geteuid(), os.getegid())
    end = script.run(path, {"PATH": "/usr/bin:/bin"}, me, timeout=0.5)
    assert end is not None and end.state == "timeout" and end.tail.startswith("x")
