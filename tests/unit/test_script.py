"""The owner's script before a reclaim, run on this machine: as their account, bounded, once, and not believed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jupyterhub_gpupool.model import session_name
from jupyterhub_gpupool.sessions.local import LocalSessions
from jupyterhub_gpupool.sessions.script import SCRIPT, TAIL, Account, account_of, may_run, run

ME = Account(os.geteuid(), os.getegid())
SERVER = "import time; time.sleep(600)"


def write(home: Path, text: str, mode: int = 0o755) -> Path:
    path = home / SCRIPT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_it_runs_in_the_home_with_this_environment_and_no_input(tmp_path: Path) -> None:
    path = write(tmp_path, '#!/bin/sh\npwd; echo "$A;$GPUPOOL_REASON"; cat; echo err >&2; exit 7\n')
    end = run(path, {"A": "$(id)", "GPUPOOL_REASON": "`x`\n'y'"}, ME, timeout=20)
    assert end is not None and (end.state, end.status) == ("done", 7)
    assert end.tail == f"{tmp_path}\n$(id);`x`\n'y'\nerr\n"


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o000])
def test_what_is_not_executable_is_no_script(tmp_path: Path, mode: int) -> None:
    assert run(write(tmp_path, "#!/bin/sh\ntouch ran\n", mode), {}, ME, timeout=20) is None
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file_is_no_script(tmp_path: Path) -> None:
    path = tmp_path / SCRIPT
    assert run(path, {}, ME, timeout=20) is None
    path.mkdir(parents=True)
    assert run(path, {}, ME, timeout=20) is None
    path.rmdir()
    os.mkfifo(path, 0o777)
    assert run(path, {}, ME, timeout=20) is None
    assert not may_run(stat.S_IFCHR | 0o777) and may_run(stat.S_IFREG | 0o100)


def test_one_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    for text in ("no program at all\n", "#!/nowhere/at/all\n"):
        end = run(write(tmp_path, text), {"PATH": "/bin"}, ME, timeout=20)
        assert end is not None and end.state == "failed" and "cannot be run" in end.tail


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    path = write(tmp_path, '#!/bin/sh\nsleep 600 &\necho $! > child\ntrap "" TERM\necho working\nsleep 600\n')
    began = time.monotonic()
    end = run(path, dict(os.environ), ME, timeout=1)
    assert end is not None and (end.state, end.status, end.tail) == ("timeout", None, "working\n")
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    while lives(child):  # killed, and on its way out
        assert time.monotonic() - began < 20
        time.sleep(0.01)


def test_one_whose_child_holds_its_output_is_not_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path, "#!/bin/sh\nsleep 600 &\necho $! > child\necho done\n")
    began = time.monotonic()
    end = run(path, dict(os.environ), ME, timeout=60)
    os.kill(int((tmp_path / "child").read_text()), 9)
    assert end is not None and (end.state, end.status, end.tail) == ("done", 0, "done\n")
    assert time.monotonic() - began < 20


def test_of_much_output_the_end_is_kept(tmp_path: Path) -> None:
    much = "head -c 3000000 /dev/zero | tr '\\0' 'x'"
    path = write(tmp_path, f"#!/bin/sh\n{much}\necho\necho the end\nexec >&-\nsleep 1\n")
    end = run(path, dict(os.environ), ME, timeout=60)
    assert end is not None and end.status == 0
    assert len(end.tail) <= TAIL and end.tail.endswith("x\nthe end\n")


def test_one_that_writes_for_ever_is_ended(tmp_path: Path) -> None:
    end = run(write(tmp_path, "#!/bin/sh\nexec yes\n"), dict(os.environ), ME, timeout=1)
    assert end is not None and end.state == "timeout" and len(end.tail) <= TAIL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the account")
def test_it_runs_as_the_sessions_account(tmp_path: Path) -> None:
    home = Path("/tmp") / f"gpupool-script-{os.getpid()}"
    try:
        path = write(home, "#!/bin/sh\nid -u; id -g; id -G\ncat /etc/shadow\n")
        end = run(path, {"PATH": os.environ["PATH"]}, Account(65534, 65534), timeout=20)
        assert end is not None and end.tail.split()[:3] == ["65534"] * 3 and end.status != 0
    finally:
        subprocess.run(["rm", "-r", str(home)], check=True)


def test_an_account_that_the_service_may_not_use_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "#!/bin/sh\ntouch ran\n")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    end = run(path, {}, Account(1, 1), timeout=20)
    assert end is not None and end.state == "failed" and "account" in end.tail
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "account"),
    [("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t7\t0\t0\t0\n", Account(1000, 7)), ("", None), ("Uid:\n", None)],
)
def test_the_account_is_the_real_one(text: str, account: Account | None) -> None:
    if account is None:
        with pytest.raises(ValueError, match="no account"):
            account_of(text)
    else:
        assert account_of(text) == account


@pytest.fixture
def session(tmp_path: Path) -> Iterator[str]:
    """A notebook server in miniature that bears the marker of a lease."""
    server = tmp_path / "jupyterhub-singleuser"
    server.write_text(SERVER)
    marker = {"GPUPOOL_POOL": "script-test", "GPUPOOL_LEASE": f"l{os.getpid()}", "GPUPOOL_EPOCH": "1"}
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **marker, "OWN": "its own"}
    process = subprocess.Popen([sys.executable, str(server)], env=env)
    yield session_name("script-test", marker["GPUPOOL_LEASE"], 1)
    process.kill()
    process.wait()


def test_a_session_runs_its_script_with_its_own_environment_and_marker(tmp_path: Path, session: str) -> None:
    sessions = LocalSessions("script-test")
    asked = {"GPUPOOL_REASON": "idle", "GPUPOOL_DEADLINE": "7"}
    assert sessions.before_reclaim(session, asked, timeout=20) is None, "there is no script"
    write(
        tmp_path,
        '#!/bin/sh\necho "$OWN $GPUPOOL_LEASE $GPUPOOL_REASON $GPUPOOL_DEADLINE"\nsetsid sleep 600 &\n',
    )
    end = sessions.before_reclaim(session, asked, timeout=20)
    assert end is not None and end.tail == f"its own l{os.getpid()} idle 7\n"
    (found,) = sessions.list() or ()
    assert found.processes is not None and len(found.processes) == 2, "what it leaves behind is the session's"
    assert sessions.remove(session, timeout=10)
    assert sessions.before_reclaim(session, asked, timeout=20) is None, "no session, no script"
