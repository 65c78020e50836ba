"""The life of a lease in the ledger, and what each verb refuses."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from jupyterhub_gpupool.errors import LeaseConflict, Rejected, Unavailable
from jupyterhub_gpupool.ledger import Ledger, Observation, Policy
from jupyterhub_gpupool.ledger import databases as database_module
from jupyterhub_gpupool.ledger import schema as tables
from jupyterhub_gpupool.ledger import store as store_module
from jupyterhub_gpupool.ledger.store import Store
from jupyterhub_gpupool.model import (
    Decision,
    Health,
    Kind,
    Lease,
    Limit,
    Owner,
    Sample,
    Session,
    State,
    Terms,
    Verdict,
    Wish,
)

from .conftest import (
    CPU,
    DEVICES,
    HALF,
    SMALL_MIG,
    THIRD,
    WHOLE,
    Clock,
    Databases,
    Make,
    end,
    gpu,
    request_of,
    run,
)


def observation(lease: Lease, decision: Decision, deadline: float | None, **kw: object) -> Observation:
    verdict = Verdict(decision, "because", deadline, "idle")
    values: dict[str, object] = {
        "lease": lease.id,
        "version": lease.version,
        "sample": Sample(0.0, 10, 1),
        "idle_seconds": 60.0,
        "grace_seconds": 0.0,
        "deadline_seconds": deadline,
        "warned_for": "idle",
        "verdict": verdict,
    }
    return Observation(**{**values, **kw})  # type: ignore[arg-type]


def test_a_whole_life(ledger: Ledger) -> None:
    lease = run(ledger, "ada", WHOLE)
    assert lease.state is State.ACTIVE
    assert lease.gpus == 1
    assert [len(item.cells) for item in lease.slices] == [120]
    assert lease.session == f"gpupool-{lease.id}-1"
    closed = end(ledger, lease)
    assert closed.state is State.CLOSED
    moves = [(e.from_state, e.to_state) for e in ledger.events() if e.lease == lease.id]
    assert moves == [
        ("none", "queued"),
        ("queued", "starting"),
        ("starting", "active"),
        ("active", "stopping"),
        ("stopping", "closed"),
    ]
    assert ledger.snapshot().leases == ()


def test_whole_and_share_never_mix(ledger: Ledger) -> None:
    share = run(ledger, "ada", THIRD)
    first, second = (ledger.enqueue("hub", request_of(u, WHOLE)) for u in ("grace", "linus"))
    assert first.state == "starting"
    assert second.state == "queued"
    assert {s.device for s in share.slices}.isdisjoint(s.device for s in first.slices)
    assert ledger.give_up(second.id, actor="linus", reason="test")
    shares = [run(ledger, u, THIRD) for u in ("alan", "eve")]
    assert {s.device for x in shares for s in x.slices} == {share.slices[0].device}


def test_who_frees_grants(ledger: Ledger) -> None:
    held = [run(ledger, "ada", WHOLE), run(ledger, "grace", WHOLE)]
    waiting = [ledger.enqueue("hub", request_of(u, WHOLE)) for u in ("linus", "alan")]
    assert ledger.watch([w.id for w in waiting])[waiting[1].id].place == 2
    end(ledger, held[0])
    seen = ledger.watch([w.id for w in waiting])
    assert seen[waiting[0].id].state is State.STARTING
    assert seen[waiting[1].id].place == 1


def test_the_head_reserves_and_later_ones_use_the_rest(ledger: Ledger) -> None:
    share = run(ledger, "ada", HALF)
    run(ledger, "grace", WHOLE)
    head = ledger.enqueue("hub", request_of("linus", WHOLE))
    later = ledger.enqueue("hub", request_of("alan", HALF))
    mig = ledger.enqueue("hub", request_of("eve", SMALL_MIG))
    assert (head.state, later.state, mig.state) == ("queued", "queued", "starting")
    end(ledger, share)
    assert ledger.lease(head.id).state == "starting"  # type: ignore[union-attr]


def test_mig_instances_are_handed_out_one_by_one(ledger: Ledger) -> None:
    first, second = run(ledger, "ada", SMALL_MIG), run(ledger, "grace", SMALL_MIG)
    assert {first.slices[0].visible, second.slices[0].visible} == {"MIG-2-b", "MIG-2-c"}
    assert first.gpus == pytest.approx(1 / 8)
    assert ledger.enqueue("hub", request_of("linus", SMALL_MIG)).state == "queued"


def test_limits_are_counted_at_the_grant(make: Make) -> None:
    limits = {"user:*": Limit(sessions=1), "group:students": Limit(gpus=1.0), "pool": Limit(queued=3)}
    ledger = make(Policy(limits=limits))
    first = run(ledger, "linus", HALF, groups=("students",))
    assert first.group == "students"
    second = ledger.enqueue("hub", request_of("linus", HALF, server="two", groups=("students",)))
    assert second.state == "queued"
    assert "session" in second.reason
    other = ledger.enqueue("hub", request_of("alan", WHOLE, groups=("students",)))
    assert other.state == "queued"
    assert "students" in other.reason
    free = run(ledger, "ada", WHOLE)
    assert free.group == ""
    ledger.enqueue("hub", request_of("eve", WHOLE, groups=()))
    with pytest.raises(Unavailable) as full:
        ledger.enqueue("hub", request_of("mallory", WHOLE))
    assert full.value.status == 429


def test_what_can_never_be_is_refused_without_a_row(make: Make) -> None:
    ledger = make(Policy(limits={"group:students": Limit(gpus=0.5)}))
    before = ledger.events()
    for wish, groups in [
        (Wish(kind=Kind.GPU, count=9), ()),
        (Wish(kind=Kind.GPU, model="V100*"), ()),
        (Wish(kind=Kind.MIG, mig="7g.80gb"), ()),
        (WHOLE, ("students",)),
    ]:
        with pytest.raises(Rejected):
            ledger.enqueue("hub", request_of("ada", wish, groups=groups))
    assert ledger.events() == before
    assert ledger.snapshot().leases == ()


def test_only_who_has_to_wait_needs_room_in_the_queue(make: Make) -> None:
    ledger = make(Policy(limits={"user:*": Limit(queued=0)}))
    run(ledger, "ada", CPU)
    run(ledger, "ada", WHOLE, server="two")
    run(ledger, "grace", WHOLE)
    before = ledger.events()
    with pytest.raises(Unavailable, match="queue"):
        ledger.enqueue("hub", request_of("linus", WHOLE))
    assert ledger.events() == before


def test_what_came_before_the_first_inventory_is_refused_after_it(databases: Databases) -> None:
    ledger = Ledger(databases.url("new"))
    ledger.register_hub("hub")
    never = ledger.enqueue("hub", request_of("ada", Wish(kind=Kind.GPU, count=9)))
    later = ledger.enqueue("hub", request_of("grace", WHOLE))
    assert (never.state, later.state) == ("queued", "queued")
    ledger.sync_inventory(DEVICES)
    ledger.settle()
    closed = ledger.lease(never.id)
    assert closed is not None and closed.state == "closed" and "9" in closed.reason
    assert ledger.lease(later.id).state == "starting"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rule", "said"),
    [("max_age", "cannot be extended"), ("drain", "cannot be put off"), ("mps", "cannot be put off")],
)
def test_an_end_that_no_extension_puts_off(ledger: Ledger, rule: str, said: str) -> None:
    lease = run(ledger, "ada", WHOLE, terms=Terms(max_age=100))
    ledger.record([observation(lease, Decision.WARN, 30.0, warned_for=rule)])
    with pytest.raises(Rejected, match=said):
        ledger.extend(lease.id, "ada")
    after = ledger.lease(lease.id)
    assert after is not None and after.extended_seconds == 0 and after.deadline_seconds == 30.0


@pytest.mark.parametrize("mark", ["", "x:1", "99999999999999999999:0", "-5:0", "1:nan", "1:1e300", "1"])
def test_a_forged_mark_of_an_owner_is_refused(mark: str) -> None:
    with pytest.raises(ValueError):
        Owner.from_mark("ada", mark)
    assert Owner.from_mark("ada", Owner("ada", 7, 1.5).mark()) == Owner("ada", 7, 1.5)


def test_every_move_is_told_once(make: Make) -> None:
    told: list[tuple[str, str, str]] = []
    ledger = make()
    ledger._on_move = lambda lease, before: told.append((lease.user, before, lease.state))
    first, second = run(ledger, "ada", WHOLE), run(ledger, "grace", WHOLE)
    ledger.enqueue("hub", request_of("linus", WHOLE))
    ledger.give_up(ledger.enqueue("hub", request_of("alan", WHOLE)).id, actor="alan", reason="x")
    end(ledger, first)
    moves = [e for e in ledger.events(count=1000) if e.to_state]
    assert told == [(e.user, e.from_state, e.to_state) for e in moves]
    assert second.state == "active"


def test_launches_under_way_are_bounded(make: Make) -> None:
    ledger = make(Policy(launches=2))
    leases = [ledger.enqueue("hub", request_of(f"u{n}", CPU)) for n in range(4)]
    assert [x.state for x in leases] == ["starting", "starting", "queued", "queued"]
    ledger.activate(leases[0].id, actor="u0")
    ledger.begin_stop(leases[1].id, actor="u1", reason="failed")
    assert [ledger.lease(x.id).state for x in leases[2:]] == ["starting", "starting"]  # type: ignore[union-attr]


def test_a_reclaim_names_the_version_that_was_judged(ledger: Ledger) -> None:
    lease = run(ledger, "ada", WHOLE, terms=Terms(extend=60, extend_max=90))
    taken = ledger.record([observation(lease, Decision.WARN, 30.0)])
    warned = ledger.lease(lease.id)
    assert warned is not None and warned.deadline_seconds == 30.0
    assert taken == {lease.id: warned.version}
    assert ledger.extend(lease.id, "ada") == 60
    with pytest.raises(LeaseConflict):
        ledger.begin_stop(lease.id, actor="service", reason="idle", judged=taken[lease.id])
    assert ledger.record([observation(warned, Decision.RECLAIM, 0.0)]) == {}, "an old judgement is dropped"
    assert ledger.extend(lease.id, "ada") == 30
    with pytest.raises(Rejected) as cap:
        ledger.extend(lease.id, "ada")
    assert cap.value.status == 409
    ledger.begin_stop(lease.id, actor="ada", reason="released")
    with pytest.raises(Rejected, match="only an active one"):
        ledger.extend(lease.id, "ada")


def test_warnings_are_events(ledger: Ledger) -> None:
    lease = run(ledger, "ada", WHOLE)
    ledger.record([observation(lease, Decision.WARN, 30.0)])
    again = ledger.lease(lease.id)
    assert again is not None
    ledger.record([observation(again, Decision.WARN, 20.0)])
    again = ledger.lease(lease.id)
    assert again is not None
    ledger.record([observation(again, Decision.KEEP, None)])
    assert [e.action for e in ledger.events() if e.lease == lease.id][-2:] == ["warn", "unwarn"]


def test_a_request_keeps_its_place_while_its_hub_is_away(ledger: Ledger, clock: Clock) -> None:
    held = [run(ledger, "ada", WHOLE), run(ledger, "grace", WHOLE)]
    first, second = (ledger.enqueue("hub", request_of(u, WHOLE)) for u in ("linus", "alan"))
    ledger.register_hub("hub")  # the hub was killed and is back, nobody has come for the places yet
    end(ledger, held[0])
    assert ledger.lease(first.id).state == "queued"  # type: ignore[union-attr]
    again = ledger.enqueue("hub", request_of("alan", WHOLE))
    assert (again.id, again.state) == (second.id, "starting")
    back = ledger.enqueue("hub", request_of("linus", WHOLE))
    assert back.id == first.id
    end(ledger, held[1])
    assert ledger.lease(first.id).state == "starting"  # type: ignore[union-attr]
    clock.forward(10_000)
    assert ledger.expire_queue() == []


def test_a_place_is_lost_when_nobody_comes_for_it(ledger: Ledger, clock: Clock) -> None:
    run(ledger, "ada", WHOLE), run(ledger, "grace", WHOLE)
    waiting = ledger.enqueue("hub", request_of("linus", WHOLE))
    ledger.register_hub("hub")
    clock.forward(ledger.policy.queue_keep - 1)
    assert ledger.expire_queue() == []
    clock.forward(2)
    assert ledger.expire_queue() == [waiting.id]


def test_a_silent_hub_is_not_granted(ledger: Ledger, clock: Clock) -> None:
    held = [run(ledger, "ada", WHOLE), run(ledger, "grace", WHOLE)]
    waiting = ledger.enqueue("hub", request_of("linus", WHOLE))
    clock.forward(ledger.policy.beat_age + 1)
    end(ledger, held[0])
    assert ledger.lease(waiting.id).state == "queued"  # type: ignore[union-attr]
    ledger.beat("hub")
    assert ledger.lease(waiting.id).state == "starting"  # type: ignore[union-attr]


def test_nothing_is_granted_before_the_sessions_were_looked_at(databases: Databases) -> None:
    ledger = Ledger(databases.url("new"))
    ledger.register_hub("hub")
    ledger.sync_inventory(DEVICES)
    waiting = ledger.enqueue("hub", request_of("ada", WHOLE))
    assert waiting.state == "queued"
    found = Session(
        "gpupool-old-7", "old", "grace", "", "p", {"GPU-0": tuple(range(120))}, runtime={"pid": 5}
    )
    adopted = ledger.adopt(found, request_of("grace", HALF))
    assert adopted is not None and adopted.state is State.ACTIVE and adopted.slices[0].kind is Kind.GPU
    assert ledger.adopt(found, request_of("eve", HALF)) is None, "its cells are taken"
    ledger.settle()
    granted = ledger.lease(waiting.id)
    assert granted is not None and granted.state is State.STARTING
    assert granted.slices[0].device == "GPU-1"
    assert granted.epoch > 7, "no session's name is used twice"
    assert ledger.verify() == []


@pytest.mark.parametrize("health", [Health.SICK, Health.LOST])
def test_a_sick_device_is_not_granted_and_comes_back(ledger: Ledger, health: Health) -> None:
    ledger.sync_inventory([gpu(0, health=health), *DEVICES[1:]])
    run(ledger, "ada", WHOLE)
    waiting = ledger.enqueue("hub", request_of("grace", WHOLE))
    assert waiting.state == "queued"
    ledger.sync_inventory(DEVICES)
    ledger.swept(0.1, "observe")
    assert ledger.lease(waiting.id).state == "starting"  # type: ignore[union-attr]


def test_a_device_that_vanished_stays_claimed_and_is_lost(ledger: Ledger) -> None:
    lease = run(ledger, "ada", WHOLE)
    device = lease.slices[0].device
    ledger.sync_inventory([d for d in DEVICES if d.id != device])
    found = {d.id: d.health for d in ledger.snapshot().devices}
    assert found[device] is Health.LOST


def test_a_hub_id_that_is_given_out_again_is_another_owner(ledger: Ledger) -> None:
    old = request_of("ada", CPU)
    lease = ledger.enqueue("hub", old)
    new = Owner("ada", old.owner.hub_id, 2.0)
    assert ledger.lease_of(new.hub_id, new.created, "") is None
    other = ledger.enqueue("hub", request_of("ada", CPU).__class__(new, "", "p", CPU, Terms()))
    assert other.id != lease.id
    assert ledger.owner_of(lease.id) is None
    assert ledger.owner_of(other.id) == "ada"


def test_a_renamed_user_stays_the_owner(ledger: Ledger) -> None:
    old = request_of("ada", CPU)
    lease = ledger.enqueue("hub", old)
    renamed = Owner("lovelace", old.owner.hub_id, old.owner.created)
    again = ledger.enqueue("hub", request_of("x", CPU).__class__(renamed, "", "p", CPU, Terms()))
    assert again.id == lease.id
    assert ledger.owner_of(lease.id) == "lovelace"


def test_one_service_leads(ledger: Ledger, clock: Clock) -> None:
    assert ledger.lead("a", 15)
    assert not ledger.lead("b", 15)
    assert ledger.lead("a", 15)
    clock.forward(16)
    assert ledger.lead("b", 15)
    ledger.resign("b")
    assert ledger.lead("a", 15)
    clock.forward(-86400)
    assert ledger.lead("b", 15), "a clock that went back locks nobody out"


# --- the database itself ---------------------------------------------------------------------------


@pytest.mark.engine("sqlite")
def test_the_file_is_private_and_safe(ledger: Ledger) -> None:
    path = str(ledger.store.url.database)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with ledger.store.engine.connect() as conn:
        pragmas = {
            p: conn.execute(text(f"PRAGMA {p}")).scalar()
            for p in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_newer_ledger_is_refused(ledger: Ledger) -> None:
    with ledger.store.engine.begin() as conn:
        conn.execute(text("UPDATE pool SET schema_version = 99"))
    with pytest.raises(Unavailable, match="newer version"):
        Ledger(str(ledger.store.url))
    with ledger.store.engine.begin() as conn:
        conn.execute(text(f"UPDATE pool SET schema_version = {tables.SCHEMA_VERSION}"))


@pytest.mark.engine("sqlite")
def test_an_older_ledger_is_copied_and_migrated(ledger: Ledger) -> None:
    lease = run(ledger, "ada", WHOLE)

    def migrate(conn) -> None:  # type: ignore[no-untyped-def]
        conn.execute(text("ALTER TABLE pool ADD COLUMN colour TEXT"))

    path = str(ledger.store.url.database)
    Store(str(ledger.store.url), migrations=(*store_module.MIGRATIONS, migrate)).close()
    with sqlite3.connect(path) as conn:
        assert conn.execute("SELECT schema_version, colour FROM pool").fetchone() == (
            tables.SCHEMA_VERSION + 1,
            None,
        )
        conn.execute(f"UPDATE pool SET schema_version = {tables.SCHEMA_VERSION}")
    with sqlite3.connect(f"{path}.schema-{tables.SCHEMA_VERSION}") as copy:
        assert copy.execute("SELECT id FROM leases").fetchall() == [(lease.id,)]


def test_a_migration_that_fails_changes_nothing(ledger: Ledger) -> None:
    def migrate(conn) -> None:  # type: ignore[no-untyped-def]
        conn.execute(text("ALTER TABLE pool ADD COLUMN colour TEXT"))
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        Store(str(ledger.store.url), migrations=(*store_module.MIGRATIONS, migrate))
    with ledger.store.engine.connect() as conn:
        assert "colour" not in [column["name"] for column in inspect(conn).get_columns("pool")]


@pytest.mark.engine("sqlite")
def test_a_locked_ledger_says_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.1)
    other = Ledger(str(ledger.store.url))
    holder = sqlite3.connect(str(ledger.store.url.database))
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Unavailable, match="locked"):
            other.beat("hub")
        assert other.snapshot().settled, "reading goes on"
    finally:
        holder.rollback()
        holder.close()
        other.close_database()
    assert ledger.enqueue("hub", request_of("ada")).state == "starting"


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are not the rows you are looking for" * 100)
    with pytest.raises(Unavailable, match="not a SQLite database"):
        Ledger(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    with pytest.raises(Unavailable, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path / 'dir'}")


FULL = """
import sys
from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Ledger
from tests.ledger.conftest import request_of, CPU
ledger = Ledger(sys.argv[1])
done = 0
try:
    while done < 100_000:
        ledger.enqueue("hub", request_of("u" * 200, CPU, server=f"{done}" + "x" * 200))
        done += 1
except Unavailable as full:
    print(done, full.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        url = f"sqlite:///{disk}/l.sqlite"
        ledger = Ledger(url)
        ledger.register_hub("hub")
        ledger.close_database()
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        out = subprocess.run(
            [sys.executable, "-c", FULL, url], capture_output=True, text=True, env=env, timeout=120
        )
        done, said = out.stdout.split(" ", 1)
        assert "full" in said or "disk" in said, said
        shutil.copytree(disk, tmp_path / "copy")
        again = Ledger(f"sqlite:///{tmp_path}/copy/l.sqlite")
        assert len(again.snapshot().leases) == int(done)
        assert again.verify() == []
        again.close_database()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


READ_ONLY = """
import os, sqlite3, sys
from sqlite3 import dbapi2  # before the account changes: that one may not read this Python's folder
from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Ledger
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Ledger(sys.argv[1]).beat("hub")
except Unavailable as problem:
    print(problem.message)
"""


@pytest.mark.engine("sqlite")
def test_a_read_only_ledger_says_so(ledger: Ledger, tmp_path: Path) -> None:
    path = Path(str(ledger.store.url.database))
    path.chmod(0o444)
    for folder in (path.parent, *path.parents[1:4]):
        if os.stat(folder).st_uid == os.geteuid():
            folder.chmod(0o555)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        out = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(ledger.store.url)], capture_output=True, text=True, env=env
        )
    finally:
        for folder in (path.parent, *path.parents[1:4]):
            if os.stat(folder).st_uid == os.geteuid():
                folder.chmod(0o755)
        path.chmod(0o600)
    assert "cannot be" in out.stdout, out.stdout + out.stderr
