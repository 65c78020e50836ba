"""The use of MIG instances that only DCGM measures, asked of a Prometheus server in miniature."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from traitlets import TraitError

from jupyterhub_gpupool.devices.prometheus import PrometheusTelemetry
from jupyterhub_gpupool.model import Sample

from .conftest import MakeDevices, MakeMachine
from .scenario import FakeProcess, a100, h100, small
from .test_telemetry import look, mig


class Server:
    """A Prometheus server that says what a test wants."""

    def __init__(self) -> None:
        self.answer: Any = {}
        self.status = 200
        self.slow = threading.Event()
        self.slow.set()
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.slow.wait(20)
                server.asked += parse_qs(urlsplit(self.path).query)["query"]
                server.tokens.append(self.headers["Authorization"])
                said = (
                    server.answer if isinstance(server.answer, bytes) else json.dumps(server.answer).encode()
                )
                self.send_response(server.status)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def says(self, *rows: tuple[str, str, str]) -> None:
        found = [{"metric": {"UUID": gpu, "GPU_I_ID": gi}, "value": [1.0, value]} for gpu, gi, value in rows]
        self.answer = {"status": "success", "data": {"resultType": "vector", "result": found}}

    def close(self) -> None:
        self.slow.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_instances_are_told_by_gpu_and_number(server: Server) -> None:
    server.says(("GPU-1", "7", "0.25"), ("GPU-1", "8", "1"), ("GPU-2", "7", "NaN"), ("GPU-2", "8", "17"))
    found = PrometheusTelemetry(url=f"{server.url}/", window=20).utilization()
    assert found == {("GPU-1", 7): 25.0, ("GPU-1", 8): 100.0}
    assert server.asked == ['max_over_time(DCGM_FI_PROF_GR_ENGINE_ACTIVE{GPU_I_ID!=""}[20s])']
    assert server.tokens == [None]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"data": {"result": [7]}}'),
        (200, b'{"data": {"result": [{"metric": {"UUID": "x", "GPU_I_ID": "y"}, "value": [1, "1"]}]}}'),
    ],
)
def test_what_is_no_answer_is_unknown_and_said_once(
    server: Server, status: int, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server.status, server.answer = status, answer
    seen = PrometheusTelemetry(url=server.url)
    assert seen.utilization() == {} and seen.utilization() == {}
    assert len(caplog.records) == 1 and "Prometheus does not say" in caplog.text
    server.status = 200
    server.says(("GPU-1", "7", "0.5"))
    assert seen.utilization() == {("GPU-1", 7): 50.0}


def test_a_server_without_the_metric_is_said(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.says()
    assert PrometheusTelemetry(url=server.url).utilization() == {}
    assert "knows no DCGM_FI_PROF_GR_ENGINE_ACTIVE" in caplog.text


def test_a_server_that_is_slow_or_away_is_unknown(server: Server) -> None:
    server.slow.clear()
    began = time.monotonic()
    assert PrometheusTelemetry(url=server.url, timeout=0.2).utilization() == {}
    assert time.monotonic() - began < 5
    server.close()
    assert PrometheusTelemetry(url=server.url).utilization() == {}


def test_the_token_is_read_at_each_request(server: Server, tmp_path: Path) -> None:
    server.says(("GPU-1", "7", "0.5"))
    seen = PrometheusTelemetry(url=server.url, token_file=str(tmp_path / "token"))
    assert seen.utilization() == {}
    for token in ("one", "two"):
        (tmp_path / "token").write_text(f"{token}\n")
        seen.utilization()
    assert server.tokens == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", "prometheus:9090"),
        ("url", "file:///etc/passwd"),
        ("metric", 'up{job="x"}'),
        ("window", 0),
        ("timeout", 99),
    ],
)
def test_settings_are_checked(name: str, value: object) -> None:
    with pytest.raises(TraitError, match=f"PrometheusTelemetry.{name}"):
        PrometheusTelemetry(**{name: value})


def test_mig_on_an_a100_is_measured_by_dcgm(
    machine: MakeMachine, devices: MakeDevices, server: Server
) -> None:
    busy, calm, empty = small(1, 0, used=900), small(2, 1, used=900), small(3, 2)
    on_it = [FakeProcess(os.getpid(), 800, gi=7, ci=0), FakeProcess(os.getppid(), 800, gi=8, ci=0)]
    gpu = a100(0, mig=(1, 1), instances={0: busy, 1: calm, 2: empty}, processes=on_it)
    there = machine(gpu)
    seen = devices(there, elsewhere=PrometheusTelemetry(url=server.url).utilization)
    seen.devices()
    held = {"a": mig(gpu, busy), "b": mig(gpu, calm), "c": mig(gpu, empty)}
    server.says((gpu.uuid, "7", "0.64"), (gpu.uuid, "8", "0"))
    found = look(seen, held)
    assert found.leases == {"a": Sample(64.0, 900, 1), "b": Sample(0.0, 900, 1), "c": Sample(0.0, 12, 0)}
    assert found.devices[gpu.uuid].utilization == 8.0
    server.says((gpu.uuid, "8", "0"))
    assert look(seen, held).leases["a"] == Sample(None, 900, 1)


def test_prometheus_is_not_asked_for_what_the_driver_says(
    machine: MakeMachine, devices: MakeDevices, server: Server
) -> None:
    gpu = a100(0, mig=(1, 1), instances={0: small(1, 0)})
    hopper = h100(
        1, mig=(1, 1), instances={0: small(2, 0, use=10)}, processes=[FakeProcess(os.getpid(), gi=7, ci=0)]
    )
    there = machine(gpu, hopper)
    seen = devices(there, elsewhere=PrometheusTelemetry(url=server.url).utilization)
    seen.devices()
    look(seen)
    server.asked.clear()  # GPM needs a second look
    time.sleep(0.2)
    look(seen)
    assert server.asked == []
