"""The owner's own script between the decision for a reclaim and the stop."""

from __future__ import annotations

import logging
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.model import State
from jupyterhub_gpupool.service.before import Before
from jupyterhub_gpupool.sessions import script
from jupyterhub_gpupool.sessions.script import ScriptEnd


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
