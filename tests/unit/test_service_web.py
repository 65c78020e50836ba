"""The service's web side: a real HTTP server, the hub's real login client, a real ledger.

Only the hub behind the login is small: it tells who a token belongs to.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth
from prometheus_client import CollectorRegistry, generate_latest
from tornado import web
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from jupyterhub_gpupool.errors import Unavailable
from jupyterhub_gpupool.ledger import Ledger, Observation
from jupyterhub_gpupool.model import (
    Decision,
    Device,
    Kind,
    Lease,
    Owner,
    Request,
    Sample,
    State,
    Terms,
    Verdict,
    Wish,
)
from jupyterhub_gpupool.notices.settings import GPUPoolNotices
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service import handlers, pages
from jupyterhub_gpupool.service.handlers import routes
from jupyterhub_gpupool.service.metrics import Metrics
from jupyterhub_gpupool.service.stream import Feed

PREFIX = "/services/gpupool/"
SCOPE = "access:services!service=gpupool"
SECRET = b"0" * 32
AGENT = "test"  # the hub's xsrf tokens depend on it
EVIL = "<script>alert('&amp;')</script>"
DEVICES = [
    Device("GPU-a", "n1", 0, "A100", 81920, simulated=True, driver="simulated-driver"),
    Device("GPU-b", "n1", 1, "A100", 81920, simulated=True, driver="simulated-driver"),
]
PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {"groups": ["vision"]},
    "bob": {"groups": []},
    "root": {"admin": True},
    EVIL: {},
    "stranger": {"scopes": []},
    "ada-service": {"kind": "service", "name": "ada"},
}


class FakeHub(web.RequestHandler):
    """``GET /hub/api/user``: the model of a token's owner; the token is the owner's name."""

    broken = False

    def get(self) -> None:
        if self.broken:
            raise web.HTTPError(500)
        name = self.request.headers.get("Authorization", "").partition(" ")[2]
        if name not in PEOPLE:
            raise web.HTTPError(403)
        model = {"kind": "user", "name": name, "groups": [], "admin": False, "scopes": [SCOPE]}
        self.write(model | PEOPLE[name])


class Web:
    """The service under test, with what a test may turn."""

    def __init__(self, pool: GPUPool, feed: Feed, port: int) -> None:
        self.pool, self.feed, self.port = pool, feed, port
        self.health = (True, "the last whole sweep was 1 s ago")
        self.client = AsyncHTTPClient(force_instance=True, max_clients=100)
        self.notices = GPUPoolNotices()
        self.counted: list[tuple[str, str]] = []

    @property
    def ledger(self) -> Ledger:
        """The ledger, for a test to change: what the service shows is then read anew."""
        self.feed.expire()
        return self.pool.ledger()

    def lease(self, user: str, server: str = "", fraction: str = "1/4", terms: Terms | None = None) -> Lease:
        """Ask for a share of a GPU."""
        owner = Owner(user, 1 + sorted(PEOPLE).index(user), 1000.0)
        wish = Wish(Kind.SHARE, fraction=fraction)
        return self.ledger.enqueue(
            "hub", Request(owner, server, "quarter", wish, terms or Terms(extend=60, extend_max=90, warn=25))
        )

    def active(self, user: str, server: str = "", fraction: str = "1/4") -> Lease:
        """A lease that is active."""
        lease = self.lease(user, server, fraction)
        assert lease.state is State.STARTING
        return self.ledger.activate(lease.id, actor=user)

    def warn(self, lease: Lease, seconds: float = 25) -> None:
        """Store a verdict that warns, with a countdown that runs though nobody was told."""
        verdict = Verdict(Decision.WARN, "idle for 60 s", seconds)
        seen = Observation(
            lease.id, lease.version, Sample(0.0, 512, 1), 60, 0, seconds, "idle", verdict, counting=True
        )
        assert self.ledger.record([seen])

    def count(self, channel: str, outcome: str) -> None:
        self.counted.append((channel, outcome))

    async def release(self, lease: Lease, actor: str) -> None:
        if lease.state is State.QUEUED:
            await self.pool.ask("give_up", lease.id, actor=actor, reason="left the queue")
        else:
            await self.pool.ask("begin_stop", lease.id, actor=actor, reason="released")

    async def ask(
        self, method: str, path: str, user: str | None = None, body: bytes | str | None = None, **headers: str
    ) -> HTTPResponse:
        """Send a request, as ``user`` by token; header names with ``_`` for ``-``."""
        sent = {"User-Agent": AGENT} | {name.replace("_", "-"): value for name, value in headers.items()}
        if user is not None:
            sent["Authorization"] = f"token {user}"
        request = HTTPRequest(
            f"http://127.0.0.1:{self.port}{PREFIX}{path}", method=method, headers=sent, body=body,
            follow_redirects=False, allow_nonstandard_methods=True, decompress_response=False,
        )  # fmt: skip
        return await self.client.fetch(request, raise_error=False)

    async def json(self, method: str, path: str, user: str | None = None, **more: Any) -> tuple[int, Any]:
        """Send a request whose answer must be JSON."""
        answer = await self.ask(method, path, user, **more)
        assert answer.headers["Content-Type"] == "application/json", answer.body
        return answer.code, json.loads(answer.body)

    async def refused(self, status: int, method: str, path: str, user: str | None = None, **more: Any) -> str:
        """Send a request that must fail in the shape of errors; returns its sentence."""
        code, shape = await self.json(method, path, user, **more)
        assert (code, shape["status"]) == (status, status), shape
        assert sorted(shape) == ["message", "reason", "status"]
        assert re.fullmatch(r"[a-z-]+", shape["reason"])
        return str(shape["message"])

    def cookie(self, user: str) -> str:
        """The cookie of somebody who logged in with a browser."""
        signed = web.create_signed_value(SECRET, "service-gpupool", user)
        return f"service-gpupool={signed.decode()}"

    async def browser(self, user: str) -> tuple[dict[str, str], str, str]:
        """Open the status page as a browser would; returns headers to go on with, the token and the page."""
        answer = await self.ask("GET", "", Cookie=self.cookie(user))
        assert answer.code == 200, answer.body
        page = answer.body.decode()
        token = re.search(r'data-xsrf="([^"]+)"', page)
        assert token is not None
        return {"Cookie": f"{self.cookie(user)}; _xsrf={token[1]}"}, token[1], page


@asynccontextmanager
async def served(application: web.Application, **more: Any) -> AsyncIterator[int]:
    socket, port = bind_unused_port()
    server = HTTPServer(application, **more)
    server.add_sockets([socket])
    yield port
    server.stop()
    await server.close_all_connections()


@pytest.fixture(name="hub")
def a_hub() -> Iterator[type[FakeHub]]:
    yield FakeHub
    FakeHub.broken = False
    HubOAuth.clear_instance()


@pytest.fixture(name="site")
async def a_site(tmp_path: Path, hub: type[FakeHub]) -> AsyncIterator[Web]:
    pool = GPUPool(
        database_url=f"sqlite:///{tmp_path}/ledger.sqlite",
        profiles=[
            {"slug": "quarter", "display_name": "A quarter", "gpu": {"memory": "1/4"}},
            {
                "slug": "only",
                "display_name": "Vision only",
                "gpu": {"count": 1},
                "allowed_groups": ["vision"],
            },
        ],
    )
    pool.ledger().register_hub("hub")
    pool.ledger().sync_inventory(DEVICES)
    pool.ledger().settle()
    feed = Feed(pool, interval=0.02)
    async with served(web.Application([("/hub/api/user", hub)])) as hub_port:
        HubOAuth.clear_instance()
        HubOAuth.instance(
            api_url=f"http://127.0.0.1:{hub_port}/hub/api",
            api_token="service",
            oauth_client_id="service-gpupool",
            base_url=PREFIX,
            hub_prefix="/hub/",
            hub_host="",
            access_scopes={SCOPE},
        )
        application = web.Application(
            routes(PREFIX), cookie_secret=SECRET, xsrf_cookies=False, version="1.2.3"
        )
        # the limits of the service
        async with served(application, max_body_size=1 << 16, max_buffer_size=1 << 17) as port:
            site = Web(pool, feed, port)
            application.settings |= {
                "pool": pool, "feed": feed, "release": site.release, "health": lambda: site.health,
                "count_notice": site.count, "notices": site.notices,
            }  # fmt: skip
            await feed.start()
            yield site
            await feed.stop()
            site.client.close()
            # An open client watches the resolver's files, and a machine allows few such watches.
            await JupyterHubHTTPClient.loop_instance().close()
    assert pool.ledger().verify() == []
    pool.ledger().close_database()


# --- who may ask -------------------------------------------------------------------------------------------


READS = ["availability", "pool", "leases", "queue", "stream"]


@pytest.mark.parametrize("path", [*READS, "events", "leases/abc", "nothing"])
async def test_nobody_gets_403_as_json_and_no_redirect(site: Web, path: str) -> None:
    assert "log" in (await site.refused(403, "GET", f"api/{path}")).lower()


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_nobody_changes_anything(site: Web, method: str) -> None:
    lease = site.active("ada")
    path = f"api/leases/{lease.id}" + ("/extend" if method == "POST" else "")
    await site.refused(403, method, path)
    assert site.ledger.lease(lease.id) == lease


async def test_every_route_but_the_open_ones_wants_a_login(site: Web) -> None:
    for method in ("GET", "POST", "DELETE"):
        for path in (
            "",
            "events",
            "leases",
            "leases/abc",
            "leases/abc/extend",
            "leases/abc/release",
            "api/leases/abc",
            "api/pool",
        ):
            answer = await site.ask(method, path)
            assert answer.code in (302, 403, 405), (method, path)
            assert b"GPU-a" not in answer.body


async def test_pages_send_readers_to_the_hubs_login(site: Web) -> None:
    answer = await site.ask("GET", "")
    assert (answer.code, answer.headers["Location"].startswith("/hub/api/oauth2/authorize?")) == (302, True)


async def test_a_token_in_the_address_is_refused(site: Web) -> None:
    await site.refused(403, "GET", "api/leases?token=ada")


async def test_a_token_without_the_scope_is_refused_by_its_name(site: Web) -> None:
    assert SCOPE in await site.refused(403, "GET", "api/pool", "stranger")


async def test_a_hub_that_errs_is_not_the_callers_fault(site: Web, hub: type[FakeHub]) -> None:
    hub.broken = True
    answer = await site.ask("GET", "api/pool", "ada")
    assert (answer.code, json.loads(answer.body)["reason"]) == (503, "hub")
    assert int(answer.headers["Retry-After"]) > 0


async def test_health_is_for_anyone_and_says_why_not(site: Web) -> None:
    assert (await site.json("GET", "health"))[0] == 200
    site.health = (False, "the last whole sweep was 99 s ago")
    assert "99 s" in await site.refused(503, "GET", "health")


# --- what they get -----------------------------------------------------------------------------------------


async def test_reads_have_the_promised_shapes(site: Web) -> None:
    mine, other = site.active("ada"), site.active("bob")
    waiting = [site.lease("ada", f"s{n}", "1") for n in range(2)]
    _, pool = await site.json("GET", "api/pool", "ada")
    assert {"devices", "gpus"} <= set(pool) and pool["gpus"]["total"] == 2
    promised = {
        "id",
        "node",
        "index",
        "model",
        "memory_mib",
        "health",
        "mode",
        "utilization",
        "memory_used_mib",
    }
    assert promised | {"drained", "slices"} <= set(pool["devices"][0])
    assert {"id", "kind", "memory_mib", "compute", "lease", "user"} <= set(pool["devices"][0]["slices"][0])
    _, leases = await site.json("GET", "api/leases", "ada")
    listed = {lease["id"]: lease for lease in leases["leases"]}
    assert mine.id in listed and other.id not in listed
    assert {"id", "user", "server", "profile", "state", "kind", "devices", "gpus", "memory_mib",
            "compute", "enforcement", "requested_at", "granted_at", "active_at", "closed_at", "place", "wait",
            "idle_seconds", "deadline_seconds", "extendable_seconds", "verdict", "utilization", "doubt",
            "reason"} <= set(listed[mine.id])  # fmt: skip
    _, queue = await site.json("GET", "api/queue", "bob")
    assert [(item["lease"], item["place"], item["user"]) for item in queue["queue"]] == [
        (lease.id, place, None) for place, lease in enumerate(waiting[1:], 1)
    ]
    _, offer = await site.json("GET", "api/availability", "bob")
    first, second = offer["profiles"]
    assert (first["slug"], first["allowed"], first["queued"], first["wait"]) == ("quarter", True, 1, None)
    assert (second["allowed"], bool(second["reason"])) == (False, True)
    assert (await site.json("GET", "api/availability", "ada"))[1]["profiles"][1]["allowed"] is True


async def test_an_admin_sees_names_and_others_do_not(site: Web) -> None:
    site.active("ada")
    for path in ("api/pool", "api/queue", "api/leases"):
        assert "ada" not in json.dumps((await site.json("GET", path, "bob"))[1]), path
    assert [item["user"] for item in (await site.json("GET", "api/leases", "root"))[1]["leases"]] == ["ada"]


async def test_closed_leases_come_by_pages_each_once(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "PAGE", 2)
    wanted = []
    for n in range(5):
        lease = site.active("ada", f"s{n}")
        site.ledger.begin_stop(lease.id, actor="ada", reason="x")
        wanted.append(site.ledger.close(lease.id, actor="hub").id)
    found, path = [], "api/leases?state=closed"
    for _ in range(10):
        _, page = await site.json("GET", path, "ada")
        found += [lease["id"] for lease in page["leases"]]
        if page["next"] is None:
            break
        path = f"api/leases?state=closed&before={page['next']}"
    assert found == wanted[::-1]
    assert (await site.json("GET", "api/leases?state=closed", "bob"))[1]["leases"] == []


async def test_the_audit_trail_is_for_admins_and_goes_on(site: Web) -> None:
    lease = site.active("ada")
    await site.refused(403, "GET", "api/events", "ada")
    _, first = await site.json("GET", "api/events", "root")
    assert ("queued", "starting") in {(event["from"], event["to"]) for event in first["events"]}
    _, rest = await site.json("GET", f"api/events?after={first['next']}", "root")
    assert rest == {"events": [], "next": first["next"]}
    site.ledger.extend(lease.id, "ada")
    _, rest = await site.json("GET", f"api/events?after={first['next']}", "root")
    assert [(event["action"], event["actor"]) for event in rest["events"]] == [("extend", "ada")]


# --- what they may do --------------------------------------------------------------------------------------


async def test_extend_up_to_the_cap_and_not_past_it(site: Web) -> None:
    lease = site.active("ada")
    site.warn(lease)
    _, warned = await site.json("GET", f"api/leases/{lease.id}", "ada")
    assert (warned["deadline_seconds"], warned["verdict"]["decision"]) == (25, "warn")
    code, shape = await site.json("POST", f"api/leases/{lease.id}/extend", "ada", body=b"{}")
    assert (code, shape["extended_seconds"], shape["extendable_seconds"]) == (200, 60, 30)
    assert shape["deadline_seconds"] is None
    assert (await site.json("POST", f"api/leases/{lease.id}/extend", "root"))[1]["extendable_seconds"] == 0
    assert "90 s" in await site.refused(409, "POST", f"api/leases/{lease.id}/extend", "ada")


async def test_no_extension_after_the_stop(site: Web) -> None:
    lease = site.active("ada")
    site.ledger.begin_stop(lease.id, actor="ada", reason="x")
    assert "stopping" in await site.refused(409, "POST", f"api/leases/{lease.id}/extend", "ada")


async def test_release_stops_a_session_and_leaves_the_queue(site: Web) -> None:
    lease = site.active("ada")
    code, shape = await site.json("DELETE", f"api/leases/{lease.id}", "ada")
    assert (code, shape["state"], shape["reason"]) == (202, "stopping", "released")
    site.active("ada", "s1", "1")
    waiting = site.lease("bob", fraction="1")
    assert waiting.state is State.QUEUED
    code, shape = await site.json("DELETE", f"api/leases/{waiting.id}", "root")
    assert (code, shape["state"]) == (200, "closed")
    await site.refused(409, "DELETE", f"api/leases/{waiting.id}", "bob")
    assert any(event.actor == "root" for event in site.ledger.events())


VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.mark.parametrize("method", VERBS)
@pytest.mark.parametrize("user", ["bob", "ada-service"])
async def test_somebody_elses_lease_is_an_unknown_one(site: Web, method: str, user: str) -> None:
    lease = site.active("ada")
    for tail in ("", "/extend"):
        answers = [await site.ask(method, f"api/leases/{key}{tail}", user) for key in (lease.id, "0" * 32)]
        (found, foreign), (missing, unknown) = ((answer.code, answer.body) for answer in answers)
        assert found == missing == 404
        assert foreign == unknown
    assert site.ledger.lease(lease.id) == lease


async def test_a_new_user_with_an_old_name_owns_nothing_of_the_old_one(site: Web) -> None:
    lease = site.active("ada")
    site.ledger.enqueue("hub", Request(Owner("ada", 99, 2000.0), "", "quarter", Wish(), Terms()))
    await site.refused(404, "DELETE", f"api/leases/{lease.id}", "ada")


@pytest.mark.parametrize(
    "key",
    ["..", "%2e%2e", "..%2f..%2fpool", "a%2fb", "%00", "%ff%fe", "ä".encode().hex(), "%C3%A4", "%F0%9F%92%A9",
     "'", "%27%20OR%201=1", "x" * 10_000, "a" * 65, "-", "a b".replace(" ", "%20"), "", "../pool", "a/b/c"],
)  # fmt: skip
async def test_hostile_ids_are_unknown_ids(site: Web, key: str) -> None:
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/extend")):
        await site.refused(404, method, f"api/leases/{key}{tail}", "root")


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"extend", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "no object"),
        (b"null", "no object"),
        (b"5", "no object"),
        (b'{"seconds": 5}', "'seconds'"),
        (b'{"a": 1, "a": 2}', "more than once"),
        (b'{"a": NaN}', "NaN"),
        (b"[" * 1000 + b"]" * 1000, "nested"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, ""),
        (b" " * (64 * 1024 + 1), "65536"),
        (b"x" * 10_000_000, "65536"),
    ],
    ids=lambda value: ascii(value)[:20],
)
async def test_bad_bodies_get_a_sentence_and_change_nothing(site: Web, body: bytes, says: str) -> None:
    lease = site.active("ada")
    for method, path in (("POST", f"api/leases/{lease.id}/extend"), ("DELETE", f"api/leases/{lease.id}")):
        assert says in await site.refused(400, method, path, "ada", body=body)
        assert await site.refused(404, method, path, "bob", body=body)
        assert await site.refused(403, method, path, body=body)
    assert site.ledger.lease(lease.id) == lease


async def test_a_chunked_body_that_is_too_long_gets_the_same_sentence(site: Web) -> None:
    lease = site.active("ada")

    async def produce(write: Any) -> None:
        for _ in range(40):
            await write(b" " * 4096)

    request = HTTPRequest(
        f"http://127.0.0.1:{site.port}{PREFIX}api/leases/{lease.id}/extend", method="POST",
        body_producer=produce, headers={"Authorization": "token ada"},
    )  # fmt: skip
    answer = await site.client.fetch(request, raise_error=False)
    assert (answer.code, json.loads(answer.body)["reason"]) == (400, "body-too-long")


@pytest.mark.parametrize(
    "query",
    ["after=NaN", "after=-1", "after=1e99", f"after={'9' * 400}", "after=", "after=%20", "after=1&after=2",
     "after=%D9%A3", "after=%ff", "aft=1", "after=1.0"],
)  # fmt: skip
async def test_bad_numbers_of_events_get_a_sentence(site: Web, query: str) -> None:
    assert await site.refused(400, "GET", f"api/events?{query}", "root")


@pytest.mark.parametrize(
    "query",
    ["state=dead", "state=", "before=1", "state=closed&before=nan", "state=closed&before=-1",
     "state=closed&before=1e9", f"state=closed&before={'9' * 50}", "state=closed&before=inf",
     "state=open&state=open", "user=bob"],
)  # fmt: skip
async def test_bad_parameters_of_leases_get_a_sentence(site: Web, query: str) -> None:
    assert await site.refused(400, "GET", f"api/leases?{query}", "ada")


@pytest.mark.parametrize("path", ["pool", "availability", "queue", "leases", "events", "stream"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
async def test_wrong_methods_are_named_as_json(site: Web, method: str, path: str) -> None:
    assert method in await site.refused(405, method, f"api/{path}", "root")


async def test_wrong_methods_on_a_lease_of_ones_own(site: Web) -> None:
    lease = site.active("ada")
    answer = await site.ask("PUT", f"api/leases/{lease.id}", "ada")
    assert (answer.code, answer.headers["Allow"]) == (405, "GET, DELETE")


@pytest.mark.parametrize(
    "path", ["api/", "api/nothing", "api/pool/", "api/leases/a/b", "api/%00", "api/../api"]
)
async def test_unknown_addresses_below_api_are_404_as_json(site: Web, path: str) -> None:
    for method in VERBS[2:]:
        await site.refused(404, method, path, "ada")


async def test_a_ledger_that_does_not_answer_is_a_503_with_its_sentence(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked() -> None:
        raise Unavailable("The pool's ledger is locked by another program.", reason="ledger")

    await site.feed.stop()
    monkeypatch.setattr(site.ledger, "snapshot", locked)
    site.feed.expire()
    for path in ("api/pool", "api/leases", "api/queue", "api/availability"):
        answer = await site.ask("GET", path, "ada")
        assert (answer.code, json.loads(answer.body)["reason"]) == (503, "ledger")
        assert "Retry-After" in answer.headers
    page = await site.ask("GET", "", "ada")
    assert page.code == 503 and b"locked by another program" in page.body


# --- cookies and forms -------------------------------------------------------------------------------------


async def test_a_cookie_alone_changes_nothing(site: Web) -> None:
    lease = site.active("ada")
    site.warn(lease)
    headers, token, _ = await site.browser("ada")
    before = site.ledger.lease(lease.id)  # the page has told of the warning
    for method, path in (("POST", f"api/leases/{lease.id}/extend"), ("DELETE", f"api/leases/{lease.id}")):
        await site.refused(403, method, path, **headers)
        await site.refused(403, method, path, X_XSRFToken="wrong", **headers)
        await site.refused(403, method, path, X_XSRFToken=token, Cookie=site.cookie("bob"))
    for action in ("extend", "release"):
        for body in (b"", b"_xsrf=wrong", b"\xff", b"_xsrf=" + b"x" * 100_000):
            answer = await site.ask("POST", f"leases/{lease.id}/{action}", body=body, **headers)
            assert answer.code in (400, 403), body[:20]
    assert site.ledger.lease(lease.id) == before
    code, _ = await site.json("POST", f"api/leases/{lease.id}/extend", X_XSRFToken=token, **headers)
    assert code == 200


async def test_the_pages_fetches_need_the_token_also_to_read(site: Web) -> None:
    headers, token, _ = await site.browser("ada")
    cors = {"Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "same-origin", **headers}
    await site.refused(403, "GET", "api/pool", **cors)
    assert (await site.json("GET", "api/pool", X_XSRFToken=token, **cors))[0] == 200
    assert (await site.json("GET", f"api/pool?_xsrf={token}", **cors))[0] == 200


async def test_the_forms_of_the_page_work_without_script(site: Web) -> None:
    lease = site.active("ada")
    site.warn(lease)
    headers, token, page = await site.browser("ada")
    actions = re.findall(r'<form method="post" action="([^"]+)"', page)
    assert actions[:2] == [f"{PREFIX}leases/{lease.id}/{act}" for act in ("extend", "release")]
    assert f'name="_xsrf" value="{token}"' in page
    for action, seen in zip(actions, ("extended", "released"), strict=False):
        answer = await site.ask("POST", action.removeprefix(PREFIX), body=f"_xsrf={token}", **headers)
        assert (answer.code, answer.headers["Location"]) == (303, PREFIX), answer.body
        now = site.ledger.lease(lease.id)
        assert now is not None and seen in f"{now.verdict_reason} {now.reason}"
    answer = await site.ask("POST", f"leases/{lease.id}/extend", body=f"_xsrf={token}", **headers)
    assert answer.code == 409 and b"only an active one can be extended" in answer.body


async def test_the_forms_of_somebody_else_are_404(site: Web) -> None:
    lease = site.active("ada")
    headers, token, _ = await site.browser("bob")
    for action in ("extend", "release"):
        answer = await site.ask("POST", f"leases/{lease.id}/{action}", body=f"_xsrf={token}", **headers)
        assert answer.code == 404


# --- pages -------------------------------------------------------------------------------------------------


async def test_the_status_page_says_all_that_a_warned_person_must_know(site: Web) -> None:
    site.warn(site.active("ada"))
    site.ledger.swept(0.1, "reclaim")
    site.active("bob", fraction="1")
    site.lease("bob", "later", "1")
    page = unescape((await site.browser("ada"))[2])
    shown = page.partition("<template")[0]
    assert re.search(r"will be stopped\s*<span[^>]*> in\s*<strong[^>]*>25 s</strong>", shown), "told by this page"
    for text in ("idle for 60 s", "files outside the home folder",
                 "Kept: files in", "Extend by", "Release now", "A quarter",
                 "simulated GPU", "nothing: the GPU is simulated", "unknown",
                 'aria-live="polite"', "30 of 120 cells"):  # fmt: skip
        assert text in shown, text
    assert "bob" not in page
    assert page.index("Your sessions") < page.index(">GPUs<") < page.index(">Queue<")


@pytest.mark.parametrize(("mode", "stops"), [("reclaim", True), ("warn", False)])
async def test_a_warning_threatens_with_a_stop_only_where_there_is_one(
    site: Web, mode: str, stops: bool
) -> None:
    site.warn(site.active("ada"))
    site.ledger.swept(0.1, mode)
    shown = (await site.browser("ada"))[2].partition("<template")[0]
    assert ('data-show="stops">' in shown, 'data-show="stays">' in shown) == (stops, not stops)


async def test_at_the_cap_the_button_is_off_and_says_why(site: Web) -> None:
    lease = site.active("ada")
    for _ in range(2):
        site.ledger.extend(lease.id, "ada")
    shown = (await site.browser("ada"))[2].partition("<template")[0]
    assert re.search(rf'aria-describedby="cap-{lease.id}" disabled>\s*Extend', shown)
    assert "extended as far as its profile allows" in shown


async def test_an_admin_has_names_controls_and_the_audit_trail(site: Web) -> None:
    lease = site.active("ada")
    shown = (await site.browser("root"))[2].partition("<template")[0]
    assert f"leases/{lease.id}/release" in shown and "ada" in shown and f'href="{PREFIX}events"' in shown
    page = await site.ask("GET", "events", "root")
    assert page.code == 200 and b"starting" in page.body
    assert (await site.ask("GET", "events", "ada")).code == 403
    assert (await site.ask("GET", "events?after=x", "root")).code == 400


async def test_names_are_text_and_never_markup(site: Web) -> None:
    site.active(EVIL)
    for user in (EVIL, "root"):
        for path in ("", "events"):
            answer = await site.ask("GET", path, user)
            assert b"<script>alert" not in answer.body
    assert EVIL in unescape((await site.ask("GET", "", "root")).body.decode())


async def test_pages_need_no_inline_script_or_style(site: Web) -> None:
    site.warn(site.active("ada"))
    answer = await site.ask("GET", "", "ada")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    page = answer.body.decode()
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script(?![^>]*src=)|javascript:", page)
    for source in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert source.startswith(("/", "#")), source


async def test_the_page_has_landmarks_labels_and_unique_ids(site: Web) -> None:
    site.warn(site.active("ada"))
    page = (await site.browser("ada"))[2]
    assert all(f"<{tag}" in page for tag in ("header", "nav", "main", "footer", "h1", "caption"))
    shown = re.sub(r"<template.*?</template>", "", page, flags=re.DOTALL)
    ids = re.findall(r'\sid="([^"]+)"', shown)
    assert sorted(set(ids)) == sorted(ids)
    for target in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', shown):
        assert target in ids
    assert all("aria-label" in meter for meter in re.findall(r"<meter[^>]*>", page, re.DOTALL))


IMAGE = "registry.example/tensorflow@sha256:" + "a1" * 32
LOG = f"epoch 1\nloss 0.5 {EVIL}\nGET /lab?token=0123456789abcdef"


def checked(site: Web, user: str = "ada", passed: bool | None = True, **report: Any) -> Lease:
    """A lease with an image and a launch check."""
    lease = site.active(user)
    site.ledger.record_check(
        lease.id, IMAGE, {"tensorflow": "2.21.0", "visible": ["GPU-a"], **report}, passed
    )
    return lease


def closed(site: Web, lease: Lease, log: str = LOG) -> Lease:
    site.ledger.begin_stop(lease.id, actor="ada", reason="released")
    site.ledger.keep_log(lease.id, log)
    return site.ledger.close(lease.id, actor="hub")


async def test_a_lease_says_what_it_runs_and_how_its_check_went(site: Web) -> None:
    lease = checked(site)
    _, shape = await site.json("GET", f"api/leases/{lease.id}", "ada")
    assert (shape["image"], shape["log"]) == (IMAGE, None)
    assert shape["checked"]["passed"] is True and shape["checked"]["report"]["tensorflow"] == "2.21.0"
    assert (shape["check_words"]["outcome"], shape["check_words"]["at"]) == (
        "passed on",
        shape["checked"]["at"],
    )
    (listed,) = (await site.json("GET", "api/leases", "ada"))[1]["leases"]
    more = {"log", "deliveries", "saved", "script", "again"}
    assert listed == {name: value for name, value in shape.items() if name not in more}


async def test_the_log_of_a_lease_is_for_its_owner_and_admins(site: Web) -> None:
    lease = closed(site, checked(site))
    for user in ("ada", "root"):
        _, shape = await site.json("GET", f"api/leases/{lease.id}", user)
        assert shape["log"] == LOG.replace("0123456789abcdef", "…")
    for path in (f"api/leases/{lease.id}", f"leases/{lease.id}"):
        for user in ("bob", "ada-service"):
            answer = await site.ask("GET", path, user)
            assert answer.code == 404 and b"epoch" not in answer.body
        answer = await site.ask("GET", path)
        assert answer.code in (302, 403) and b"epoch" not in answer.body


@pytest.mark.parametrize(
    ("passed", "report", "says"),
    [
        (True, {}, ("passed on", "; TensorFlow 2.21.0; sees GPU-a")),
        (False, {"problems": ["No CUDA."]}, ("failed on", ": No CUDA.")),
        (None, {"problems": ["It has no check."]}, ("not checked:", " It has no check.")),
    ],
)
async def test_cards_and_the_sessions_page_say_how_the_check_went(
    site: Web, passed: bool | None, report: dict[str, Any], says: tuple[str, str]
) -> None:
    lease = checked(site, passed=passed, **report)
    card = (await site.browser("ada"))[2].partition("<template")[0]
    assert (
        f'<code data-field="image" title="{IMAGE}">registry.example/tensorflow@sha256:a1a1a1a1a1a1…</code>'
        in card
    )
    assert f'href="{PREFIX}leases/{lease.id}">Details</a>' in card
    page = (await site.ask("GET", f"leases/{lease.id}", "ada")).body.decode()
    assert f"<code>{IMAGE}</code>" in page
    for text in (card, page):
        outcome, facts = (
            re.search(rf'data-field="check-{part}">([^<]*)<', text) for part in ("outcome", "facts")
        )
        assert outcome and facts and (outcome[1], facts[1]) == says
        at = re.search(r'data-field="check-at" datetime="([^"]*)"( hidden)?>([^<]*)<', text)
        assert at and (bool(at[1]), at[2], at[3][-3:]) == (
            (True, None, "UTC") if passed is not None else (False, " hidden", "")
        )


async def test_a_session_without_an_image_says_nothing_of_a_check(site: Web) -> None:
    site.active("ada")
    card = (await site.browser("ada"))[2].partition("<template")[0]
    for name in ("image", "check"):
        assert re.search(rf'data-show="{name}" hidden>', card), name


async def test_a_closed_session_shows_the_end_of_its_log_as_text(site: Web) -> None:
    lease = closed(site, checked(site))
    answer = await site.ask("GET", f"leases/{lease.id}", "ada")
    page = answer.body.decode()
    assert EVIL not in page and EVIL in unescape(page) and "0123456789abcdef" not in page
    assert "<script>alert" not in page and "unsafe" not in answer.headers["Content-Security-Policy"]
    assert '<h2 id="log-heading">End of the log</h2>' in page
    pre = re.search(r"<pre ([^>]*)>(.*?)</pre>", page, re.DOTALL)
    assert pre is not None and pre[2].startswith("epoch 1\nloss") and 'tabindex="0"' in pre[1]
    assert 'role="region"' in pre[1] and 'aria-labelledby="log-heading"' in pre[1]
    assert all(word in page for word in ("A quarter", "closed", "released", "Began", "Ended"))
    bare = closed(site, site.active("ada"), "")
    page = (await site.ask("GET", f"leases/{bare.id}", "ada")).body.decode()
    assert "No log of this session was kept" in page and "<pre" not in page


async def test_the_pages_of_ended_sessions_list_each_once_and_only_ones_own(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ENDED", 2)
    assert b"No session has ended yet" in (await site.ask("GET", "leases", "ada")).body
    wanted = [closed(site, site.active("ada", f"s{n}")).id for n in range(5)]
    closed(site, site.active("bob"))
    found, path = [], "leases"
    while path:
        page = (await site.ask("GET", path, "ada")).body.decode()
        assert "bob" not in page
        found += re.findall(rf'href="{PREFIX}leases/([0-9a-f]+)"', page)
        older = re.search(rf'href="{PREFIX}(leases\?before=[^"]+)"', page)
        path = older[1] if older else ""
    assert found == wanted[::-1]
    assert b"bob" in (await site.ask("GET", "leases", "root")).body
    assert (await site.ask("GET", "leases", "ada-service")).code == 200
    assert (await site.ask("GET", "leases?before=x", "ada")).code == 400
    assert f'href="{PREFIX}leases"' in (await site.browser("ada"))[2]


async def test_events_lead_to_their_session(site: Web) -> None:
    lease = checked(site)
    page = (await site.ask("GET", "events", "root")).body.decode()
    assert f'<a href="{PREFIX}leases/{lease.id}"><code>{lease.id}</code></a>' in page


async def test_a_device_shows_its_driver_its_suspicion_and_who_else_is_on_it(site: Web) -> None:
    checked(site, "bob")
    site.ledger.note_foreign({"GPU-b": f"The container {EVIL} uses it."})
    other = site.active("ada", fraction="1")
    assert site.ledger.snapshot().devices[1].id == other.slices[0].device == "GPU-b"
    assert site.ledger.record_check(other.id, IMAGE, {"problems": ["bad luck"]}, passed=False)
    for user in ("bob", "root"):
        page = (await site.browser(user))[2]
        shown = unescape(page).partition("<template")[0]
        assert "simulated-driver" in shown and "suspect: a launch check failed here" in shown
        assert (
            "Containers that are not the pool's" in shown
            if user == "bob"
            else f"The container {EVIL}" in shown
        )
        assert ("bad luck" in shown) is (user == "root"), "what a session says is for those who may see it"
        assert "<script>alert" not in page
    _, pool = await site.json("GET", "api/pool", "bob")
    assert [device["driver"] for device in pool["devices"]] == ["simulated-driver"] * 2
    assert [device["health"] for device in pool["devices"]] == ["ok", "suspect"]


async def test_static_files_are_served_and_nothing_beside_them(site: Web) -> None:
    for name in ("gpupool.js", "gpupool.css"):
        answer = await site.ask("GET", f"static/{name}")
        assert (answer.code, answer.headers["X-Content-Type-Options"]) == (200, "nosniff")
    for name in ("../pool.py", "..%2fpool.py", "%2e%2e/pool.py", ""):
        assert (await site.ask("GET", f"static/{name}")).code in (403, 404)


async def test_other_addresses_are_404_pages(site: Web) -> None:
    for path in ("nothing", "leases/x", "%ff", "leases/%2e%2e/extend"):
        assert (await site.ask("GET", path, "ada")).code == 404


# --- stream ------------------------------------------------------------------------------------------------


class Listener:
    """A client of the stream.  It speaks HTTP/1.0, so that what comes is the stream itself, in no chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, site: Web, path: str = "api/stream", **headers: str) -> Listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        headers = {"User-Agent": AGENT} | headers
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([f"GET {PREFIX}{path} HTTP/1.0", *lines, "", ""]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head and b"text/event-stream" in head, head
        return cls(reader, writer)

    async def block(self) -> tuple[str, Any]:
        """What comes next: the name of an event and its data, or a comment."""
        text = (await self.reader.readuntil(b"\n\n")).decode()
        lines = dict(line.partition(": ")[::2] for line in text.splitlines() if line)
        return lines.get("event", "comment" if "" in lines else ""), json.loads(lines.get("data", "null"))

    async def next(self, wanted: str) -> Any:
        """The next event of this name; others are passed over."""
        async with asyncio.timeout(20):
            while True:
                name, data = await self.block()
                if name == wanted:
                    return data

    async def ends(self) -> bool:
        """Whether the service ends the stream."""
        async with asyncio.timeout(20):
            await self.reader.read()
        return self.reader.at_eof()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_the_stream_sends_all_at_once_and_then_changes(site: Web) -> None:
    ada, bob = [await Listener.open(site, Authorization=f"token {user}") for user in ("ada", "bob")]
    assert await ada.next("leases") == {"leases": []}
    assert await ada.next("queue") == {"queue": []}
    assert (await bob.next("pool"))["gpus"]["free"] == 2
    await bob.next("queue")
    lease = site.active("ada")
    assert [item["id"] for item in (await ada.next("leases"))["leases"]] == [lease.id]
    pool = await bob.next("pool")
    assert pool["gpus"]["free"] == 1.75
    assert pool["devices"][0]["slices"][0]["user"] is None
    other = site.active("bob")
    assert [item["id"] for item in (await bob.next("leases"))["leases"]] == [
        other.id
    ]  # nothing of ada's before
    await ada.close()
    await bob.close()


async def test_a_stream_by_cookie_needs_the_token(site: Web) -> None:
    headers, token, _ = await site.browser("ada")
    cors = {"Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "same-origin", **headers}
    await site.refused(403, "GET", "api/stream", **cors)
    listener = await Listener.open(site, f"api/stream?_xsrf={token}", **cors)
    assert await listener.next("leases") == {"leases": []}
    await listener.close()


async def test_a_hundred_watchers_cost_one_read_and_leave_nothing(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    real = site.ledger.snapshot

    def counted() -> Any:
        nonlocal asked
        asked += 1
        return real()

    site.feed.interval = 3600  # from here on, only what is asked for is read
    listeners = [await Listener.open(site, Authorization="token ada") for _ in range(100)]
    for listener in listeners:
        await listener.next("queue")
    monkeypatch.setattr(site.ledger, "snapshot", counted)
    lease = site.active("ada")
    await site.feed.refresh()
    for listener in listeners:
        assert [item["id"] for item in (await listener.next("leases"))["leases"]] == [lease.id]
    assert asked == 1
    for listener in listeners:
        await listener.close()
    async with asyncio.timeout(20):
        while site.feed.watchers:  # noqa: ASYNC110 - what the end of a connection sets off has no event
            await asyncio.sleep(0.01)


async def test_a_quiet_stream_says_that_it_lives_and_ends_in_time(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "KEEP_ALIVE", 0.05)
    listener = await Listener.open(site, Authorization="token ada")
    await listener.next("queue")
    await listener.next("comment")
    await listener.close()
    monkeypatch.setattr(handlers, "STREAM_LIFE", 0.2)
    listener = await Listener.open(site, Authorization="token ada")
    assert await listener.ends()
    await listener.close()


async def test_streams_end_when_the_service_stops(site: Web) -> None:
    listener = await Listener.open(site, Authorization="token ada")
    await listener.next("queue")
    await site.feed.stop()
    assert await listener.ends()
    await listener.close()


async def test_a_stream_tells_that_the_state_is_not_known_and_when_it_is_again(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = await Listener.open(site, Authorization="token ada")
    assert await listener.next("problem") is None

    def locked() -> None:
        raise Unavailable("The pool's ledger is locked by another program.", reason="ledger")

    with monkeypatch.context() as patched:
        patched.setattr(site.ledger, "snapshot", locked)
        problem = await listener.next("problem")
        assert (problem["status"], problem["reason"]) == (503, "ledger")
    assert await listener.next("problem") is None
    await listener.close()


# --- metrics -----------------------------------------------------------------------------------------------


async def test_metrics_have_their_names_and_leave_the_unknown_out(site: Web) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, site.feed)
    mine = site.active("ada")
    for n in range(2):
        site.lease("bob", f"s{n}", "1")
    site.ledger.record([], {"GPU-a": Sample(utilization=37.5)})
    await site.feed.refresh()
    metrics.verdict("keep")
    metrics.reclaim("idle")
    metrics.swept(0.2)
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    gpu = tuple(sorted({"device": "GPU-a", "node": "n1", "model": "A100"}.items()))
    other = tuple(sorted({"device": "GPU-b", "node": "n1", "model": "A100"}.items()))
    assert values["gpupool_device_utilization_percent", gpu] == 37.5
    assert ("gpupool_device_utilization_percent", other) not in values
    assert not any(name == "gpupool_device_memory_used_mib" for name, _ in values)
    assert values["gpupool_device_health", other] == 1
    assert values["gpupool_queue_length", ()] == 1
    assert values["gpupool_verdicts_total", (("verdict", "keep"),)] == 1
    assert values["gpupool_reclaims_total", (("reason", "idle"),)] == 1
    assert values["gpupool_sweep_duration_seconds_count", ()] == 1
    assert values["gpupool_sweep_last_success_timestamp_seconds", ()] > 1e9
    info = [dict(labels) for name, labels in values if name == "gpupool_lease_info"]
    assert {
        "lease": mine.id,
        "user": "ada",
        "profile": "quarter",
        "slice": "GPU-a::0-29",
        "device": "GPU-a",
    } in info


async def test_metrics_say_nothing_of_a_state_that_is_old(site: Web) -> None:
    await site.feed.refresh()
    await site.feed.stop()
    registry = CollectorRegistry()
    Metrics(registry, site.feed)
    assert b"gpupool_device_health{" in generate_latest(registry)
    site.feed._read_at -= 3600
    assert b"gpupool_device_health{" not in generate_latest(registry)


async def test_metrics_have_a_listener_of_their_own(site: Web) -> None:
    metrics = Metrics(CollectorRegistry(), site.feed)
    port = metrics.listen(0, "127.0.0.1")
    answer = await site.client.fetch(f"http://127.0.0.1:{port}/metrics")
    assert b"gpupool_verdicts_total" in answer.body
    assert (await site.ask("GET", "metrics", "root")).code == 404
