"""What is shown of the pool: the shapes that REST, stream and pages share."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jupyterhub_gpupool import profiles
from jupyterhub_gpupool.conditions import Condition
from jupyterhub_gpupool.ledger import Event, Reading, Snapshot
from jupyterhub_gpupool.model import (
    Decision,
    Device,
    Health,
    Instance,
    Kind,
    Lease,
    Mode,
    Slice,
    State,
    Terms,
    Wish,
)
from jupyterhub_gpupool.profiles import Availability
from jupyterhub_gpupool.service import shapes, telling
from jupyterhub_gpupool.service.shapes import Person
from jupyterhub_gpupool.service.words import device_in_words

NOW = 1_700_000_000.0
A100 = Device("GPU-a", "n1", 0, "A100", 81920)
MIG = Device(
    "GPU-m", "n1", 1, "H100", 81920, mode=Mode.MIG, cells=8,
    instances=(Instance("MIG-1", "3g.40gb", 0, 4, 40960), Instance("MIG-2", "1g.10gb", 4, 1, 10240)),
)  # fmt: skip
ADA, ADMIN, NOBODY = Person("ada"), Person("root", admin=True), Person(None)


def part(
    device: Device = A100, first: int = 0, count: int = 30, kind: Kind = Kind.SHARE, instance: str = ""
) -> Slice:
    cells = tuple(range(first, first + count))
    memory = device.memory_mib * count // device.cells
    return Slice(device.id, kind, cells, device.cells, memory, 25, instance)


def lease(
    key: str = "l1", user: str = "ada", state: State = State.ACTIVE, *slices: Slice, **more: object
) -> Lease:
    values: dict[str, object] = {
        "id": key, "user": user, "server": "", "profile": "quarter", "state": state, "version": 1, "epoch": 1,
        "session": "s", "wish": Wish(Kind.SHARE, fraction="1/4"), "terms": Terms(), "groups": (),
        "options": {}, "slices": slices, "gpus": sum(item.gpus for item in slices), "group": "",
        "url": "", "runtime": {}, "requested_at": NOW - 100,
    }  # fmt: skip
    return Lease(**{**values, **more})  # type: ignore[arg-type]


def snapshot(*leases: Lease, devices: tuple[Device, ...] = (A100, MIG), **more: object) -> Snapshot:
    values: dict[str, object] = {
        "now": NOW, "version": 1, "settled": True, "mode": "reclaim", "swept_at": NOW, "sweep_seconds": 0.1,
        "devices": devices, "readings": {}, "leases": leases,
    }  # fmt: skip
    return Snapshot(**{**values, **more})  # type: ignore[arg-type]


def test_pool_counts_gpu_equivalents_that_add_up() -> None:
    held = lease("l1", "ada", State.ACTIVE, part())
    inside = lease("l2", "bob", State.ACTIVE, part(MIG, 0, 4, Kind.MIG, "MIG-1"))
    gpus = shapes.pool(snapshot(held, inside), ADA)["gpus"]
    # a quarter and half of a GPU are held; of the MIG GPU, 1 of 8 cells is free and 3 are in no instance
    assert gpus == {"total": 2.0, "leased": 0.75, "free": 0.875, "unusable": 0.375}


@pytest.mark.parametrize(
    "change",
    [{"health": Health.SICK}, {"health": Health.LOST}, {"health": Health.SUSPECT}, {"drained": True}],
)
def test_what_cannot_be_granted_is_not_free(change: dict[str, object]) -> None:
    device = replace(A100, **change)  # type: ignore[arg-type]
    gpus = shapes.pool(snapshot(lease("l1", "ada", State.ACTIVE, part()), devices=(device,)), ADA)["gpus"]
    assert gpus == {"total": 1.0, "leased": 0.25, "free": 0.0, "unusable": 0.75}


def test_pool_lists_held_slices_and_free_instances_in_order() -> None:
    inside = lease("l2", "bob", State.ACTIVE, part(MIG, 4, 1, Kind.MIG, "MIG-2"))
    first, second = shapes.pool(snapshot(inside), ADA)["devices"][1]["slices"]
    assert (first["id"], first["lease"], first["user"], first["cells"]) == ("MIG-1", None, None, "0-3")
    assert (second["id"], second["lease"], second["cells"]) == ("MIG-2", "l2", "4")


@pytest.mark.parametrize(
    ("person", "seen"),
    [
        (ADA, {"l1": "ada", "l2": None}),
        (ADMIN, {"l1": "ada", "l2": "bob"}),
        (NOBODY, {"l1": None, "l2": None}),
    ],
)
def test_the_names_of_others_are_for_admins(person: Person, seen: dict[str, str | None]) -> None:
    taken = snapshot(
        lease("l1", "ada", State.ACTIVE, part(A100, 0, 30)),
        lease("l2", "bob", State.ACTIVE, part(A100, 30, 30)),
    )
    slices = shapes.pool(taken, person)["devices"][0]["slices"]
    assert {item["lease"]: item["user"] for item in slices} == seen
    waiting = snapshot(lease("l1", "ada", State.QUEUED), lease("l2", "bob", State.QUEUED))
    assert {item["lease"]: item["user"] for item in shapes.queue(waiting, person)["queue"]} == seen
    if not person.admin:
        assert "bob" not in json.dumps([shapes.pool(taken, person), shapes.queue(waiting, person)])


def test_leases_are_ones_own_and_all_for_an_admin() -> None:
    both = snapshot(lease("l1", "ada"), lease("l2", "bob"))
    ids = [[item["id"] for item in shapes.leases(both, person)["leases"]] for person in (ADA, ADMIN, NOBODY)]
    assert ids == [["l1"], ["l1", "l2"], []]


@pytest.mark.parametrize("simulated", [True, False])
def test_a_lease_on_a_simulated_gpu_says_so(simulated: bool) -> None:
    device = replace(A100, simulated=simulated)
    shape = shapes.lease(lease("l1", "ada", State.ACTIVE, part(device)), {device.id: device}, None)
    assert shape["simulated"] is simulated


def test_a_service_with_a_users_name_is_not_that_user() -> None:
    assert not Person(None, actor="ada").may_see("ada")


@pytest.mark.parametrize(
    ("sampled_at", "known"),
    [(NOW - 0.05, True), (NOW + 5, True), (NOW - 12, False), (None, False)],
    ids=["in the last sweep", "in a sweep under way", "before the last sweep", "never"],
)
def test_a_reading_counts_only_if_the_last_sweep_made_it(sampled_at: float | None, known: bool) -> None:
    seen = snapshot(readings={"GPU-a": Reading(50.0, 100, sampled_at, Condition(61.5, 40.0, 0))})
    device = shapes.pool(seen, ADA)["devices"][0]
    assert (device["utilization"], device["memory_used_mib"]) == ((50.0, 100) if known else (None, None))
    told = [device[name] for name in ("power_watts", "temperature_celsius", "ecc_errors")]
    assert told == ([61.5, 40.0, 0] if known else [None] * 3)


def test_unknown_is_null_and_never_zero() -> None:
    shape = shapes.lease(lease("l1", "ada", State.QUEUED), {}, 3)
    unknown = ["memory_mib", "compute", "granted_at", "active_at", "closed_at", "wait",
               "idle_seconds", "deadline_seconds", "verdict", "utilization",
               "memory_used_mib", "doubt", "reason"]  # fmt: skip
    assert {name: shape[name] for name in unknown} == dict.fromkeys(unknown)
    assert (shape["place"], shape["state"], shape["kind"]) == (3, "queued", "share")
    device = shapes.pool(snapshot(), ADA)["devices"][0]
    assert (device["utilization"], device["memory_used_mib"]) == (None, None)


def test_where_a_gpu_sits_is_told_and_unknown_is_said_so() -> None:
    links = (("GPU-m", "SYS"), ("GPU-c", "NV12"), ("GPU-d", "SYS"))
    first = replace(A100, numa=0, cpus="0-15", links=links)
    others = (
        replace(A100, id="GPU-c", index=2),
        replace(A100, id="GPU-d", index=3),
        replace(A100, id="GPU-e", index=4),
    )
    near, *_ = shapes.pool(snapshot(devices=(first, MIG, *others)), ADA)["devices"]
    assert (near["numa"], near["cpus"], near["links"]) == (0, "0-15", dict(links))
    assert near["links_words"] == "NV12 to GPU 2; SYS to GPU 1, 3; unknown to GPU 4"
    unknown = shapes.pool(snapshot(), ADA)["devices"][0]
    assert (unknown["numa"], unknown["cpus"], unknown["links"]) == (None, None, {})
    assert unknown["links_words"] == "unknown"
    alone = shapes.pool(snapshot(devices=(A100, replace(MIG, node="n2"))), ADA)["devices"]
    assert [device["links_words"] for device in alone] == [None, None]


def test_times_have_a_zone_and_memory_is_mib() -> None:
    shape = shapes.lease(lease("l1", "ada", State.ACTIVE, part()), {"GPU-a": A100}, None)
    assert shape["requested_at"] == "2023-11-14T22:11:40.000+00:00"
    assert (shape["memory_mib"], shape["devices"], shape["gpus"]) == (20480, ["GPU-a"], 0.25)
    assert shape["slice"] == "share of GPU 0 (A100): 30 of 120 cells, 25 % of the compute"


def test_a_warning_shows_only_while_the_session_is_active() -> None:
    warned = lease(
        "l1", "ada", State.ACTIVE, part(), deadline_seconds=30.0, warned_at=NOW - 5, verdict=Decision.WARN,
        verdict_reason="idle", verdict_at=NOW - 4, counting=True,
    )  # fmt: skip
    assert shapes.lease(warned, {}, None)["deadline_seconds"] == 30.0
    assert telling.seconds_left(warned, NOW) == 26.0
    assert telling.seconds_left(warned, NOW + 1000) == 0.0
    stopping = replace(warned, state=State.STOPPING)
    assert shapes.lease(stopping, {}, None)["deadline_seconds"] is None
    assert telling.seconds_left(stopping, NOW) is None


@pytest.mark.parametrize(
    ("signal", "words"),
    [("kernel", "kernels"), ("gpu", "GPU activity"), ("session", "the session's server, which does not say")],
)
def test_a_verdict_names_the_signal_that_decided(signal: str, words: str) -> None:
    shape = shapes.lease(lease(verdict=Decision.WARN, verdict_at=NOW, signal=signal), {}, None)["verdict"]
    assert (shape["signal"], shape["signal_words"]) == (signal, words)
    bare = shapes.lease(lease(verdict=Decision.WARN, verdict_at=NOW), {}, None)["verdict"]
    assert (bare["signal"], bare["signal_words"]) == (None, None)


def test_the_last_extension_is_no_longer_than_what_is_left() -> None:
    shape = shapes.lease(lease(terms=Terms(extend=60, extend_max=100), extended_seconds=60.0), {}, None)
    assert (shape["extend_seconds"], shape["extendable_seconds"]) == (40.0, 40.0)


def test_pages_of_closed_leases_name_the_next_one_exactly() -> None:
    listed = [lease(f"l{n}", closed_at=NOW - n / 7) for n in range(3)]
    assert shapes.closed(listed, 5)["next"] is None
    following = shapes.closed(listed, 3)["next"]
    assert following is not None and float(following) == listed[-1].closed_at


def test_events_go_on_where_they_ended() -> None:
    event = Event(7, NOW, "ada", "extend", "l1", "ada", None, None, None, "60 s")
    shape = shapes.events([event], 3)
    assert (shape["next"], shape["events"][0]["from"]) == (7, None)
    assert shapes.events([], 3) == {"events": [], "next": 3}


REPORT = {
    "tensorflow": "2.21.0", "cuda": "12.5", "driver": None, "visible": ["GPU-a", "GPU-b"], "problems": ["no", "luck"],
}  # fmt: skip
IMAGE = "registry.example/tensorflow@sha256:" + "a1" * 32


def check(passed: object, remembered: bool = False, report: object = REPORT, **more: object) -> Lease:
    checked = {"passed": passed, "remembered": remembered, "at": NOW - 5, "report": report}
    return lease("l1", "ada", State.ACTIVE, part(), image=IMAGE, checked=checked, **more)


AT = "2023-11-14T22:13:15.000+00:00"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (lease(), None),
        (lease(image=IMAGE), ("not checked:", None, " no launch check is recorded")),
        (lease("l1", "ada", State.STARTING, image=IMAGE), ("not checked:", None, " the session is still starting")),
        (check(True), ("passed on", AT, "; TensorFlow 2.21.0; CUDA 12.5; sees GPU-a, GPU-b")),
        (check(True, True, {}), ("passed, remembered from", AT, "")),
        (check(True, report={"visible": [], "simulated": True}),
         ("passed on", AT, "; sees no GPU; the GPU is simulated")),
        (check(True, report={"visible": "all", "tensorflow": 2, "simulated": "yes"}), ("passed on", AT, "")),
        (check(True, report={"visible": [7, "GPU-a"]}), ("passed on", AT, "; sees GPU-a")),
        (check(False), ("failed on", AT, ": no; luck")),
        (check(False, report={"problems": 7}), ("failed on", AT, ": no reason was given")),
        (check(None, report={"problems": ["It has no check."]}), ("not checked:", None, " It has no check.")),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_launch_check_in_words(item: Lease, words: tuple[str, str | None, str] | None) -> None:
    shape = shapes.lease(item, {}, None)
    assert shape["image"] == (item.image or None)
    assert shape["check_words"] == (words and dict(zip(("outcome", "at", "facts"), words, strict=True)))
    assert (shape["checked"] is None) == (not item.checked)
    if item.checked:
        assert shape["checked"] == {**item.checked, "at": AT}
    assert json.loads(json.dumps(shape, allow_nan=False)) == shape


def test_a_device_says_its_driver_and_who_else_is_on_it() -> None:
    used = replace(A100, driver="535.183.01", foreign="The container 'bobs-secret' uses it.")
    devices = {
        person: shapes.pool(snapshot(devices=(used, MIG)), person)["devices"]
        for person in (ADA, ADMIN, NOBODY)
    }
    assert [devices[ADA][n]["driver"] for n in (0, 1)] == ["535.183.01", None]
    assert devices[ADMIN][0]["foreign"] == used.foreign
    assert devices[ADA][0]["foreign"] == devices[NOBODY][0]["foreign"] == shapes.FOREIGN
    assert "bobs-secret" not in json.dumps(devices[ADA])
    assert [devices[person][1]["foreign"] for person in (ADA, ADMIN)] == [None, None]


def test_a_suspect_device_gives_its_reason() -> None:
    device = replace(A100, health=Health.SUSPECT, health_reason="a launch check failed here")
    shape = shapes.pool(snapshot(devices=(device,)), ADA)["devices"][0]
    assert (shape["health"], shape["health_reason"]) == ("suspect", "a launch check failed here")
    assert device_in_words(shape) == "suspect: a launch check failed here"


def test_every_shape_is_strict_json() -> None:
    everything = snapshot(
        lease("l1", "ä\ud800\n</script>", State.ACTIVE, part()), lease("l2", "b", State.QUEUED), check(True)
    )
    for shape in (
        shapes.pool(everything, ADMIN),
        shapes.leases(everything, ADMIN),
        shapes.queue(everything, ADMIN),
    ):
        assert json.loads(json.dumps(shape, allow_nan=False).encode()) == shape


def test_waits_are_shown_where_there_is_ground_for_them() -> None:
    queued = snapshot(
        lease("l1", "ada", State.QUEUED), lease("l2", "bob", State.QUEUED), waits={"l1": (60.04, 120.0)}
    )
    known = {"low": 60.0, "high": 120.0}
    assert [item["wait"] for item in shapes.queue(queued, ADA)["queue"]] == [known, None]
    assert [item["wait"] for item in shapes.leases(queued, ADMIN)["leases"]] == [known, None]
    assert shapes.one(queued.leases[0], queued)["wait"] == known
    running = snapshot(lease("l1", "ada", State.ACTIVE, part()), waits={"l1": (60.0, 120.0)})
    assert shapes.leases(running, ADA)["leases"][0]["wait"] is None


def test_availability_has_wait_and_budget_where_they_are_known() -> None:
    offer = profiles.read([{"slug": "gpu", "display_name": "A GPU", "gpu": {"count": 1}}])
    known = Availability(place_wait=(1.0, 2.0), budget_left_hours=3.5)
    for answer, seen in ((known, ({"low": 1.0, "high": 2.0}, 3.5)), (Availability(), (None, None))):
        (shape,) = shapes.availability(offer, {"gpu": answer})["profiles"]
        assert (shape["wait"], shape["budget_left_hours"]) == seen
