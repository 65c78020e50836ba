"""The doctor's probes on a machine of files and stand-in commands; none hangs, none fails loudly."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jupyterhub_gpupool.doctor import Failed, Unknown, collect, pool_probes, system_probes
from jupyterhub_gpupool.doctor.asking import Probe, command, together
from jupyterhub_gpupool.doctor.facts import Answer, Books, Card, Driver, Pool, Smi
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import Device

UUID = "GPU-00000000-0000-0000-0000-00000000000{}"
MIG = "MIG-00000000-0000-0000-0000-00000000000{}"

Install = Callable[[str, str], Path]


@pytest.fixture(name="install")
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put shell scripts on a PATH that has nothing else of NVIDIA's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("jupyterhub_gpupool.doctor.asking.MORE_PATH", ())

    def install(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return install


def put(root: Path, name: str, text: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- asking ----------------------------------------------------------------------------------------


def test_a_command_that_hangs_is_left_with_its_children(install: Install, tmp_path: Path) -> None:
    hangs = install("hangs", f"sleep 600 & echo $! > {tmp_path}/child; wait")
    began = time.monotonic()
    assert command(str(hangs), seconds=0.5).status is None
    assert time.monotonic() - began < 10
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        os.sched_yield()
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_what_a_command_said_last_is_bounded(install: Install) -> None:
    path = install("talks", "echo out; printf 'first\\nthe %0500d.\\n' 7 >&2; exit 3")
    said = command(str(path), seconds=10)
    assert (said.status, said.out, len(said.last)) == (3, "out\n", 200)
    assert said.last.startswith("the 000")
    assert command("/nowhere/at/all", seconds=1).status == 127


def test_probes_wait_for_nobody_and_take_every_error() -> None:
    ever, secret = threading.Event(), "token-12345"

    def fails() -> None:
        raise RuntimeError(f"cannot log in with {secret}")

    began = time.monotonic()
    found = together({"slow": Probe(ever.wait, 0.2), "bad": Probe(fails), "good": Probe(lambda: 7)})
    ever.set()
    assert time.monotonic() - began < 5
    assert found["good"] == 7
    assert found["slow"] == Unknown("No answer within 0.2 s.")
    assert isinstance(found["bad"], Unknown) and "RuntimeError" in found["bad"].why
    assert secret not in found["bad"].why


# --- the driver ------------------------------------------------------------------------------------

PROC = {
    "closed": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n",
    "open": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@x)\n",
}


@pytest.mark.parametrize(("kind", "version"), [("closed", "550.54.15"), ("open", "570.86.15")])
def test_the_driver_of_files(kind: str, version: str, tmp_path: Path) -> None:
    put(tmp_path, "proc/driver/nvidia/version", PROC[kind])
    put(tmp_path, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
    put(tmp_path, f"usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.{version}")
    for n, (vendor, kind_of) in enumerate(
        [("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000")]
    ):
        put(tmp_path, f"sys/bus/pci/devices/0000:0{n}:00.0/vendor", f"{vendor}\n")
        put(tmp_path, f"sys/bus/pci/devices/0000:0{n}:00.0/class", f"{kind_of}\n")
    assert system_probes.driver(tmp_path) == Driver(1, version, (version,))


def test_no_driver_at_all(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nouveau").mkdir(parents=True)
    assert system_probes.driver(tmp_path) == Driver(None, "", (), nouveau=True)


def test_the_modules_own_file_names_its_version(tmp_path: Path) -> None:
    put(tmp_path, "sys/module/nvidia/version", "580.1.2\n")
    assert system_probes.driver(tmp_path).module == "580.1.2"


SMI = f"""case "$*" in
-L) echo 'GPU 0: H100 (UUID: {UUID.format(1)})'
    echo '  MIG 1g.10gb     Device  0: (UUID: {MIG.format(1)})' ;;
*) echo '0, {UUID.format(1)}, NVIDIA H100, Default, Disabled, Enabled, Enabled'
   echo '1, {UUID.format(2)}, NVIDIA T4, Exclusive_Process, Enabled, [N/A], [N/A]' ;;
esac"""


def test_gpus_and_instances_of_nvidia_smi(install: Install) -> None:
    install("nvidia-smi", SMI)
    assert system_probes.smi() == Smi(
        0,
        "",
        (
            Card("0", UUID.format(1), "NVIDIA H100", "Default", "Disabled", "Enabled", "Enabled"),
            Card("1", UUID.format(2), "NVIDIA T4", "Exclusive_Process"),
        ),
        (MIG.format(1),),
    )


def test_an_old_driver_knows_no_mig(install: Install) -> None:
    old = 'case "$*" in *mig*) echo \'Field "mig.mode.current" is not a valid field to query.\'; exit 2 ;; '
    install("nvidia-smi", f"{old} -L) ;; *) echo '0, {UUID.format(1)}, Tesla K80, Default, Enabled' ;; esac")
    assert system_probes.smi() == Smi(0, "", (Card("0", UUID.format(1), "Tesla K80"),))


def test_nvidia_smi_that_fails_hangs_or_is_not_there(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert system_probes.smi() == Unknown("nvidia-smi is not installed.")
    install("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert system_probes.smi() == Smi(18, "Failed to initialize NVML: Driver/library version mismatch")
    install("nvidia-smi", "echo 'No devices were found'")
    assert system_probes.smi() == Smi(0, "No devices were found")
    monkeypatch.setattr(system_probes, "SMI_SECONDS", 0.2)
    install("nvidia-smi", "exec sleep 600")
    assert system_probes.smi() == Smi(None)


# --- the toolkit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says", "version"),
    [
        ("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d", "1.17.8"),
        ("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.18.0-rc.2", "1.18.0-rc.2"),
        ("nvidia-container-cli", "cli-version: 1.13.5\nlib-version: 1.13.5", "1.13.5"),
    ],
)
def test_the_toolkits_version(name: str, says: str, version: str, install: Install, tmp_path: Path) -> None:
    install(name, f"cat <<'X'\n{says}\nX")
    assert system_probes.toolkit(tmp_path).version == version


def test_no_toolkit(install: Install, tmp_path: Path) -> None:
    found = system_probes.toolkit(tmp_path)
    assert (found.version, found.hook_changed, found.accepts_variable) == ("", None, True)
    assert found.described == found.nodes_without_link == ()


@pytest.mark.parametrize(
    ("text", "accepts"),
    [
        ("accept-nvidia-visible-devices-envvar-when-unprivileged = false\n", False),
        ("#accept-nvidia-visible-devices-envvar-when-unprivileged = false\n[nvidia-container-cli]\n", True),
        ("accept-nvidia-visible-devices-envvar-when-unprivileged = true\n", True),
        ("no toml at all = = \n", None),
    ],
)
def test_the_toolkits_settings(text: str, accepts: bool | None, install: Install, tmp_path: Path) -> None:
    put(tmp_path, "etc/nvidia-container-runtime/config.toml", text)
    assert system_probes.toolkit(tmp_path).accepts_variable is accepts


def test_hook_cdi_files_and_device_nodes(install: Install, tmp_path: Path) -> None:
    hook = install("nvidia-container-runtime-hook", "echo version 1.18.2")
    put(tmp_path, "etc/cdi/nvidia.yaml", f"- name: {UUID.format(1)}\n- name: all\n- name: {UUID.format(1)}\n")
    put(tmp_path, "var/run/cdi/nvidia.json", json.dumps({"devices": [{"name": MIG.format(2)}]}))
    dev = tmp_path / "dev"
    (dev / "char").mkdir(parents=True)
    for name, target in {"nvidia0": "/dev/null", "nvidiactl": "/dev/zero", "nvidia-caps": ""}.items():
        (dev / name).symlink_to(target) if target else (dev / name).mkdir()
    node = os.stat("/dev/zero").st_rdev
    (dev / "char" / f"{os.major(node)}:{os.minor(node)}").touch()
    found = system_probes.toolkit(tmp_path)
    assert found.hook_changed == hook.stat().st_ctime
    assert found.version == "1.18.2"
    assert found.described == (UUID.format(1), MIG.format(2))
    assert found.nodes_without_link == ("/dev/nvidia0",)


# --- the machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("says", "wanted"), [("yes", True), ("no", False)])
def test_the_clock(says: str, wanted: bool, install: Install) -> None:
    install("timedatectl", f"echo {says}")
    assert system_probes.clock() is wanted


def test_a_clock_of_which_nobody_speaks(install: Install) -> None:
    install("timedatectl", "echo 'System has not been booted with systemd' >&2; exit 1")
    assert isinstance(system_probes.clock(), Unknown)


def test_a_disk_and_its_kind(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    mounts = put(tmp_path, "mounts", f"x / ext4 rw 0 0\ny {tmp_path}/with\\040space nfs4 rw 0 0\nodd\n")
    found = system_probes.disk("The folder", folder, mounts)
    assert not isinstance(found, Unknown)
    assert (found.kind, found.what) == ("nfs4", "The folder")
    assert 0 < found.free <= found.total and 0 < found.nodes_left <= 1
    assert isinstance(system_probes.disk("x", tmp_path / "none", mounts), Unknown)


def test_modes_of_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    one = put(tmp_path, "service.json")
    one.chmod(0o640)
    closed = put(tmp_path, "closed/ledger.sqlite")
    closed.chmod(0o644)
    closed.parent.chmod(0o700)
    found = system_probes.kept(tmp_path, [one, closed, tmp_path / "none", one])
    assert not isinstance(found, Unknown)
    assert [(item.path, item.mode) for item in found] == [
        (str(tmp_path), 0o755), (str(one), 0o640), (str(closed), 0o644)
    ]  # fmt: skip
    assert found[0].folder and found[2].shielded
    assert isinstance(system_probes.kept(tmp_path / "none", []), Unknown)


def test_processes_that_matter_are_counted(install: Install, tmp_path: Path) -> None:
    before = system_probes.processes()
    script = put(tmp_path, "jupyterhub_idle_culler.py", "print('up', flush=True)\ninput()")
    proxy = put(tmp_path, "configurable-http-proxy", "print('up', flush=True)\ninput()")
    running = [
        subprocess.Popen([sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for path in (script, proxy)
    ]
    try:
        for one in running:
            assert one.stdout is not None and one.stdout.readline() == b"up\n"
        found = system_probes.processes()
        assert (found.cullers - before.cullers, found.python_proxies - before.python_proxies) == (1, 1)
    finally:
        for one in running:
            one.communicate(b"\n")


@pytest.mark.parametrize(
    ("first", "wanted"), [("#!/usr/bin/env node", "node"), ("#!/usr/local/bin/python3.11", "python")]
)
def test_which_proxy_is_on_the_path(first: str, wanted: str, install: Install) -> None:
    install("configurable-http-proxy", "").write_text(f"{first}\n")
    assert pool_probes.proxy_program() == wanted


def test_no_proxy_on_the_path(install: Install) -> None:
    assert isinstance(pool_probes.proxy_program(), Unknown)


# --- the pool and the hub --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"GPUPool": 5}', '{"GPUPool": {"profiles": 5}, "GPUPoolService": {}}']
)
def test_a_configuration_that_is_none_is_a_failure(text: str, tmp_path: Path) -> None:
    found = pool_probes.pool(put(tmp_path, "service.json", text))
    assert isinstance(found, Failed) and found.why.endswith("wrote.")


def test_the_configuration_of_the_service(tmp_path: Path) -> None:
    sections = {
        "GPUPool": {"name": "lab", "profiles": [{"display_name": "CPU"}]},
        "GPUPoolService": {
            "backend": "docker",
            "mode": "warn",
            "engine": {"base_url": "tcp://u:secret@host"},
        },
        "SimulatedDevices": {"gpus": [{"model": "T4"}]},
    }
    found = pool_probes.pool(put(tmp_path, "service.json", json.dumps(sections)))
    assert isinstance(found, Pool)
    assert (found.name, found.backend, found.mode, found.sweep_interval) == ("lab", "docker", "warn", 10.0)
    assert found.simulated and list(found.offer) == ["cpu"]
    assert "secret" not in repr(found)
    assert type(pool_probes.pool(tmp_path / "none.json")) is Unknown
    assert type(pool_probes.pool(None)) is Unknown


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"api": 1}', '"x"'])
def test_hub_facts_that_are_none(text: str, tmp_path: Path) -> None:
    assert type(pool_probes.hub(put(tmp_path, "hub.json", text))) is Unknown
    assert type(pool_probes.hub(tmp_path / "none.json")) is Unknown


def test_the_ledger(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    assert type(pool_probes.books(url)) is Unknown
    assert list(tmp_path.iterdir()) == []
    ledger = Ledger(url)
    ledger.sync_inventory([Device("GPU-a", "n1", 0, "A100", 81920)])
    found = pool_probes.books(url)
    assert isinstance(found, Books)
    assert ([one.id for one in found.devices], found.swept_at, found.broken) == (["GPU-a"], None, ())
    assert abs(found.clock_ahead) < 5
    ledger.close_database()
    put(tmp_path, "other.sqlite", "no database at all" * 100)
    assert isinstance(pool_probes.books(f"sqlite:///{tmp_path}/other.sqlite"), Failed)


def test_a_ledger_on_a_server_that_is_not_there_names_no_password() -> None:
    found = pool_probes.books("postgresql://gpupool:hunter2@127.0.0.1:1/pool")
    assert isinstance(found, Failed) and "hunter2" not in found.why


class _Answers(http.server.BaseHTTPRequestHandler):
    body, status = b'{"version": "6.1.1"}', 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(name="site")
def a_site() -> Iterator[tuple[str, type[_Answers]]]:
    handler = type("Handler", (_Answers,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hub/api/", handler
        server.shutdown()


def test_the_hubs_answer(site: tuple[str, type[_Answers]]) -> None:
    url, handler = site
    assert pool_probes.answer(url) == Answer(url, "6.1.1")
    handler.body = b"<html>"
    assert pool_probes.answer(url) == Answer(url, "", "something else answers there")
    handler.status = 503
    assert pool_probes.answer(url) == Answer(url, "", "something answers with status 503")
    assert pool_probes.answer("http://127.0.0.1:1/") == Answer(
        "http://127.0.0.1:1/", "", "Connection refused"
    )
    assert isinstance(pool_probes.answer(""), Unknown)
    assert isinstance(pool_probes.answer("https://hub/"), Unknown)


def test_the_files_that_are_looked_at(tmp_path: Path) -> None:
    named = pool_probes.files_of(tmp_path / "l.sqlite", tmp_path / "service.json", Unknown("?"))
    assert {one.name for one in named} == {
        "service.json", "hub.json", "service-cookie-secret", "l.sqlite", "l.sqlite-wal", "l.sqlite-shm"
    }  # fmt: skip


# --- all together ----------------------------------------------------------------------------------


def test_a_machine_with_nothing_on_it(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    found = collect.collect(f"sqlite:///{tmp_path}/none/l.sqlite", tmp_path / "none/l.sqlite",
                            tmp_path / "none/service.json", tmp_path)  # fmt: skip
    assert found.gpus == ""
    for name in ("smi", "engine", "images", "network", "reach", "pool", "books", "kept", "hub", "answer"):
        assert type(getattr(found, name)) is Unknown, name
    assert not (tmp_path / "none").exists()


def test_what_kind_of_gpus_the_pool_has() -> None:
    device = Device("GPU-a", "n1", 0, "A100", 81920, simulated=True)
    pool = Pool("x", "local", {}, "warn", 10, simulated=False)
    books = Books("x", (device,), None, 0, 0)
    assert collect.kind_of_gpus(pool, books) == "simulated"
    assert collect.kind_of_gpus(pool, Unknown("?")) == "real"
    assert collect.kind_of_gpus(Unknown("?"), Unknown("?")) == ""
