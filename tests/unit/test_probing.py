"""Asking sessions: with their own token, soon, little, and whatever they answer is one of three."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tornado import netutil, web
from tornado.httpserver import HTTPServer

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.model import Kind, Lease, Sample, State, Terms, Wish
from jupyterhub_gpupool.service.hub import Server
from jupyterhub_gpupool.service.probing import HUB_EVERY, MOST_BYTES, SILENCE, Prober
from jupyterhub_gpupool.signals import Work

TOKEN = "of-the-session"
LEASE = Lease(
    "l1", "ada", "", "whole", State.ACTIVE, 1, 1, "pool-l1-1", Wish(Kind.GPU), Terms(window=60), (), {}, (), 1.0, "",
    "", {}, 0.0, idle_seconds=60,
)  # fmt: skip


class Session(web.RequestHandler):
    """Answers as a notebook server does, or as ``answers`` say."""

    answers: dict[str, Any]
    asked: list[tuple[str, str]]

    async def get(self, what: str) -> None:
        self.asked.append((what, self.request.query))
        if self.request.headers.get("Authorization") != f"token {TOKEN}":
            raise web.HTTPError(403)
        found = self.answers.get(what, 404)
        if isinstance(found, int):
            self.set_status(found)
            if found == 302:
                self.set_header("Location", "/user/ada/api/elsewhere")
            return
        if isinstance(found, asyncio.Event):
            await found.wait()
        self.finish(found if isinstance(found, bytes) else json.dumps(found))


class World:
    """A session, a hub and a backend that count what they are asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"kernels": [], "terminals": []}
        self.asked: list[tuple[str, str]] = []
        self.given: str | None = TOKEN
        self.tokens = self.hub = 0
        self.known: Server | None = Server(True, "", 0.0, "/user/ada/", datetime.now(UTC).timestamp() - 30)
        self.away = False
        self.now = 0.0

    def token(self, name: str) -> str | None:
        self.tokens += 1
        return self.given

    async def server(self, user: str, name: str) -> Server | None:
        self.hub += 1
        if self.away:
            raise Unavailable("The hub does not answer.", reason="hub")
        return self.known


Story = Callable[[World, Prober, Lease], Awaitable[None]]


def play(story: Story, timeout: float = 5.0) -> None:
    """Tell a story with a session that listens on loopback."""

    async def run() -> None:
        world = World()
        handler = type("Handler", (Session,), {"answers": world.answers, "asked": world.asked})
        (socket,) = netutil.bind_sockets(0, "127.0.0.1")
        server = HTTPServer(web.Application([(r"/user/ada/api/(.+)", handler)]))
        server.add_socket(socket)
        prober = Prober(world, world, timeout=timeout, clock=lambda: world.now)
        lease = replace(LEASE, url=f"http://127.0.0.1:{socket.getsockname()[1]}/user/ada/")
        try:
            await story(world, prober, lease)
        finally:
            prober.close()
            server.stop()
            await server.close_all_connections()

    asyncio.run(run())


async def ask(prober: Prober, lease: Lease) -> Work:
    return (await prober.look([lease]))[lease.id]


def test_a_session_says_what_it_does_and_that_is_no_activity() -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        just_now = datetime.now(UTC) - timedelta(seconds=7)
        world.answers["kernels"] = [{"execution_state": "idle"}]
        found = await ask(prober, lease)
        assert found.decisive is None
        assert [one.name for one in found.signals] == ["kernel", "terminal", "hub"]
        assert found.grounds.startswith("no cell is running, no terminal is open, the hub saw activity 3")
        world.answers["kernels"] = [{"execution_state": "busy"}]
        world.answers["terminals"] = [{"name": "1", "last_activity": just_now.isoformat()}]
        found = await ask(prober, lease)
        assert "a cell is running, a terminal was in use" in found.grounds
        assert found.decisive is not None
        assert found.decisive.name == "kernel"
        assert {query for _, query in world.asked} == {"no_track_activity=1"}
        assert (world.tokens, world.hub) == (1, 1), "neither is asked at each look"
        world.now += HUB_EVERY
        await ask(prober, lease)
        assert (world.tokens, world.hub) == (1, 2)

    play(story)


def test_a_server_without_such_an_api_has_no_such_signal() -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        world.answers.clear()
        found = await ask(prober, lease)
        assert [one.name for one in found.signals] == ["hub"]
        assert found.decisive is None

    play(story)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (500, "its server answers 500"),
        (302, "its server answers 302"),  # not followed: nobody is sent elsewhere with a token
        (b"<html>", "its server answers something else"),
        (b"[" * 100_000, "its server answers something else"),
        (b'"\xff"', "its server answers something else"),
        (b" " * (MOST_BYTES + 1), "its server does not answer"),
    ],
)
def test_what_cannot_be_read_is_unknown(answer: Any, why: str) -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        world.answers["kernels"] = answer
        found = (await ask(prober, lease)).decisive
        assert found is not None
        assert (found.name, found.level.value) == ("session", "unknown")
        assert found.ground == f"what its kernels do is unknown ({why})"
        assert not any(what == "elsewhere" for what, _ in world.asked)

    play(story)


def test_one_that_does_not_answer_in_time_is_left_alone_for_a_while() -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        silence = world.answers["kernels"] = asyncio.Event()
        assert "no answer within 0.2 s" in (await ask(prober, lease)).grounds
        silence.set()
        world.answers["kernels"] = []
        before = len(world.asked)
        assert "no answer within 0.2 s" in (await ask(prober, lease)).grounds
        assert len(world.asked) == before
        world.now += SILENCE
        assert "no kernel is open" in (await ask(prober, lease)).grounds

    play(story, timeout=0.2)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"given": None}, "the backend does not know its token"),
        ({"known": None}, "the hub does not know its server"),
        ({"away": True}, "the hub does not answer"),
        ({"known": Server(True, "", 0.0, "")}, "its address is not known"),
        ({"url": "file:///etc/passwd"}, "its address is not known"),
        ({"url": ""}, "its address is not known"),
    ],
)
def test_without_token_server_or_address_nobody_is_asked(change: Mapping[str, Any], why: str) -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        for name, value in change.items():
            if name == "url":
                lease = replace(lease, url=value)
            else:
                setattr(world, name, value)
        assert why in (await ask(prober, lease)).grounds
        assert world.asked == []

    play(story)


def test_a_token_that_is_refused_is_read_again() -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        world.given = "of-another"
        assert "its server answers 403" in (await ask(prober, lease)).grounds
        world.given = TOKEN
        assert "no kernel is open" in (await ask(prober, lease)).grounds
        assert world.tokens == 2

    play(story)


@pytest.mark.parametrize(
    ("changes", "sample", "asked"),
    [
        ({}, Sample(0.0, 1, 1), True),
        ({"idle_seconds": 50}, Sample(0.0, 1, 1), True),  # with this look the window is over
        ({"idle_seconds": 49}, Sample(0.0, 1, 1), False),
        ({}, Sample(90.0, 1, 1), False),
        ({}, Sample(), False),
        ({"gpus": 0.0}, Sample(processes=0), False),
        ({"terms": Terms(window=0)}, Sample(0.0, 1, 1), False),
    ],
)
def test_only_sessions_whose_gpu_was_quiet_for_the_whole_window_are_asked(
    changes: dict[str, Any], sample: Sample, asked: bool
) -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        lease = replace(lease, **changes)
        found = await prober.quiet_ones([lease], {lease.id: sample}, 10.0)
        assert (list(found), bool(world.asked)) == ([lease.id] if asked else [], asked)

    play(story)


def test_many_that_hang_hold_up_nobody_for_long() -> None:
    async def story(world: World, prober: Prober, lease: Lease) -> None:
        world.answers["kernels"] = asyncio.Event()
        many = [replace(lease, id=f"l{n}", session=f"s{n}") for n in range(200)]
        found = await asyncio.wait_for(prober.look(many), 20)
        assert len(found) == 200
        assert {work.decisive.name for work in found.values() if work.decisive} == {"session"}
        assert any("too many" in work.grounds for work in found.values())
        world.answers["kernels"].set()

    play(story, timeout=0.2)
