"""The demo's launcher: what it keeps, what it refuses, and what it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from docker.errors import ImageNotFound

from jupyterhub_gpupool.containment import volume_name
from jupyterhub_gpupool.demo import DemoAuthenticator, backend, banner, ending
from jupyterhub_gpupool.demo import state as keeping
from jupyterhub_gpupool.demo.model import ADMIN, LOOPBACK, USERS, Backend, Demo
from jupyterhub_gpupool.sessions import docker as engines

IMAGE = f"sha256:{'1234abcd' * 8}"
NOWHERE = "unix:///nowhere/docker.sock"
CONFIG = Path(__file__).resolve().parents[2] / "jupyterhub_config.py"
LOAD = """
import json, sys
from traitlets.config import PyFileConfigLoader
c = PyFileConfigLoader(sys.argv[1]).load_config()
print("\\n" + json.dumps([c.JupyterHub, c.GPUPool.database_url], default=str))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return keeping.open_state(tmp_path / "state")


@pytest.fixture
def a_demo(state: Path) -> Demo:
    port, *kept = keeping.choose_ports(["public", *keeping.KEPT_PORTS], 0).values()
    ports = dict(zip(keeping.KEPT_PORTS, kept, strict=True))
    return Demo(state, Backend("local"), port, ports, "secret", False)


@contextlib.contextmanager
def listening(port: int, address: str = LOOPBACK) -> Iterator[None]:
    with socket.create_server((address, port)):
        yield


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def load(state: Path, port: int, **environ: str) -> subprocess.CompletedProcess[str]:
    """Load the example configuration as the hub does, in a process of its own."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("GPUPOOL_")}
    path = os.pathsep.join([str(CONFIG.parent), os.environ.get("PYTHONPATH", "")])
    given = {"GPUPOOL_STATE_DIR": str(state), "GPUPOOL_PORT": str(port), "PYTHONPATH": path}
    given |= {"GPUPOOL_BACKEND": "local", **environ}
    command = [sys.executable, "-c", LOAD, str(CONFIG)]
    return subprocess.run(command, env=base | given, cwd=state.parent, capture_output=True, text=True)


@pytest.mark.parametrize(("text", "port"), [("", 8000), ("8001", 8001), ("65535", 65535)])
def test_port_is_read(text: str, port: int) -> None:
    assert keeping.read_port({"GPUPOOL_PORT": text}) == port


@pytest.mark.parametrize("text", ["0", "65536", "-1", "8000.0", "http", " 80", "٣"])
def test_what_is_no_port_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        keeping.read_port({"GPUPOOL_PORT": text})
    assert ended.value.code == 1
    assert "from 1 to 65535" in capsys.readouterr().err


class Engine:
    """An engine that has some images, and its own network at ``gateway``."""

    def __init__(self, images: Mapping[str, str], gateway: str = LOOPBACK) -> None:
        self.images, self.gateway = images, gateway

    def inspect_image(self, name: str) -> dict[str, str]:
        if name not in self.images:
            raise ImageNotFound(name)
        return {"Id": self.images[name]}

    def networks(self, names: list[str]) -> list[dict[str, Any]]:
        """Names are found by a part of them."""
        theirs: list[dict[str, Any]] = [{"Gateway": "203.0.113.1"}]
        ours: list[dict[str, Any]] = [
            {"Subnet": "fd00::/80", "Gateway": "fd00::1"},
            {"Gateway": self.gateway},
        ]
        return [
            {"Name": "bridge-of-others", "IPAM": {"Config": theirs}},
            {"Name": "bridge", "IPAM": {"Config": ours}},
        ]

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine({IMAGE: IMAGE, "lab/image:1": IMAGE})
    monkeypatch.setattr(engines, "connect", lambda **_: made)
    return made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "digest-cpu").write_text(f"{IMAGE}\n")
    return tmp_path / "images"


def refusal(capsys: pytest.CaptureFixture[str], *given: Any) -> str:
    """What is said when this backend cannot be had."""
    with pytest.raises(SystemExit):
        backend.choose_backend(*given)
    said = capsys.readouterr().err
    assert said.startswith("gpupool: ") and said.count("\n") == 1
    return said


def test_what_is_no_backend_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert backend.read_backend({}) == backend.read_backend({"GPUPOOL_BACKEND": ""}) == "auto"
    with pytest.raises(SystemExit):
        backend.read_backend({"GPUPOOL_BACKEND": "slurm"})
    assert "'slurm' is no backend of the demo; use auto, docker, local" in capsys.readouterr().err


def test_containers_where_engine_and_image_are_there(
    engine: Engine, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backend.choose_backend("docker", "", images) == Backend("docker", IMAGE)
    assert backend.choose_backend("docker", "lab/image:1", None) == Backend("docker", IMAGE)
    assert backend.choose_backend("local", "", images) == Backend("local")
    assert capsys.readouterr().out == ""  # what was asked for needs no words
    assert backend.choose_backend("auto", "", images) == Backend("docker", IMAGE)
    said = capsys.readouterr().out
    assert "backend docker" in said and "GPUPOOL_BACKEND=local" in said


def test_of_two_images_the_small_one(engine: Engine, images: Path) -> None:
    (images / "digest-gpu").write_text(f"sha256:{'2' * 64}\n")
    engine.images = {f"sha256:{'2' * 64}": "large"}
    assert backend.find_image("", images) == "large"  # the only one that the engine has
    engine.images = {f"sha256:{'2' * 64}": "large", IMAGE: "small"}
    assert backend.find_image("", images) == "small"


def test_without_the_image_auto_takes_processes_and_says_how_to_get_containers(
    engine: Engine, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.images = {}
    assert backend.choose_backend("auto", "", images) == Backend("local")
    said = capsys.readouterr().out
    assert "backend local" in said and "make image VARIANT=cpu" in said
    assert "make image VARIANT=cpu" in refusal(capsys, "docker", "", images)
    assert "make image VARIANT=cpu" in refusal(capsys, "docker", "", None)
    assert "`docker pull lab/image:1`" in refusal(capsys, "docker", "lab/image:1", images)
    assert "is not the name of an image" in refusal(capsys, "docker", "Lab Image", images)


def test_without_an_engine(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    said = refusal(capsys, "docker", "", images)
    assert "the container engine does not answer (No such file or directory)" in said
    assert "systemctl start docker" in said
    assert backend.choose_backend("auto", "", images) == Backend("local")
    assert "does not answer (No such file or directory)" in capsys.readouterr().out


def test_an_engine_whose_networks_are_not_here(
    engine: Engine, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.gateway = "203.0.113.1"  # an address that no machine has
    assert "rootless" in refusal(capsys, "docker", "", images)


def test_without_the_packages_of_the_engine(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "PACKAGES", ("docker", "a_package_of_nobody"))
    said = refusal(capsys, "docker", "", images)
    assert "a_package_of_nobody" in said and "GPUPOOL_BACKEND=docker make demo" in said
    assert not backend.runs("docker", "pool")


def test_sessions_that_still_run_keep_their_backend(
    engine: Engine, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backend.choose_backend("auto", "", images, running="local") == Backend("local")
    assert backend.choose_backend("docker", "", images, running="docker").name == "docker"
    for wanted, running in (("local", "docker"), ("docker", "local")):
        assert f"GPUPOOL_BACKEND={running}" in refusal(capsys, wanted, "", images, running)
    engine.images = {}
    assert "make image" in refusal(capsys, "auto", "", images, "docker")


def test_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert mode_of(keeping.open_state(tmp_path / "a" / "b")) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert mode_of(keeping.open_state(tmp_path / "open")) == 0o700


def test_an_open_folder_with_something_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "thesis.txt").touch()
    with pytest.raises(SystemExit):
        keeping.open_state(folder)
    assert mode_of(folder) == 0o755
    assert "GPUPOOL_STATE_DIR" in capsys.readouterr().err


def test_a_file_is_no_state_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        keeping.open_state(tmp_path / "file")
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_what_is_kept_is_private_and_made_once(state: Path) -> None:
    assert keeping.keep(state / "password", lambda: "first") == "first"
    assert keeping.keep(state / "password", lambda: "second") == "first"
    assert mode_of(state / "password") == 0o600
    (state / "password").write_text("")  # a disk that was full
    assert keeping.keep(state / "password", lambda: "third") == "third"


def test_one_hub_for_a_state_directory(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeping.lock(state)
    with pytest.raises(SystemExit):
        keeping.lock(state)
    said = capsys.readouterr().err
    assert str(os.getpid()) in said
    assert str(state) in said


def test_ports_are_apart_and_below_those_of_outgoing_connections() -> None:
    ports = keeping.choose_ports([str(n) for n in range(50)], public=8000)
    assert len(set(ports.values())) == 50
    assert all(port in keeping.PORT_RANGE for port in ports.values())


def test_a_taken_port_is_named(a_demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    keeping.check_ports(a_demo)
    for port, address, way_out in (
        (a_demo.port, LOOPBACK, "GPUPOOL_PORT="),
        (a_demo.ports["hub"], LOOPBACK, "ports.json"),
        (a_demo.ports["hub"], "127.0.0.2", "ports.json"),  # for containers the hub listens elsewhere
    ):
        with listening(port, address), pytest.raises(SystemExit):
            keeping.check_ports(a_demo)
        said = capsys.readouterr().err
        assert str(port) in said
        assert way_out in said


@pytest.mark.parametrize("name", [*USERS, "somebody"])
async def test_one_password_for_all_users(name: str) -> None:
    hub = DemoAuthenticator(password="öffne dich", allowed_users=set(USERS), admin_users={ADMIN})
    known = await hub.get_authenticated_user(None, {"username": name, "password": "öffne dich"})
    assert (known is not None) == (name in USERS)
    assert known is None or bool(known["admin"]) == (name == ADMIN)
    for data in ({"username": name, "password": "öffne"}, {"username": name}, {}):
        assert await hub.get_authenticated_user(None, data) is None


async def test_no_password_lets_nobody_in() -> None:
    hub = DemoAuthenticator(password="", allow_all=True)
    assert await hub.get_authenticated_user(None, {"username": "ada", "password": ""}) is None


@contextlib.contextmanager
def standing_in(
    cases: Mapping[str, tuple[str, tuple[str, ...], dict[str, str]]],
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """For each name a process with this program, these arguments and this environment, that does nothing."""
    # Each is a shell under the name, waiting for a line that never comes.
    running = {
        name: subprocess.Popen(
            [command, "-c", "read line", *arguments],
            executable="/bin/sh",
            env=environ,
            stdin=subprocess.PIPE,
        )
        for name, (command, arguments, environ) in cases.items()
    }
    try:
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def living(running: Mapping[str, subprocess.Popen[bytes]]) -> set[str]:
    return {name for name, process in running.items() if process.poll() is None}


def session(pool: str) -> dict[str, str]:
    """The environment by which a session of the backend local is known."""
    return {"GPUPOOL_POOL": pool, "GPUPOOL_LEASE": "l" * 32, "GPUPOOL_EPOCH": "1"}


def test_leftovers_end_and_sessions_live(a_demo: Demo) -> None:
    proxy, service = str(a_demo.proxy_file), str(a_demo.service_file)
    theirs = str(a_demo.state / "other")
    cases = {
        "proxy": ("/bin/traefik", (proxy,), {}),
        "service": ("python", ("-m", "jupyterhub_gpupool", "service", service), {}),
        "session": ("python", ("jupyterhub-singleuser",), session(a_demo.pool)),
        "foreign proxy": ("/bin/traefik", (theirs,), {}),
        "foreign service": ("python", ("-m", "jupyterhub_gpupool", "service", theirs), {}),
        "foreign session": ("python", ("jupyterhub-singleuser",), session("demo-of-others")),
        "reader": ("less", (proxy, service), {}),
    }
    with standing_in(cases) as running:
        ending.end_leftovers(a_demo)
        assert living(running) == set(cases) - {"proxy", "service"}
        ending.end_sessions(a_demo)
        assert living(running) == set(cases) - {"proxy", "service", "session"}


def test_sessions_that_cannot_be_asked_for_are_said(
    a_demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    ending.end_sessions(dataclasses.replace(a_demo, backend=Backend("docker", IMAGE)))
    assert "whether sessions are left is not known" in capsys.readouterr().err


def test_banner_says_what_one_must_know(a_demo: Demo) -> None:
    text = banner.banner(a_demo)
    for said in (
        f"127.0.0.1:{a_demo.port}",
        "secret",
        "local",
        "nothing isolates",
        "simulated",
        "Ctrl-C",
        *USERS,
    ):
        assert said in text


def test_banner_says_which_gpus_it_took(
    a_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banner, "DRIVER", tmp_path / "version")
    assert banner.LEFT_ALONE not in banner.banner(a_demo)
    (tmp_path / "version").touch()
    text = banner.banner(a_demo)
    assert banner.SIMULATED in text and banner.LEFT_ALONE in text
    real = banner.banner(dataclasses.replace(a_demo, devices=lambda: "nvidia"))
    assert banner.REAL in real and "simulated" not in real and banner.LEFT_ALONE not in real


def test_banner_of_containers_says_what_stays_and_how_to_remove_it(a_demo: Demo) -> None:
    text = banner.banner(dataclasses.replace(a_demo, backend=Backend("docker", IMAGE)))
    for said in (
        "docker",
        "containers",
        IMAGE,
        "simulated",
        f"docker volume ls -q -f name={a_demo.pool}-home-",
        f"docker network rm gpupool-{a_demo.pool}",
        f"rm -r {a_demo.state}",
        "Ctrl-C",
    ):
        assert said in text
    assert "processes of this account" not in text
    assert volume_name(a_demo.pool, "ada").startswith(f"{a_demo.pool}-home-")


def test_example_configuration_loads_and_keeps_its_state(tmp_path: Path) -> None:
    state = tmp_path / "a state%20dir"
    port = keeping.choose_ports(["public"], 0)["public"]
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
    port = keeping.choose_ports(["public"], 0)["public"]
    with listening(port):
        taken = load(tmp_path / "state", port)
    for refused, said in (
        (taken, str(port)),
        (load(tmp_path / "s", port, GPUPOOL_BACKEND="docker", DOCKER_HOST=NOWHERE), "does not answer"),
    ):
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert said in refused.stderr
