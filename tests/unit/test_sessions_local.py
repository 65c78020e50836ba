"""LocalSessions against real processes: who belongs, what survives, what a stop ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyterhub_gpupool.model import Presence, Process, Session, session_name
from jupyterhub_gpupool.sessions import Sessions, local, marked_cells
from jupyterhub_gpupool.sessions.ending import end
from jupyterhub_gpupool.sessions.local import LocalSessions, _environ
from jupyterhub_gpupool.sessions.proc import alive, created

PATIENCE = 30.0
DEVICE = "GPU-11111111-2222-3333-4444-555555555555"

# A notebook server for the tests: it runs the lines that it is told, and answers each with one line.
SERVER = """
import os, signal, subprocess, sys
jobs = []
print("ready", flush=True)
for line in sys.stdin:
    answer = None
    exec(line)
    print(answer, flush=True)
"""

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(600)
"""
PHOENIX = """
import os, signal, time
def again(*_):
    if os.fork():
        os._exit(0)
    os.setsid()
signal.signal(signal.SIGTERM, again)
print(1, flush=True)
while True:
    time.sleep(600)
"""


def until(condition: Callable[[], Any]) -> Any:
    """Poll until the condition holds, and return what it returned."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.01)
    return found


class Server:
    """A session's notebook server that does as it is told."""

    def __init__(self, script: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def start(self, command: list[str], **options: Any) -> int:
        """Start a child; return its pid."""
        self.tell(f"jobs.append(subprocess.Popen({command!r}, stdin=subprocess.DEVNULL, **{options!r}))")
        return int(self.tell("answer = jobs[-1].pid"))

    def start_and_hear(self, code: str) -> int:
        """Start a child that prints a line when it is set up; its standard input stays open and silent."""
        self.tell("pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}")
        self.tell(f"jobs.append(subprocess.Popen([sys.executable, '-c', {code!r}], **pipes))")
        self.tell("answer = jobs[-1].stdout.readline()")
        return int(self.tell("answer = jobs[-1].pid"))

    def shell(self, command: str) -> int:
        """Run a shell that prints a pid and ends."""
        return int(self.tell(f"answer = subprocess.check_output({command!r}, shell=True, text=True).strip()"))


class Machine:
    """A pool on this machine under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.pool = f"test-{uuid.uuid4().hex[:12]}"
        self.script = folder / "jupyterhub-singleuser"
        self.script.write_text(SERVER)
        self.sessions = LocalSessions(self.pool)
        self.others: list[int] = []

    def environment(self, lease: str = "l1", epoch: int | str = 1, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "GPUPOOL_POOL": self.pool,
            "GPUPOOL_LEASE": lease,
            "GPUPOOL_EPOCH": str(epoch),
            "GPUPOOL_PROFILE": "quarter",
            "GPUPOOL_CELLS": json.dumps({DEVICE: "0-29,40"}),
            "NVIDIA_VISIBLE_DEVICES": DEVICE,
            "JUPYTERHUB_API_TOKEN": f"token-of-{lease}",
            "JUPYTERHUB_USER": "ada lovelace",
            "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:54321/user/ada/",
            **more,
        }

    def start(self, lease: str = "l1", epoch: int | str = 1, **more: str) -> Server:
        return Server(self.script, self.environment(lease, epoch, **more))

    def name(self, lease: str = "l1", epoch: int = 1) -> str:
        return session_name(self.pool, lease, epoch)

    def look(self, lease: str = "l1", epoch: int = 1) -> Presence:
        name = self.name(lease, epoch)
        return self.sessions.look([name])[name]

    def one(self) -> Session:
        (found,) = self.sessions.list() or ()
        return found

    def pids(self, lease: str = "l1") -> set[int]:
        return {pid for pid, _ in self.sessions.members(self.name(lease))}

    def clean(self) -> None:
        for process in psutil.process_iter():
            try:
                if process.environ().get("GPUPOOL_POOL") == self.pool or process.pid in self.others:
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path)
    yield found
    found.clean()


def job(session: Session, pid: int) -> Process:
    (found,) = (one for one in session.processes if one.pid == pid)
    return found


# --- who is there ----------------------------------------------------------------------------------


def test_a_session_is_known_by_pool_lease_and_epoch(machine: Machine) -> None:
    machine.start("l1", 2)
    names = [machine.name("l1", 2), machine.name("l1", 1), machine.name("l2", 2), session_name("x", "l1", 2)]
    looked = machine.sessions.look(names)
    assert looked == dict(zip(names, [Presence.PRESENT, *[Presence.ABSENT] * 3], strict=True))
    assert LocalSessions(machine.pool + "x").list() == ()


def test_list_says_what_the_marker_says(machine: Machine) -> None:
    server = machine.start(JUPYTERHUB_SERVER_NAME="second")
    found = machine.one()
    assert (found.name, found.lease, found.user) == (machine.name(), "l1", "ada lovelace")
    assert (found.server, found.profile, found.url) == (
        "second",
        "quarter",
        "http://127.0.0.1:54321/user/ada/",
    )
    assert found.cells == {DEVICE: (*range(30), 40)}
    assert found.runtime == {"pid": server.pid, "created": created(server.pid), "port": 54321}
    assert [(one.pid, one.server) for one in found.processes] == [(server.pid, True)]
    assert json.loads(json.dumps(found.runtime)) == found.runtime


def test_what_is_just_ending_is_known_by_what_was_read_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start(JUPYTERHUB_SERVER_NAME="second")
    before = machine.one()
    monkeypatch.setattr(machine.sessions, "_environment", lambda stat: b"")  # as of an exiting process
    assert (machine.one().lease, machine.one().server) == (before.lease, "second")
    assert machine.look() is Presence.PRESENT


def test_a_default_server_has_no_name(machine: Machine) -> None:
    machine.start()
    assert machine.one().server == ""


def test_one_process_that_lives_is_proof_of_presence(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = machine.start()
    name = session_name(machine.pool, "l1", 1)
    assert machine.sessions.environment_of(name, server.pid)["GPUPOOL_LEASE"] == "l1"

    def fails() -> Any:
        raise OSError("the processes cannot be listed")

    monkeypatch.setattr(machine.sessions, "_scan", fails)
    assert machine.sessions.look([name, "other"]) == {name: Presence.PRESENT, "other": Presence.UNKNOWN}
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: created(server.pid) is None)
    assert machine.sessions.look([name]) == {name: Presence.UNKNOWN}
    monkeypatch.undo()
    assert machine.sessions.look([name]) == {name: Presence.ABSENT}


def test_a_program_that_is_being_loaded_is_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = machine.start()
    real, looks = local.read, []

    def read(proc: Path, stat: Any, name: str) -> bytes:
        if stat.pid == server.pid and len(looks) < 6:  # neither environment nor command line, as in execve
            looks.append(name)
            return b""
        return real(proc, stat, name)

    monkeypatch.setattr(local, "read", read)
    assert machine.pids() == {server.pid}
    assert looks == ["environ", "cmdline"] * 3


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(lambda s: s.start(SLEEP), id="child"),
        pytest.param(lambda s: s.start(SLEEP, start_new_session=True), id="setsid child"),
        pytest.param(lambda s: s.start(SLEEP, env={}), id="child with a cleared environment"),
        pytest.param(lambda s: s.shell("setsid sleep 600 >/dev/null 2>&1 & echo $!"), id="setsid orphan"),
        pytest.param(lambda s: s.shell("nohup sleep 600 >/dev/null 2>&1 & echo $!"), id="nohup orphan"),
    ],
)
def test_what_a_session_starts_belongs_to_it(machine: Machine, start: Callable[[Server], int]) -> None:
    server = machine.start()
    pid = start(server)
    assert machine.pids() == {server.pid, pid}
    assert not job(machine.one(), pid).server
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    assert created(pid) is None
    assert machine.look() is Presence.ABSENT


def test_orphans_alone_keep_a_session_there_without_a_server(machine: Machine) -> None:
    server = machine.start()
    orphan = server.shell("nohup sleep 600 >/dev/null 2>&1 & echo $!")
    server.process.kill()
    server.process.wait()
    assert machine.look() is Presence.PRESENT
    found = machine.one()
    assert found.runtime == {}
    assert found.user == "ada lovelace"
    assert [(one.pid, one.server) for one in found.processes] == [(orphan, False)]
    assert machine.sessions.token(found.name) is None
    assert machine.sessions.environment_of(found.name) == {}


def test_a_zombie_is_not_there(machine: Machine) -> None:
    server = machine.start()
    since = created(server.pid)
    assert since is not None and alive(server.pid, since)
    server.process.kill()
    until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE)
    assert machine.look() is Presence.ABSENT
    assert not alive(server.pid, since)
    assert machine.sessions.list() == ()
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    assert server.process.wait() == -signal.SIGKILL  # reaped by its parent only, who learns how it ended


def test_a_process_whose_first_thread_ended_is_no_zombie(machine: Machine) -> None:
    server = machine.start()
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print(1, flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    pid = server.start_and_hear(code)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert pid in machine.pids()
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    assert created(pid) is None


def test_another_process_with_the_same_pid_is_not_alive(machine: Machine) -> None:
    server = machine.start()
    since = created(server.pid)
    assert since is not None
    assert not alive(server.pid, since + 1)


def test_creation_does_not_hang_on_the_time_of_day(machine: Machine) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    since = created(machine.start().pid)
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert since is not None
    assert before - 0.02 <= since <= after  # the kernel counts in hundredths


def test_what_was_seen_once_belongs_for_ever(machine: Machine) -> None:
    server = machine.start()
    shell = server.start(["/bin/sh", "-c", "sleep 600 & wait"], env={})
    (orphan,) = until(lambda: psutil.Process(shell).children())
    machine.others.append(orphan.pid)
    assert machine.pids() == {server.pid, shell, orphan.pid}
    psutil.Process(shell).kill()
    server.process.kill()
    server.process.wait()
    until(lambda: orphan.ppid() != shell)
    assert machine.look() is Presence.PRESENT
    assert LocalSessions(machine.pool).look([machine.name()]) == {machine.name(): Presence.ABSENT}
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    assert created(orphan.pid) is None


# --- the notebook server ---------------------------------------------------------------------------


def test_the_server_is_the_oldest_that_looks_like_one(machine: Machine) -> None:
    server = machine.start()
    server.start_and_hear("print(1, flush=True); import sys; sys.stdin.read()")
    fake = Path(machine.script.parent, "fake", "jupyterhub-singleuser")
    fake.parent.mkdir()
    fake.write_text("import time; time.sleep(600)")
    pid = server.start([sys.executable, str(fake)])
    found = machine.one()
    assert found.runtime["pid"] == server.pid
    assert {one.pid for one in found.processes if one.server} == {server.pid}
    assert not job(found, pid).server


def test_the_server_may_be_a_child_of_a_wrapper(machine: Machine) -> None:
    wrapped = subprocess.Popen(
        ["sh", "-c", f"'{sys.executable}' '{machine.script}'; true"],
        env=machine.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert wrapped.stdout is not None and wrapped.stdout.readline() == b"ready\n"
    (server,) = psutil.Process(wrapped.pid).children()
    found = machine.one()
    assert found.runtime["pid"] == server.pid
    assert {one.pid: one.server for one in found.processes} == {wrapped.pid: False, server.pid: True}


def test_other_commands_can_be_servers(machine: Machine) -> None:
    pid = subprocess.Popen([*SLEEP], env=machine.environment()).pid
    assert until(machine.one).runtime == {}
    named = LocalSessions(machine.pool, server_commands=[Path(sys.executable).name])
    (found,) = until(named.list)
    assert found.runtime["pid"] == pid


def test_token_and_environment_are_those_of_the_server(machine: Machine) -> None:
    server = machine.start()
    server.start(["env", "JUPYTERHUB_API_TOKEN=forged", "NVIDIA_VISIBLE_DEVICES=all", *SLEEP])
    machine.start("l2")
    assert machine.sessions.token(machine.name()) == "token-of-l1"
    assert machine.sessions.token(machine.name("l2")) == "token-of-l2"
    assert machine.sessions.token(machine.name("l3")) is None
    wanted = machine.environment()
    assert machine.sessions.environment_of(machine.name()) == {
        key: wanted[key] for key in wanted if key.startswith("GPUPOOL_") or key == "NVIDIA_VISIBLE_DEVICES"
    }
    assert "token-of" not in repr(machine.sessions.list()) + repr(vars(machine.sessions))


# --- use -------------------------------------------------------------------------------------------


def test_cpu_of_jobs_counts_with_their_children_and_not_in_the_server(machine: Machine) -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    server = machine.start()
    server.tell(f"subprocess.run([sys.executable, '-c', {burn!r}])")
    spent = psutil.Process(server.pid).cpu_times()
    assert spent.children_user + spent.children_system >= 0.25
    assert job(machine.one(), server.pid).cpu_seconds < 0.2
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(1, flush=True)"
    pid = server.start_and_hear(code + "; sys.stdin.read()")
    assert job(machine.one(), pid).cpu_seconds >= 0.25


def test_memory_is_what_is_resident(machine: Machine) -> None:
    server = machine.start()
    pid = server.start_and_hear(
        "held = b'x' * (128 << 20); print(1, flush=True); import sys; sys.stdin.read()"
    )
    assert 128 <= job(machine.one(), pid).memory_mib < 400


# --- a stop ----------------------------------------------------------------------------------------


def test_remove_asks_first(machine: Machine, tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = (
        "import pathlib, signal, sys, time\n"
        f"said = pathlib.Path({str(said)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (said.write_text('x'), sys.exit()))\n"
        "print(1, flush=True)\n"
        "time.sleep(600)\n"
    )
    machine.start().start_and_hear(code)
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    assert said.read_text() == "x"


@pytest.mark.parametrize("code", [STUBBORN, PHOENIX], ids=["ignores TERM", "comes back under another pid"])
def test_remove_ends_what_does_not_want_to(machine: Machine, code: str) -> None:
    server = machine.start()
    server.start_and_hear(code)
    assert machine.sessions.remove(machine.name(), timeout=4)
    assert machine.pids() == set()


def test_remove_ends_a_stopped_process(machine: Machine) -> None:
    server = machine.start()
    os.kill(server.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED)
    assert machine.sessions.remove(machine.name(), timeout=2)
    assert server.process.wait() == -signal.SIGKILL


def test_remove_ends_more_processes_than_the_hub_has_file_descriptors(machine: Machine) -> None:
    server = machine.start()
    server.tell("jobs += [subprocess.Popen(['sleep', '600']) for _ in range(100)]")
    assert len(machine.pids()) == 101
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 80, hard))
    try:
        assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert machine.pids() == set()


def test_known_processes_end_even_when_nothing_names_them_any_more(machine: Machine) -> None:
    server = machine.start()
    pid = server.start(SLEEP, env={})
    machine.others.append(pid)
    known = machine.sessions.members(machine.name())
    server.process.kill()
    server.process.wait()
    fresh = LocalSessions(machine.pool)
    assert fresh.look([machine.name()]) == {machine.name(): Presence.ABSENT}
    assert created(pid) is not None
    assert fresh.remove(machine.name(), timeout=PATIENCE, known=known)
    assert created(pid) is None


def test_a_known_pid_that_is_another_process_now_is_left_alone(machine: Machine) -> None:
    other = machine.start("l2")
    since = created(other.pid)
    assert since is not None
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE, known={(other.pid, since - 5)})
    assert machine.look("l2") is Presence.PRESENT


def test_a_signal_never_reaches_another_process_with_the_same_pid(machine: Machine) -> None:
    server = machine.start()
    since = created(server.pid)
    assert since is not None
    end({(server.pid, since - 5)}, set(), signal.SIGKILL, 0)
    assert server.tell("answer = 'here'") == "here"
    end({(server.pid, since)}, set(), signal.SIGKILL, PATIENCE)
    assert server.process.wait() == -signal.SIGKILL


def test_of_two_variables_with_one_name_the_first_counts() -> None:
    assert _environ(b"A=1\0A=2\0B=3\0", ("A",)) == {"A": "1"}


def test_other_sessions_are_left_alone(machine: Machine) -> None:
    machine.start("l1", 1)
    kept = [machine.start("l1", 2), machine.start("l2"), machine.start(GPUPOOL_POOL=machine.pool + "-b")]
    machine.others += [one.pid for one in kept]
    assert machine.sessions.remove(machine.name(), timeout=PATIENCE)
    assert [one.process.poll() for one in kept] == [None] * 3


def test_without_time_nothing_is_ended_and_nothing_proved(machine: Machine) -> None:
    server = machine.start()
    assert not machine.sessions.remove(machine.name(), timeout=0)
    assert server.process.poll() is None


def test_who_asks_is_never_of_a_session_nor_is_what_is_above(machine: Machine) -> None:
    code = (
        "import sys\n"
        "from jupyterhub_gpupool.sessions.local import LocalSessions\n"
        "sessions = LocalSessions(sys.argv[1])\n"
        "print(sessions.look([sys.argv[2]])[sys.argv[2]], sessions.remove(sys.argv[2], timeout=5))\n"
    )
    asked = subprocess.run(
        ["sh", "-c", '"$@"; echo survived', "sh", sys.executable, "-c", code, machine.pool, machine.name()],
        env=machine.environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert asked.stdout == "absent True\nsurvived\n", asked.stderr


# --- when the answer cannot be had -----------------------------------------------------------------


@pytest.mark.parametrize("break_it", ["no folder", "empty", "error at one process"])
def test_an_incomplete_answer_is_unknown(machine: Machine, tmp_path: Path, break_it: str) -> None:
    server = machine.start()
    proc = tmp_path / "proc"
    if break_it != "no folder":
        proc.mkdir()
    if break_it == "error at one process":
        for pid in (os.getpid(), server.pid):
            (proc / str(pid)).mkdir()
            (proc / str(pid) / "stat").write_bytes(Path(f"/proc/{pid}/stat").read_bytes())
            (proc / str(pid) / "environ").write_bytes(b"")
        (proc / str(server.pid) / "environ").unlink()
        (proc / str(server.pid) / "environ").mkdir()
    blind = LocalSessions(machine.pool, proc=proc)
    assert blind.look([machine.name(), "x"]) == {machine.name(): Presence.UNKNOWN, "x": Presence.UNKNOWN}
    assert blind.list() is None
    assert blind.members(machine.name()) == frozenset()
    assert blind.token(machine.name()) is None
    assert not blind.remove(machine.name(), timeout=PATIENCE)
    assert server.process.poll() is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another account")
def test_processes_of_others_are_not_unknown(machine: Machine, tmp_path: Path) -> None:
    machine.start()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        os.write(writer, machine.look().value.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"absent"
    os.close(reader)


@pytest.mark.parametrize(
    "marker",
    [
        {"GPUPOOL_EPOCH": "x"},
        {"GPUPOOL_EPOCH": "-1"},
        {"GPUPOOL_EPOCH": "9" * 5000},
        {"GPUPOOL_LEASE": ""},
        {"GPUPOOL_LEASE": "a\nb"},
        {"GPUPOOL_LEASE": "../x"},
        {"GPUPOOL_LEASE": "a" * 200},
    ],
)
def test_an_improper_marker_is_none(machine: Machine, marker: dict[str, str]) -> None:
    server = machine.start(**{"lease": "l1", **marker})
    assert machine.sessions.list() == ()
    server.process.kill()


@pytest.mark.parametrize("cells", ["", "[", "[]", '{"G": 1}', '{"G": "0-999999999"}'])
def test_cells_that_cannot_be_read_are_none(machine: Machine, cells: str) -> None:
    machine.start(GPUPOOL_CELLS=cells, JUPYTERHUB_SERVICE_URL="http://x:y/")
    assert machine.one().cells == {}
    assert machine.one().runtime["port"] == 0


@pytest.mark.parametrize(
    ("text", "cells"),
    [("{}", {}), ('{"G": "0"}', {"G": (0,)}), ('{"G":"3-5,7","H":"119"}', {"G": (3, 4, 5, 7), "H": (119,)})],
)
def test_marked_cells(text: str, cells: dict[str, tuple[int, ...]]) -> None:
    assert marked_cells(text) == cells


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[" * 100_000,
        '{"G": []}',
        *(json.dumps({"G": c}) for c in ("", "120", "5-3", "0,0", "-1", "1 ", "٣")),
    ],
)
def test_marked_cells_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        marked_cells(text)


def test_it_is_a_sessions_backend(machine: Machine) -> None:
    backend: Sessions = machine.sessions
    assert backend.look([]) == {}
