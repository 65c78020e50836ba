"""A real hub whose ledger is on a PostgreSQL server; and two hubs that want one ledger, on either engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.pool import claiming

from .. import postgres
from .conftest import ROOT, HubUnderTest, MakeHub, until
from .kills import still


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a ledger is to be that several hubs know."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.sqlite"
        return
    server = postgres.shared()
    database = server.empty()
    yield server.url(database)
    server.drop(database)


def command(hub: HubUnderTest, *words: str) -> str:
    """Run `gpupool` as the hub's admin does: the URL is in the file that the hub has written."""
    argv = [sys.executable, "-m", "jupyterhub_gpupool", *words, "--config", str(hub.state / "service.json")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    with postgres.own(auth="scram-sha-256") as made:
        yield made


@pytest.mark.postgresql
def test_the_story_on_postgresql(server: postgres.Server, make_hub: MakeHub) -> None:
    hub = make_hub(database_url=server.url(server.empty()))
    hub.start()
    ada = hub.run("ada", "whole")
    hub.spawn("grace")
    hub.wait_state("grace", "queued")
    hub.kill()
    hub.start()
    still(hub, ada)
    assert hub.lease_of("grace").state == "queued"  # type: ignore[union-attr]
    hub.spawn("grace")  # as the page does that was open
    hub.delete("ada")
    hub.wait_ready("grace")
    hub.wait_gone("ada")
    assert "user:grace" in command(hub, "limits", "set", "user:grace", "sessions=2")
    assert "ada" in command(hub, "usage") and "grace" in command(hub, "usage")
    grace = hub.wait_state("grace", "active")
    assert grace.slices[0].device in command(
        hub, "drain", grace.slices[0].device, "--at", (datetime.now(UTC) + timedelta(days=1)).isoformat()
    )
    assert command(hub, "undrain", "pool").startswith("Back in service")
    server.stop()
    until(lambda: hub.pool("GET", "health").status_code == 503, "the service to miss its ledger")
    refused = hub.spawn("linus", "mig")
    assert refused.status_code in (202, 503), refused.text
    assert hub.ask_session("grace").text.startswith(grace.id)
    server.start()
    hub.wait_up()
    until(lambda: not (hub.server("linus") or {}).get("pending"), "the start without a ledger to be over")
    hub.run("linus", "mig")
    still(hub, grace)
    text = hub.log.read_text(errors="replace")
    assert "right@" not in text and ":right" not in text
    for user in ("grace", "linus"):
        hub.delete(user)
        hub.wait_gone(user)


POOL = "shared"


def second_of(make_hub: MakeHub, url: str) -> HubUnderTest:
    made = make_hub(database_url=url, pool=POOL)
    made.state.mkdir(mode=0o700, exist_ok=True)
    return made


def test_a_second_hub_is_refused_while_the_first_lives_and_takes_over_after_it(
    url: str, make_hub: MakeHub, tmp_path: Path
) -> None:
    first = make_hub(database_url=url, pool=POOL)
    first.start()
    ada = first.run("ada", "whole")
    first.spawn("grace")
    grace = first.wait_state("grace", "queued")
    second = second_of(make_hub, url)
    files = [file for folder in (first.state, tmp_path) for file in folder.glob("service*")]
    before = {file: file.read_bytes() for file in files}
    second.start(wait=False)
    assert second.wait_dead() != 0
    said = re.search(r"^gpupool: Another hub serves this pool: .*$", second.log.read_text(), re.M)
    assert said is not None, second.tail()
    assert f"(process {first.process.pid})" in said[0]  # type: ignore[union-attr]
    assert re.search(r"'hub' on \S+ .* said so \d s ago\. .* own \(GPUPool\.database_url\)\.$", said[0])
    assert "Traceback" not in second.log.read_text()
    assert {file: file.read_bytes() for file in files} == before, (
        "a hub that is refused leaves the other's files alone"
    )
    assert first.wait_state("ada", "active").id == ada.id
    first.kill()
    stranger = make_hub(database_url=url)
    stranger.start(wait=False)
    assert stranger.wait_dead() != 0
    assert "This ledger has open sessions of the pool 'shared', and GPUPool.name is 'demo-" in stranger.tail()
    second.start()  # at once: on this machine it is seen that the first is gone
    assert second.lease_of("ada").state == "active"  # type: ignore[union-attr]
    kept = second.ledger().lease(grace.id)
    assert kept is not None and kept.state == "queued" and kept.left_at is not None
    (claims,) = second.ledger().hubs()
    assert claims.process.startswith(f"{second.process.pid} ")  # type: ignore[union-attr]
    second.run("alan", "mig")
    first.start(wait=False)
    assert first.wait_dead() != 0
    assert "Another hub serves this pool" in first.log.read_text()
    second.delete("alan")
    second.wait_gone("alan")


ELSEWHERE = "4711 17.5 another-boot pid:[1]"
"""A process that cannot be looked up here."""


def test_a_hub_on_another_machine_is_refused_for_while_it_speaks(url: str, make_hub: MakeHub) -> None:
    ledger = Ledger(url)
    ledger.register_hub("theirs", host="other.example", process=ELSEWHERE)
    over = threading.Event()

    def speak() -> None:
        while not over.wait(1):
            assert ledger.beat("theirs", ELSEWHERE)

    speaker = threading.Thread(target=speak)
    speaker.start()
    hub = second_of(make_hub, url)
    try:
        hub.start(wait=False)
        assert hub.wait_dead() != 0
        assert "'theirs' on other.example (process 4711)" in hub.tail()
    finally:
        over.set()
        speaker.join()
    hub.start()  # it fell silent, so the hub waits for a while and takes over
    assert "served this pool" in hub.tail()
    (mine,) = hub.ledger().hubs()
    assert mine.process != ELSEWHERE
    hub.run("ada", "half")
    assert not ledger.beat("theirs", ELSEWHERE), "who comes back after that has lost the pool"
    ledger.close_database()


def test_this_process_is_seen_to_live_and_others_are_not_guessed_at() -> None:
    mine = claiming.this_process()
    assert claiming.lives(mine) is True
    number, _, rest = mine.partition(" ")
    assert claiming.lives(f"{number} 0.5 {rest.partition(' ')[2]}") is False, (
        "another process with that number"
    )
    assert claiming.lives(ELSEWHERE) is None
    assert claiming.lives("") is None
