"""Deliveries in the ledger: told once, counted from then, tried again, and never for ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from jupyterhub_gpupool.errors import LeaseConflict, Rejected
from jupyterhub_gpupool.ledger import Delivery, Ledger, Observation
from jupyterhub_gpupool.model import Decision, Lease, Owner, Request, Sample, Terms, Verdict
from jupyterhub_gpupool.notices import Choice, Notice, Occasion

from .conftest import CPU, HALF, Clock, Make, end, request_of, run

WARN = 30.0
TERMS = Terms(window=60, warn=WARN)


def look(
    ledger: Ledger, lease: Lease, deadline: float | None = WARN, rule: str = "idle", **more: object
) -> Lease:
    """A look of the sweep that warns, or takes the warning back."""
    now = ledger.lease(lease.id)
    assert now is not None
    decision = Decision.WARN if deadline is not None else Decision.KEEP
    verdict = Verdict(decision, "idle", deadline, rule if deadline is not None else "")
    seen = Observation(
        now.id,
        now.version,
        Sample(0.0, 1, 1),
        60,
        0,
        deadline,
        verdict.warned_for,
        verdict,
        **more,  # type: ignore[arg-type]
    )
    assert ledger.record([seen])
    found = ledger.lease(lease.id)
    assert found is not None
    return found


def tell(seen: Occasion) -> Iterable[Notice]:
    """By mail: each warning and each end."""
    lease = seen.lease
    if lease is not None and seen.owner and seen.action in ("warn", "close"):
        about = {"warn": ("warning", lease.warning), "close": ("reclaimed", "")}[seen.action]
        yield Notice(about[0], "mail", lease.id, about[1], seen.owner, "subject", "text", {"a": 1})


def take(ledger: Ledger, *, first: float = 30.0, per_hour: int = 0, count: int = 10) -> list[Delivery]:
    return ledger.due("mail", count, lambda tries: first * 2 ** (tries - 1), per_hour)


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    return run(ledger, "ada", terms=TERMS)


def test_a_warning_is_new_until_it_was_delivered_and_counts_in_full_from_then(
    ledger: Ledger, lease: Lease
) -> None:
    warned = look(ledger, lease)
    assert warned.warning and warned.delivered_at is None and not warned.counting
    late = look(ledger, lease, 7.0, counting=True, undelivered_seconds=93.0)  # its time without is up
    assert (late.warning, late.counting, late.undelivered_seconds) == (warned.warning, True, 93.0)
    assert ledger.deliver(lease.id, warned.warning, "page", "ada") is True
    told = ledger.lease(lease.id)
    assert told is not None and told.delivered_by == "page" and told.deadline_seconds == WARN
    assert (told.counting, told.undelivered_seconds, told.version) == (False, 0.0, late.version + 1)
    assert ledger.deliver(lease.id, warned.warning, "jupyterlab", "ada") is False, "told already"
    again = ledger.lease(lease.id)
    assert again == told, "that changes nothing, so it puts no reclaim off"
    channels = sorted((d.channel, d.state) for d in ledger.deliveries_of(lease.id))
    assert channels == [("jupyterlab", "delivered"), ("page", "delivered")]
    on = look(ledger, lease, 20.0, counting=True)
    assert (on.delivered_at, on.counting) == (told.delivered_at, True)


def test_a_delivery_in_the_moment_of_the_decision_stops_the_reclaim(ledger: Ledger, lease: Lease) -> None:
    judged = look(ledger, lease, 0.0, counting=True)
    ledger.deliver(lease.id, judged.warning, "mail", "service")
    with pytest.raises(LeaseConflict):
        ledger.begin_stop(lease.id, actor="service", reason="idle", judged=judged.version)


@pytest.mark.parametrize("how", ["taken back", "other rule", "extended", "stopping", "wrong"])
def test_a_warning_that_is_over_cannot_be_delivered(ledger: Ledger, lease: Lease, how: str) -> None:
    warning = look(ledger, lease).warning
    if how == "taken back":
        assert look(ledger, lease, None).delivered_at is None
    elif how == "other rule":
        assert look(ledger, lease, rule="drain").warning != warning
    elif how == "extended":
        ledger.extend(lease.id, "ada")
    elif how == "stopping":
        ledger.begin_stop(lease.id, actor="ada", reason="x")
    else:
        warning = "another"
    with pytest.raises(Rejected, match="no longer in force") as refused:
        ledger.deliver(lease.id, warning, "page", "ada")
    assert refused.value.status == 409
    assert ledger.deliveries_of(lease.id) == []


def test_a_new_warning_wants_a_delivery_of_its_own(ledger: Ledger, lease: Lease) -> None:
    first = look(ledger, lease)
    ledger.deliver(lease.id, first.warning, "page", "ada")
    for rule, deadline in (("drain", WARN), ("idle", None), ("idle", WARN)):
        now = look(ledger, lease, deadline, rule)
        assert now.delivered_at is None and now.delivered_by == ""
    assert now.warning != first.warning


def test_each_event_makes_its_notices_once(make: Make, clock: Clock) -> None:
    ledger = make()
    lease = run(ledger, "ada", terms=TERMS)
    assert ledger.make_notices(tell, 100) == 0
    look(ledger, lease)
    assert [ledger.make_notices(tell, 100) for _ in range(3)] == [1, 0, 0]
    look(ledger, lease, 25.0)  # the same warning
    assert ledger.make_notices(tell, 100) == 0
    (item,) = take(ledger)
    assert (item.user, item.event, item.tries, item.notice.text, item.notice.facts) == (
        "ada", "warning", 1, "text", {"a": 1},
    )  # fmt: skip
    ledger.told(item.id)
    found = ledger.lease(lease.id)
    assert found is not None and found.delivered_by == "mail"
    assert take(ledger) == []
    end(ledger, lease)
    assert ledger.make_notices(tell, 100) == 1


def test_what_was_not_taken_is_tried_again_after_growing_pauses(
    ledger: Ledger, lease: Lease, clock: Clock
) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    for tries, wait in ((1, 30), (2, 60), (3, 120)):
        (item,) = take(ledger)
        assert item.tries == tries
        ledger.not_told(item.id, "451\nlater", final=False)
        clock.forward(wait - 1)
        assert take(ledger) == []
        clock.forward(1)
    assert ledger.deliveries_of(lease.id)[0].error == "451 later"
    (item,) = take(ledger)
    ledger.not_told(item.id, "550 no such user", final=True)
    clock.forward(10**6)
    assert take(ledger) == [] and ledger.deliveries_of(lease.id)[0].state == "failed"
    found = ledger.lease(lease.id)
    assert found is not None and found.delivered_at is None


def test_a_crash_between_try_and_answer_tries_again_and_not_at_once(make: Make, clock: Clock) -> None:
    ledger = make()
    lease = run(ledger, "ada", terms=TERMS)
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    assert len(take(ledger)) == 1
    other = make()  # a new process on the same ledger
    assert take(other) == []
    clock.forward(30)
    assert [item.tries for item in take(other)] == [2]


def test_a_warning_that_was_taken_back_is_not_told_any_more(ledger: Ledger, lease: Lease) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    look(ledger, lease, None)
    assert take(ledger) == []
    assert [d.state for d in ledger.deliveries_of(lease.id)] == ["dropped"]


def test_one_that_is_told_too_late_starts_no_countdown(ledger: Ledger, lease: Lease) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    (item,) = take(ledger)
    look(ledger, lease, None)
    ledger.told(item.id)
    found = ledger.lease(lease.id)
    assert found is not None and (found.deadline_seconds, found.delivered_at) == (None, None)


def test_nobody_gets_more_than_so_many_an_hour(ledger: Ledger, lease: Lease, clock: Clock) -> None:
    for _ in range(5):
        look(ledger, lease)
        ledger.make_notices(tell, 100)
        for item in take(ledger, per_hour=3):
            ledger.told(item.id)
        if len([d for d in ledger.deliveries_of(lease.id) if d.state == "delivered"]) == 3:
            break
        look(ledger, lease, None)
        clock.forward(60)
    look(ledger, lease, None)
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    assert take(ledger, per_hour=3) == []
    assert [d.error for d in ledger.deliveries_of(lease.id) if d.state == "waiting"] == [
        "waits: at most 3 in an hour"
    ]
    clock.forward(3600)
    assert len(take(ledger, per_hour=3)) == 1, "it has waited, and was not dropped"


def test_what_is_dropped_or_waits_takes_the_place_of_no_other(make: Make, clock: Clock) -> None:
    ledger = make()
    first, second = (run(ledger, user, terms=TERMS) for user in ("ada", "bob"))
    for n in range(6):  # three that have to wait behind one that was told, and three that are over
        run(ledger, "eve", server=f"s{n}", wish=CPU, terms=TERMS)
        look(ledger, ledger.snapshot().leases[-1])
    look(ledger, first)
    ledger.make_notices(tell, 100)
    (told,) = take(ledger, per_hour=1, count=1)
    assert told.user == "eve"
    eve = [lease for lease in ledger.snapshot().leases if lease.user == "eve"]
    for lease in [lease for lease in eve if lease.id != told.lease][:3]:
        look(ledger, lease, None)
    clock.forward(1)
    look(ledger, second)
    ledger.make_notices(tell, 100)
    assert [item.user for item in take(ledger, per_hour=1, count=2)] == ["ada", "bob"]
    assert take(ledger, per_hour=1) == []
    states = sorted(d.state for lease in eve for d in ledger.deliveries_of(lease.id))
    assert states == ["dropped"] * 3 + ["waiting"] * 3


def test_more_than_is_looked_at_in_one_transaction_is_gone_through(
    ledger: Ledger, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        over = run(ledger, "eve", server=f"s{n}", wish=CPU, terms=TERMS)
        look(ledger, over)
        ledger.make_notices(tell, 100)
        look(ledger, over, None)
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    monkeypatch.setattr("jupyterhub_gpupool.ledger.deliveries.AT_ONCE", 2)
    assert [item.user for item in take(ledger)] == ["ada"]


@pytest.mark.parametrize("back", [600.0, 86400.0, 10**7])
def test_a_clock_that_was_set_back_puts_no_try_off(
    ledger: Ledger, lease: Lease, clock: Clock, back: float
) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    (item,) = take(ledger)
    ledger.not_told(item.id, "451 later", final=False)
    clock.forward(-back)
    (again,) = take(ledger)
    assert (again.id, again.tries) == (item.id, 2)
    assert take(ledger) == [], "and from now on the pauses are what they were"
    clock.forward(60)
    assert [d.tries for d in take(ledger)] == [3]


def test_a_clock_that_was_set_back_keeps_nothing_new_and_nothing_rate_limited_waiting(
    ledger: Ledger, lease: Lease, clock: Clock
) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    (told,) = take(ledger, per_hour=1)
    ledger.told(told.id)
    for _ in range(2):  # one that waits for the next hour, and one that is new
        look(ledger, lease, None)
        look(ledger, lease)
        ledger.make_notices(tell, 100)
        if not [d for d in ledger.deliveries_of(lease.id) if d.error]:
            assert take(ledger, per_hour=1) == []
    clock.forward(-86400)
    assert len(take(ledger, per_hour=1)) == 1
    assert take(ledger, per_hour=1) == []


def test_what_was_told_lately_is_not_told_again_and_the_future_is_not_lately(
    ledger: Ledger, lease: Lease, clock: Clock
) -> None:
    def once(seen: Occasion) -> Iterable[Notice]:
        if seen.action == "warn" and seen.lease:
            yield Notice("budget", "mail", lease.id, seen.lease.warning, "ada", once_in=3600.0)

    def made() -> int:
        look(ledger, lease, None)
        look(ledger, lease)
        return ledger.make_notices(once, 100)

    assert [made(), made()] == [1, 0]
    clock.forward(-7200)
    assert made() == 1
    clock.forward(3601)
    assert made() == 1


def test_one_who_was_renamed_is_told_under_the_new_name(ledger: Ledger, lease: Lease) -> None:
    look(ledger, lease)
    ledger.make_notices(lambda seen: [replace(n, facts={"user": n.user}) for n in tell(seen)], 100)
    old = request_of("ada", HALF, "s2").owner
    ledger.enqueue("hub", replace(request_of("ada", HALF, "s2"), owner=replace(old, name="lovelace")))
    (item,) = take(ledger)
    assert (item.user, item.notice.user, item.notice.facts) == ("lovelace", "lovelace", {"user": "lovelace"})
    ledger.told(item.id)
    found = ledger.lease(lease.id)
    assert found is not None and (found.user, found.delivered_by) == ("lovelace", "mail")


def test_one_who_was_renamed_gets_no_second_share_of_notices(ledger: Ledger, lease: Lease) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    assert len(take(ledger, per_hour=1)) == 1
    old = request_of("ada", HALF, "s2").owner
    ledger.enqueue("hub", replace(request_of("ada", HALF, "s2"), owner=replace(old, name="lovelace")))
    look(ledger, lease, None)
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    assert take(ledger, per_hour=1) == []


def test_one_that_only_the_pools_own_receiver_took_is_no_delivery(ledger: Ledger, lease: Lease) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    (item,) = take(ledger)
    ledger.told(item.id, counts=False)
    found = ledger.lease(lease.id)
    assert found is not None and found.delivered_at is None
    assert [d.state for d in ledger.deliveries_of(lease.id)] == ["delivered"]


def test_the_queue_of_notices_is_bounded(make: Make) -> None:
    ledger = make()
    first, second = (run(ledger, user, terms=TERMS) for user in ("ada", "bob"))
    for lease in (first, second):
        look(ledger, lease)
    assert ledger.make_notices(tell, 1) == 1
    assert {d.state for lease in (first, second) for d in ledger.deliveries_of(lease.id)} == {
        "waiting",
        "dropped",
    }


def test_what_waits_for_a_channel_that_is_gone_takes_nobodys_place(make: Make) -> None:
    ledger = make()
    first, second = (run(ledger, user, terms=TERMS) for user in ("ada", "bob"))
    look(ledger, first)
    assert ledger.make_notices(tell, 1) == 1
    ledger.drop_notices(["mail"])
    assert ledger.deliveries_of(first.id)[0].state == "waiting"
    ledger.drop_notices(["webhook"])
    assert ledger.deliveries_of(first.id)[0].state == "dropped"
    look(ledger, second)
    assert ledger.make_notices(tell, 1) == 1


def test_a_warning_that_stopped_nothing_was_no_warning_of_a_stop(ledger: Ledger, lease: Lease) -> None:
    ledger.swept(1, "warn")
    first = look(ledger, lease)
    ledger.deliver(lease.id, first.warning, "mail", "service")
    ledger.restart_warnings("warn")
    assert look(ledger, lease, 0.0).delivered_by == "mail"
    ledger.restart_warnings("reclaim")
    taken_back = ledger.lease(lease.id)
    assert taken_back is not None and taken_back.deadline_seconds is None
    second = look(ledger, lease)
    assert second.warning != first.warning and second.delivered_at is None
    ledger.swept(1, "reclaim")
    ledger.deliver(lease.id, second.warning, "page", "ada")
    ledger.restart_warnings("reclaim")
    assert look(ledger, lease).delivered_by == "page", "an outage takes nothing back"


def test_finished_ones_are_forgotten_in_the_end(ledger: Ledger, lease: Lease, clock: Clock) -> None:
    ledger.deliver(lease.id, look(ledger, lease).warning, "page", "ada")
    clock.forward(100)
    ledger.forget_notices(101)
    assert len(ledger.deliveries_of(lease.id)) == 1
    ledger.forget_notices(99)
    assert ledger.deliveries_of(lease.id) == []


def test_a_choice_belongs_to_the_person_and_not_to_the_name(ledger: Ledger) -> None:
    assert ledger.choice("ada") is None
    with pytest.raises(Rejected, match="for the first time"):
        ledger.choose("ada", Choice())
    lease = run(ledger, "ada", terms=TERMS)
    chosen = Choice(unwanted={"mail": frozenset({"started"})}, address="ada@elsewhere.example")
    ledger.choose("ada", chosen)
    assert ledger.choice("ada") == chosen
    seen: list[Occasion] = []
    look(ledger, lease)
    ledger.make_notices(lambda occasion: seen.append(occasion) or [], 10)  # type: ignore[func-returns-value]
    assert [o.choice for o in seen if o.action == "warn"] == [chosen]
    # Ada is deleted, and somebody else gets the name.
    other = replace(request_of("ada", HALF, "s2"), owner=Owner("ada", 999, 2.0))
    assert isinstance(other, Request)
    ledger.enqueue("hub", other)
    assert ledger.choice("ada") == Choice()


def test_nothing_of_a_deleted_person_goes_to_the_next_one_with_the_name(ledger: Ledger, lease: Lease) -> None:
    look(ledger, lease)
    ledger.make_notices(tell, 100)
    ledger.enqueue("hub", replace(request_of("ada", HALF, "s2"), owner=Owner("ada", 999, 2.0)))
    assert take(ledger) == []
    assert ledger.deliveries_of(lease.id)[0].state == "dropped"


def test_what_was_saved_is_added_up_and_bounded(ledger: Ledger, lease: Lease, clock: Clock) -> None:
    before = ledger.lease(lease.id)
    ledger.saved(lease.id, ["a", "b\x1b[31m\n"], ["c"])
    ledger.saved(lease.id, ["c", "a", ""], ["d"])
    ending = ledger.ending_of(lease.id)
    assert (ending.saved["documents"], ending.saved["failed"]) == (["a", "b", "c"], ["d"])
    assert ledger.lease(lease.id) == before, "saying so puts no reclaim off"
    ledger.saved(lease.id, [], ["a"])
    ending = ledger.ending_of(lease.id)
    assert (ending.saved["documents"], ending.saved["failed"]) == (["b", "c"], ["d", "a"]), "the last word"
    ledger.saved(lease.id, [f"{n}" for n in range(100)], [])
    ledger.saved(lease.id, [f"x{n}" for n in range(100)], [])
    assert len(ledger.ending_of(lease.id).saved["documents"]) == 100
    end(ledger, lease)
    ledger.saved(lease.id, ["late"], [])
    clock.forward(601)
    with pytest.raises(Rejected, match="does not run"):
        ledger.saved(lease.id, ["later"], [])


def test_the_script_is_begun_once(ledger: Ledger, lease: Lease) -> None:
    assert not ledger.begin_script(lease.id), "nobody takes it back"
    ledger.begin_stop(lease.id, actor="service", reason="idle", script=True)
    assert ledger.ending_of(lease.id).script["state"] == "due"
    assert [ledger.begin_script(lease.id) for _ in range(2)] == [True, False]
    ledger.end_script(lease.id, "done", 3, "one\r\x1b[31mtwo\ntoken=secret123")
    script = ledger.ending_of(lease.id).script
    assert (script["state"], script["status"], script["tail"]) == ("done", 3, "two\ntoken=…")
    assert ledger.begin_script(lease.id) is False
    assert any(event.action == "script" for event in ledger.events())


def test_the_trail_is_not_told_from_its_beginning_after_a_migration(make: Make) -> None:
    ledger = make()
    lease = run(ledger, "ada", terms=TERMS)
    look(ledger, lease)
    events: list[str] = []
    for _ in range(3):
        ledger.make_notices(lambda seen: events.append(seen.action) or [], 10)  # type: ignore[func-returns-value]
    assert events == ["activate", "warn"]
