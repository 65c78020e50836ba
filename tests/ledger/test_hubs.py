"""One hub at a time on a ledger: who is refused, who takes over, and what becomes of what the other left."""

from __future__ import annotations

import os
from typing import Any

import pytest

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import OTHER_HUB, Ledger, Policy
from jupyterhub_gpupool.pool import claiming
from jupyterhub_gpupool.pool.claiming import this_process

from .conftest import HALF, WHOLE, Clock, Databases, request_of

ONE, TWO = "1 10.0 boot-a pid:[1]", "2 20.0 boot-b pid:[2]"


@pytest.fixture(name="ledger")
def a_ledger(ledger: Ledger) -> Ledger:
    """A ledger that the hub ``one`` serves."""
    ledger.register_hub("one", host="first.example", process=ONE)
    return ledger


def taken(ledger: Ledger, **given: object) -> str:
    with pytest.raises(Unavailable) as refusal:
        ledger.register_hub("two", host="second.example", process=TWO, **given)  # type: ignore[arg-type]
    assert refusal.value.reason == OTHER_HUB
    return refusal.value.message


def test_a_second_hub_is_told_which_one_is_there(ledger: Ledger, clock: Clock) -> None:
    clock.forward(3)
    before = ledger.events()
    said = taken(ledger)
    assert "'one' on first.example (process 1), which said so 3 s ago" in said
    assert taken(ledger, gone=["another"]) == said
    assert ledger.events() == before
    assert [hub.process for hub in ledger.hubs()] == [ONE]


def test_the_name_makes_no_difference(ledger: Ledger) -> None:
    with pytest.raises(Unavailable, match="Another hub serves this pool"):
        ledger.register_hub("one", host="second.example", process=TWO)


def test_the_same_process_may_register_again(ledger: Ledger) -> None:
    assert ledger.register_hub("one", host="first.example", process=ONE) == 2


@pytest.mark.parametrize("silence", [-86_400, 15.5])
def test_after_silence_another_takes_over(ledger: Ledger, clock: Clock, silence: float) -> None:
    clock.forward(silence)  # or the clock went back: nobody is locked out by a time in the future
    ledger.register_hub("two", host="second.example", process=TWO)
    assert [hub.process for hub in ledger.hubs()] == [TWO]


def test_what_the_other_left_keeps_its_place_and_its_slices(ledger: Ledger, clock: Clock) -> None:
    held = [ledger.enqueue("one", request_of(user, WHOLE), ONE) for user in ("ada", "grace")]
    active = ledger.activate(held[0].id, actor="ada")
    waiting = ledger.enqueue("one", request_of("linus", WHOLE), ONE)
    clock.forward(1)
    ledger.register_hub("two", host="second.example", process=TWO, gone=[ONE])
    assert ledger.lease(active.id) == active
    assert [ledger.lease(lease.id).left_at for lease in (held[1], waiting)] == [clock.now] * 2  # type: ignore[union-attr]
    ledger.begin_stop(active.id, actor="service", reason="idle")
    ledger.close(active.id, actor="service")
    assert ledger.lease(waiting.id).state == "queued", "nobody is there for it"  # type: ignore[union-attr]
    back = ledger.enqueue("two", request_of("linus", WHOLE), TWO)
    assert (back.id, back.state) == (waiting.id, "starting")
    clock.forward(ledger.policy.queue_keep + 1)
    assert ledger.expire_queue() == []


def test_who_lost_the_pool_grants_nothing_more(ledger: Ledger, clock: Clock) -> None:
    clock.forward(60)
    ledger.register_hub("two", host="second.example", process=TWO)
    assert ledger.beat("one", ONE) is False
    assert ledger.beat("two", TWO) is True
    with pytest.raises(Unavailable, match=r"'two' on second\.example"):
        ledger.enqueue("one", request_of("ada", HALF), ONE)
    assert ledger.snapshot().leases == ()
    clock.forward(60)  # the other one is gone in its turn
    ledger.register_hub("one", host="first.example", process=ONE)
    assert ledger.enqueue("one", request_of("ada", HALF), ONE).state == "starting"


def test_a_hub_of_a_ledger_that_was_lost_registers_again(ledger: Ledger) -> None:
    assert ledger.beat("three", "3 1 x y") is False
    with pytest.raises(Unavailable):
        ledger.enqueue("three", request_of("ada", HALF), "3 1 x y")


# --- this process ---------------------------------------------------------------------------------------


def test_a_process_that_is_seen_to_be_gone_is_not_waited_for(ledger: Ledger, clock: Clock) -> None:
    number, _, here = this_process().split(" ", 2)
    clock.forward(60)
    ledger.register_hub("gone", host="here", process=f"{number} 0.5 {here}")
    claiming.claim(ledger, "mine")
    assert [hub.process for hub in ledger.hubs()] == [this_process()]


def test_a_process_that_is_seen_to_live_is_not_waited_for(ledger: Ledger, clock: Clock) -> None:
    clock.forward(60)
    parent = os.getppid()
    _, _, here = this_process().split(" ", 2)
    ledger.register_hub("other", host="here", process=f"{parent} {claiming.proc.created(parent)} {here}")
    waited: list[object] = []
    with pytest.raises(Unavailable, match=f"process {parent}"):
        claiming.claim(ledger, "mine", patience=60, waits=waited.append)
    assert waited == []


def test_one_that_cannot_be_seen_is_waited_for_until_it_speaks(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def a_second_later(seconds: float) -> None:
        clock.forward(seconds)
        if len(told) and clock.now > 1_000_002:
            ledger.beat("one", ONE)

    monkeypatch.setattr(claiming.time, "sleep", a_second_later)
    clock.forward(1)
    with pytest.raises(Unavailable, match=r"which said so 0 s ago"):
        claiming.claim(ledger, "mine", patience=60, waits=lambda hub: told.append(hub.name))
    assert told == ["one"]


def test_one_that_cannot_be_seen_and_is_silent_is_followed(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming.time, "sleep", clock.forward)
    claiming.claim(ledger, "mine", patience=60)
    assert [hub.process for hub in ledger.hubs()] == [this_process()]
    assert clock.now > 1_000_000 + ledger.policy.beat_age


def test_a_hub_of_another_pool_would_not_see_the_sessions(ledger: Ledger, databases: Databases) -> None:
    lease = ledger.enqueue("one", request_of("ada", HALF), ONE)
    stranger = Ledger(databases.url(), Policy(pool="theirs"), clock=ledger.store._clock)
    with pytest.raises(
        Unavailable, match=r"open sessions of the pool 'gpupool', and GPUPool\.name is 'theirs'"
    ):
        stranger.register_hub("two", process=TWO, gone=[ONE])
    ledger.begin_stop(lease.id, actor="ada", reason="test")
    ledger.close(lease.id, actor="ada")
    stranger.register_hub("two", process=TWO, gone=[ONE])
    stranger.close_database()


class Machine:
    """A hub's process as it is on another machine: with the same number, on another host since another boot."""

    def __init__(self, host: str, url: str, clock: Clock) -> None:
        self.host, self.process = host, f"{os.getpid()} 10.0 boot-of-{host} pid:[1]"
        self.ledger = Ledger(url, clock=clock)

    def claim(self, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
        """Claim the pool under the name that hubs of one JupyterHub database share."""
        with monkeypatch.context() as here:
            here.setattr(claiming, "this_process", lambda: self.process)
            here.setattr(claiming, "_here", lambda: self.process.split(" ", 2)[2])
            here.setattr(claiming.socket, "gethostname", lambda: self.host)
            claiming.claim(self.ledger, "hub", **given)


def test_two_machines_over_one_jupyterhub_database(
    ledger: Ledger, databases: Databases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.forward(60)  # what the fixture registered is long gone
    here, there = (Machine(host, databases.url(), clock) for host in ("here.example", "there.example"))
    here.claim(monkeypatch)
    held = here.ledger.enqueue("hub", request_of("ada", WHOLE), here.process)
    here.ledger.activate(held.id, actor="ada")
    here.ledger.enqueue("hub", request_of("grace", WHOLE), here.process)
    place = here.ledger.enqueue("hub", request_of("linus", WHOLE), here.process)
    before = here.ledger.events()
    clock.forward(1)

    def both_live(seconds: float) -> None:
        clock.forward(seconds)
        assert here.ledger.beat("hub", here.process)

    with monkeypatch.context() as together:
        together.setattr(claiming.time, "sleep", both_live)
        with pytest.raises(Unavailable, match=r"'hub' on here\.example") as refusal:
            there.claim(monkeypatch, patience=60)
    assert (refusal.value.reason, here.ledger.events()) == (OTHER_HUB, before)
    with pytest.raises(Unavailable, match=r"on here\.example"):
        there.ledger.enqueue("hub", request_of("alan", HALF), there.process)
    assert there.ledger.beat("hub", there.process) is False

    monkeypatch.setattr(claiming.time, "sleep", clock.forward)  # the first one is gone: it says nothing more
    there.claim(monkeypatch, patience=60)
    assert [(hub.host, hub.process) for hub in there.ledger.hubs()] == [("there.example", there.process)]
    taken = there.ledger.lease(held.id)
    assert taken is not None and (taken.state, taken.slices) == ("active", here.ledger.lease(held.id).slices)  # type: ignore[union-attr]
    assert there.ledger.enqueue("hub", request_of("linus", WHOLE), there.process).id == place.id
    there.ledger.begin_stop(held.id, actor="service", reason="idle")
    there.ledger.close(held.id, actor="service")
    assert there.ledger.lease(place.id).state == "starting"  # type: ignore[union-attr]

    assert here.ledger.beat("hub", here.process) is False, (
        "should it wake again, the pool is no longer its own"
    )
    with pytest.raises(Unavailable, match=r"on there\.example"):
        here.ledger.enqueue("hub", request_of("alan", HALF), here.process)
    with pytest.raises(Unavailable, match=r"on there\.example"):
        here.claim(monkeypatch)
    for machine in (here, there):
        assert machine.ledger.verify() == []
        machine.ledger.close_database()
