"""``gpupool status``: what is shown of a real ledger, in few places and in many, once and again and again."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jupyterhub_gpupool.__main__ import main
from jupyterhub_gpupool.commands import printable
from jupyterhub_gpupool.conditions import Condition
from jupyterhub_gpupool.ledger import Ledger, Reading, Snapshot
from jupyterhub_gpupool.model import (
    Decision,
    Device,
    Health,
    Instance,
    Kind,
    Lease,
    Mode,
    Owner,
    Request,
    State,
    Terms,
    Wish,
)
from jupyterhub_gpupool.status import view, watch
from jupyterhub_gpupool.status.table import Column, lines, width, wrapped

CUT = (Instance("MIG-1", "3g.40gb", 0, 60, 40000), Instance("MIG-2", "1g.10gb", 60, 15, 10000))
DEVICES = [
    Device("GPU-a", "n1", 0, "NVIDIA A100-SXM4-80GB", 81920, simulated=True),
    Device("GPU-b", "n1", 1, "NVIDIA A100-SXM4-80GB", 81920, simulated=True),
    Device("GPU-c", "n1", 2, "NVIDIA H100 80GB HBM3", 81559, mode=Mode.MIG, instances=CUT, simulated=True),
]
SHARE = Wish(Kind.SHARE, fraction="1/4", compute=25)
ROOT = Path(__file__).parents[2]


@pytest.fixture(name="ledger")
def a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.delenv("GPUPOOL_DATABASE_URL", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path))
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    ledger.register_hub("hub")
    ledger.sync_inventory(DEVICES)
    ledger.settle()
    ledger.swept(0.1, "reclaim")
    yield ledger
    assert ledger.verify() == []
    ledger.close_database()


def ask(ledger: Ledger, user: str, wish: Wish, server: str = "", profile: str = "p") -> Lease:
    owner = Owner(user, sum(user.encode()), 1000.0)
    return ledger.enqueue("hub", Request(owner, server, profile, wish, Terms()))


def run(ledger: Ledger, user: str, wish: Wish, server: str = "", profile: str = "p") -> Lease:
    return ledger.activate(ask(ledger, user, wish, server, profile).id, actor="test")


def shown(snapshot: Snapshot, total: int = 80) -> str:
    return "\n".join(view.frame(snapshot, total, printable))


def row(text: str, begins: str) -> str:
    """The one line that begins so."""
    (found,) = [line for line in text.splitlines() if line.startswith(begins)]
    return found


# --- what is shown -----------------------------------------------------------------------------------


def test_gpus_sessions_and_queue(ledger: Ledger) -> None:
    run(ledger, "ada", SHARE, profile="quarter")
    run(ledger, "grace", Wish(Kind.MIG, mig="1g.10gb"), profile="small")
    run(ledger, "linus", Wish())
    ask(ledger, "alan", Wish(Kind.GPU), server="exp")
    ask(ledger, "eve", Wish(Kind.GPU, count=2))
    text = shown(ledger.snapshot(), 100)
    assert "GPUs: 3, simulated; 1.375 held" in text
    assert re.search(r"Mode: reclaim\. Last sweep \ds ago\.", text)
    assert row(text, "0  ").endswith("1 share, 30/120")
    assert row(text, "1    NVIDIA").endswith("held whole")
    assert row(text, "2  ").endswith("1 of 2 MIG held")
    assert re.fullmatch(r"ada +quarter +GPU 0 30/120 +active +\ds +0s +-", row(text, "ada"))
    assert re.fullmatch(r"grace +small +GPU 2 1g.10gb +active +\ds +0s +-", row(text, "grace"))
    assert re.fullmatch(r"linus +p +no GPU +active +\ds +- +-", row(text, "linus"))
    assert re.fullmatch(r"alan/exp +p +GPU 1 +starting +\ds +- +-", row(text, "alan"))
    assert "Queue: 1" in text
    assert re.match(r"1  eve +p +2 × GPU +\ds +unknown  ", row(text, "1  eve"))


def test_an_empty_pool(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    text = shown(ledger.snapshot())
    ledger.close_database()
    assert "GPUs: 0; 0 held" in text and "No sweep yet" in text and "Nothing is granted yet" in text
    assert "Sessions: 0" in text and "Queue: 0" in text and "GPU  MODEL" not in text


def test_unknown_is_called_unknown(ledger: Ledger) -> None:
    snapshot = ledger.snapshot()
    text = shown(snapshot, 100)
    assert re.search(r"any +ok +unknown +unknown/81920 +free", row(text, "0  "))
    now = snapshot.now
    seen = replace(snapshot, readings={"GPU-a": Reading(37.4, 1234, now)})
    assert re.search(r"ok +37% +1234/81920", row(shown(seen, 100), "0  "))
    late = replace(seen, now=now + 3600)
    text = shown(late, 100)
    assert "Last sweep 1h00m ago: the service does not look" in " ".join(text.split())
    assert re.search(r"ok +unknown +unknown/81920", row(text, "0  "))
    assert row(shown(replace(snapshot, devices=(Device("x", "n", 0, "T", 0),))), "0  ").count("unknown") == 3


def test_power_temperature_and_errors_are_a_column_where_a_gpu_tells_them(ledger: Ledger) -> None:
    snapshot = ledger.snapshot()
    assert "CONDITION" not in shown(snapshot, 160)
    seen = {
        "GPU-a": Reading(37.4, 1234, snapshot.now, Condition(61.6, 40.0, 0)),
        "GPU-b": Reading(37.4, 1234, snapshot.now, Condition(None, 40.0, None)),
    }
    text = shown(replace(snapshot, readings=seen), 160)
    assert row(text, "GPU  ").endswith("CONDITION")
    assert row(text, "0  ").endswith("62 W, 40 °C, 0 ECC errors")
    assert row(text, "1  ").endswith("power unknown, 40 °C, ECC unknown")
    assert row(text, "2  ").endswith("unknown")
    narrow = view.frame(replace(snapshot, readings=seen), 80, printable)
    assert max(map(width, narrow)) <= 80
    assert "CONDITION" not in shown(replace(snapshot, readings=seen, now=snapshot.now + 3600), 160)


def test_what_is_wrong_with_a_gpu(ledger: Ledger) -> None:
    sick = replace(DEVICES[0], health=Health.SICK, health_reason="XID 79", simulated=False)
    drained = replace(DEVICES[1], drained=True, foreign="The container x.")
    text = shown(replace(ledger.snapshot(), devices=(sick, drained)), 140)
    assert "sick: XID 79" in row(text, "0  ")
    assert "drained, foreign use" in row(text, "1  ")
    assert "(simulated)" in row(text, "1  ") and "(simulated)" not in row(text, "0  ")
    assert "1 of them simulated" in text


def test_warnings_ends_and_doubts(ledger: Ledger) -> None:
    run(ledger, "ada", SHARE)
    snapshot = ledger.snapshot()
    (lease,) = snapshot.leases

    def end(found: Lease) -> str:
        text = shown(replace(snapshot, leases=(found,)), 120)
        return re.split(r" {2,}", row(text, "ada"), maxsplit=6)[-1]

    warned = replace(lease, deadline_seconds=270.0, verdict=Decision.WARN, verdict_at=snapshot.now - 10)
    assert end(replace(warned, warned_for="idle")) == "warned (idle), not told yet"
    assert end(replace(warned, warned_for="idle", counting=True)) == "warned (idle), 4m20s left"
    assert end(replace(lease, terms=Terms(max_age=7200))) in ("max_age, in 2h00m", "max_age, in 1h59m")
    assert end(replace(lease, state=State.STOPPING, reason="idle for 30 min")) == "now"
    doubtful = replace(lease, doubt="the engine does not answer")
    text = shown(replace(snapshot, leases=(doubtful,)), 120)
    assert "active, in doubt" in row(text, "ada")
    assert "! ada, p: the engine does not answer" in text
    assert "low but steady" in row(
        shown(replace(snapshot, leases=(replace(lease, low_samples=6),)), 120), "ada"
    )


def test_nodes_are_named_where_there_are_several(ledger: Ledger) -> None:
    other = replace(DEVICES[1], node="n2")
    text = shown(replace(ledger.snapshot(), devices=(DEVICES[0], other)), 120)
    assert row(text, "n2:1") and row(text, "n1:0")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0s"), (59, "59s"), (60, "1m00s"), (599, "9m59s"), (600, "10m"), (3599, "59m"), (3660, "1h01m"),
     (90000, "1d01h")],
)  # fmt: skip
def test_spans_of_time(seconds: float, words: str) -> None:
    assert view.duration(seconds) == words


# --- how it fits ---------------------------------------------------------------------------------------

HOSTILE = [
    "a" * 200,
    "\x1b[2J\x1b]0;x\x07eve",
    "e\u202egrace\u2066",
    "名前" * 60,
    "line\nbreak\ttab",
    "e\u0301" * 40,
]


@pytest.mark.parametrize("total", [80, 100, 200])
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_it_fits_whatever_people_are_called(name: str, total: int, ledger: Ledger) -> None:
    run(ledger, name, SHARE, server=f"0{name}"[:200], profile=name)
    ask(ledger, name, Wish(Kind.GPU), server="third")
    ask(ledger, name, Wish(Kind.GPU, count=2), server="waits", profile=name)
    found = view.frame(ledger.snapshot(), total, printable)
    assert max(map(width, found)) <= total
    assert all(letter.isprintable() for line in found for letter in line)
    assert len(ledger.snapshot().queue) == 1


def test_nothing_is_lost_in_wrapping() -> None:
    name = "x" * 50 + "-end"
    text = list(lines([Column("A", 5), Column("B")], [[name, "1"]], 20))
    assert "".join(line[:17].strip() for line in text[1:]) == name
    assert max(map(width, text)) == 20
    assert wrapped("two words", 4) == ["two", "word", "s"]
    assert wrapped("名前", 1) == ["名", "前"]
    assert list(lines([Column("A")], [["stays whole"]], 3)) == ["A", "stays whole"]


# --- the command ---------------------------------------------------------------------------------------


def test_json_has_the_shapes_of_rest(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    run(ledger, "ada", SHARE)
    ask(ledger, "eve", Wish(Kind.GPU, count=2))
    assert main(["status", "--json"]) == 0
    shape = json.loads(capsys.readouterr().out)
    assert {"now", "sweep_age_seconds", "devices", "gpus", "service", "leases", "queue"} <= set(shape)
    assert [one["id"] for one in shape["devices"]] == ["GPU-a", "GPU-b", "GPU-c"]
    assert all(one["simulated"] for one in shape["devices"])
    assert {one["user"] for one in shape["leases"]} == {"ada", "eve"}
    assert shape["queue"][0]["user"] == "eve"
    assert 0 <= shape["sweep_age_seconds"] < 60


def test_nothing_is_written(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    run(ledger, "ada", SHARE)
    before = ledger.snapshot().version, ledger.events(count=1000)
    assert main(["status"]) == 0
    assert (ledger.snapshot().version, ledger.events(count=1000)) == before
    assert "ada" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--watch", "0"], ["--watch", "nan"], ["--watch", "1e9"]], ids=" ".join)
def test_odd_intervals_get_a_sentence(
    argv: list[str], ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "allowed are 0.2 to 3600 seconds" in said.err


def test_no_ledger_is_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GPUPOOL_DATABASE_URL", raising=False)
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path / "none"))
    for argv in (["status"], ["status", "--watch"], ["status", "--json"]):
        assert main(argv) == 1
        said = capsys.readouterr()
        assert (
            said.out == ""
            and said.err.startswith("gpupool: There is no ledger")
            and said.err.count("\n") == 1
        )


# --- again and again -------------------------------------------------------------------------------------


def start(*argv: str, out: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-m", "jupyterhub_gpupool", "status", *argv]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=env)


def read_until(fd: int, wanted: bytes, times: int) -> bytes:
    found, deadline = b"", time.monotonic() + 120
    while found.count(wanted) < times and time.monotonic() < deadline:
        found += os.read(fd, 65536)
    assert found.count(wanted) >= times, found
    return found


def ended(process: subprocess.Popen[bytes], number: int) -> tuple[int, bytes]:
    """Send the signal; returns the exit status and what was said of it."""
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_is_drawn_in_place_and_given_back(number: int, ledger: Ledger) -> None:
    ours, theirs = pty.openpty()
    process = start("--watch", "0.2", out=theirs)
    try:
        found = read_until(ours, watch.HOME.encode(), 3)
        run(ledger, "newcomer", SHARE)
        found += read_until(ours, b"newcomer", 1)
        assert ended(process, number) == (0, b"")
        found += os.read(ours, 65536)
    finally:
        process.kill()
        os.close(theirs)
        os.close(ours)
    text = found.decode()
    assert text.startswith(watch.ENTER) and text.count(watch.ENTER) == 1
    assert text.endswith(watch.LEAVE) and text.count(watch.LEAVE) == 1
    assert "\033[2J" not in text  # nothing is wiped before it is drawn: no flicker


def test_programs_get_an_object_a_line(ledger: Ledger) -> None:
    reader, writer = os.pipe()
    process = start("--watch", "0.2", "--json", out=writer)
    os.close(writer)
    try:
        found = read_until(reader, b"\n", 3)
        assert ended(process, signal.SIGINT) == (0, b"")
    finally:
        process.kill()
        os.close(reader)
    assert [json.loads(line)["gpus"]["total"] for line in found.splitlines()[:3]] == [3.0] * 3


def test_a_watch_outlives_a_ledger_that_does_not_answer(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    reader, writer = os.pipe()
    process = start("--watch", "0.2", out=writer)
    os.close(writer)
    try:
        read_until(reader, b"Queue: 0", 1)
        with ledger.store.write() as tx:
            tx.conn.exec_driver_sql("ALTER TABLE pool RENAME TO pond")
        read_until(reader, f"The pool's ledger {file}".encode(), 1)
        with ledger.store.engine.begin() as conn:
            conn.exec_driver_sql("ALTER TABLE pond RENAME TO pool")
        read_until(reader, b"Queue: 0", 1)
        assert ended(process, signal.SIGINT) == (0, b"")
    finally:
        process.kill()
        os.close(reader)


def test_a_picture_that_is_too_high_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 5)))
    text = watch._picture([str(n) for n in range(9)])
    assert text.count("\n") == 4 and "… 5 more lines" in text
    assert watch._picture(["a", "b"]).count("\n") == 1
