"""From one session to the next: nothing is given again before its device says that it is clean."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from jupyterhub_gpupool.devices import Residue
from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Event
from jupyterhub_gpupool.model import Device, Health, Kind, Lease, Presence, State, Wish
from jupyterhub_gpupool.service import shapes, telling
from jupyterhub_gpupool.service.handover import not_clean
from jupyterhub_gpupool.service.metrics import Metrics
from jupyterhub_gpupool.service.reach import CUT_OFF
from jupyterhub_gpupool.service.stream import Feed
from jupyterhub_gpupool.status import view

from .bench import Bench
from .conftest import HALF, Make, end, gpu, memory, mig_gpu, request_of

CLEAN = Residue(True)
BUSY = Residue(True, processes=(4711,))
FULL = Residue(True, memory_mib=3000)


class Examined(Bench):
    """Two GPUs whose driver tells what is left on them: ``left``, by the part's name."""

    def __init__(self, url: str) -> None:
        super().__init__(url, 0)
        self.gpus: tuple[Device, ...] = tuple(replace(gpu(n), examined=True) for n in range(2))
        self.ledger.sync_inventory(self.gpus)
        self.left: dict[str, Residue] = {}
        self.asked: list[set[str]] = []
        self.held: list[set[str]] = []
        self.silent = False
        self.again: set[str] = set()  # leases whose sessions were started again by somebody
        self.looked_into: list[str] = []
        self.reached: dict[str, bool | None] = {}

    def recall(self, devices: tuple[Device, ...]) -> None:
        self.recalled = devices

    def residues(
        self, asked: Collection[tuple[str, str]], held: Collection[str], processes: Mapping[str, Any]
    ) -> Mapping[str, Residue]:
        if self.silent:
            raise TimeoutError("the driver hangs")
        self.asked.append({part for _, part in asked})
        self.held.append(set(held))
        return {part: self.left.get(part, CLEAN) for _, part in asked}

    def list(self) -> tuple[Any, ...]:
        gone = {one.id for one in self._live() if one.gone_at is not None and one.id not in self.again}
        return tuple(one for one in super().list() if one.lease not in gone)

    def look(self, names: Collection[str]) -> dict[str, Any]:
        there = {one.name for one in self.list()}
        return {name: Presence.PRESENT if name in there else Presence.ABSENT for name in names}

    def reaches(self, name: str) -> bool | None:
        self.looked_into.append(name)
        return self.reached.get(name, True)

    def leave(self, lease: Lease) -> Lease:
        """Its owner stops the session, and the spawner proves that it is gone."""
        self.ledger.begin_stop(lease.id, actor=lease.user, reason="stopped")
        return self.ledger.close(lease.id, actor=lease.user)

    def device(self, key: str) -> Device:
        return next(one for one in self.ledger.snapshot().devices if one.id == key)

    def told(self, *actions: str) -> list[Event]:
        return [event for event in self.ledger.events(count=1000) if event.action in actions]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Examined]:
    with memory(tmp_path) as folder:
        made = Examined(f"sqlite:///{folder / 'bench.sqlite'}")
        yield made
        made.close()


def held_by(lease: Lease) -> str:
    return lease.slices[0].device


def test_a_slice_waits_until_it_was_examined(bench: Examined) -> None:
    first, second = bench.ask("ada"), bench.ask("grace")
    waiting = bench.ask("linus")
    gone = bench.leave(first)
    assert (gone.state, gone.gone_at) == (State.STOPPING, bench.clock())
    assert "examined" in gone.doubt and gone.doubt_since == gone.gone_at
    assert bench.lease(waiting).state is State.QUEUED
    assert bench.ledger.close(first.id, actor="ada").version == gone.version, "said twice, written once"
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED and bench.lease(first).doubt == ""
    assert held_by(bench.lease(waiting)) == held_by(first)
    assert bench.asked[-1] == {held_by(first)} and bench.held[-1] == {held_by(second)}
    assert [event.action for event in bench.events(first)][-3:] == ["stop", "gone", "close"]


@pytest.mark.parametrize(
    ("left", "words"),
    [(BUSY, "pid 4711"), (FULL, "3000 MiB"), (Residue(), "not known"), (Residue(True, "XID 79"), "XID 79")],
)
def test_what_is_not_clean_is_held_in_doubt_and_examined_again(
    bench: Examined, left: Residue, words: str
) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.left[held_by(first)] = left
    bench.pass_time(5)
    found = bench.lease(first)
    assert found.state is State.STOPPING and words in found.doubt and found.doubt_since == found.gone_at
    assert len(bench.events(first, "doubt")) == 1, "the same doubt again is no news"
    assert_seen(bench, first, words)
    bench.left.clear()
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED
    assert bench.device(held_by(first)).usable and not bench.told("unclean")


def assert_seen(bench: Examined, lease: Lease, words: str) -> None:
    """An admin sees it: by REST and on the pages, on a terminal, in the metrics."""
    snapshot = bench.ledger.snapshot()
    (shape,) = shapes.leases(snapshot, shapes.Person("root", admin=True))["leases"]
    assert words in shape["doubt"] and shape["doubt_since"] == shapes.iso(bench.lease(lease).doubt_since)
    assert "stopping, in doubt" in "\n".join(view.frame(snapshot, 200, str))
    registry, feed = CollectorRegistry(), Feed(bench.pool)
    Metrics(registry, feed)
    asyncio.run(feed.refresh())
    assert registry.get_sample_value("gpupool_leases_in_doubt") == 1


def test_after_a_while_the_device_is_set_aside_and_its_last_holder_is_free(bench: Examined) -> None:
    first, second = bench.ask("ada"), bench.ask("grace")
    bench.leave(first)
    bench.left[held_by(first)] = BUSY
    bench.pass_time(13)
    assert bench.lease(first).state is State.CLOSED
    device = bench.device(held_by(first))
    assert device.health is Health.SUSPECT and "4711" in device.health_reason
    assert [event.device for event in bench.told("unclean")] == [device.id]
    again = bench.ask("ada")
    bench.pass_time(2)
    assert bench.lease(again).state is State.QUEUED, "nothing is granted on it"
    assert bench.asked[-1] == {device.id}
    bench.left.clear()
    bench.pass_time()
    assert bench.device(device.id).usable and held_by(bench.lease(again)) == device.id
    assert [event.device for event in bench.told("clean")] == [device.id]
    assert bench.lease(second).state is State.ACTIVE


def test_silence_frees_nothing(bench: Examined) -> None:
    first, second = bench.ask("ada"), bench.ask("grace")
    bench.leave(first)
    bench.silent = True
    bench.pass_time(4)
    assert bench.lease(first).state is State.STOPPING and "not known" in bench.lease(first).doubt
    bench.pass_time(20)
    assert bench.lease(first).state is State.CLOSED
    assert bench.device(held_by(first)).health is Health.SUSPECT
    waiting = bench.ask("linus")
    bench.pass_time(5)
    assert bench.lease(waiting).state is State.QUEUED
    bench.silent = False
    bench.pass_time()
    assert bench.lease(waiting).state is State.ACTIVE and bench.lease(second).state is State.ACTIVE


def test_a_clock_that_was_set_back_holds_nobody_for_longer(bench: Examined) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.left[held_by(first)] = BUSY
    bench.pass_time()
    bench.clock.forward(-86400)
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED
    assert bench.device(held_by(first)).health is Health.SUSPECT


def test_who_waits_on_devices_of_before_is_free_and_they_are_set_aside(bench: Examined) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.sweep.inventory = SimpleNamespace(devices=lambda: (gpu(7),))
    bench.pass_time(2)
    assert bench.lease(first).state is State.CLOSED
    assert bench.device(held_by(first)).health is Health.LOST and bench.device(held_by(first)).unclean
    assert held_by(bench.ask("ada")) == "GPU-7"


def test_what_can_no_longer_be_examined_is_not_waited_for(bench: Examined) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.gpus = tuple(replace(one, examined=False) for one in bench.gpus)
    bench.pass_time(2)
    assert bench.lease(first).state is State.CLOSED


def test_who_was_on_a_sick_device_can_have_another_at_once(bench: Examined) -> None:
    first = bench.ask("ada")
    lost = held_by(first)
    bench.gpus = tuple(
        replace(one, health=Health.SICK, health_reason="XID 79") if one.id == lost else one
        for one in bench.gpus
    )
    bench.pass_time()
    bench.leave(first)
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED
    again = bench.ask("ada")
    assert again.state is State.ACTIVE and held_by(again) != lost
    assert bench.device(lost).unclean == "XID 79"
    bench.left[lost] = FULL
    bench.gpus = tuple(replace(one, health=Health.OK, health_reason="") for one in bench.gpus)
    bench.pass_time()
    assert "3000 MiB" in bench.device(lost).health_reason, "well again, and still not clean"
    bench.left.clear()
    bench.pass_time()
    assert bench.device(lost).usable


def test_an_admins_word_takes_a_device_as_it_is(bench: Examined) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.left[held_by(first)] = FULL
    bench.pass_time(13)
    assert bench.ledger.undrain(None, actor="root") == (), "all at once means those that are drained"
    assert bench.ledger.undrain(held_by(first), actor="root", why="looked at it") == (held_by(first),)
    assert bench.device(held_by(first)).usable
    bench.pass_time(2)
    assert bench.device(held_by(first)).usable


def test_a_share_waits_for_its_own_and_its_neighbour_goes_on(bench: Examined) -> None:
    bench.ledger.drain(bench.gpus[1].id, actor="root")
    first, neighbour = bench.ask("ada", wish=HALF), bench.ask("grace", wish=HALF)
    bench.leave(first)
    bench.left[held_by(first)] = BUSY
    bench.pass_time(20)
    assert bench.lease(first).state is State.CLOSED
    assert bench.held[-1] == {held_by(neighbour)} == bench.asked[-1]
    assert bench.lease(neighbour).state is State.ACTIVE
    assert bench.device(held_by(first)).health is Health.SUSPECT


def test_of_a_gpu_with_instances_every_free_one_has_to_be_clean(bench: Examined) -> None:
    card = replace(mig_gpu(5), examined=True)
    bench.gpus = (card,)
    bench.ledger.sync_inventory(bench.gpus)
    first = bench.ask("ada", wish=Wish(kind=Kind.MIG, mig=card.instances[0].profile))
    mine = first.slices[0].visible
    bench.leave(first)
    bench.left[mine] = FULL
    bench.pass_time(15)
    assert bench.lease(first).state is State.CLOSED
    assert bench.asked[-1] == {one.id for one in card.instances}
    assert "3000 MiB" in bench.device(card.id).unclean, "although all others are clean"
    bench.left.clear()
    bench.pass_time()
    assert bench.device(card.id).usable


def test_a_session_that_somebody_starts_again_has_not_ended(bench: Examined) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.again.add(first.id)
    bench.pass_time(3)
    assert bench.lease(first).state is State.STOPPING and bench.asked[-1] == set()
    bench.again.clear()
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED


def test_another_service_goes_on_with_it(bench: Examined, tmp_path: Path) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.left[held_by(first)] = BUSY
    bench.pass_time()
    bench.sweep._leading = False
    bench.pass_time()
    assert {one.id for one in bench.recalled} == {one.id for one in bench.gpus}
    bench.left.clear()
    bench.pass_time()
    assert bench.lease(first).state is State.CLOSED


def test_devices_that_tell_nothing_are_given_again_at_once(make: Make) -> None:
    ledger = make(devices=(gpu(0),))
    lease = ledger.enqueue("hub", request_of("ada"))
    ledger.activate(lease.id, actor="ada", runtime={"pid": 1})
    end(ledger, lease)
    assert ledger.lease(lease.id).state is State.CLOSED  # type: ignore[union-attr]


def test_what_was_never_launched_leaves_nothing(make: Make) -> None:
    ledger = make(devices=(replace(gpu(0), examined=True),))
    lease = ledger.enqueue("hub", request_of("ada"))
    end(ledger, lease)
    assert ledger.lease(lease.id).state is State.CLOSED  # type: ignore[union-attr]


def test_a_session_that_lost_its_way_to_a_well_gpu_is_told_and_nothing_is_fenced(bench: Examined) -> None:
    lease, other = bench.ask("ada"), bench.ask("grace")
    bench.pass_time()
    bench.reached[lease.session] = False
    bench.looked_into.clear()
    while lease.session not in bench.looked_into:
        bench.pass_time()
    assert bench.lease(lease).trouble == "", "once may be chance"
    bench.pass_time()
    found = bench.lease(lease)
    assert found.trouble == CUT_OFF and found.state is State.ACTIVE
    assert bench.device(held_by(lease)).usable and bench.lease(other).trouble == ""
    assert len(bench.events(lease, "cut-off")) == 1
    looks = Counter(bench.looked_into)
    bench.pass_time(12)
    assert {key: count - looks[key] for key, count in Counter(bench.looked_into).items()} == dict.fromkeys(
        looks, 2
    ), "each session is looked into once a minute"
    bench.reached[lease.session] = None
    bench.pass_time(7)
    assert bench.lease(lease).trouble == CUT_OFF, "what is not known changes nothing"
    del bench.reached[lease.session]
    bench.pass_time(7)
    assert bench.lease(lease).trouble == "" and len(bench.events(lease, "regained")) == 1


def test_a_session_that_no_longer_answers_takes_nobody_elses_turn(bench: Examined) -> None:
    lease, other = bench.ask("ada"), bench.ask("grace")
    bench.reached[lease.session] = False
    while lease.session not in bench.looked_into:
        bench.pass_time()
    bench.reached[lease.session] = None
    bench.looked_into.clear()
    bench.pass_time(13)
    assert Counter(bench.looked_into)[other.session] >= 2 and bench.lease(lease).trouble == ""


def test_on_a_sick_gpu_it_is_not_the_session(bench: Examined) -> None:
    lease = bench.ask("ada")
    bench.reached[lease.session] = False
    sick = {"health": Health.SICK, "health_reason": "XID 79"}
    bench.gpus = tuple(replace(one, **sick) for one in bench.gpus)  # type: ignore[arg-type]
    bench.pass_time(10)
    assert bench.looked_into == [] and bench.lease(lease).trouble == ""
    assert [event.reason for event in bench.events(lease, "unwell")] == [
        f"its GPU {held_by(lease)} is sick: XID 79"
    ]
    shape = telling.trouble(bench.lease(lease), {one.id: one for one in bench.ledger.snapshot().devices})
    assert shape is not None and "XID 79" in shape and "Save your work" in shape


def test_the_judgement_in_words() -> None:
    well = gpu(0)
    assert not_clean(well, CLEAN) == ""
    many = Residue(True, processes=tuple(range(1, 9)))
    assert not_clean(well, many).endswith("(pid 1, 2, 3, 4, 5 and 3 more)")
    assert not_clean(replace(well, health=Health.LOST), CLEAN) == "it is lost"
    assert not_clean(replace(well, health=Health.BARRED, health_reason="others"), CLEAN) == ""


def test_an_admins_word_counts_that_came_while_the_device_was_examined(bench: Examined) -> None:
    first = bench.ask("ada")
    bench.leave(first)
    bench.left[held_by(first)] = FULL
    bench.pass_time(13)
    bench.ledger.undrain(held_by(first), actor="root", why="looked at it")
    bench.ledger.mark_unclean({held_by(first): "what was seen before that"})
    assert bench.device(held_by(first)).usable and len(bench.told("unclean")) == 1


@pytest.mark.parametrize("aside", [True, False])
def test_what_was_not_written_is_not_remembered(
    bench: Examined, monkeypatch: pytest.MonkeyPatch, aside: bool
) -> None:
    first, second, waiting = bench.ask("ada"), bench.ask("grace"), bench.ask("linus")
    gone, left = bench.leave(first), {held_by(first): "a process"}
    if not aside:
        bench.ledger.set_aside(first.id, left, judged=gone.version)
    serve = bench.ledger._grants.serve

    def fail(tx: Any) -> list[str]:
        serve(tx)
        raise Unavailable("the database is gone", reason="ledger")

    with monkeypatch.context() as broken, pytest.raises(Unavailable):
        broken.setattr(bench.ledger._grants, "serve", fail)
        if aside:
            bench.ledger.set_aside(first.id, left, judged=gone.version)
        else:
            bench.ledger.mark_unclean({held_by(first): ""})
    # Another change of the inventory gets the number that this one would have had.
    sick = {"health": Health.SICK, "health_reason": "XID 79"}
    bench.ledger.sync_inventory([replace(one, **sick) for one in bench.gpus])  # type: ignore[arg-type]
    bench.leave(second)
    bench.ledger.close(second.id, actor="service", clean=True)
    assert bench.lease(waiting).state is State.QUEUED, "every GPU is sick"
