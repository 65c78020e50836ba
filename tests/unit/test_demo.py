"""The demo's launcher: what it keeps, what it refuses, and what it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyterhub_gpupool import demo
from jupyterhub_gpupool.demo import Demo, DemoAuthenticator

CONFIG = Path(__file__).resolve().parents[2] / "jupyterhub_config.py"
LOAD = """
import json, sys
from traitlets.config import PyFileConfigLoader
c = PyFileConfigLoader(sys.argv[1]).load_config()
print("\\n" + json.dumps([c.JupyterHub, c.GPUPool.database_url], default=str))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return demo.open_state(tmp_path / "state")


@pytest.fixture
def a_demo(state: Path) -> Demo:
    port, *kept = demo.choose_ports(["public", *demo.KEPT_PORTS], 0).values()
    return Demo(state, "local", port, dict(zip(demo.KEPT_PORTS, kept, strict=True)), "secret", False)


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.create_server((demo.LOOPBACK, port)):
        yield


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def load(state: Path, port: int, **environ: str) -> subprocess.CompletedProcess[str]:
    """Load the example configuration as the hub does, in a process of its own."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("GPUPOOL_")}
    path = os.pathsep.join([str(CONFIG.parent), os.environ.get("PYTHONPATH", "")])
    given = {"GPUPOOL_STATE_DIR": str(state), "GPUPOOL_PORT": str(port), "PYTHONPATH": path, **environ}
    command = [sys.executable, "-c", LOAD, str(CONFIG)]
    return subprocess.run(command, env=base | given, cwd=state.parent, capture_output=True, text=True)


@pytest.mark.parametrize(("text", "port"), [("", 8000), ("8001", 8001), ("65535", 65535)])
def test_port_is_read(text: str, port: int) -> None:
    assert demo.read_port({"GPUPOOL_PORT": text}) == port


@pytest.mark.parametrize("text", ["0", "65536", "-1", "8000.0", "http", " 80", "٣"])
def test_what_is_no_port_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.read_port({"GPUPOOL_PORT": text})
    assert ended.value.code == 1
    assert "from 1 to 65535" in capsys.readouterr().err


def test_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.choose_backend({}) == demo.choose_backend({"GPUPOOL_BACKEND": "auto"}) == "local"
    for wanted, said in (("docker", "no Docker backend yet"), ("slurm", "use auto or local")):
        with pytest.raises(SystemExit):
            demo.choose_backend({"GPUPOOL_BACKEND": wanted})
        assert said in capsys.readouterr().err


def test_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert mode_of(demo.open_state(tmp_path / "a" / "b")) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert mode_of(demo.open_state(tmp_path / "open")) == 0o700


def test_an_open_folder_with_something_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "thesis.txt").touch()
    with pytest.raises(SystemExit):
        demo.open_state(folder)
    assert mode_of(folder) == 0o755
    assert "GPUPOOL_STATE_DIR" in capsys.readouterr().err


def test_a_file_is_no_state_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        demo.open_state(tmp_path / "file")
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_what_is_kept_is_private_and_made_once(state: Path) -> None:
    assert demo.keep(state / "password", lambda: "first") == "first"
    assert demo.keep(state / "password", lambda: "second") == "first"
    assert mode_of(state / "password") == 0o600
    (state / "password").write_text("")  # a disk that was full
    assert demo.keep(state / "password", lambda: "third") == "third"


def test_one_hub_for_a_state_directory(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.lock(state)
    with pytest.raises(SystemExit):
        demo.lock(state)
    said = capsys.readouterr().err
    assert str(os.getpid()) in said
    assert str(state) in said


def test_ports_are_apart_and_below_those_of_outgoing_connections() -> None:
    ports = demo.choose_ports([str(n) for n in range(50)], public=8000)
    assert len(set(ports.values())) == 50
    assert all(port in demo.PORT_RANGE for port in ports.values())


def test_a_taken_port_is_named(a_demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    demo.check_ports(a_demo)
    for port, way_out in ((a_demo.port, "GPUPOOL_PORT="), (a_demo.ports["hub"], "ports.json")):
        with listening(port), pytest.raises(SystemExit):
            demo.check_ports(a_demo)
        said = capsys.readouterr().err
        assert str(port) in said
        assert way_out in said


@pytest.mark.parametrize("name", [*demo.USERS, "somebody"])
async def test_one_password_for_all_users(name: str) -> None:
    hub = DemoAuthenticator(password="öffne dich", allowed_users=set(demo.USERS), admin_users={demo.ADMIN})
    known = await hub.get_authenticated_user(None, {"username": name, "password": "öffne dich"})
    assert (known is not None) == (name in demo.USERS)
    assert known is None or bool(known["admin"]) == (name == demo.ADMIN)
    for data in ({"username": name, "password": "öffne"}, {"username": name}, {}):
        assert await hub.get_authenticated_user(None, data) is None


async def test_no_password_lets_nobody_in() -> None:
    hub = DemoAuthenticator(password="", allow_all=True)
    assert await hub.get_authenticated_user(None, {"username": "ada", "password": ""}) is None


def test_leftovers_end_and_sessions_live(a_demo: Demo) -> None:
    hub, other = a_demo.hub_api, "http://127.0.0.1:1/hub/api"
    proxy, foreign_proxy = str(a_demo.proxy_file), str(a_demo.state / "other.toml")
    cases = {  # argv[0] and last argument, environment
        "proxy": ("/bin/traefik", proxy, {}),
        "service": ("python", "service", {"JUPYTERHUB_SERVICE_NAME": "gpupool", "JUPYTERHUB_API_URL": hub}),
        "session": ("python", "jupyterhub-singleuser", {"JUPYTERHUB_API_URL": hub}),
        "foreign proxy": ("/bin/traefik", foreign_proxy, {}),
        "foreign service": ("python", "x", {"JUPYTERHUB_SERVICE_NAME": "x", "JUPYTERHUB_API_URL": other}),
        "reader": ("less", proxy, {}),
    }
    # Each is a shell under the name, waiting for a line that never comes.
    running = {
        name: subprocess.Popen(
            [command, "-c", "read line", argument], executable="/bin/sh", env=environ, stdin=subprocess.PIPE
        )
        for name, (command, argument, environ) in cases.items()
    }
    try:
        demo.end_leftovers(a_demo)
        assert {name for name, process in running.items() if process.poll() is None} == {
            "session",
            "foreign proxy",
            "foreign service",
            "reader",
        }
        demo.end_leftovers(a_demo, sessions=True)
        assert running["session"].poll() is not None
        assert running["foreign service"].poll() is None
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def test_banner_says_what_one_must_know(a_demo: Demo) -> None:
    text = demo.banner(a_demo)
    for said in (
        f"127.0.0.1:{a_demo.port}",
        "secret",
        "local",
        "nothing isolates",
        "simulated",
        "Ctrl-C",
        *demo.USERS,
    ):
        assert said in text


def test_example_configuration_loads_and_keeps_its_state(tmp_path: Path) -> None:
    state = tmp_path / "a state%20dir"
    port = demo.choose_ports(["public"], 0)["public"]
    first, second = load(state, port), load(state, port, GPUPOOL_PASSWORD="another one")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    hub, _ = json.loads(first.stdout.splitlines()[-1])
    assert hub == json.loads(second.stdout.splitlines()[-1])[0] | {
        "services": hub["services"],  # holds the pid of its hub
    }
    assert hub["bind_url"] == f"http://127.0.0.1:{port}"
    assert hub["cleanup_servers"] is True
    password = (state / "password").read_text().strip()
    assert password in first.stdout
    assert password not in second.stdout
    assert "another one" not in second.stdout
    assert all(mode_of(path) & 0o077 == 0 for path in [state, *state.iterdir()])


def test_example_configuration_refuses_in_one_sentence(tmp_path: Path) -> None:
    port = demo.choose_ports(["public"], 0)["public"]
    with listening(port):
        taken = load(tmp_path / "state", port)
    for refused, said in (
        (taken, str(port)),
        (load(tmp_path / "s", port, GPUPOOL_BACKEND="docker"), "Docker"),
    ):
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert said in refused.stderr
