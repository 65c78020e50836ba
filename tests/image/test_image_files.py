"""The image's files agree with each other and with the project; no engine is needed.

What the image does is tried out inside it, by ``images/tensorflow/smoke.py``.
"""

from __future__ import annotations

import configparser
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "images" / "tensorflow"
LOCKS = sorted(IMAGE.glob("requirements/*.lock"))
INPUTS = sorted(IMAGE.glob("requirements/*.in"))
PYTHONS = ("3.11", "3.12", "3.13")
DOCKERFILE = (IMAGE / "Dockerfile").read_text()


def entries(path: Path) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock file with their hashes; fails on a line that is neither."""
    found: list[tuple[Requirement, list[str]]] = []
    for line in path.read_text().splitlines():
        text = line.split("#")[0].rstrip(" \\")
        if text.startswith("    --hash="):
            found[-1][1].append(text.strip())
        elif text.strip():
            found.append((Requirement(text), []))
    return found


def wanted(path: Path) -> list[Requirement]:
    return [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]


def versions(path: Path, python: str) -> dict[str, list[str]]:
    """The versions that a lock file gives each package on Linux, under a Python."""
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_system": "Linux",
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
    }
    found: dict[str, list[str]] = {}
    for requirement, _ in entries(path):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found.setdefault(requirement.name, []).append(str(requirement.specifier).removeprefix("=="))
    return found


def instructions() -> list[str]:
    """The Dockerfile's instructions, each on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_with_hashes(path: Path) -> None:
    found = entries(path)
    assert found
    for requirement, hashes in found:
        assert [operator.operator for operator in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), (
            requirement
        )


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_fulfil_what_was_asked_for(path: Path, python: str) -> None:
    locked = versions(path.with_suffix(".lock"), python)
    for requirement in wanted(path):
        assert requirement.specifier.contains(locked[requirement.name][0]), requirement


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_layers_of_a_variant_agree_on_every_version(variant: str, python: str) -> None:
    layers = [path for path in LOCKS if path.stem not in ("tensorflow-cpu", "tensorflow-gpu")]
    together: dict[str, set[str]] = {}
    for path in [*layers, IMAGE / f"requirements/tensorflow-{variant}.lock"]:
        for name, found in versions(path, python).items():
            together.setdefault(name, set()).update(found)
    assert {name: found for name, found in together.items() if len(found) != 1} == {}


def test_the_cuda_layer_is_what_tensorflow_asks_for() -> None:
    cuda = {str(requirement) for requirement, _ in entries(IMAGE / "requirements/cuda.lock")}
    asked = {str(requirement) for requirement, _ in entries(IMAGE / "requirements/tensorflow-gpu.lock")}
    assert len(cuda) > 5
    assert cuda == {each for each in asked if each.startswith("nvidia-")}


def test_the_single_user_server_has_the_hubs_major_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    hub = [Requirement(line) for line in setup["options.extras_require"]["hub"].split("\n") if line]
    asked = {each.name: each.specifier for each in wanted(IMAGE / "requirements/jupyter.in")}
    assert asked["jupyterhub"] == next(each.specifier for each in hub if each.name == "jupyterhub")
    assert asked["jupyterlab"] == next(each.specifier for each in hub if each.name == "jupyterlab")


def test_tensorflow_and_tensorboard_are_of_one_release() -> None:
    for name in ("tensorflow-cpu", "tensorflow-gpu"):
        locked = versions(IMAGE / f"requirements/{name}.lock", "3.12")
        assert locked[name.removesuffix("-gpu")][0].startswith("2.21.")
        assert locked["tensorboard"][0].startswith("2.21.")


def test_the_base_is_pinned_by_digest_and_can_be_replaced() -> None:
    assert re.search(r"^ARG BASE=\S+:\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert stages[0] == ("${BASE}", "base")
    known = {"${BASE}"}
    for parent, name in stages:
        assert parent in known, f"{name} is built on {parent}, which is pinned nowhere"
        known.add(name)


def test_the_layers_lie_in_the_order_of_how_rarely_they_change() -> None:
    order = ["base", "python", "cuda", "framework", "jupyter", "defaults"]
    assert re.findall(r"\blayer=(\w+)", DOCKERFILE) == order


def test_nothing_is_installed_that_is_not_pinned() -> None:
    installs = [
        each for line in instructions() for each in re.findall(r"-m pip [^;]*(?:install|wheel) [^;]*", line)
    ]
    assert len(installs) == 6
    for each in installs:
        assert "--require-hashes" in each or "--no-index" in each, each
        assert "--no-deps" in each, each


def test_no_builder_newer_than_the_oldest_engine_is_needed() -> None:
    assert not re.search(r"^#\s*syntax=|--mount=|--chmod|<<", DOCKERFILE, re.MULTILINE)


def test_the_last_stage_is_what_the_pool_expects() -> None:
    last = "\n".join(instructions()).rpartition("\nFROM ")[2]
    for piece in (
        "org.jupyterhub.gpupool.image=tensorflow",
        "org.jupyterhub.gpupool.variant=${VARIANT}",
        "HOME=/home/jovyan",
        "NVIDIA_VISIBLE_DEVICES=void",
        "WORKDIR /home/jovyan",
        "USER 1000:100",
        "EXPOSE 8888",
        'CMD ["jupyterhub-singleuser"]',
    ):
        assert piece in last, piece


def test_what_the_build_copies_is_sent_to_the_engine() -> None:
    sent = [line[1:] for line in (IMAGE / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE)
    assert copied
    for source in copied:
        for variant in ("cpu", "gpu"):
            path = source.replace("${VARIANT}", variant)
            # `make image` copies the extension there, which belongs to the hub's package.
            there = ROOT / "jupyterhub_gpupool" if path == "labextension" else IMAGE
            assert (there / path).exists(), f"COPY {path}: it is not there"
            assert path.split("/")[0] in sent, f"COPY {path}: .dockerignore leaves it out"


class ServerConfig(SimpleNamespace):
    """Stands in for traitlets' configuration: a section is there when it is asked for."""

    def __getattr__(self, name: str) -> SimpleNamespace:
        setattr(self, name, SimpleNamespace())
        return self.__dict__[name]


def configured(monkeypatch: pytest.MonkeyPatch, home: Path, **environment: str) -> ServerConfig:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("GPUPOOL_TB_DIR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = ServerConfig()
    runpy.run_path(str(IMAGE / "etc/jupyter/jupyter_server_config.py"), {"get_config": lambda: config})
    return config


def test_tensorboard_listens_on_the_containers_loopback_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = configured(monkeypatch, tmp_path).ServerProxy.servers["tensorboard"]
    command = server["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--logdir") + 1] == str(tmp_path / ".gpupool/tensorboard")
    assert (tmp_path / ".gpupool/tensorboard").is_dir()
    assert server["environment"]["CUDA_VISIBLE_DEVICES"] == "-1"


def test_tensorboard_reads_where_the_session_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configured(monkeypatch, tmp_path, GPUPOOL_TB_DIR=str(tmp_path / "runs"))
    assert str(tmp_path / "runs") in config.ServerProxy.servers["tensorboard"]["command"]
    assert (tmp_path / "runs").is_dir()


def test_the_note_is_written_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = tmp_path / "About this session.md"
    configured(monkeypatch, tmp_path)
    assert "Only files in your home are kept" in note.read_text()
    note.unlink()
    configured(monkeypatch, tmp_path)
    assert not note.exists()


def test_a_home_that_cannot_be_written_to_stops_no_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "home"
    blocked.write_text("a file where the home should be")
    config = configured(monkeypatch, blocked)
    assert "tensorboard" in config.ServerProxy.servers
    assert "the home cannot be written to" in capsys.readouterr().err


# --- scripts/image.sh, with a docker that only pretends -------------------------------------------------------------

BUILT = "jupyterhub_gpupool/labextension"
DOCKER = """#!/bin/sh
echo "$*" >>"$DOCKER_LOG"
case "$*" in
    version*) [ -z "${DOCKER_DOWN:-}" ] || { echo "Cannot connect to the Docker daemon" >&2; exit 1; } ;;
    info*) echo "$DOCKER_ROOT" ;;
    build*) [ -z "${DOCKER_BUILD_FAILS:-}" ] || exit 1 ;;
    run*) cat >/dev/null; [ -z "${DOCKER_RUN_FAILS:-}" ] || exit 1 ;;
    *inspect*Id*) echo "sha256:$(printf '%064d' 7)" ;;
    *inspect*Size*) echo 2500000000 ;;
    history*) echo "1600000000 /bin/sh -c set -eu; layer=framework; x"; echo "900000000 FROM somewhere" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What image.sh needs of the project, and a docker on a path of its own."""
    for name in ("scripts/image.sh", "jupyterhub_gpupool/__init__.py", "images/tensorflow/smoke.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    shutil.copytree(ROOT / BUILT, tmp_path / BUILT)
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    return tmp_path


def image_sh(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(project / "scripts/image.sh"), "build"],
        env={
            "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
            "DOCKER_LOG": str(project / "log"),
            "DOCKER_ROOT": str(project / "elsewhere"),
            "VARIANT": "cpu",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_build_writes_the_digest_and_says_what_to_do_with_it(project: Path) -> None:
    done = image_sh(project, BASE="mine:1", BUILD_ARGS="--network host --pull")
    assert done.returncode == 0, done.stderr
    digest = "sha256:" + "7".zfill(64)
    assert (project / "images/tensorflow/digest-cpu").read_text() == digest + "\n"
    sent = project / "images/tensorflow/labextension"
    assert (sent / "package.json").read_text() == (project / f"{BUILT}/package.json").read_text()
    assert f'"image": "{digest}"' in done.stdout
    assert "2.5 GB" in done.stdout and re.search(r"framework +1\.6 GB", done.stdout)
    calls = (project / "log").read_text()
    assert (
        "--build-arg VARIANT=cpu" in calls
        and "--build-arg BASE=mine:1" in calls
        and "--network host --pull" in calls
    )
    assert calls.count("--cap-drop ALL --security-opt no-new-privileges") == 2


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"VARIANT": "tpu"}, 'VARIANT is "tpu", and can be gpu or cpu'),
        ({"DOCKER_DOWN": "1"}, "the Docker Engine does not answer: Cannot connect to the Docker daemon"),
        ({"DOCKER_BUILD_FAILS": "1"}, "the image could not be built"),
        ({"DOCKER_RUN_FAILS": "1"}, "does not do what a session needs"),
    ],
)
def test_a_failure_is_one_sentence_and_no_digest(
    project: Path, environment: dict[str, str], sentence: str
) -> None:
    done = image_sh(project, **environment)
    assert done.returncode != 0
    assert sentence in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("gpupool: ")
    assert not (project / "images/tensorflow/digest-cpu").exists()


def test_without_docker_the_packages_are_named(project: Path) -> None:
    (project / "bin/docker").unlink()
    for tool in ("sh", "dirname", "sed"):
        found = next(Path(part, tool) for part in os.environ["PATH"].split(":") if Path(part, tool).exists())
        (project / "bin" / tool).symlink_to(found)
    done = image_sh(project, PATH=str(project / "bin"))
    assert done.returncode != 0
    assert "there is no docker command here" in done.stderr and "docker.io" in done.stderr


def test_a_full_disk_is_told_before_the_build(project: Path) -> None:
    disk = project / "bin" / "df"
    disk.write_text("#!/bin/sh\necho header\necho device 100 99 1048576 99% /\n")
    disk.chmod(0o755)
    done = image_sh(project, DOCKER_ROOT=str(project))
    assert done.returncode != 0
    assert "about 5 GiB of disk" in done.stderr and "has 1 GiB free" in done.stderr
    assert "build" not in (project / "log").read_text()
