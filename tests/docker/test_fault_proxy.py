"""The fault proxy itself: it passes everything through, and fails exactly as it is told to."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import docker
import pytest
import requests

from tests.hub.conftest import until

from .engine import Engine
from .fault_proxy import FaultProxy

# --- a tiny engine -------------------------------------------------------------------------------------


class Upstream(ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.done: list[str] = []
        self.go_on = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def answer(self, body: bytes, status: int = 200) -> None:
        self.server.done.append(f"{self.command} {self.path}")
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204 and self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if "stream" in self.path:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nfirst\r\n")
            self.wfile.flush()
            assert self.server.go_on.wait(20)
            self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")
        elif "unframed" in self.path:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"until the end")
            self.close_connection = True
        else:
            self.answer(self.path.encode())

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.answer(b"", 204)

    def do_POST(self) -> None:
        if "upgrade" in self.path:
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            while block := self.rfile.read1(1000):
                self.wfile.write(block.upper())
            self.wfile.write(b"bye")
            self.close_connection = True
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.answer(body)


class Client(http.client.HTTPConnection):
    """An HTTP client on a unix socket; it keeps its connection."""

    def __init__(self, path: Path, timeout: float = 20) -> None:
        super().__init__("engine", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def ask(self, method: str, path: str, body: Any = None, **given: Any) -> tuple[int, bytes]:
        self.request(method, path, body, **given)
        answer = self.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gpp-") as folder:
        yield Path(folder)


@pytest.fixture
def upstream(folder: Path) -> Iterator[Upstream]:
    server = Upstream(folder / "upstream.sock")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def tiny(folder: Path, upstream: Upstream) -> Iterator[FaultProxy]:
    proxy = FaultProxy(folder / "proxy.sock", folder / "upstream.sock")
    proxy.start()
    yield proxy
    proxy.close()


@pytest.fixture
def client(tiny: FaultProxy) -> Iterator[Client]:
    client = Client(tiny.socket)
    yield client
    client.close()


def test_one_connection_serves_requests_of_every_kind(tiny: FaultProxy, client: Client) -> None:
    for _ in range(3):
        assert client.ask("GET", "/v1.41/info?a=b") == (200, b"/v1.41/info?a=b")
        assert client.ask("POST", "/v1.41/make", b"x" * 200_000) == (200, b"x" * 200_000)
        assert client.ask("POST", "/c", iter([b"one", b"two"]), encode_chunked=True) == (200, b"onetwo")
        assert client.ask("DELETE", "/v1.41/thing") == (204, b"")
        assert client.ask("HEAD", "/v1.41/head") == (200, b"")
    assert client.ask("GET", "/unframed") == (200, b"until the end")
    assert [one.path for one in tiny.seen("DELETE")] == ["/thing"] * 3
    assert {one.answer for one in tiny.seen("DELETE")} == {"204"}


def test_a_stream_comes_as_it_is_made(upstream: Upstream, client: Client) -> None:
    client.request("GET", "/stream")
    answer = client.getresponse()
    assert answer.read(5) == b"first"  # the engine has not sent the rest yet
    upstream.go_on.set()
    assert answer.read() == b"second"
    assert client.ask("GET", "/after") == (200, b"/after")


def test_an_upgraded_connection_is_a_pipe_that_can_be_half_closed(tiny: FaultProxy) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(20)
        raw.connect(str(tiny.socket))
        raw.sendall(b"POST /v1.41/upgrade HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        reader = raw.makefile("rb")
        assert b" 101 " in reader.readline()
        while reader.readline() != b"\r\n":
            continue
        raw.sendall(b"hello")
        assert reader.read(5) == b"HELLO"
        raw.shutdown(socket.SHUT_WR)
        assert reader.read() == b"bye"


def test_a_status_is_given_so_often_and_no_more(tiny: FaultProxy, upstream: Upstream, client: Client) -> None:
    rule = tiny.rule("status", "GET", r"^/containers/[^/]+/json", count=2, status=500, message="no")
    for _ in range(2):
        status, body = client.ask("GET", "/v1.41/containers/a/json")
        assert (status, json.loads(body)) == (500, {"message": "no"})
    assert client.ask("GET", "/v1.41/containers/a/json")[0] == 200
    assert rule.hits == 2 and len(upstream.done) == 1
    tiny.rule("status", "POST|DELETE", "", status=409)
    assert client.ask("POST", "/any", b"a body that nobody reads")[0] == 409
    assert client.ask("DELETE", "/any")[0] == 409
    tiny.clear()
    assert client.ask("DELETE", "/any")[0] == 204


@pytest.mark.parametrize(("action", "done"), [("drop_before", 0), ("drop_after", 1)])
def test_a_dropped_request_is_done_or_not(
    tiny: FaultProxy, upstream: Upstream, client: Client, action: Any, done: int
) -> None:
    with tiny.fault(action, "DELETE", "thing"), pytest.raises((http.client.HTTPException, OSError)):
        client.ask("DELETE", "/thing")
    assert len(upstream.done) == done
    client.close()
    assert client.ask("DELETE", "/thing")[0] == 204


def test_a_delayed_request_is_done_although_the_client_has_gone(tiny: FaultProxy, upstream: Upstream) -> None:
    impatient = Client(tiny.socket, timeout=0.2)
    with tiny.fault("delay", "POST", "start", seconds=0.6):
        with pytest.raises(TimeoutError):
            impatient.ask("POST", "/start", b"")
        impatient.close()
        assert upstream.done == []
        until(lambda: upstream.done == ["POST /start"], "the engine to do it")


def test_one_that_hangs_holds_up_nobody_else(tiny: FaultProxy, upstream: Upstream, client: Client) -> None:
    tiny.rule("hang", "GET", "hang")
    hanging = Client(tiny.socket, timeout=0.3)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        hanging.ask("GET", "/hang")
    assert time.monotonic() - began >= 0.3
    hanging.close()
    assert client.ask("GET", "/other")[0] == 200
    assert upstream.done == ["GET /other"]


def test_refused_connections_and_broken_ones(tiny: FaultProxy, upstream: Upstream, client: Client) -> None:
    client.request("GET", "/stream")
    answer = client.getresponse()
    assert answer.read(5) == b"first"
    with tiny.refusing():
        upstream.go_on.set()
        with pytest.raises((http.client.HTTPException, OSError)):
            answer.read()
        client.close()
        with pytest.raises(ConnectionRefusedError):
            client.ask("GET", "/info")
    client.close()
    assert client.ask("GET", "/info")[0] == 200


def test_an_engine_that_is_away_is_a_broken_connection(folder: Path) -> None:
    proxy = FaultProxy(folder / "alone.sock", folder / "nobody.sock")
    proxy.start()
    with pytest.raises((http.client.HTTPException, OSError)):
        Client(proxy.socket).ask("GET", "/info")
    proxy.close()


# --- the real engine -------------------------------------------------------------------------------------


def command(proxy: FaultProxy, *words: str, given: str | None = None) -> str:
    """What the ``docker`` command prints, with the proxy as its engine."""
    done = subprocess.run(
        ["docker", "-H", proxy.host, *words],
        input=given,
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.docker
def test_the_docker_command_notices_nothing(proxy: FaultProxy, session_image: str) -> None:
    assert "Server" in command(proxy, "version")
    made = command(
        proxy, "create", "--name", "proxied", "--entrypoint", "cat", "-i", session_image, "/dev/stdin"
    )
    command(proxy, "start", "proxied")
    assert command(proxy, "exec", "proxied", "echo", "from inside") == "from inside\n"
    assert command(proxy, "exec", "-i", "proxied", "tr", "a-z", "A-Z", given="both ways") == "BOTH WAYS"
    command(proxy, "rm", "-f", "proxied")
    assert made.strip()
    script = "read line; echo got $line; echo error >&2"
    said = command(
        proxy, "run", "--rm", "-i", "--entrypoint", "sh", session_image, "-c", script, given="this\n"
    )
    assert said == "got this\n"


@pytest.mark.docker
def test_logs_are_followed_and_images_loaded_through_it(
    proxy: FaultProxy, engine: Engine, session_image: str
) -> None:
    there = docker.DockerClient(base_url=proxy.host, version="auto", timeout=30)
    script = "import time\nfor n in range(3):\n print(n, flush=True)\n time.sleep(0.5)"
    made = there.containers.run(session_image, ["python3", "-c", script], detach=True, name="talks")
    times = [(line, time.monotonic()) for line in made.logs(stream=True, follow=True)]
    assert [line for line, _ in times] == [b"0\n", b"1\n", b"2\n"]
    assert times[-1][1] - times[0][1] > 0.5  # as they were written, not at the end
    made.remove()
    # A body of many megabytes in both directions, chunked.
    image = there.images.get(session_image)
    there.images.load(image.save())
    assert engine.has(session_image)
    there.close()


@pytest.mark.docker
def test_a_real_start_that_is_done_and_not_answered(
    proxy: FaultProxy, engine: Engine, session_image: str
) -> None:
    there = docker.APIClient(base_url=proxy.host, version="auto", timeout=30)
    made = there.create_container(session_image, ["sleep", "600"], name="lost")
    with proxy.fault("drop_after", "POST", r"/start$", count=1), pytest.raises(requests.ConnectionError):
        there.start(made)
    assert engine.client.containers.get("lost").status == "running"
    with proxy.fault("status", "GET", "/json$", status=500), pytest.raises(docker.errors.APIError):
        there.inspect_container(made)
    assert there.inspect_container(made)["State"]["Running"]
    there.close()
