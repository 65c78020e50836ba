"""What a hostile or careless person, page, disk or configuration can do to a running hub: nothing, in a sentence."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from jupyterhub_gpupool.ledger.schema import SCHEMA_VERSION
from jupyterhub_gpupool.model import Lease

from .conftest import HubUnderTest, MakeHub, until

SCRIPT = "<script>alert('gpupool')</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
IDLE = {"window": 3600, "warn": 2, "extend": 5, "extend_max": 8, "min_age": 0}
PROFILES = [
    {"slug": "half", "display_name": "Half", "default": True, "gpu": {"memory": "1/2"}, "idle": IDLE},
    {
        "slug": "cpu",
        "display_name": SCRIPT,
        "description": IMAGE,
        "profile_options": {
            "note": {
                "display_name": SCRIPT,
                "choices": {"a": {"display_name": IMAGE}},
                "unlisted_choice": {"enabled": True, "display_name": SCRIPT, "validation_message": IMAGE},
            }
        },
    },
]
SECTIONS = {
    "GPUPool": {"profiles": PROFILES},
    # The demo takes only names that its proxy can route; the pool itself must stand any that the hub takes.
    "Authenticator": {"username_pattern": ""},
    "Spawner": {"consecutive_failure_limit": 3},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUnderTest]:
    """One hub for the tests of this file that leave it as it was."""
    made = HubUnderTest(tmp_path_factory.mktemp("hostile") / "state", sections=SECTIONS)
    try:
        made.start()
        yield made
        broken = made.ledger().verify()
        assert made.alive(), made.tail()
    finally:
        made.clean()
    assert broken == []


def enter(hub: HubUnderTest, user: str) -> requests.Session:
    """A browser that is logged in to the hub and has looked at the pool's page."""
    browser = hub.browser_session(user)
    assert browser.get(f"{hub.url}/services/gpupool/", timeout=20).status_code == 200
    return browser


def end(hub: HubUnderTest, user: str) -> None:
    hub.delete(user)
    hub.wait_gone(user)
    until(lambda: (hub.server(user) or {"stopped": True})["stopped"], f"{user}'s server to be stopped")


# --- names -------------------------------------------------------------------------------------------

NAMES = {
    "blank": "eve smith",
    "unicode": "ünïcødé-用户",
    "emoji": "\N{PILE OF POO}",
    "tab": "a\tb",
    "newline": "a\nlease=0 user=root slices=all queued→active",
    "terminal": "x\x1b[31m\x07",
    "right-to-left": "a\u202eb",
    "dots": "a..b",
    "slash": "a%2fb",
    "parent": "%2e%2e%2f%2e%2e%2fetc",
    "markup": IMAGE,
    "sql": "'; drop table leases; --",
    "shell": "$(touch pwned)`id`",
    "format": "{0}{user.__class__}%(x)s%s",
    "option": "--rf",
    "long": "x" * 255,
    "longer": "x" * 300,
    "longest": "x" * 1000,
}
"""Names that the hub takes."""

NOT_NAMES = ["..", ".", "%2e%2e", "../../etc/passwd", "/etc", " blank", "blank ", ""]
"""Names that the hub itself refuses."""


@pytest.fixture(scope="module")
def crowd(hub: HubUnderTest) -> dict[str, Lease]:
    """A running session for each of the names."""

    def start(name: str) -> Lease:
        assert hub.api("POST", f"users/{quote(name, safe='')}").status_code == 201
        answer = hub.spawn(name, "cpu")
        assert answer.status_code in (201, 202), answer.text
        hub.wait_ready(name, seconds=90)
        return hub.wait_state(name, "active")

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(NAMES, pool.map(start, NAMES.values()), strict=True))


@pytest.mark.parametrize("kind", NAMES)
def test_a_session_of_any_name_has_a_home_of_its_own(
    hub: HubUnderTest, crowd: dict[str, Lease], kind: str
) -> None:
    lease, homes = crowd[kind], hub.state / "homes"
    assert lease.user == NAMES[kind]
    (process,) = hub.sessions(lease.id)
    assert process.environ()["JUPYTERHUB_USER"] == NAMES[kind]
    home = Path(process.environ()["HOME"])
    assert home.parent == homes
    assert home.is_dir()
    assert Path(process.cwd()) == home
    assert re.fullmatch(r"[a-z0-9_-]{1,32}-[0-9a-f]{12}", home.name)
    assert not list(home.iterdir())  # nothing that a shell would have made
    assert requests.get(lease.url, timeout=20).text == f"{lease.id} void"


def test_nobody_shares_a_home_and_nothing_lies_beside_them(
    hub: HubUnderTest, crowd: dict[str, Lease]
) -> None:
    mine = {lease.id for lease in crowd.values()}
    homes = [env["HOME"] for p in hub.sessions() if (env := p.environ())["GPUPOOL_LEASE"] in mine]
    assert len(set(homes)) == len(homes) == len(crowd)
    assert {Path(home) for home in homes} == set((hub.state / "homes").iterdir())
    outside = [path.name for path in hub.state.parent.iterdir()]
    assert sorted(outside) == ["state", "state.log"]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_names_that_the_hub_refuses(hub: HubUnderTest, name: str) -> None:
    answer = hub.api("POST", "users", json={"usernames": [name]})
    assert answer.status_code == 400, answer.text
    assert name not in [user["name"] for user in hub.api("GET", "users").json()]


def test_a_name_that_no_process_can_be_given(hub: HubUnderTest) -> None:
    name = "a\0b"
    assert hub.api("POST", "users", json={"usernames": [name]}).status_code == 201
    for _ in range(4):
        answer = hub.api("POST", f"{hub.server_path(name)}", json={"profile": "cpu"})
        assert answer.status_code == 400
        assert "'a\\x00b' has a NUL character" in answer.json()["message"]
    assert [event for event in hub.ledger().events(count=10_000) if event.user == name] == []
    assert hub.alive()


@pytest.mark.parametrize("server", ["..", "a/b", "%2e%2e", "x" * 300, "a\nb", "<script>", "A B"])
def test_server_names_that_the_hub_refuses(hub: HubUnderTest, server: str) -> None:
    answer = hub.spawn("ada", "cpu", server)
    assert answer.status_code in (400, 404, 405), answer.text
    assert hub.lease_of("ada", server) is None


@pytest.mark.parametrize("path", ["", "events"])
def test_pages_show_names_as_text(hub: HubUnderTest, crowd: dict[str, Lease], path: str) -> None:
    page = enter(hub, "admin").get(f"{hub.url}/services/gpupool/{path}", timeout=20)
    assert page.status_code == 200
    assert "&lt;img src=x onerror" in page.text or "&#34;&gt;&lt;img" in page.text
    assert "<img src=x" not in page.text
    assert SCRIPT not in page.text
    assert "'unsafe-inline'" not in page.headers["Content-Security-Policy"]
    tags = re.findall(r"<script[^>]*>", page.text)
    assert all(" src=" in tag for tag in tags)


def test_the_form_shows_names_as_text(hub: HubUnderTest) -> None:
    page = hub.browser_session("linus").get(f"{hub.url}/hub/spawn", timeout=20).text
    assert "&lt;script&gt;alert(" in page
    assert SCRIPT not in page
    assert "<img src=x" not in page


def test_a_transition_is_one_line_of_the_log_with_nothing_to_run(
    hub: HubUnderTest, crowd: dict[str, Lease]
) -> None:
    # A name that the hub itself logs raw only ever continues a line, indented: none of those begins with "[".
    lines = [
        line
        for line in hub.log.read_text(errors="replace").split("\n")
        if line.startswith("[") and " lease=" in line
    ]
    for lease in crowd.values():
        mine = [line for line in lines if f" lease={lease.id} " in line]
        assert [re.findall(r"\w+→\w+(?= reason=)", line) for line in mine] == [
            ["none→queued"],
            ["queued→starting"],
            ["starting→active"],
        ]
    for line in lines:
        assert re.sub("→", "", line).isascii()
        assert line.isprintable()
        shape = r"lease=[0-9a-f]{32} user=\S+ slices=\S+ \w+→\w+ reason=.*"
        assert "user=" not in line or re.search(shape, line), line
    assert not any(" user=root" in line for line in lines)


def test_metrics_and_rest_carry_names_whole(hub: HubUnderTest, crowd: dict[str, Lease]) -> None:
    listed = hub.pool("GET", "api/leases", hub.token_of("admin")).json()["leases"]
    assert {lease["user"] for lease in listed} >= set(NAMES.values())


# --- bodies ------------------------------------------------------------------------------------------

DEEP = "[" * 1000 + "]" * 1000
BODIES = {
    "not-json": b"profile=half",
    "half": b'{"profile": "ha',
    "list": b'["half"]',
    "text": b'"half"',
    "binary": bytes(range(128, 256)),
    "deep": DEEP.encode(),
    "deep-object": b'{"profile":' * 1000 + b"1" + b"}" * 1000,
    "very-deep": b"[" * 200_000,
    "10-mb": b'{"profile": "' + b"x" * 10_000_000 + b'"}',
    "10-mb-of-nothing": b" " * 10_000_000 + b"[]",
    "deep-options": b'{"user_options": {"profile": ' + DEEP.encode() + b"}}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_to_the_hub(hub: HubUnderTest, body: bytes) -> None:
    before = [event for event in hub.ledger().events(count=10_000) if event.lease]
    answer = hub.api("POST", hub.server_path("grace"), data=body)
    assert answer.status_code == 400
    assert 10 < len(answer.json()["message"]) < 500
    assert [event for event in hub.ledger().events(count=10_000) if event.lease] == before
    assert hub.lease_of("grace") is None
    assert hub.alive()


@pytest.fixture(scope="module")
def alan(hub: HubUnderTest) -> Lease:
    """A session on which requests to the service are tried."""
    return hub.run("alan", "half")


SERVICE_BODIES = BODIES | {
    "unknown-key": b'{"seconds": 5}',
    "twice": b'{"a": 1, "a": 2}',
    "number": b"NaN",
    "nan": b'{"seconds": NaN}',
    "null-byte": b"\0",
}


@pytest.mark.parametrize("body", SERVICE_BODIES.values(), ids=SERVICE_BODIES)
@pytest.mark.parametrize(("method", "end"), [("POST", "/extend"), ("DELETE", "")])
def test_bodies_to_the_service(hub: HubUnderTest, alan: Lease, method: str, end: str, body: bytes) -> None:
    before = hub.ledger().lease(alan.id)
    answer = hub.pool(method, f"api/leases/{alan.id}{end}", hub.token_of("alan"), data=body)
    assert answer.status_code == 400, answer.text[:500]
    said = answer.json()
    assert (said["status"], said["reason"]) in ((400, "bad-request"), (400, "body-too-long"))
    assert re.search("allowed|once|number", said["message"])
    assert len(said["message"]) < 300
    after = hub.ledger().lease(alan.id)
    assert before is not None and after is not None
    assert (after.state, after.extended_seconds) == (before.state, before.extended_seconds)


@pytest.mark.parametrize(
    "query",
    [
        "after=-1",
        "after=1e999",
        "after=NaN",
        "after=" + "9" * 400,
        "after=1&after=2",
        "after=",
        "before=1",
        "after=%ff",
    ],
)
def test_numbers_in_addresses(hub: HubUnderTest, query: str) -> None:
    answer = hub.pool("GET", f"api/events?{query}", hub.token_of("admin"))
    assert answer.status_code == 400
    assert re.search("allowed|UTF-8", answer.json()["message"])


# --- somebody else's lease ---------------------------------------------------------------------------

VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.mark.parametrize("end", ["", "/extend"])
@pytest.mark.parametrize("verb", VERBS)
def test_somebody_elses_lease_is_not_there(hub: HubUnderTest, alan: Lease, verb: str, end: str) -> None:
    token = hub.token_of("ada")
    known = hub.pool(verb, f"api/leases/{alan.id}{end}", token)
    unknown = hub.pool(verb, f"api/leases/{'0' * 32}{end}", token)
    assert known.status_code == unknown.status_code == 404
    assert known.content == unknown.content
    assert alan.id not in known.text
    assert hub.lease_of("alan") is not None


@pytest.mark.parametrize("button", ["extend", "release"])
def test_buttons_for_somebody_elses_lease(hub: HubUnderTest, alan: Lease, button: str) -> None:
    browser = enter(hub, "ada")
    token = browser.cookies.get("_xsrf", path="/services/gpupool/")
    url = f"{hub.url}/services/gpupool/leases/{alan.id}/{button}"
    assert browser.post(url, data={"_xsrf": token}, timeout=20).status_code == 404
    now = hub.wait_state("alan", "active")
    assert now.extended_seconds == 0


# --- pages from elsewhere ----------------------------------------------------------------------------


def test_a_cookie_alone_changes_nothing(hub: HubUnderTest, alan: Lease) -> None:
    browser = enter(hub, "alan")
    base = f"{hub.url}/services/gpupool"
    foreign = enter(hub, "ada").cookies.get("_xsrf", path="/services/gpupool/")
    for token in (None, "", "x", foreign):
        fields = {} if token is None else {"_xsrf": token}
        for path in (f"leases/{alan.id}/extend", f"leases/{alan.id}/release"):
            answer = browser.post(f"{base}/{path}", data=fields, timeout=20)
            assert answer.status_code == 403, answer.text
            assert "does not come from a page of yours" in answer.text
        assert (
            browser.post(f"{base}/api/leases/{alan.id}/extend", params=fields, timeout=20).status_code == 403
        )
        assert browser.delete(f"{base}/api/leases/{alan.id}", params=fields, timeout=20).status_code == 403
    assert hub.wait_state("alan", "active").extended_seconds == 0


def test_a_token_without_the_scope(hub: HubUnderTest, alan: Lease) -> None:
    for user in ("alan", "admin"):
        body = {"note": "narrow", "scopes": [f"read:users!user={user}"]}
        made = hub.api("POST", f"users/{user}/tokens", hub.token_of(user), json=body)
        assert made.status_code == 201, made.text
        token = made.json()["token"]
        for method, path in [
            ("GET", "api/pool"),
            ("GET", "api/events"),
            ("GET", ""),
            ("POST", f"api/leases/{alan.id}/extend"),
            ("DELETE", f"api/leases/{alan.id}"),
        ]:
            answer = hub.pool(method, path, token)
            assert answer.status_code == 403, (method, path)
            assert "access:services!service=gpupool" in answer.text
    assert hub.pool("GET", "api/pool", "0" * 32).status_code == 403
    assert hub.wait_state("alan", "active").extended_seconds == 0


def test_extend_with_the_page_then_past_the_cap_then_after_the_stop(hub: HubUnderTest, alan: Lease) -> None:
    browser, token = enter(hub, "alan"), hub.token_of("alan")
    fields = {"_xsrf": browser.cookies.get("_xsrf", path="/services/gpupool/")}
    url = f"{hub.url}/services/gpupool/leases/{alan.id}/extend"
    for status in (303, 303, 409):
        answer = browser.post(url, data=fields, allow_redirects=False, timeout=20)
        assert answer.status_code == status, answer.text
    assert "most its profile allows" in answer.text
    assert hub.wait_state("alan", "active").extended_seconds == IDLE["extend_max"]
    assert (
        "most its profile allows" in hub.pool("POST", f"api/leases/{alan.id}/extend", token).json()["message"]
    )
    end(hub, "alan")
    for path, method in (("extend", "POST"), ("", "DELETE")):
        answer = hub.pool(method, f"api/leases/{alan.id}/{path}".rstrip("/"), token)
        assert answer.status_code == 409
        assert "closed" in answer.json()["message"]


# --- the ledger --------------------------------------------------------------------------------------


def refused_spawn(hub: HubUnderTest, user: str, says: str) -> None:
    """A start that the ledger makes impossible: its sentence is told, with 503, and nothing is left of it."""
    answer = hub.spawn(user, "whole")
    if answer.status_code == 202:  # the hub does not wait so long with its answer: the progress has it
        with hub.api("GET", f"{hub.server_path(user)}/progress", stream=True) as told:
            steps = [json.loads(line[5:]) for line in told.iter_lines() if line.startswith(b"data:")]
        assert steps[-1]["failed"] is True
        said = steps[-1]["message"]
    else:
        assert answer.status_code == 503, answer.text
        said = answer.json()["message"]
    assert says in said
    until(lambda: (hub.server(user) or {"stopped": True})["stopped"], "the start to have ended")


def works(hub: HubUnderTest, user: str) -> None:
    """A good start, all the way."""
    lease = hub.run(user, "half")
    assert hub.ask_session(user).text.startswith(lease.id)
    end(hub, user)


def test_a_locked_ledger(make_hub: MakeHub) -> None:
    hub = make_hub(sections={"Spawner": {"consecutive_failure_limit": 2}})
    hub.start()
    lease = hub.run("ada", "half")
    answered: list[float] = []
    held = threading.Event()

    def watch() -> None:
        while not held.wait(0.2):
            began = time.monotonic()
            requests.get(f"{hub.url}/hub/api/", timeout=20).raise_for_status()
            answered.append(time.monotonic() - began)

    with closing(sqlite3.connect(hub.state / "ledger.sqlite", isolation_level=None, timeout=20)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            refused_spawn(hub, "linus", "is locked by another program")
            assert hub.ask_session("ada").text.startswith(lease.id)
        finally:
            held.set()
            watcher.join()
            lock.execute("ROLLBACK")
    assert max(answered) < 5  # it is the worker thread that waits for the lock, and not the hub
    assert hub.lease_of("linus") is None
    works(hub, "linus")
    now = hub.ledger().lease(lease.id)
    assert now is not None and now.state == "active"


def test_a_read_only_ledger(make_hub: MakeHub) -> None:
    hub = make_hub(sections={"Spawner": {"consecutive_failure_limit": 2}})
    hub.start()
    hub.stop()
    ledger = hub.state / "ledger.sqlite"
    with closing(sqlite3.connect(ledger)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with ledger.open("r+b") as file:
        file.seek(18)  # the version that writers must know: as read-only as a mode, and for root, too
        known = file.read(1)
        file.seek(18)
        file.write(b"\x63")
    start_unwell(hub)
    for user in ("linus", "grace", "ada"):
        refused_spawn(hub, user, "cannot be written: its file or folder is read-only")
    page = hub.browser_session("linus").get(f"{hub.url}/hub/spawn", timeout=20)
    assert page.status_code == 200
    until(lambda: "read-only" in hub.pool("GET", "health").text, "the service to say why")
    hub.stop()
    with ledger.open("r+b") as file:
        file.seek(18)
        file.write(known)
    hub.start()
    works(hub, "linus")


def test_a_ledger_of_a_newer_version(make_hub: MakeHub) -> None:
    hub = make_hub(
        sections={"Spawner": {"consecutive_failure_limit": 2}, "JupyterHub": {"init_spawners_timeout": 1}}
    )
    hub.start()
    lease = hub.run("ada", "half")
    hub.stop()
    set_schema(hub, 99)
    start_unwell(hub)
    sentence = "was written by a newer version (schema 99"
    until(lambda: sentence in hub.log.read_text(errors="replace"), "the sentence in the log")
    for user in ("linus", "grace", "alan"):
        refused_spawn(hub, user, sentence)
    assert sentence in hub.browser_session("linus").get(f"{hub.url}/hub/spawn", timeout=20).text
    assert sentence in hub.pool("GET", "api/pool").json()["message"]
    assert hub.pool("GET", "health").status_code == 503
    assert requests.get(lease.url, timeout=20).text.startswith(lease.id)
    (session,) = hub.sessions(lease.id)
    assert schema(hub) == 99
    set_schema(hub, SCHEMA_VERSION)
    hub.wait_ready("ada", seconds=60)
    assert hub.wait_state("ada", "active").id == lease.id
    assert [process.pid for process in hub.sessions(lease.id)] == [session.pid]
    works(hub, "linus")


def start_unwell(hub: HubUnderTest) -> None:
    """Start a hub whose service will say that it is not well."""
    hub.start(wait=False)
    until(hub.answers, "the hub to answer", 60)
    health = f"{hub.url}/services/gpupool/health"
    until(
        lambda: requests.get(health, timeout=5).headers.get("Content-Type") == "application/json",
        "the service",
        60,
    )


def set_schema(hub: HubUnderTest, version: int) -> None:
    with closing(sqlite3.connect(hub.state / "ledger.sqlite", timeout=20)) as conn, conn:
        conn.execute("UPDATE pool SET schema_version = ?", (version,))


def schema(hub: HubUnderTest) -> int:
    with closing(sqlite3.connect(hub.state / "ledger.sqlite", timeout=20)) as conn:
        return int(conn.execute("SELECT schema_version FROM pool").fetchone()[0])


# --- configuration -----------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "setting": ({"GPUPool": {"profile": []}}, "c.GPUPool.profile is not a setting. Did you mean 'profiles'?"),
    "profile": (
        {"GPUPool": {"profiles": [{"display_name": "Mine", "gpus": 1}]}},
        "Profile 'Mine' has the unknown key 'gpus'",
    ),
    "limit": (
        {"GPUPool": {"limits": {"user:*": {"session": 1}}}},
        "GPUPool.limits['user:*']: unknown key 'session'",
    ),
    "override": (
        {"GPUPool": {"profiles": [{"display_name": "Mine", "spawner_override": {"imge": "x"}}]}},
        "spawner_override",
    ),
}
"""One of each kind; the others are in the tests of the configuration, without a hub."""


def start_and_end(hub: HubUnderTest) -> str:
    """Start a hub that is to refuse its configuration; returns all that it printed."""
    hub.start(wait=False)
    assert hub.wait_dead(60) == 1
    said = hub.log.read_text()
    assert "Traceback" not in said
    assert not hub.processes("")
    return said


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_configuration_ends_the_hub_with_one_sentence(make_hub: MakeHub, mistake: str) -> None:
    sections, says = MISTAKES[mistake]
    said = start_and_end(make_hub(sections=sections))
    (sentence,) = [line for line in said.splitlines() if line.startswith("gpupool: ")]
    assert says in sentence


def test_a_backend_that_is_not_there_ends_the_demo_with_one_sentence(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    state = {"GPUPOOL_STATE_DIR": str(tmp_path), "GPUPOOL_BACKEND": "slurm"}
    ended = subprocess.run(
        [sys.executable, "-m", "jupyterhub", "-f", str(root / "jupyterhub_config.py")],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", **state},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    said = "gpupool: GPUPOOL_BACKEND='slurm' is no backend of the demo; use auto, docker, local."
    assert ended.stderr.splitlines() == [said]
    assert ended.stdout == ""


def test_the_demo_refuses_names_that_its_proxy_cannot_route(make_hub: MakeHub) -> None:
    hub = make_hub()
    hub.start()
    for name in ("a%2fb", "$(id)", "x`) || PathRegexp(`.", "o'brien", "a;b", "a[b]", "a\nb"):
        assert hub.api("POST", "users", json={"usernames": [name]}).status_code == 400, name
    for name in ("eve smith-ünï~1", "eve.b_c@example.org"):
        lease = hub.run(name, "cpu")
        path = quote(name, safe="@~")
        assert requests.get(f"{hub.url}/user/{path}/", timeout=20).text == f"{lease.id} void"
