"""What the benchmarks share: real hubs of two kinds on free ports, and the table they print."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jupyterhub
import psutil
import requests

HERE = Path(__file__).parent
ROOT = HERE.parent
MINIATURE = ROOT / "tests" / "hub" / "bin" / "jupyterhub-singleuser"
T = TypeVar("T")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the command line of a benchmark, with what all of them have."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # as Ctrl-C: the hubs are ended too
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = "folder on the disk to measure (default: build/ of the checkout)"
    made.add_argument("--dir", type=Path, default=ROOT / "build", help=where)
    return made


@contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """Make a folder for one run, and remove it at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="bench-", dir=parent.resolve()))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def until(probe: Callable[[], T], what: str, seconds: float = 60, pause: float = 0.05) -> T:
    """Wait for a probe to give something true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:g} s for: {what}")
        time.sleep(pause)


# --- tables -----------------------------------------------------------------------------------------


def table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    widths = [max(len(row[n]) for row in (head, *lines)) for n in range(len(head))]
    print(f"\n{title}")
    for row in (head, ["-" * width for width in widths], *lines):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        print("  ".join(cells).rstrip())
    sys.stdout.flush()


VERDICTS = ("figure", "measured", "baseline", "ratio", "goal", "verdict")


def verdict(figure: str, measured: str, baseline: str, ratio: str, goal: str, met: bool) -> tuple[str, ...]:
    """One line of the table of verdicts."""
    return figure, measured, baseline, ratio, goal, "met" if met else "MISSED"


def spread(values: Sequence[float]) -> str:
    """Median with the middle half of the values."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def load_note() -> str:
    """How busy the machine was: other work on it makes every figure worse, and ratios blur."""
    one, five, _ = os.getloadavg()
    return f"JupyterHub {jupyterhub.__version__}, {os.cpu_count()} cores, load {one:.1f} (1 min), {five:.1f} (5 min)"


# --- hubs -------------------------------------------------------------------------------------------


class Hub:
    """One hub process with its proxy, and with its service where it has the pool.

    ``given`` is what ``_hub_config.py`` reads: ``arm`` (``pool`` or ``stock``) and what the arm needs.
    """

    def __init__(self, parent: Path, **given: Any) -> None:
        self.state = parent / f"{given['arm']}-{secrets.token_hex(3)}"
        self.token = secrets.token_hex(16)
        self.given = {"token": self.token, **given}
        self.log = parent / f"{self.state.name}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.client = requests.Session()
        self.client.headers["Authorization"] = f"token {self.token}"

    def __enter__(self) -> Hub:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            "GPUPOOL_STATE_DIR": str(self.state),
            "GPUPOOL_PORT": str(self.port),
            "GPUPOOL_BACKEND": "local",
            "GPUPOOL_BENCH": json.dumps(self.given),
            "TEST_HUB_VERSION": jupyterhub.__version__,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "_hub_config.py")],
                env=env,
                cwd=self.log.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until(self._answers, "the hub to answer", 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit(f"the hub has ended:\n{self.tail()}")
        try:
            ports = json.loads((self.state / "ports.json").read_text())
            self.address = f"http://{self.given.get('hub_ip', '127.0.0.1')}:{ports['hub']}/hub/api"
            asked = [f"{self.address}/"]
            if self.given["arm"] == "pool":
                asked.append(f"http://127.0.0.1:{ports['service']}/services/gpupool/health")
            return all(requests.get(url, timeout=5).ok for url in asked)
        except (FileNotFoundError, requests.RequestException):
            return False

    def __exit__(self, *_: object) -> None:
        """End the hub and every process that it started; nothing of a benchmark is worth an orderly stop."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GPUPOOL_STATE_DIR") == str(self.state):
                    process.kill()
                    left.append(process)
            except psutil.Error:
                continue
        psutil.wait_procs(left, timeout=10)

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])

    def cpu(self) -> float:
        """CPU seconds of the hub process, all its threads, to the nanosecond: psutil knows ticks of 10 ms."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # the kernel's clock id of that process

    def api(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Ask the hub itself, past the proxy."""
        return self.client.request(method, f"{self.address}/{path}", timeout=180, **kwargs)

    def add_users(self, names: Sequence[str]) -> None:
        """Make the users beforehand, so that no figure holds what their making costs."""
        answer = self.api("POST", "users", json={"usernames": list(names)})
        if answer.status_code not in (201, 409):
            raise SystemExit(f"the users could not be made: {answer.text}")
