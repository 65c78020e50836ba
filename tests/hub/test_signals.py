"""A real Jupyter server is asked what its kernels do, with its own token and no right of the hub to it."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from typing import Any

import requests
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyterhub_gpupool.model import Lease

from .conftest import MakeHub, until

SINGLEUSER = shutil.which("jupyterhub-singleuser") or "jupyterhub-singleuser"
IDLE = {"window": 6, "warn": 600, "min_age": 0, "threshold": 30}
LAB = {"slug": "lab", "display_name": "Lab", "gpu": {"count": 1}, "idle": IDLE}


async def execute(url: str, token: str, code: str) -> WebSocketClientConnection:
    """Run code in a kernel as a notebook does, without waiting for its end."""
    request = HTTPRequest(url, headers={"Authorization": f"token {token}"}, request_timeout=20)
    connection = await websocket_connect(request)
    content = {
        "code": code,
        "silent": False,
        "store_history": False,
        "user_expressions": {},
        "allow_stdin": False,
    }
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "",
        "session": "s",
        "version": "5.3",
    }
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await connection.write_message(json.dumps(message))
    while True:  # until it has begun
        said = json.loads(str(await connection.read_message()))
        if said["msg_type"] == "status" and said["parent_header"].get("msg_id") == header["msg_id"]:
            return connection


def test_a_cell_that_uses_no_gpu_decides_and_a_finished_one_does_not(make_hub: MakeHub) -> None:
    profile = {**LAB, "spawner_override": {"cmd": [SINGLEUSER]}}
    hub = make_hub(sections={"GPUPool": {"profiles": [profile]}, "Spawner": {"http_timeout": 120}})
    hub.start()
    hub.spawn("ada", "lab")
    hub.wait_ready("ada", seconds=120)
    lease = hub.wait_state("ada", "active")

    def judged() -> Lease:
        return hub.ledger().lease(lease.id) or lease

    def ask(method: str, path: str) -> Any:
        headers = {"Authorization": f"token {hub.token}"}
        answer = requests.request(method, f"{hub.url}/user/ada/api/{path}", headers=headers, timeout=30)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    kernel = ask("POST", "kernels")["id"]
    url = f"{hub.url.replace('http', 'ws', 1)}/user/ada/api/kernels/{kernel}/channels"
    asyncio.run(execute(url, hub.token, "import time; time.sleep(600)"))
    busy = until(
        lambda: found if (found := judged()).signal == "kernel" else None, "the running cell to decide"
    )
    assert busy is not None
    assert busy.verdict == "warn"
    assert "a cell is running" in busy.verdict_reason
    assert "no terminal is open" in busy.verdict_reason
    token = hub.token_of("ada")

    def shown() -> Any:
        return hub.pool("GET", "api/leases", token).json()["leases"][0]["verdict"]["signal_words"]

    until(lambda: shown() == "kernels", "the same over REST")
    before = ask("GET", "status?no_track_activity=1")["last_activity"]
    ask("POST", f"kernels/{kernel}/interrupt?no_track_activity=1")
    done = until(
        lambda: found if "no cell is" in (found := judged()).verdict_reason else None, "the end of the cell"
    )
    assert done is not None
    assert done.signal in ("gpu", "processes")
    quiet = ask("GET", "status?no_track_activity=1")["last_activity"]
    until(lambda: judged().idle_seconds >= done.idle_seconds + 2, "some more looks")
    assert ask("GET", "status?no_track_activity=1")["last_activity"] == quiet >= before, (
        "asking is no activity"
    )
