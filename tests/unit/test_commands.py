"""The commands of those who run the pool, on a real ledger in a file."""

from __future__ import annotations

import csv
import io
import json
import os
import pwd
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jupyterhub_gpupool.__main__ import main
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import Device, Kind, Lease, Owner, Request, State, Terms, Wish
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service import sheets, times

DEVICES = [Device("GPU-a", "n1", 0, "A100", 81920), Device("GPU-b", "n1", 1, "A100", 81920)]
CONFIGURED = {"user:*": {"sessions": 3}}
ME = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"


@pytest.fixture(name="ledger")
def a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of a hub that is configured, where the commands look for it."""
    monkeypatch.delenv("GPUPOOL_DATABASE_URL", raising=False)
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path))
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    (tmp_path / "service.json").write_text(
        json.dumps({"GPUPool": {"database_url": url, "limits": CONFIGURED}})
    )
    ledger = Ledger(url, GPUPool(limits=CONFIGURED).policy)
    ledger.register_hub("hub")
    ledger.sync_inventory(DEVICES)
    ledger.settle()
    yield ledger
    assert ledger.verify() == []
    ledger.close_database()


def ask(ledger: Ledger, user: str = "ada", server: str = "", groups: tuple[str, ...] = ()) -> Lease:
    owner = Owner(user, sum(user.encode()), 1000.0)
    return ledger.enqueue("hub", Request(owner, server, "gpu", Wish(Kind.GPU), Terms(), groups=groups))


def failed(status: int, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail with one sentence."""
    assert main(list(argv)) == status
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("gpupool: ") and said.err.count("\n") == 1
    return said.err


def works(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


# --- where the ledger is ---------------------------------------------------------------------------

EVERY = [
    ["limits", "show"],
    ["limits", "set", "pool", "gpus=1"],
    ["limits", "clear", "pool"],
    ["usage"],
    ["drain", "pool"],
    ["undrain", "pool"],
]


@pytest.mark.parametrize("argv", EVERY, ids=" ".join)
def test_a_ledger_that_is_not_there_is_not_made(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GPUPOOL_DATABASE_URL", raising=False)
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path / "none"))
    assert "ledger.sqlite" in failed(1, capsys, *argv)
    assert "typo.sqlite" in failed(1, capsys, *argv, "--database-url", f"sqlite:///{tmp_path}/typo.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", EVERY, ids=" ".join)
def test_another_file_is_left_as_it_is(
    argv: list[str], ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as conn:
        conn.execute("CREATE TABLE users (name TEXT)")
    conn.close()
    for content in (other.read_bytes(), b"", b"no database at all" * 100):
        other.write_bytes(content)
        assert "other.sqlite" in failed(1, capsys, *argv, "--database-url", f"sqlite:///{other}")
        assert other.read_bytes() == content


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "nothing://host/base"])
def test_an_url_that_is_none_gets_a_sentence(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "service.json"
    config.write_text('{"GPUPool": {}}')
    assert main(["limits", "show", "--database-url", url, "--config", str(config)]) in (1, 2)
    assert re.fullmatch(r"gpupool: .+\.\n", capsys.readouterr().err)


def test_a_ledger_of_an_older_version_is_not_migrated(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite") as conn:
        before = conn.execute("SELECT schema_version FROM pool").fetchone()[0]
        conn.execute("UPDATE pool SET schema_version = 1")
    assert "older version" in failed(1, capsys, "usage")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as conn:
        assert conn.execute("SELECT schema_version FROM pool").fetchone()[0] == 1
        conn.execute("UPDATE pool SET schema_version = ?", (before,))
    conn.close()


def test_the_environment_names_the_ledger_and_the_option_wins(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path / "none"))
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    monkeypatch.setenv("GPUPOOL_DATABASE_URL", url)
    assert "user:*" in works(capsys, "limits", "show")
    monkeypatch.setenv("GPUPOOL_DATABASE_URL", "sqlite:////nowhere/x.sqlite")
    assert "/nowhere/" in failed(1, capsys, "limits", "show")
    assert "user:*" in works(capsys, "limits", "show", "--database-url", url)


def test_the_configuration_names_the_ledger_where_nothing_else_does(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path / "none"))
    assert "user:*" in works(capsys, "limits", "show", "--config", str(tmp_path / "service.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"GPUPool": 5}', '{"GPUPool": {"limits": {"x": {}}}}'])
def test_what_depends_on_the_configuration_needs_it(
    text: str, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "service.json"
    config.write_text(text)
    assert "service.json" in failed(1, capsys, "limits", "show")
    config.unlink()
    for argv in (["limits", "show"], ["limits", "set", "pool", "gpus=1"], ["undrain", "pool"]):
        assert "service.json" in failed(1, capsys, *argv)
    works(capsys, "usage")
    assert set(ledger.limits()) == {"user:*"}


# --- limits ----------------------------------------------------------------------------------------


def test_limits_are_edited_shown_and_given_back(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    works(capsys, "limits", "set", "user:*", "sessions=1", "profiles=gpu,half", "--why", "exams")
    row = ledger.limits()["user:*"]
    assert row.edited is not None and row.configured is not None
    assert (row.edited.sessions, row.edited.profiles, row.configured.sessions) == (1, ("gpu", "half"), 3)
    assert (row.actor, row.why) == (ME, "exams")
    shown = works(capsys, "limits", "show")
    assert "sessions=1" in shown and ME in shown and "exams" in shown
    (shape,) = json.loads(works(capsys, "limits", "show", "--format", "json"))["limits"]
    assert (shape["configured"], shape["effective"]["sessions"]) == ({"sessions": 3}, 1)
    assert "sessions=1" not in works(capsys, "limits", "clear", "user:*")
    assert ledger.limits()["user:*"].edited is None
    assert [event.actor for event in ledger.events() if event.action == "limit"] == [ME, ME]


def test_a_limit_says_whom_it_touches(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    for server in ("", "b"):
        assert ask(ledger, server=server).state is State.STARTING
    assert "user:ada (over limit" in works(capsys, "limits", "set", "user:ada", "sessions=1")
    assert "over limit" in works(capsys, "limits", "show")


def test_what_waits_is_granted_by_the_hubs_own_limits(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.drain(None, actor="test")
    waiting = [ask(ledger, server=str(n)) for n in range(2)]
    (tmp_path / "service.json").write_text('{"GPUPool": {"limits": {"user:*": {"sessions": 1}}}}')

    def states() -> list[State | None]:
        found = (ledger.lease(lease.id) for lease in waiting)
        return [None if lease is None else lease.state for lease in found]

    works(capsys, "undrain", "pool")
    assert states() == [State.STARTING, State.QUEUED]
    works(capsys, "limits", "set", "user:*", "unlimited")
    assert states() == [State.STARTING, State.STARTING]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["set", "nobody", "gpus=1"], "not a scope"),
        (["set", "pool", "gpus"], "KEY=VALUE"),
        (["set", "pool", "=1"], "KEY=VALUE"),
        (["set", "pool", "gpus=1", "gpus=2"], "twice"),
        (["set", "pool", "gpu=1"], "unknown key"),
        (["set", "pool", "gpus=NaN"], "gpus is"),
        (["set", "pool", "gpus=-1"], "gpus is"),
        (["set", "pool", "gpus=" + "9" * 5000], "gpus is"),
        (["set", "pool", "gpus=" + "[" * 100_000], "gpus is"),
        (["set", "pool", "unlimited", "gpus=1"], "KEY=VALUE"),
        (["set", "group:vision", "guaranteed_gpus=3"], "guaranteed"),
        (["clear", "nobody"], "not a scope"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_odd_limits_get_a_sentence_and_change_nothing(
    argv: list[str], says: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in failed(2, capsys, "limits", *argv)
    assert [row.edited for row in ledger.limits().values()] == [None]


def test_a_preview_says_whom_it_touches_and_changes_nothing(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(ledger, "ada")
    before = ledger.limits(), ledger.events()
    said = works(capsys, "limits", "set", "user:ada", "sessions=0", "--preview")
    assert "user:ada (over limit: holds 1 of its 0 sessions): ada" in said and "Nothing was changed." in said
    assert "guaranteed" in failed(2, capsys, "limits", "set", "group:x", "guaranteed_gpus=3", "--preview")
    assert (ledger.limits(), ledger.events()) == before


def test_a_name_that_nobody_has_is_said(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    said = works(capsys, "limits", "set", "group:visoin", "sessions=1")
    assert "Please check: Nobody of a group visoin" in said
    assert "group:visoin" in ledger.limits()


def test_strict_is_written_as_everywhere(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    for text, strict in (("True", True), ("False", False), ("true", True)):
        works(capsys, "limits", "set", "group:vision", f"strict={text}")
        edited = ledger.limits()["group:vision"].edited
        assert edited is not None and edited.strict is strict
    assert "strict is 'yes'" in failed(2, capsys, "limits", "set", "group:vision", "strict=yes")


# --- books -----------------------------------------------------------------------------------------


def test_usage_comes_as_table_csv_and_json(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    for user in ("=HYPERLINK(1)", "ada"):
        ask(ledger, user)
    today = datetime.now(UTC).date()
    rows = list(csv.DictReader(io.StringIO(works(capsys, "usage", "--format", "csv"))))
    assert [row["user"] for row in rows] == ["'=HYPERLINK(1)", "ada"]
    assert {row["day"] for row in rows} <= {today.isoformat(), (today - timedelta(days=1)).isoformat()}
    shape = json.loads(works(capsys, "usage", "--format", "json", "--by", "profile"))
    assert [item["key"] for item in shape["totals"]] == ["gpu"]
    assert works(capsys, "usage").splitlines()[0].split() == ["user", "used", "idle", "waiting"]
    assert "(none)" in works(capsys, "usage", "--by", "group")
    old = works(capsys, "usage", "--from", "2020-01-01", "--to", "2020-01-31", "--format", "csv")
    assert old == "user,day,used,idle,waiting\n"


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@SUM", "\tx", "\rx"])
def test_cells_are_text(cell: str) -> None:
    assert sheets.defused(cell) == f"'{cell}"
    assert sheets.defused(f"a{cell}") == f"a{cell}"


def test_a_name_gives_no_orders_to_a_terminal(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ask(ledger, "\x1b[2Jeve")
    assert "\x1b" not in works(capsys, "usage")


@pytest.mark.parametrize(
    "argv",
    [["--from", "soon"], ["--to", "2026-02-30"], ["--from", "2026-06-02", "--to", "2026-06-01"],
     ["--from", "1960-01-01", "--to", "2026-06-01"], ["--to", "9999-12-31"], ["--from", "2026-06-01T09:00"]],
    ids=" ".join,
)  # fmt: skip
def test_odd_days_get_a_sentence(argv: list[str], ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    failed(2, capsys, "usage", *argv)


def test_a_period_is_whole_days_with_the_last_one() -> None:
    begin = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
    assert times.period("2026-06-01", "2026-06-01", 0.0) == (begin, begin + 86400)
    assert times.period("2026-06-01T02:00+02:00", "", begin + 5) == (begin, begin + 5)
    assert times.period("", "", begin) == (begin - 30 * 86400, begin)


# --- drains ----------------------------------------------------------------------------------------


def test_a_gpu_is_drained_and_put_back(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert "GPU-a" in works(capsys, "drain", "GPU-a", "--why", "new fan", "--at", "2001-01-01T00:00Z")
    one, other = ledger.snapshot().devices
    assert (one.drained, one.drain_by, one.drain_why, other.drained) == (True, ME, "new fan", False)
    assert "GPU-b" in works(capsys, "drain", "pool")
    waiting = ask(ledger)
    assert waiting.state is State.QUEUED
    assert works(capsys, "undrain", "pool").endswith("GPU-a, GPU-b\n")
    granted = ledger.lease(waiting.id)
    assert granted is not None and granted.state is State.STARTING


def test_a_lost_gpu_is_forgotten(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    devices = ledger.snapshot().devices
    assert "GPU GPU-b is not lost" in failed(2, capsys, "forget", "GPU-b")
    assert "no GPU 'pool'" in failed(2, capsys, "forget", "pool")
    assert ledger.snapshot().devices == devices
    ledger.set_limit("group:vision", {"guaranteed_gpus": 2}, actor="root")
    ledger.sync_inventory(devices[:1])
    said = works(capsys, "forget", "GPU-b", "--why", "sent back").splitlines()
    assert said[0] == "Forgotten: GPU-b" and "the pool has 1 GPU" in said[1]
    assert ledger.snapshot().devices == devices[:1]
    assert (ledger.events()[-1].actor, ledger.events()[-1].action) == (ME, "forget")


def test_a_drain_may_be_planned(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime.now(UTC) + timedelta(days=2)
    works(capsys, "drain", "GPU-b", "--at", at.isoformat())
    assert ledger.snapshot().devices[1].drain_at == pytest.approx(at.timestamp())


@pytest.mark.parametrize(
    "argv", [["GPU-z"], ["GPU-a", "--at", "tomorrow"], ["GPU-a", "--at", "2999-01-01T00:00Z"]]
)
def test_odd_drains_get_a_sentence(
    argv: list[str], ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(2, capsys, "drain", *argv)
    assert not any(device.drained for device in ledger.snapshot().devices)
