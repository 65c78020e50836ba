"""The REST verbs of those who run the pool, and the books: the real web side, as in ``test_service_web``."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import State

from .test_service_web import EVIL, Web, a_hub, a_site

__all__ = ["a_hub", "a_site"]  # fixtures

WRITES = [
    ("POST", "api/limits/pool/preview", {"keys": {"gpus": 1}}),
    ("PUT", "api/limits/pool", {"keys": {"gpus": 1}}),
    ("DELETE", "api/limits/pool", {}),
    ("POST", "api/devices/GPU-a/drain", {}),
    ("POST", "api/devices/GPU-a/undrain", {}),
    ("POST", "api/pool/drain", {}),
    ("POST", "api/pool/undrain", {}),
]
ids = [f"{method} {path}" for method, path, _ in WRITES]


def state(ledger: Ledger) -> Any:
    """What these verbs could change."""
    found = ledger.snapshot()
    return ledger.limits(), found.devices, len(ledger.events())


async def send(site: Web, method: str, path: str, body: Any, user: str = "root") -> Any:
    """Send JSON that must be taken."""
    code, shape = await site.json(method, path, user, body=json.dumps(body))
    assert code == 200, shape
    return shape


# --- who may ask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=ids)
async def test_only_admins_change_anything(site: Web, method: str, path: str, body: Any) -> None:
    before = state(site.ledger)
    for user in (None, "ada", "stranger", "ada-service"):
        for sent in (json.dumps(body), "no json", "x" * 100_000):
            await site.refused(403, method, path, user, body=sent)
            await site.refused(403, method, f"{path}?odd=1", user, body=sent)
    assert state(site.ledger) == before
    await send(site, method, path, body)


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=ids)
async def test_a_cookie_alone_changes_nothing(site: Web, method: str, path: str, body: Any) -> None:
    headers, token, _ = await site.browser("root")
    before, sent = state(site.ledger), json.dumps(body)
    await site.refused(403, method, path, body=sent, **headers)
    await site.refused(403, method, path, body=sent, X_XSRFToken="wrong", **headers)
    await site.refused(403, method, path, body=sent, X_XSRFToken=token, Cookie=site.cookie("bob"))
    assert state(site.ledger) == before
    assert (await site.json(method, path, body=sent, X_XSRFToken=token, **headers))[0] == 200


async def test_limits_are_for_admins_to_read(site: Web) -> None:
    for user in (None, "ada", "ada-service"):
        await site.refused(403, "GET", "api/limits", user)
    assert await site.json("GET", "api/limits", "root") == (200, {"limits": []})


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=ids)
async def test_bad_bodies_get_a_sentence_and_change_nothing(
    site: Web, method: str, path: str, body: Any
) -> None:
    before = state(site.ledger)
    for sent, says in [
        (b"drain", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "no object"),
        (b'{"keys": {"gpus": 1, "gpus": 2}}', "more than once"),
        (b'{"why": "a", "why": "b"}', "more than once"),
        (b'{"keys": {"gpus": NaN}}', "NaN"),
        (b'{"who": 1}', "'who'"),
        (b'{"keys": {}, "why": 5}' if method == "PUT" else b'{"why": 5}', "'why'"),
        (b"[" * 100_000, "65536"),
        (b"[" * 10_000, ""),
    ]:
        assert says in await site.refused(400, method, path, "root", body=sent), sent[:30]
    await site.refused(400, method, f"{path}?odd=1", "root", body=json.dumps(body))
    assert state(site.ledger) == before


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "limits/pool", "PUT, DELETE"), ("POST", "limits/pool", "PUT, DELETE"), ("PUT", "limits", "GET"),
     ("GET", "limits/pool/preview", "POST"),
     ("GET", "pool/drain", "POST"), ("GET", "devices/GPU-a/undrain", "POST"), ("POST", "usage", "GET")],
)  # fmt: skip
async def test_wrong_methods_are_named(site: Web, method: str, path: str, allow: str) -> None:
    answer = await site.ask(method, f"api/{path}", "root", body=b"")
    assert (answer.code, answer.headers["Allow"]) == (405, allow)


# --- limits ------------------------------------------------------------------------------------------------


async def test_a_limit_is_edited_shown_and_given_back(site: Web) -> None:
    site.active("ada")
    site.active("ada", "b")
    body = {"keys": {"sessions": 1, "profiles": ["quarter"]}, "why": "exams"}
    shape = await send(site, "PUT", "api/limits/user:ada", body)
    assert shape["touched"][0]["users"] == ["ada"] and "over limit" in shape["over"]
    assert (shape["configured"], shape["effective"]) == (None, body["keys"])
    (row,) = (await site.json("GET", "api/limits", "root"))[1]["limits"]
    assert row == {key: value for key, value in shape.items() if key not in ("touched", "notes")}
    assert (row["scope"], row["edited"], row["actor"], row["why"]) == (
        "user:ada",
        body["keys"],
        "root",
        "exams",
    )
    assert datetime.fromisoformat(row["at"]).tzinfo is not None
    assert (await send(site, "DELETE", "api/limits/user:ada", {"why": "over"}))["effective"] is None
    assert (await site.json("GET", "api/limits", "root"))[1] == {"limits": []}
    edits = [event for event in site.ledger.events() if event.action == "limit"]
    assert [event.actor for event in edits] == ["root", "root"]
    assert "(exams)" in edits[0].reason and "(over)" in edits[1].reason


async def test_an_edit_holds_at_once(site: Web) -> None:
    await send(site, "PUT", "api/limits/user:*", {"keys": {"sessions": 1}})
    assert site.lease("ada").state is State.STARTING
    waiting = site.lease("ada", "b")
    assert waiting.state is State.QUEUED
    await send(site, "PUT", "api/limits/user:*", {"keys": {}})
    after = site.ledger.lease(waiting.id)
    assert after is not None and after.state is State.STARTING


@pytest.mark.parametrize(
    ("scope", "name"),
    [("group:a%2Fb", "group:a/b"), ("group:a/b", "group:a/b"), ("user:%C3%A4da%20x", "user:äda x"),
     ("user:%3Cscript%3E", "user:<script>")],
)  # fmt: skip
async def test_scopes_have_all_the_characters_of_names(site: Web, scope: str, name: str) -> None:
    shape = await send(site, "PUT", f"api/limits/{scope}", {"keys": {"gpus": 1}})
    assert shape["scope"] == name
    assert shape["notes"] and name.partition(":")[2] in shape["notes"][0], "a name that nobody has, is said"
    assert list(site.ledger.limits()) == [name]


@pytest.mark.parametrize(
    ("scope", "body", "says"),
    [
        ("nobody", {"keys": {}}, "not a scope"),
        ("group:*", {"keys": {}}, "not a scope"),
        ("user:" + "x" * 300, {"keys": {}}, "not a scope"),
        ("user:a%0Ab", {"keys": {}}, "not a scope"),
        ("user:%ff", {"keys": {}}, "malformed"),
        ("pool", {}, "'keys'"),
        ("pool", {"keys": []}, "'keys'"),
        ("pool", {"keys": None}, "'keys'"),
        ("pool", {"keys": {"gpu": 1}}, "unknown key"),
        ("pool", {"keys": {"gpus": True}}, "gpus is"),
        ("pool", {"keys": {"priority": 5}}, "priority"),
        ("group:vision", {"keys": {"guaranteed_gpus": 3}}, "guaranteed"),
    ],
)
async def test_odd_limits_get_a_sentence_and_change_nothing(
    site: Web, scope: str, body: Any, says: str
) -> None:
    before = state(site.ledger)
    assert says in await site.refused(400, "PUT", f"api/limits/{scope}", "root", body=json.dumps(body))
    assert state(site.ledger) == before
    if "scope" in says:
        assert says in await site.refused(400, "DELETE", f"api/limits/{scope}", "root")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
async def test_numbers_that_are_none_are_refused(site: Web, number: str) -> None:
    await site.refused(400, "PUT", "api/limits/pool", "root", body=f'{{"keys": {{"gpus": {number}}}}}')


async def test_half_a_letter_breaks_nothing(site: Web) -> None:
    body = '{"keys": {"profiles": ["\\ud800"]}, "why": "\\ud800\\u0000"}'
    assert (await site.ask("PUT", "api/limits/pool", "root", body=body)).code in (200, 400)
    assert (await site.json("GET", "api/limits", "root"))[0] == 200
    assert (await site.json("GET", "api/events", "root"))[0] == 200


# --- what an edit would do ---------------------------------------------------------------------------------


async def test_a_preview_says_whom_an_edit_touches_and_changes_nothing(site: Web) -> None:
    for server in ("", "b"):
        site.active("ada", server)
    before = state(site.ledger)
    body = {"keys": {"sessions": 1, "profiles": ["quarter", "gone"]}}
    shape = await send(site, "POST", "api/limits/user:ada/preview", body)
    assert (shape["scope"], shape["before"], shape["after"]) == ("user:ada", None, body["keys"])
    assert [(item["scope"], item["users"]) for item in shape["touched"]] == [("user:ada", ["ada"])]
    assert shape["relieved"] == [] and "gone" in shape["notes"][0]
    assert state(site.ledger) == before
    await send(site, "PUT", "api/limits/user:ada", body)
    wider = await send(site, "POST", "api/limits/user:ada/preview", {"keys": {"sessions": 5}})
    assert (wider["before"], wider["touched"], wider["relieved"]) == (body["keys"], [], ["user:ada"])
    for way_back in ({}, {"keys": None}):
        shape = await send(site, "POST", "api/limits/user:ada/preview", way_back)
        assert (shape["after"], shape["relieved"]) == (None, ["user:ada"])
    unknown = await send(site, "POST", "api/limits/group:typo/preview", {"keys": {}})
    assert "group typo" in unknown["notes"][0]


@pytest.mark.parametrize(
    ("scope", "body", "says"),
    [
        ("nobody", {}, "not a scope"),
        ("group:*", {"keys": {}}, "not a scope"),
        ("pool", {"keys": []}, "'keys'"),
        ("pool", {"keys": {"gpu": 1}}, "unknown key"),
        ("pool", {"keys": {"gpus": -1}}, "gpus is"),
        ("pool", {"keys": {}, "why": "no"}, "'why'"),
        ("group:vision", {"keys": {"guaranteed_gpus": 3}}, "3 GPUs are guaranteed"),
    ],
)
async def test_odd_previews_get_a_sentence(site: Web, scope: str, body: Any, says: str) -> None:
    path = f"api/limits/{scope}/preview"
    assert says in await site.refused(400, "POST", path, "root", body=json.dumps(body))


async def test_a_group_may_be_called_like_the_preview(site: Web) -> None:
    shape = await send(site, "PUT", "api/limits/group:a%2Fpreview", {"keys": {"gpus": 1}})
    assert shape["scope"] == "group:a/preview"
    shape = await send(site, "POST", "api/limits/group:a%2Fpreview/preview", {})
    assert (shape["scope"], shape["before"]) == ("group:a/preview", {"gpus": 1})


# --- drains ------------------------------------------------------------------------------------------------


async def test_a_lost_gpu_is_forgotten(site: Web) -> None:
    path, devices = "api/devices/GPU-b", site.ledger.snapshot().devices
    before = state(site.ledger)
    await site.refused(409, "DELETE", path, "root")
    await site.refused(404, "DELETE", "api/devices/GPU-z", "root")
    await site.refused(400, "DELETE", path, "root", body='{"why": 1}')
    for user in (None, "ada", "stranger"):
        await site.refused(403, "DELETE", path, user)
    assert state(site.ledger) == before
    site.ledger.sync_inventory([device for device in devices if device.id != "GPU-b"])
    assert await send(site, "DELETE", path, {"why": "sent back"}) == {"devices": ["GPU-b"]}
    _, shape = await site.json("GET", "api/pool", "ada")
    assert [item["id"] for item in shape["devices"]] == ["GPU-a"]
    assert (shape["gpus"]["total"], site.ledger.events()[-1].actor) == (1, "root")


async def test_a_gpu_is_drained_and_put_back(site: Web) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    body = {"at": at.isoformat(), "why": "new fan"}
    assert await send(site, "POST", "api/devices/GPU-a/drain", body) == {"devices": ["GPU-a"]}
    for user, by in (("root", "root"), ("ada", None)):
        one, other = (await site.json("GET", "api/pool", user))[1]["devices"]
        assert (one["drained"], one["drain_why"], one["drain_by"]) == (True, "new fan", by)
        assert abs(datetime.fromisoformat(one["drain_at"]) - at) < timedelta(seconds=1)
        assert (other["drained"], other["drain_at"], other["drain_why"]) == (False, None, None)
    assert await send(site, "POST", "api/pool/drain", {"at": None}) == {"devices": ["GPU-a", "GPU-b"]}
    waiting = site.lease("ada")
    assert waiting.state is State.QUEUED
    assert await send(site, "POST", "api/devices/GPU-b/undrain", {}) == {"devices": ["GPU-b"]}
    after = site.ledger.lease(waiting.id)
    assert after is not None and after.state is State.STARTING
    assert await send(site, "POST", "api/pool/undrain", {}) == {"devices": ["GPU-a"]}


@pytest.mark.parametrize("device", ["GPU-z", "%00", "..%2Fpool", "x" * 500, "%3Cscript%3E"])
async def test_unknown_gpus_are_404(site: Web, device: str) -> None:
    for verb in ("drain", "undrain"):
        await site.refused(404, "POST", f"api/devices/{device}/{verb}", "root", body=b"")


@pytest.mark.parametrize(
    "at", ["tomorrow", "2026-06-01T09:00", "2999-01-01T00:00Z", 5, 1.5, True, [], {}, ""]
)
async def test_odd_times_get_a_sentence(site: Web, at: Any) -> None:
    for path in ("api/devices/GPU-a/drain", "api/pool/drain"):
        assert await site.refused(400, "POST", path, "root", body=json.dumps({"at": at}))
    assert not any(device.drained for device in site.ledger.snapshot().devices)


# --- books -------------------------------------------------------------------------------------------------


async def test_everybody_sees_their_own_books_and_an_admin_all(site: Web) -> None:
    for user in ("ada", "bob", EVIL):
        site.active(user)
    for user, keys in (("ada", ["ada"]), ("root", sorted(["ada", "bob", EVIL])), ("ada-service", [])):
        _, shape = await site.json("GET", "api/usage", user)
        assert [item["key"] for item in shape["totals"]] == keys
        assert sorted({item["key"] for item in shape["days"]}) == keys
    code, shape = await site.json("GET", "api/usage?by=group&from=2026-01-01", "bob")
    assert (code, shape["by"], [item["key"] for item in shape["totals"]]) == (200, "group", [None])
    assert shape["from"].startswith("2026-01-01T00:00:00")
    assert set(shape["totals"][0]) == {"key", "used", "idle", "waiting"}
    assert set(shape["days"][0]) == {"key", "day", "used", "idle", "waiting"}
    _, old = await site.json("GET", "api/usage?by=profile&from=2020-01-01&to=2020-01-02", "root")
    assert (old["days"], old["totals"]) == ([], [])
    assert old["to"].startswith("2020-01-03T00:00:00")
    await site.refused(403, "GET", "api/usage")


@pytest.mark.parametrize(
    "query",
    ["by=lease", "by=", "by=user&by=user", "from=soon", "to=2026-02-30", "from=2026-06-02&to=2026-06-01",
     "from=1960-01-01", "to=9999-12-31", "user=bob", "from=%ff", "from=NaN", "from=2026-06-01T09:00"],
)  # fmt: skip
async def test_odd_questions_about_the_books_get_a_sentence(site: Web, query: str) -> None:
    for user in ("ada", "root", "ada-service"):
        assert await site.refused(400, "GET", f"api/usage?{query}", user)


# --- what can be foreseen ----------------------------------------------------------------------------------


async def test_a_budget_that_is_used_up_says_so(site: Web) -> None:
    await send(site, "PUT", "api/limits/user:ada", {"keys": {"gpu_hours": 2}})
    for user, left in (("ada", 2), ("bob", None)):
        profiles = (await site.json("GET", "api/availability", user))[1]["profiles"]
        assert [item["budget_left_hours"] for item in profiles] == [left, left]
    await send(site, "PUT", "api/limits/user:ada", {"keys": {"gpu_hours": 0}})
    first = (await site.json("GET", "api/availability", "ada"))[1]["profiles"][0]
    assert (first["allowed"], first["budget_left_hours"]) == (False, 0) and first["reason"]
