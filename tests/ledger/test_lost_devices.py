"""A lost device is forgotten by an admin: the pool no longer counts it, its history stays, and it may come back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import Health, Limit, State, Wish

from .conftest import HALF, WHOLE, Clock, Make, end, gpu, request_of, run

BOTH = (gpu(0), gpu(1))


def refused(ledger: Ledger, device: str) -> Rejected:
    before = ledger.events(), ledger.snapshot().devices
    with pytest.raises(Rejected) as problem:
        ledger.forget_device(device, actor="admin", why="sent back")
    assert (ledger.events(), ledger.snapshot().devices) == before
    return problem.value


def test_a_lost_device_is_forgotten_with_who_and_why(make: Make, clock: Clock) -> None:
    ledger, other = make(devices=BOTH), make(devices=BOTH)
    old = [end(ledger, run(ledger, user, WHOLE)) for user in ("ada", "grace")]
    assert {item.device for lease in old for item in lease.slices} == {"GPU-0"}
    clock.forward(3600)
    lasting = run(ledger, "linus", HALF)
    end(ledger, lasting)
    ledger.drain("GPU-0", actor="admin", why="it is hot")
    ledger.sync_inventory([gpu(1)])
    books = ledger.usage("user", 0, clock.now + 1)
    ledger.forget_device("GPU-0", actor="admin", why="sent back")
    event = ledger.events()[-1]
    assert (event.actor, event.action, event.device) == ("admin", "forget", "GPU-0")
    assert event.reason.endswith(": sent back")
    for one in (ledger, other):
        assert [device.id for device in one.snapshot().devices] == ["GPU-1"]
    assert ledger.closed(None, count=9)[-1].slices == old[0].slices, "what was held there is still said"
    assert ledger.usage("user", 0, clock.now + 1) == books
    assert refused(ledger, "GPU-0").reason == "no-device", "there is none to forget again"
    for verb in (ledger.drain, ledger.undrain):
        with pytest.raises(Rejected, match="There is no GPU 'GPU-0'"):
            verb("GPU-0", actor="admin")
    assert ledger.sync_inventory([gpu(1)]) is False
    assert run(ledger, "ada", WHOLE).slices[0].device == "GPU-1"


def test_it_comes_back_as_a_new_one(make: Make, clock: Clock) -> None:
    ledger = make(devices=BOTH)
    ledger.drain("GPU-0", actor="admin")
    ledger.sync_inventory([gpu(1)])
    ledger.forget_device("GPU-0", actor="admin")
    lost = gpu(0, health=Health.LOST, health_reason="fell off the bus")
    assert ledger.sync_inventory([lost, gpu(1)]) is False, "what is still lost is still forgotten"
    found = gpu(0, memory_mib=40960, driver="new")
    assert ledger.sync_inventory([found, gpu(1)]) is True
    assert ledger.snapshot().devices == (found, gpu(1))
    assert (ledger.events()[-1].action, ledger.events()[-1].device) == ("device-new", "GPU-0")
    assert ledger.sync_inventory([found, gpu(1)]) is False
    run(ledger, "ada", WHOLE), run(ledger, "grace", WHOLE)


def test_only_a_lost_device_that_nobody_holds_is_forgotten(make: Make) -> None:
    ledger = make(devices=BOTH)
    held = run(ledger, "ada", HALF)
    problem = refused(ledger, "GPU-0")
    assert (problem.reason, problem.status) == ("not-lost", 409)
    assert "GPU GPU-0 is not lost (its health is ok)" in problem.message
    ledger.sync_inventory([replace(gpu(0), health=Health.SICK), gpu(1)])
    assert "its health is sick" in refused(ledger, "GPU-0").message
    ledger.sync_inventory([gpu(1)])
    problem = refused(ledger, "GPU-0")
    assert (problem.reason, problem.status) == ("held", 409)
    assert "still held by a session of ada" in problem.message
    assert refused(ledger, "GPU-9").status == 404
    end(ledger, held)
    ledger.forget_device("GPU-0", actor="admin")


def test_guaranteed_shares_no_longer_count_on_it(make: Make) -> None:
    ledger = make(Policy(limits={"group:vision": Limit(guaranteed_gpus=2)}), BOTH)
    ledger.sync_inventory([gpu(1)])
    assert ledger.check_shares() == ""
    ledger.forget_device("GPU-0", actor="admin")
    assert "2 GPUs are guaranteed (2 to vision), and the pool has 1 GPU" in ledger.check_shares()
    with pytest.raises(ValueError, match="the pool has 1 GPU"):
        ledger.set_limit("group:lab", {"guaranteed_gpus": 1}, actor="admin")


def test_who_waits_for_what_only_it_had_is_told(make: Make) -> None:
    ledger = make(devices=BOTH)
    run(ledger, "ada", WHOLE)
    both = ledger.enqueue("hub", request_of("grace", Wish(kind=WHOLE.kind, count=2)))
    ledger.sync_inventory([gpu(0)])
    ledger.forget_device("GPU-1", actor="admin")
    found = ledger.lease(both.id)
    assert found is not None and found.state is State.CLOSED and found.reason
