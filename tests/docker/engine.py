"""A Docker Engine of the tests' own: its files, its network namespace, its stand-in for NVIDIA's runtime hook.

It shares nothing with the machine's engine but the kernel: the bridges, address pools and firewall rules of
two engines in one network namespace would destroy each other's.  Whoever talks to a container or to a hub
beside this engine must be in that namespace, too: :meth:`Network.inside`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import psutil

HERE = Path(__file__).parent
BIN = HERE / "bin"
"""Stands first on the engine's PATH: what is there is found instead of NVIDIA's programs."""

CLONE_NEWNET, MNT_DETACH, SIOCSIFFLAGS, IFF_UP_RUNNING = 0x40000000, 2, 0x8914, 0x41
LIBC = ctypes.CDLL(None, use_errno=True)
START_TIMEOUT = 60.0


def system(answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Network:
    """A network namespace with a loopback of its own.  Only the thread that enters is inside."""

    def __init__(self) -> None:
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        system(LIBC.unshare(CLONE_NEWNET))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))
        self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._enter(self._outside)

    def _enter(self, fd: int) -> None:
        system(LIBC.setns(fd, CLONE_NEWNET))

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside, with all threads and processes that are started there."""
        self._enter(self._fd)
        try:
            yield
        finally:
            self._enter(self._outside)

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Be where this process was made, in the midst of being inside."""
        self._enter(self._outside)
        try:
            yield
        finally:
            self._enter(self._fd)


class Hook:
    """What the stand-in for ``nvidia-container-runtime-hook`` has seen, and whether it is to fail."""

    def __init__(self, log: Path) -> None:
        self.log, self._fail = log, log.with_suffix(".fail")

    def calls(self) -> list[dict[str, Any]]:
        """Every call: ``container`` (its id), ``visible`` (NVIDIA_VISIBLE_DEVICES), ``capabilities``."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def visible(self, container: str) -> list[str]:
        """What it was told to show, at every start of this container."""
        return [call["visible"] for call in self.calls() if call["container"] == container]

    @contextlib.contextmanager
    def failing(self, sentence: str = "nvidia-container-cli: device error: unknown device") -> Iterator[None]:
        """Let every start of a container with a device request fail with this sentence."""
        self._fail.write_text(sentence)
        try:
            yield
        finally:
            self._fail.unlink()


class Disk:
    """A small disk of its own, with so much on it that not one byte more finds room."""

    SIZE = 8 << 20

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                continue

    def empty(self) -> None:
        (self.folder / "ballast").unlink()


class Engine:
    """The engine, its containerd and what both keep.  Start it inside its network."""

    def __init__(self, *arguments: str) -> None:
        # Short: the path of a unix socket has at most 108 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="gpe-"))
        self.socket = self.folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.hook = Hook(self.folder / "hook.log")
        self.log = self.folder / "log"
        self.arguments = arguments
        self.kept: set[str] = set()
        """Names of networks that :meth:`clean` leaves: those of hubs that still run."""
        self._containerd_socket = self.folder / "containerd.sock"
        self._containerd: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        self._client: docker.DockerClient | None = None

    # --- processes -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine, and its containerd where none runs; return when it answers."""
        if self._containerd is None or self._containerd.poll() is not None:
            self._containerd = self._run(self._containerd_command())
        self.socket.unlink(missing_ok=True)
        (self.folder / "docker.pid").unlink(missing_ok=True)
        self._engine = self._run(
            [
                "dockerd",
                f"--data-root={self.folder / 'data'}",
                f"--exec-root={self.folder / 'exec'}",
                f"--pidfile={self.folder / 'docker.pid'}",
                f"--host={self.host}",
                f"--containerd={self._containerd_socket}",
                f"--config-file={self.folder / 'daemon.json'}",  # not the machine's
                *self.arguments,
            ]
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.answers():
            assert self._engine.poll() is None and time.monotonic() < deadline, (
                f"the engine did not start:\n{self.tail()}"
            )
            time.sleep(0.02)

    def _containerd_command(self) -> list[str]:
        config = self.folder / "containerd.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        state, root = self.folder / "containerd-state", self.folder / "containerd"
        address = f"--address={self._containerd_socket}"
        return ["containerd", f"--config={config}", f"--state={state}", f"--root={root}", address]

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        (self.folder / "daemon.json").write_text("{}")
        env = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin",
            "GPUPOOL_TEST_HOOK_LOG": str(self.hook.log),
        }
        env.pop("DOCKER_HOST", None)
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C on the tests must not stop it before what they clean up with it.
            return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def answers(self) -> bool:
        """Whether the engine answers at this moment."""
        try:
            return bool(self.client.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def stop(self) -> None:
        """Stop the engine in order, as ``systemctl stop``: it ends its containers."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the engine alone: its containers go on running."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop in order and start again."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._engine is not None and self._engine.poll() is None:
            self._engine.send_signal(number)
            self._engine.wait(60)
        if self._client is not None:
            self._client.close()  # its pooled connections are dead
            self._client = None

    def tail(self, lines: int = 60) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # --- what is in it -------------------------------------------------------------------------------

    @property
    def client(self) -> docker.DockerClient:
        """A client that talks to the engine directly, past every fault.  Raises while the engine is away."""
        if self._client is None:
            self._client = docker.DockerClient(base_url=self.host, version="auto", timeout=60)
        return self._client

    def has(self, image: str) -> bool:
        try:
            self.client.images.get(image)
        except docker.errors.ImageNotFound:
            return False
        return True

    @contextlib.contextmanager
    def small_disk(self, part: str) -> Iterator[Disk]:
        """Have an empty part of the engine's files (``containers``, ``volumes``) on a small disk of its own."""
        folder = self.folder / "data" / part
        options = f"size={Disk.SIZE}".encode()
        system(LIBC.mount(b"small", os.fsencode(folder), b"tmpfs", 0, options))
        try:
            yield Disk(folder)
        finally:
            system(LIBC.umount2(os.fsencode(folder), MNT_DETACH))

    def clean(self) -> None:
        """Remove every container, volume and network, whatever the test has left; images stay."""
        for container in self.client.containers.list(all=True, ignore_removed=True):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        for network in self.client.networks.list():
            if network.name not in {"bridge", "host", "none", *self.kept}:
                network.remove()
        for volume in self.client.volumes.list():
            volume.remove(force=True)

    def destroy(self) -> None:
        """End everything and leave nothing behind, also after a kill."""
        with contextlib.suppress(docker.errors.DockerException, OSError):
            self.clean()
        self.stop()
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait(60)
        self._end_shims()
        for point in sorted(_mounts(self.folder), reverse=True):
            LIBC.umount2(os.fsencode(point), MNT_DETACH)
        shutil.rmtree(self.folder)

    def _end_shims(self) -> None:
        """End the shims, and with them the containers, of an engine that was killed."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if str(self._containerd_socket) in (process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += [*process.children(recursive=True), process]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=20)


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]


def copy_image(source: str, image: str, target: Engine) -> bool:
    """Copy an image from the engine at ``source`` (empty: the machine's own); False where it is not there."""
    here = ["docker", *(["-H", source] if source else [])]
    there = ["docker", "-H", target.host]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.run([*here, "image", "inspect", image], **quiet).returncode != 0:
        return False
    with subprocess.Popen([*here, "save", image], stdout=subprocess.PIPE) as saved:
        subprocess.run([*there, "load", "-q"], stdin=saved.stdout, stdout=subprocess.DEVNULL, check=True)
    assert saved.returncode == 0
    return True
