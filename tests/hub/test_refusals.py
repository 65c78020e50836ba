"""Every way to ask for a session, times everything that can be asked for: own works, all else is refused in words.

A refusal leaves nothing: no lease, no place in the queue, no event, and no failed start for the hub to count.
The hub of these tests ends itself after three failed starts in a row.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from jupyterhub_gpupool.model import Lease

from .conftest import HubUnderTest, until

USER = "linus"  # of the demo's group students: nothing of the group vision is for him
ALLOWED = "allowed are whole, half, mig, cpu"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUnderTest]:
    """One hub for all tests of this file; each leaves it as it was."""
    sections = {
        "Spawner": {"consecutive_failure_limit": 3},
        # A refusal is the answer itself, also on a machine that is busy with something else.
        "JupyterHub": {"tornado_settings": {"slow_spawn_timeout": 20}},
    }
    made = HubUnderTest(tmp_path_factory.mktemp("refusals") / "state", sections=sections)
    try:
        made.start()
        yield made
        broken = made.ledger().verify()
        assert made.alive(), made.tail()
    finally:
        made.clean()
    assert broken == []


@pytest.fixture(scope="module")
def browser(hub: HubUnderTest) -> requests.Session:
    return hub.browser_session(USER)


@dataclass(frozen=True)
class Wish:
    """Something asked for, and what the answer must be."""

    name: str
    options: dict[str, Any]
    status: int = 400
    says: tuple[str, ...] = ("allowed",)


@dataclass(frozen=True)
class Answer:
    """What came back, whichever way it was asked."""

    status: int
    text: str


Door = Callable[[HubUnderTest, requests.Session, dict[str, Any]], Answer]

# --- the doors ---------------------------------------------------------------------------------------


def as_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the form sends them."""
    prefix = f"profile-option-{options.get('profile', '')}--"
    return {key if key == "profile" else prefix + key: value for key, value in options.items()}


def post_form(hub: HubUnderTest, browser: requests.Session, fields: Any, **more: Any) -> Answer:
    token = browser.cookies.get("_xsrf", path="/hub/")
    url = f"{hub.url}/hub/spawn?_xsrf={token}"
    answer = browser.post(url, data=fields, allow_redirects=False, timeout=60, **more)
    return Answer(answer.status_code, html.unescape(answer.text))


def by_form(hub: HubUnderTest, browser: requests.Session, options: dict[str, Any]) -> Answer:
    return post_form(hub, browser, as_fields(options))


def by_rest(hub: HubUnderTest, browser: requests.Session, options: dict[str, Any]) -> Answer:
    return rest(hub, json.dumps({"user_options": options}))


def by_bare_rest(hub: HubUnderTest, browser: requests.Session, options: dict[str, Any]) -> Answer:
    return rest(hub, json.dumps(options))


def by_stored(hub: HubUnderTest, browser: requests.Session, options: dict[str, Any]) -> Answer:
    """Options that lie in the hub's database, where anybody with the right to a server may put them."""
    stored = hub.api("PATCH", hub.server_path(USER), data=json.dumps({"user_options": options}))
    assert stored.status_code == 200, stored.text
    return rest(hub, None)


def rest(hub: HubUnderTest, body: str | None, user: str = USER) -> Answer:
    answer = hub.api("POST", hub.server_path(user), data=body)
    message = answer.json()["message"] if answer.status_code >= 400 else answer.text
    return Answer(answer.status_code, message)


DOORS: dict[str, Door] = {"form": by_form, "rest": by_rest, "bare": by_bare_rest, "stored": by_stored}

# --- the wishes --------------------------------------------------------------------------------------

OWN = [
    Wish("choice", {"profile": "half", "note": "b"}),
    Wish("typed", {"profile": "half", "note--unlisted-choice": "abc"}),
]

TEXTS = {
    "foreign": ({"profile": "vision"}, 403, ("'vision' is for group vision", "not a member", ALLOWED)),
    "unknown": ({"profile": "no-such"}, 400, ("There is no profile 'no-such'", ALLOWED)),
    "path": ({"profile": "../../etc/passwd"}, 400, ("no profile", ALLOWED)),
    "sql": ({"profile": "whole'; DROP TABLE leases; --"}, 400, ("no profile", ALLOWED)),
    "template": ({"profile": "{{ 7*7 }}{0.__class__}%(x)s"}, 400, ("{{ 7*7 }}", ALLOWED)),
    "upper-case": ({"profile": "HALF"}, 400, ("'HALF'", ALLOWED)),
    "blank": ({"profile": " half"}, 400, ("no profile", ALLOWED)),
    "not-offered": ({"profile": "half", "note": "zzz"}, 400, ("'note'", "'zzz'", "a, b, unlisted-choice")),
    "not-matching": (
        {"profile": "half", "note--unlisted-choice": "ABC9"},
        400,
        ("'ABC9'", "up to 8 small letters"),
    ),
    "longer-than-it-matches": (
        {"profile": "half", "note--unlisted-choice": "abcdefghi"},
        400,
        ("up to 8 small letters",),
    ),
    "newline-after-a-match": (
        {"profile": "half", "note--unlisted-choice": "abc\n"},
        400,
        ("control characters",),
    ),
    "no-text-to-type": (
        {"profile": "half", "note": "unlisted-choice"},
        400,
        ("'note'", "up to 8 small letters"),
    ),
    "both-bad": ({"profile": "half", "note": "zzz", "note--unlisted-choice": "abc"}, 400, ("'zzz'",)),
    "negative": ({"profile": "half", "note": "-1"}, 400, ("'-1'", "allowed")),
    "huge": ({"profile": "half", "note--unlisted-choice": "9" * 400}, 400, ("up to 8 small letters",)),
    "infinite": ({"profile": "half", "note": "1e999"}, 400, ("'1e999'", "allowed")),
    "nan": ({"profile": "half", "note--unlisted-choice": "NaN"}, 400, ("'NaN'", "allowed")),
    "unknown-option": ({"profile": "half", "colour": "red"}, 400, ("no option 'colour'", "allowed are note")),
    "option-of-another": ({"profile": "whole", "note": "a"}, 400, ("'whole' has no option 'note'",)),
    "bad-option-of-foreign": ({"profile": "vision", "note": "a"}, 403, ("not a member",)),
    "private-name": ({"profile": "half", "__class__": "x"}, 400, ("'__class__'",)),
    "long": ({"profile": "half", "note": "x" * 1001}, 400, ("1001 characters", "at most 1000")),
    "long-profile": ({"profile": "x" * 70_000}, 400, ("70000 characters", "at most 1000")),
    "long-key": ({"profile": "half", "k" * 5000: "x"}, 400, ("no option", "allowed are note")),
    "null-byte": ({"profile": "half\0"}, 400, ("control characters",)),
    "terminal": ({"profile": "\x1b[31mhalf"}, 400, ("control characters",)),
    "right-to-left": ({"profile": "half\u202e"}, 400, ("allowed",)),
    "script": ({"profile": "<script>alert(1)</script>"}, 400, ("no profile", ALLOWED)),
    "many": ({"profile": "half"} | {f"o{n}": "x" for n in range(101)}, 400, ("allowed",)),
}
"""What both a form and JSON can say: options, status, and parts of the sentence."""

VALUES = {
    "negative": -1,
    "huge": 10**400,
    "float": 1e308,
    "nan": math.nan,
    "infinite": -math.inf,
    "true": True,
    "list": ["half"],
    "object": {"half": {}},
    "nested": [[[[]]]],
}
"""What only JSON can say in the place of a text."""

FOR_ALL = [Wish(name, options, status, says) for name, (options, status, says) in TEXTS.items()]
FOR_JSON = [
    *(
        Wish(f"profile-{name}", {"profile": value}, 400, ("'profile'", "text"))
        for name, value in VALUES.items()
    ),
    *(
        Wish(f"note-{n}", {"profile": "half", "note": value}, 400, ("'note'", "text"))
        for n, value in VALUES.items()
    ),
    Wish("surrogate", {"profile": "half\ud800"}, 400, ("allowed",)),
]

REFUSED = [
    pytest.param(door, wish, id=f"{name}-{wish.name}")
    for name, door in DOORS.items()
    for wish in (FOR_ALL if name == "form" else FOR_ALL + FOR_JSON)
]
GRANTED = [pytest.param(door, wish, id=f"{name}-{wish.name}") for name, door in DOORS.items() for wish in OWN]

# --- what stays --------------------------------------------------------------------------------------


def traces(hub: HubUnderTest) -> tuple[Any, ...]:
    """Everything that a request can leave in the ledger."""
    ledger = hub.ledger()
    events = [event for event in ledger.events(count=10_000) if event.lease is not None]
    snapshot = ledger.snapshot()
    return events, [lease.id for lease in snapshot.leases], [lease.id for lease in snapshot.queue]


def assert_idle(hub: HubUnderTest, user: str = USER) -> None:
    """The hub holds no server of this person, started or starting."""
    model = hub.server(user)
    assert model is None or (model["ready"], model["pending"], model["stopped"]) == (False, None, True)


def run_and_stop(hub: HubUnderTest, user: str = USER) -> Lease:
    """Wait until a server that was asked for is ready, look at what it holds, and stop it."""
    hub.wait_ready(user)
    lease = hub.wait_state(user, "active")
    device = lease.slices[0].device if lease.slices else "void"
    assert hub.ask_session(user).text == f"{lease.id} {device}"
    assert hub.delete(user).status_code in (202, 204)
    hub.wait_gone(user)
    until(lambda: hub.sessions(lease.id) == [], "the session to be gone")
    until(lambda: (hub.server(user) or {"stopped": True})["stopped"], "the hub to have stopped it")
    return lease


def assert_refused(hub: HubUnderTest, wish: Wish, ask: Callable[[], Answer]) -> None:
    before = traces(hub)
    answer = ask()
    assert answer.status == wish.status, answer.text[-2000:]
    for part in wish.says:
        assert part in answer.text
    assert traces(hub) == before
    assert_idle(hub)


# --- the matrix --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("door", "wish"), REFUSED)
def test_refused(hub: HubUnderTest, browser: requests.Session, door: Door, wish: Wish) -> None:
    assert_refused(hub, wish, lambda: door(hub, browser, wish.options))


@pytest.mark.parametrize(("door", "wish"), GRANTED)
def test_granted(hub: HubUnderTest, browser: requests.Session, door: Door, wish: Wish) -> None:
    answer = door(hub, browser, wish.options)
    assert answer.status in (201, 202, 302), answer.text[-2000:]
    lease = run_and_stop(hub)
    assert (lease.profile, lease.gpus) == ("half", 0.5)
    assert hub.server(USER) is None or hub.server(USER)["user_options"] == wish.options  # type: ignore[index]


@pytest.mark.parametrize("door", DOORS)
def test_ten_refusals_in_a_row_count_as_no_failed_start(
    hub: HubUnderTest, browser: requests.Session, door: str
) -> None:
    for number in range(10):
        wish = FOR_ALL[number % 2]
        assert_refused(hub, wish, lambda wish=wish: DOORS[door](hub, browser, wish.options))  # type: ignore[misc]
    assert hub.alive(), hub.tail()
    assert rest(hub, json.dumps({"profile": "cpu"})).status in (201, 202)
    assert run_and_stop(hub).profile == "cpu"


@pytest.mark.parametrize("body", [None, "", "{}", '{"user_options": null}', '{"user_options": {}}'])
def test_no_options_over_rest_take_the_default_profile(hub: HubUnderTest, body: str | None) -> None:
    # The hub gives stored options to such a start; this person has none, in each case a new one.
    user = f"plain{len(hub.api('GET', 'users').json())}"
    assert hub.api("POST", f"users/{user}").status_code == 201
    assert rest(hub, body, user).status in (201, 202)
    lease = run_and_stop(hub, user)
    assert (lease.profile, lease.gpus) == ("whole", 1.0)


# --- only a form can say this ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([("profile", "half"), ("profile", "cpu")], "'profile' is given 2 times"),
        ([("profile", "half"), ("profile", "half")], "'profile' is given 2 times"),
        ([("profile", "half"), *[("profile-option-half--note", v) for v in "ab"]], "given 2 times"),
        ([("profile", "half"), ("colour", "red")], "unknown field 'colour'"),
        ([("profile", "half"), ("user_options", "{}")], "unknown field 'user_options'"),
    ],
)
def test_a_form_that_is_not_ours(
    hub: HubUnderTest, browser: requests.Session, fields: list[tuple[str, str]], says: str
) -> None:
    wish = Wish("form", {}, 400, (says, "allowed"))
    assert_refused(hub, wish, lambda: post_form(hub, browser, fields))


def test_a_file_in_the_form(hub: HubUnderTest, browser: requests.Session) -> None:
    files = {"profile": ("half.txt", b"half")}
    wish = Wish("file", {}, 400, ("profile_file", "allowed"))
    assert_refused(hub, wish, lambda: post_form(hub, browser, {}, files=files))


def test_a_form_from_elsewhere(hub: HubUnderTest, browser: requests.Session) -> None:
    def ask() -> Answer:
        answer = browser.post(f"{hub.url}/hub/spawn", data={"profile": "half"}, timeout=60)
        return Answer(answer.status_code, answer.text)

    assert_refused(hub, Wish("xsrf", {}, 403, ("_xsrf",)), ask)


# --- links -------------------------------------------------------------------------------------------

NOTICE = "Nothing was started yet"


def follow_link(hub: HubUnderTest, browser: requests.Session, options: dict[str, Any]) -> Answer:
    query = {f"opt-{key}": value for key, value in options.items()}
    answer = browser.get(f"{hub.url}/hub/spawn", params=query, allow_redirects=False, timeout=60)
    return Answer(answer.status_code, answer.text)


def checked(page: str) -> list[str]:
    """The profiles whose radio button is pressed."""
    return re.findall(r'<input [^>]*name="profile"[^>]*value="([^"]*)"[^>]* checked', page)


@pytest.mark.parametrize(
    "wish", [w for w in FOR_ALL if len(str(w.options)) < 8000], ids=lambda wish: wish.name
)
def test_a_link_never_starts_anything(hub: HubUnderTest, browser: requests.Session, wish: Wish) -> None:
    before = traces(hub)
    page = follow_link(hub, browser, wish.options)
    assert page.status == 200
    assert NOTICE in page.text
    assert traces(hub) == before
    assert_idle(hub)
    assert len(checked(page.text)) == 1
    assert checked(page.text)[0] != "vision"
    assert "<script>alert" not in page.text


@pytest.mark.parametrize("wish", OWN, ids=lambda wish: wish.name)
def test_a_link_fills_in_the_form(hub: HubUnderTest, browser: requests.Session, wish: Wish) -> None:
    before = traces(hub)
    page = follow_link(hub, browser, wish.options)
    assert page.status == 200
    assert NOTICE in page.text
    assert checked(page.text) == ["half"]
    if "note" in wish.options:
        assert '<option value="b" selected' in page.text
    else:
        assert re.search(r'name="profile-option-half--note--unlisted-choice"[^>]* value="abc"', page.text)
    assert traces(hub) == before
    assert_idle(hub)


# --- rights that were taken away ---------------------------------------------------------------------


def change_group(hub: HubUnderTest, method: str, user: str) -> None:
    """Put somebody into the group vision (POST) or out of it (DELETE), as an admin does."""
    admin = hub.token_of("admin")
    answer = hub.api(method, "groups/vision/users", admin, json={"users": [user]})
    assert answer.status_code == 200, answer.text


def member(hub: HubUnderTest, user: str) -> str:
    assert hub.api("POST", f"users/{user}").status_code == 201
    change_group(hub, "POST", user)
    return user


def test_options_stored_before_leaving_the_group(hub: HubUnderTest) -> None:
    user = member(hub, "vera")
    assert hub.spawn(user, "vision").status_code in (201, 202)
    assert run_and_stop(hub, user).profile == "vision"
    change_group(hub, "DELETE", user)
    before = traces(hub)
    for body in (None, "{}", '{"user_options": null}'):
        answer = rest(hub, body, user)
        assert (answer.status, "not a member" in answer.text) == (403, True), answer.text
    assert traces(hub) == before
    assert_idle(hub, user)
    page = hub.browser_session(user).get(f"{hub.url}/hub/spawn", timeout=60).text
    assert checked(page) == ["whole"]  # her last choice was another, and is no longer hers to make
    assert hub.spawn(user, "cpu").status_code in (201, 202)
    run_and_stop(hub, user)


def test_leaving_the_group_while_waiting(hub: HubUnderTest) -> None:
    user = member(hub, "walter")
    hub.run("ada", "whole")
    assert hub.spawn(user, "vision").status_code == 202
    waiting = hub.wait_state(user, "queued")
    change_group(hub, "DELETE", user)
    hub.delete("ada")
    hub.wait_gone("ada")
    hub.wait_gone(user)
    until(lambda: (hub.server(user) or {"pending": None})["pending"] is None, "the start to end")
    events = [e for e in hub.ledger().events(count=10_000) if e.lease == waiting.id]
    assert [e.to_state for e in events if e.to_state != e.from_state] == [
        "queued",
        "starting",
        "stopping",
        "closed",
    ]
    assert "not a member" in events[-2].reason
    assert not hub.ledger().lease(waiting.id).runtime  # type: ignore[union-attr]  # nothing was launched
    assert hub.sessions(waiting.id) == []
    assert not list((hub.state / "homes").glob("walter*"))
    progress = hub.api("GET", f"{hub.server_path(user)}/progress", stream=True)
    with progress:
        told = [json.loads(line[5:]) for line in progress.iter_lines() if line.startswith(b"data:")]
    assert told[-1]["failed"] is True
    assert "not a member" in told[-1]["message"]
    assert hub.spawn(user, "whole").status_code in (201, 202)  # the slice is free
    assert run_and_stop(hub, user).gpus == 1.0


# --- that the tests would see it ---------------------------------------------------------------------


def test_failed_starts_do_end_this_hub(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The limit that the refusals above must not reach is in force: three failed starts end a hub."""
    broken = {"display_name": "Broken", "slug": "cpu", "spawner_override": {"cmd": ["/nowhere"]}}
    sections = {"Spawner": {"consecutive_failure_limit": 3}, "GPUPool": {"profiles": [broken]}}
    made = HubUnderTest(tmp_path_factory.mktemp("failures") / "state", sections=sections)
    try:
        made.start()
        for _ in range(3):
            made.spawn(USER, "cpu")
            until(
                lambda: not made.alive() or (made.server(USER) or {"stopped": True})["stopped"], "the failure"
            )
        assert made.wait_dead() != 0
    finally:
        made.clean()
