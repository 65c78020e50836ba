"""Launch checks in the ledger: what is remembered, who falls under suspicion, and for how long."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from jupyterhub_gpupool.errors import LeaseConflict
from jupyterhub_gpupool.ledger import Check, Ledger, Policy
from jupyterhub_gpupool.model import Device, Health, Kind, Lease, Wish

from .conftest import CPU, HALF, WHOLE, Clock, Make, end, gpu, request_of, run

IMAGE, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
OLD, NEW = "535.183.01", "580.65.06"
THREE = tuple(gpu(n, driver=NEW) for n in range(3))
BOTH = Wish(kind=Kind.GPU, count=2)
GOOD = {"tensorflow": "2.21.0", "problems": [], "visible": ["GPU-0"]}
BAD = {"problems": ["cuInit failed with 999.", "A second thing."]}


@pytest.fixture(name="ledger")
def three_gpus(make: Make) -> Ledger:
    return make(devices=THREE)


def launch(ledger: Ledger, user: str = "ada", wish: Wish = WHOLE) -> Lease:
    lease = ledger.enqueue("hub", request_of(user, wish))
    assert lease.state == "starting"
    return lease


def device_of(lease: Lease) -> str:
    return lease.slices[0].device


def health(ledger: Ledger) -> dict[str, Health]:
    return {device.id: device.health for device in ledger.snapshot().devices}


def actions(ledger: Ledger, lease: Lease) -> list[tuple[str, str]]:
    return [(e.action, e.reason) for e in ledger.events(count=1000) if e.lease == lease.id and not e.to_state]


def again(ledger: Ledger, lease: Lease) -> Lease:
    found = ledger.lease(lease.id)
    assert found is not None
    return found


def checked_on(ledger: Ledger, device: str, passed: bool, image: str = IMAGE) -> bool:
    """Run a check on exactly this device: the others are sick while the lease is granted."""
    known = ledger.snapshot().devices
    ledger.sync_inventory([d if d.id == device else replace(d, health=Health.SICK) for d in known])
    lease = launch(ledger, "probe")
    assert device_of(lease) == device
    ledger.sync_inventory([replace(d, health=Health.OK, health_reason="") for d in known])
    became = ledger.record_check(lease.id, image, GOOD if passed else BAD, passed)
    end(ledger, lease)
    return became


# --- what is remembered ----------------------------------------------------------------------------


def test_a_check_is_kept_by_image_device_and_driver(ledger: Ledger, clock: Clock) -> None:
    lease = launch(ledger)
    assert ledger.record_check(lease.id, IMAGE, GOOD, passed=True) is False
    (here, there) = device_of(lease), "GPU-1"
    wanted = Check(IMAGE, here, NEW, True, clock.now, GOOD)
    assert ledger.check_of(IMAGE, [here, there, "GPU-none"]) == {here: wanted}
    assert ledger.check_of(OTHER, [here]) == {}
    assert again(ledger, lease).checked == {
        "passed": True,
        "remembered": False,
        "at": clock.now,
        "report": GOOD,
    }
    assert again(ledger, lease).image == IMAGE
    assert actions(ledger, lease) == [("check", "passed")]
    assert [e.actor for e in ledger.events() if e.action == "check"] == ["hub"]


def test_another_driver_is_another_check_and_the_old_one_is_not_lost(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-0", True)
    ledger.sync_inventory([replace(d, driver=OLD) for d in THREE])
    assert ledger.check_of(IMAGE, ["GPU-0"]) == {}
    checked_on(ledger, "GPU-0", False)
    assert ledger.check_of(IMAGE, ["GPU-0"])["GPU-0"].passed is False
    ledger.sync_inventory(THREE)
    assert ledger.check_of(IMAGE, ["GPU-0"])["GPU-0"].passed is True


def test_a_lease_on_two_gpus_is_a_check_of_both(ledger: Ledger) -> None:
    lease = launch(ledger, wish=BOTH)
    ledger.record_check(lease.id, IMAGE, GOOD, passed=True)
    assert len(ledger.check_of(IMAGE, [s.device for s in lease.slices])) == 2


def test_the_last_check_is_the_one_that_counts(ledger: Ledger, clock: Clock) -> None:
    for passed in (True, False, True):
        clock.forward(10)
        checked_on(ledger, "GPU-0", passed)
        found = ledger.check_of(IMAGE, ["GPU-0"])["GPU-0"]
        assert (found.passed, found.at) == (passed, clock.now)


def test_a_remembered_pass_is_written_on_the_lease_alone(ledger: Ledger, clock: Clock) -> None:
    first = launch(ledger, "ada", HALF)
    ledger.record_check(first.id, IMAGE, GOOD, passed=True)
    at = clock.now
    clock.forward(100)
    second = launch(ledger, "grace", HALF)
    assert device_of(second) == device_of(first)
    before = ledger.events()
    assert ledger.record_check(second.id, IMAGE, GOOD, True, remembered=True) is False
    assert ledger.events() == before
    assert ledger.check_of(IMAGE, [device_of(first)])[device_of(first)].at == at
    assert again(ledger, second).checked == {"passed": True, "remembered": True, "at": at, "report": GOOD}


def test_a_failure_is_never_remembered(ledger: Ledger) -> None:
    lease = launch(ledger)
    ledger.record_check(lease.id, IMAGE, BAD, False, remembered=True)
    assert again(ledger, lease).checked["remembered"] is False
    assert ledger.check_of(IMAGE, [device_of(lease)])[device_of(lease)].passed is False


def test_a_check_that_was_not_made_says_why_and_judges_nobody(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-1", True)
    lease = launch(ledger)
    report = {"problems": ["The image has no gpupool_tensorflow."]}
    assert ledger.record_check(lease.id, IMAGE, report, passed=None) is False
    assert actions(ledger, lease) == [("check", "not made: The image has no gpupool_tensorflow.")]
    assert again(ledger, lease).checked["passed"] is None
    assert ledger.check_of(IMAGE, [device_of(lease)]) == {}
    assert set(health(ledger).values()) == {Health.OK}


def test_a_session_without_a_gpu_has_its_check_on_the_lease(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-1", True)
    lease = launch(ledger, wish=CPU)
    assert ledger.record_check(lease.id, IMAGE, BAD, passed=False) is False
    assert again(ledger, lease).checked["passed"] is False
    assert ledger.check_of(IMAGE, []) == {}


def test_a_session_that_is_being_ended_is_not_judged(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-1", True)
    lease = launch(ledger)
    ledger.begin_stop(lease.id, actor="ada", reason="cancelled")
    with pytest.raises(LeaseConflict):
        ledger.record_check(lease.id, IMAGE, BAD, passed=False)
    with pytest.raises(LeaseConflict):
        ledger.record_check("nobody's", IMAGE, BAD, passed=False)
    assert again(ledger, lease).checked == {} and ledger.check_of(IMAGE, [device_of(lease)]) == {}
    assert set(health(ledger).values()) == {Health.OK}


# --- suspicion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "suspect"),
    [
        ([], False),
        ([("GPU-1", True)], True),
        ([("GPU-0", True)], False),  # the only one that ever had it: no evidence against the device
        ([("GPU-0", True), ("GPU-1", True)], True),  # it passed here too, once
        ([("GPU-1", False)], False),
        ([("GPU-1", True), ("GPU-1", False)], False),  # the last word of the other one counts
        ([("GPU-1", False), ("GPU-2", True)], True),
    ],
)
def test_a_device_is_suspect_only_if_the_image_passes_elsewhere(
    ledger: Ledger, history: list[tuple[str, bool]], suspect: bool
) -> None:
    for device, passed in history:
        checked_on(ledger, device, passed)
    assert checked_on(ledger, "GPU-0", False) is suspect
    assert health(ledger)["GPU-0"] is (Health.SUSPECT if suspect else Health.OK)
    assert [e.device for e in ledger.events(count=1000) if e.action == "suspect"] == ["GPU-0"] * suspect
    assert {health(ledger)["GPU-1"], health(ledger)["GPU-2"]} == {Health.OK}


def test_that_another_image_passes_elsewhere_says_nothing(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-1", True, OTHER)
    assert checked_on(ledger, "GPU-0", False) is False


def test_a_pass_with_a_driver_that_is_gone_says_nothing(ledger: Ledger) -> None:
    """After an upgrade of the whole node the driver is what is new, and not each card in turn."""
    ledger.sync_inventory([replace(d, driver=OLD) for d in THREE])
    checked_on(ledger, "GPU-1", True)
    ledger.sync_inventory(THREE)
    assert checked_on(ledger, "GPU-0", False) is False


def test_the_other_device_may_have_another_driver(ledger: Ledger) -> None:
    ledger.sync_inventory([THREE[0], replace(THREE[1], driver=OLD), THREE[2]])
    checked_on(ledger, "GPU-1", True)
    assert checked_on(ledger, "GPU-0", False) is True


def test_all_devices_of_the_lease_are_suspect_and_each_has_its_event(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-2", True)
    ledger.sync_inventory([*THREE[:2], replace(THREE[2], health=Health.SICK)])
    lease = launch(ledger, wish=BOTH)
    assert ledger.record_check(lease.id, IMAGE, BAD, passed=False) is True
    events = [e for e in ledger.events(count=1000) if e.action == "suspect"]
    assert [(e.device, e.lease, e.user) for e in events] == [(d, lease.id, "ada") for d in ("GPU-0", "GPU-1")]
    assert actions(ledger, lease)[0] == ("check", "failed: cuInit failed with 999.")
    device = ledger.devices(["GPU-0"])[0]
    assert device.health_reason.endswith("GPU: sha256:aaaaaaaaaaaa…") and "cuInit" not in device.health_reason


def test_a_suspect_device_is_not_granted_and_its_leases_go_on(make: Make, clock: Clock) -> None:
    ledger = make(Policy(suspect_for=100), THREE[:2])
    other = make(Policy(suspect_for=100), THREE[:2])  # another process, with its own memory of the devices
    checked_on(ledger, "GPU-1", True)
    kept = run(ledger, "ada", HALF)
    failed = launch(ledger, "grace", HALF)
    assert device_of(kept) == device_of(failed) == "GPU-0"
    assert ledger.record_check(failed.id, IMAGE, BAD, passed=False) is True
    end(ledger, failed)
    assert [device_of(launch(other, user, HALF)) for user in ("linus", "alan")] == ["GPU-1", "GPU-1"]
    waiting = other.enqueue("hub", request_of("eve", HALF))
    assert waiting.state == "queued"
    assert again(ledger, kept).state == "active"
    clock.forward(99)
    ledger.sync_inventory(THREE[:2])
    other.beat("hub")
    other.swept(0.1, "observe")
    assert again(ledger, waiting).state == "queued", "an inventory that finds it well ends nothing"
    clock.forward(1)
    assert ledger.sync_inventory(THREE[:2]) is True
    other.beat("hub")
    other.swept(0.1, "observe")
    granted = again(ledger, waiting)
    assert (granted.state, device_of(granted)) == ("starting", "GPU-0")
    assert ledger.check_of(IMAGE, ["GPU-0"])["GPU-0"].passed is False, "the next launch is the test"
    assert [e.action for e in ledger.events(count=1000) if e.device == "GPU-0"][-2:] == ["suspect", "trust"]
    assert ledger.record_check(granted.id, IMAGE, BAD, passed=False) is True


def test_what_the_inventory_sees_comes_before_a_suspicion(ledger: Ledger) -> None:
    checked_on(ledger, "GPU-1", True)
    checked_on(ledger, "GPU-0", False)
    ledger.sync_inventory([gpu(0, driver=NEW, health=Health.SICK, health_reason="XID 79"), *THREE[1:]])
    device = ledger.devices(["GPU-0"])[0]
    assert (device.health, device.health_reason) == (Health.SICK, "XID 79")
    ledger.sync_inventory(THREE)
    assert health(ledger)["GPU-0"] is Health.SUSPECT


def test_a_clock_that_went_back_keeps_nobody_suspect(ledger: Ledger, clock: Clock) -> None:
    checked_on(ledger, "GPU-1", True)
    checked_on(ledger, "GPU-0", False)
    clock.forward(-86400)
    ledger.sync_inventory(THREE)
    assert health(ledger)["GPU-0"] is Health.OK


def test_no_time_means_no_suspicion(make: Make) -> None:
    ledger = make(Policy(suspect_for=0), THREE)
    checked_on(ledger, "GPU-1", True)
    assert checked_on(ledger, "GPU-0", False) is False
    assert health(ledger)["GPU-0"] is Health.OK


# --- what a report may bring in --------------------------------------------------------------------


def strict(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(
    ("report", "kept"),
    [
        ({"a": math.nan, "b": -math.inf, "c": 2**70, "d": 6.5}, {"a": None, "b": None, "c": None, "d": 6.5}),
        ({"a": {"b": {"c": {"d": 1}}}}, {"a": {"b": {"c": None}}}),
        ({"a": object(), 7: ("x", b"y")}, {"a": None, "7": ["x", None]}),
        ({"t": "a\x00\x1b[31mb\nc\ud800\u202e"}, {"t": "ab\nc"}),
        ({"t": "JPY_API_TOKEN=abcdef"}, {"t": "JPY_API_TOKEN=…"}),
        ({"t": "x" * 10_000}, {"t": "x" * 500}),
        ({"l": list(range(1000))}, {"l": list(range(50))}),
    ],
    ids=["numbers", "depth", "types", "characters", "tokens", "text", "list"],
)  # fmt: skip
def test_a_report_is_kept_as_strict_json_of_bounded_size(ledger: Ledger, report: Any, kept: Any) -> None:
    lease = launch(ledger)
    ledger.record_check(lease.id, IMAGE, report, passed=True)
    assert again(ledger, lease).checked["report"] == kept
    assert strict(again(ledger, lease).checked)
    assert ledger.check_of(IMAGE, [device_of(lease)])[device_of(lease)].report == kept


def test_of_a_report_that_is_too_long_the_problem_is_kept(ledger: Ledger) -> None:
    lease = launch(ledger)
    report = {"problems": ["Out of luck."], **{f"k{n}": "x" * 500 for n in range(40)}}
    ledger.record_check(lease.id, IMAGE, report, passed=False)
    found = again(ledger, lease).checked["report"]
    assert (
        found["problems"][0] == "Out of luck." and "longer than" in found["problems"][1] and len(found) == 1
    )


@pytest.mark.parametrize("problems", [None, [], "text", [7], [""], [[1]], {"a": 1}])
def test_a_failure_without_a_reason_says_so(ledger: Ledger, problems: Any) -> None:
    lease = launch(ledger)
    ledger.record_check(lease.id, IMAGE, {"problems": problems}, passed=False)
    assert actions(ledger, lease) == [("check", "failed: no reason was given")]


def test_the_reason_of_an_event_is_one_bounded_line(ledger: Ledger) -> None:
    lease = launch(ledger)
    ledger.record_check(lease.id, IMAGE, {"problems": ["a\nb\t" + "x" * 400]}, passed=False)
    ((_, reason),) = actions(ledger, lease)
    assert reason.startswith("failed: a b xxx") and len(reason) == 300 and reason.endswith("…")


# --- devices, foreign containers, what a launch writes -----------------------------------------------


def test_devices_come_by_node_and_index(ledger: Ledger) -> None:
    found = ledger.devices(["GPU-2", "GPU-nobody", "GPU-0"])
    assert [device.id for device in found] == ["GPU-0", "GPU-2"]
    assert found == (THREE[0], THREE[2])
    assert ledger.devices([]) == ()


def test_foreign_containers_are_noted_and_bar_nothing(ledger: Ledger) -> None:
    said = "The container 'train' uses it."
    ledger.note_foreign({"GPU-0": said, "GPU-nobody": "x"})
    assert [device.foreign for device in ledger.snapshot().devices] == [said, "", ""]
    assert device_of(launch(ledger)) == "GPU-0"
    before = ledger.events()
    ledger.note_foreign({"GPU-0": said})
    assert ledger.events() == before, "no news, no event"
    ledger.sync_inventory(THREE)
    assert ledger.devices(["GPU-0"])[0].foreign == said
    ledger.note_foreign({"GPU-1": "bad\n\x1b[31mname" + "x" * 400})
    assert ledger.devices(["GPU-0"])[0].foreign == ""
    assert ledger.devices(["GPU-1"])[0].foreign.startswith("bad namexx")
    assert [(e.device, e.action) for e in ledger.events(count=1000)][-2:] == [
        ("GPU-0", "foreign"),
        ("GPU-1", "foreign"),
    ]


def test_a_driver_that_changes_is_taken_over(ledger: Ledger) -> None:
    changed = [replace(d, driver=OLD) for d in THREE]
    assert ledger.sync_inventory(changed) is True
    assert ledger.sync_inventory(changed) is False
    assert {device.driver for device in ledger.snapshot().devices} == {OLD}


def test_a_checkpoint_keeps_what_it_does_not_name(ledger: Ledger) -> None:
    lease = launch(ledger)
    ledger.checkpoint(lease.id, {"container": "c"}, "http://127.0.0.1:1", image=IMAGE)
    ledger.checkpoint(lease.id, {"container": "d"})
    found = again(ledger, lease)
    assert (found.runtime, found.url, found.image) == ({"container": "d"}, "http://127.0.0.1:1", IMAGE)
    ledger.record_check(lease.id, OTHER, GOOD, passed=True)
    assert again(ledger, lease).image == IMAGE, "what was launched, not under which name it was checked"


def test_activation_writes_runtime_and_url_in_its_own_transaction(ledger: Ledger) -> None:
    lease = launch(ledger)
    ledger.checkpoint(lease.id, {"launch": 1}, "http://before")
    before = ledger.snapshot().version
    active = ledger.activate(lease.id, actor="ada", runtime={"pid": 7}, url="http://after")
    assert (active.state, active.runtime, active.url) == ("active", {"pid": 7}, "http://after")
    assert ledger.snapshot().version == before + 1
    other = launch(ledger, "grace")
    ledger.checkpoint(other.id, {"launch": 2}, "http://other")
    active = ledger.activate(other.id, actor="grace", image=IMAGE)
    assert (active.runtime, active.url, active.image) == ({"launch": 2}, "http://other", IMAGE)


# --- the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE devices SET suspect_until = 5 WHERE id = 'GPU-0'", "without a reason"),
        ("UPDATE devices SET suspect_reason = 'x' WHERE id = 'GPU-0'", "without being suspect"),
        ("UPDATE checks SET report = '[]'", "no report"),
        ("UPDATE checks SET image = ''", "no report"),
        ("UPDATE logs SET text = 'token=abc'", "the log of"),
        ("UPDATE logs SET text = 'a\x1b'", "the log of"),
        ("UPDATE leases SET checked = '{\"passed\":true}'", "its check is not one"),
    ],
)
def test_verify_sees_what_breaks_the_rules(ledger: Ledger, statement: str, says: str) -> None:
    lease = launch(ledger)
    ledger.record_check(lease.id, IMAGE, GOOD, passed=True)
    ledger.keep_log(lease.id, "hello")
    assert ledger.verify() == []
    undo = {name: list(rows(ledger, name)) for name in ("devices", "checks", "logs", "leases")}
    with ledger.store.engine.begin() as conn:
        conn.exec_driver_sql(statement)
    (problem,) = ledger.verify()
    assert says in problem
    restore(ledger, undo)


def rows(ledger: Ledger, table: str) -> list[dict[str, Any]]:
    with ledger.store.engine.connect() as conn:
        return [dict(row._mapping) for row in conn.execute(text(f"SELECT * FROM {table}"))]


def restore(ledger: Ledger, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Put back the columns that a test broke: the ledger is verified once more at its end."""
    broken = {
        "devices": ("suspect_until", "suspect_reason"), "checks": ("image", "report"),
        "logs": ("text",), "leases": ("checked",),
    }  # fmt: skip
    with ledger.store.engine.begin() as conn:
        for table, columns in broken.items():
            for row in tables[table]:
                key = "id" if "id" in row else "lease" if "lease" in row else "device"
                sets = ", ".join(f"{column} = :{column}" for column in columns)
                values = {column: row[column] for column in columns} | {"key": row[key]}
                conn.execute(text(f"UPDATE {table} SET {sets} WHERE {key} = :key"), values)


def test_a_device_that_is_plain_has_no_driver() -> None:
    assert Device("GPU-0", "n1", 0, "A100", 81920).driver == ""
