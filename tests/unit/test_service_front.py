"""What front ends and people do with warnings and notices over HTTP, and what nobody may."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from jupyterhub.services.auth import HubOAuth
from traitlets.config import Config

from jupyterhub_gpupool.ledger import Observation
from jupyterhub_gpupool.model import Decision, Lease, Sample, Verdict
from jupyterhub_gpupool.notices import Choice
from jupyterhub_gpupool.notices.settings import GPUPoolNotices
from jupyterhub_gpupool.service.app import public_link

from .test_service_web import EVIL, PREFIX, Web, a_hub, a_site

__all__ = ["a_hub", "a_site"]  # fixtures

MAIL = {"mail_server": "m.example", "mail_from": "p@lab.example", "mail_address": "{user}@lab.example"}
CORS = {"Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "same-origin"}


def warned(site: Web, user: str = "ada", server: str = "") -> Lease:
    """An active lease with a warning that nobody has seen."""
    lease = site.active(user, server)
    verdict = Verdict(Decision.WARN, f"idle {EVIL}", 25.0, "idle")
    seen = Observation(lease.id, lease.version, Sample(0.0, 512, 1), 60, 0, 25.0, "idle", verdict)
    assert site.ledger.record([seen])
    site.ledger.swept(0.1, "reclaim")
    found = site.ledger.lease(lease.id)
    assert found is not None
    return found


def seen(lease: Lease, by: str = "jupyterlab") -> str:
    return json.dumps({"warning": lease.warning, "by": by})


async def test_a_warning_waits_for_its_delivery_and_says_so(site: Web) -> None:
    lease = warned(site)
    code, shape = await site.json("GET", "api/leases", "ada")
    warning = shape["leases"][0]["warning"]
    assert (code, shape["leases"][0]["deadline_seconds"]) == (200, None)
    assert (warning["id"], warning["rule"], warning["delivered_at"], warning["deadline_seconds"]) == (
        lease.warning, "idle", None, None,
    )  # fmt: skip
    assert warning["extendable"] and warning["stops"] and "memory" in warning["lost"] and warning["kept"]
    assert site.ledger.lease(lease.id) == lease, "reading the list is no delivery"
    code, shape = await site.json("POST", f"api/leases/{lease.id}/seen", "ada", body=seen(lease))
    assert (code, shape["warning"]["delivered_by"]) == (200, "jupyterlab")
    assert 20 < shape["warning"]["deadline_seconds"] <= 25 == shape["deadline_seconds"]
    assert shape["time_left_seconds"] == pytest.approx(shape["warning"]["deadline_seconds"], abs=0.2)
    for by in ("page", "jupyterlab"):
        assert (await site.json("POST", f"api/leases/{lease.id}/seen", "ada", body=seen(lease, by)))[0] == 200
    assert site.counted == [("jupyterlab", "delivered")], "the first one counts"
    _, shape = await site.json("GET", f"api/leases/{lease.id}", "root")
    assert {d["channel"] for d in shape["deliveries"]} == {"jupyterlab", "page"}


async def test_no_time_runs_out_where_nothing_is_stopped(site: Web) -> None:
    lease = warned(site)
    site.ledger.deliver(lease.id, lease.warning, "page", "ada")
    site.ledger.swept(0.1, "warn")
    _, shape = await site.json("GET", f"api/leases/{lease.id}", "ada")
    assert (shape["warning"]["stops"], shape["time_left_seconds"]) == (False, None)


PICTURE = re.compile(r'<noscript>.*?<img src="([^"]+)".*?</noscript>', re.DOTALL)
SHOWN = {"Sec_Fetch_Dest": "image", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Site": "same-origin"}


async def test_a_page_delivers_nothing_before_somebody_can_see_it(site: Web) -> None:
    mine, other = warned(site), warned(site, "bob")
    for user, path, theirs in (("ada", "", mine), ("bob", f"leases/{other.id}", other)):
        answer = await site.ask("GET", path, Cookie=site.cookie(user))
        page = answer.body.decode().partition("<template")[0]
        assert "the countdown starts when its owner is told" in page
        assert EVIL not in page and EVIL in unescape(page)
        assert site.ledger.lease(mine.id) == mine and site.ledger.lease(other.id) == other
        assert len(PICTURE.findall(page)) == 1 and theirs.id in PICTURE.findall(page)[0]
    for path in ("", f"leases/{mine.id}"):
        page = (await site.ask("GET", path, Cookie=site.cookie("root"))).body.decode()
        assert not PICTURE.search(page), "an admin is not the person"


@pytest.mark.parametrize("path", ["", "leases/{}"])
async def test_a_page_without_javascript_delivers_by_a_picture(site: Web, path: str) -> None:
    mine, other = warned(site), warned(site, "bob")
    sent = {"Cookie": site.cookie("ada")}
    page = (await site.ask("GET", path.format(mine.id), **sent)).body.decode()
    (picture,) = PICTURE.findall(page)
    address = unescape(picture).removeprefix(PREFIX)
    for aside in (
        {"Sec_Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}, {"X_Moz": "prefetch"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Dest": "empty"},
        {"Sec_Fetch_Dest": "document", "Sec_Fetch_Mode": "navigate"},
    ):  # fmt: skip
        answer = await site.ask("GET", address, **sent, **{**SHOWN, **aside})
        assert answer.code == 403 and site.ledger.lease(mine.id) == mine, aside
    await site.refused(403, "GET", address, "ada")
    await site.refused(404, "GET", address, Cookie=site.cookie("bob"), **SHOWN)
    await site.refused(404, "GET", address, Cookie=site.cookie("root"), **SHOWN)
    await site.refused(409, "GET", address[:-1], **sent, **SHOWN)
    await site.refused(403, "GET", address, **SHOWN)
    assert site.ledger.lease(mine.id) == mine
    answer = await site.ask("GET", address, **sent, **SHOWN)
    assert (answer.code, answer.headers["Content-Type"], answer.body[:6]) == (200, "image/gif", b"GIF89a")
    told = site.ledger.lease(mine.id)
    assert told is not None and told.delivered_by == "page" and site.ledger.lease(other.id) == other
    page = (await site.ask("GET", path.format(mine.id), **sent)).body.decode().partition("<template")[0]
    assert re.search(r"<strong[^>]*>25 s</strong>", page) and not PICTURE.search(page)
    assert (await site.ask("GET", address, **sent)).code == 200, "once more, by an older browser"
    assert site.counted == [("page", "delivered")]


@pytest.mark.parametrize(
    ("user", "status", "body"),
    [
        ("bob", 404, None),
        ("root", 404, None),  # an admin is not the person
        ("ada-service", 404, None),
        ("ada", 409, {"warning": "another", "by": "page"}),
        ("ada", 400, {"warning": "another", "by": "mail"}),
        ("ada", 400, {"warning": ["x"], "by": "page"}),
        ("ada", 400, {"by": "page"}),
        ("ada", 400, {}),
        ("ada", 400, {"warning": "x", "by": {"a": 1}}),
        ("ada", 400, {"warning": "x", "by": "page", "more": 1}),
    ],
)
async def test_what_is_no_delivery(site: Web, user: str, status: int, body: Any) -> None:
    lease = warned(site)
    text = seen(lease) if body is None else json.dumps(body)
    await site.refused(status, "POST", f"api/leases/{lease.id}/seen", user, body=text)
    assert site.ledger.lease(lease.id) == lease
    headers, token, _ = await site.browser("bob")
    await site.refused(403, "POST", f"api/leases/{lease.id}/seen", body=seen(lease), **headers)
    await site.refused(
        404, "POST", f"api/leases/{lease.id}/seen", body=seen(lease), X_XSRFToken=token, **headers
    )


async def test_what_was_saved_is_told_with_the_end(site: Web) -> None:
    lease = site.active("ada")
    path = f"api/leases/{lease.id}/saved"
    body = json.dumps({"documents": ["a.ipynb", EVIL], "failed": ["b.ipynb"]})
    assert (await site.json("POST", path, "ada", body=body))[0] == 200
    for user in ("bob", "root"):
        await site.refused(404, "POST", path, user, body=body)
    for wrong in (
        {"documents": "a"}, {"documents": [1]}, {"documents": ["x" * 1001]}, {"documents": ["x"] * 101}, {"more": []},
    ):  # fmt: skip
        await site.refused(400, "POST", path, "ada", body=json.dumps(wrong))
    site.ledger.begin_stop(lease.id, actor="service", reason="idle")
    site.ledger.close(lease.id, actor="service")
    _, shape = await site.json("GET", f"api/leases/{lease.id}", "ada")
    assert shape["saved"]["documents"] == ["a.ipynb", EVIL] and shape["saved"]["failed"] == ["b.ipynb"]
    assert shape["why"] == "The pool ended it: idle."
    assert shape["again"] == "/hub/spawn/ada?opt-profile=quarter"
    page = (await site.ask("GET", f"leases/{lease.id}", "ada")).body.decode()
    assert EVIL not in page and EVIL in unescape(page) and "Could not be saved" in page
    assert f'href="{shape["again"]}"' in page


async def test_a_script_that_was_never_begun_did_not_run(site: Web) -> None:
    lease = site.active("ada")
    site.ledger.begin_stop(lease.id, actor="service", reason="idle", script=True)
    site.ledger.close(lease.id, actor="service")
    _, shape = await site.json("GET", f"api/leases/{lease.id}", "ada")
    assert (shape["script"]["at"], shape["script"]["state"]) == (None, "failed")
    page = (await site.ask("GET", f"leases/{lease.id}", "ada")).body.decode()
    assert "it was not run: the session ended before." in page
    assert "ran at" not in page


async def test_the_page_of_a_session_tells_its_warning_and_what_to_do(site: Web) -> None:
    lease = warned(site)
    page = (await site.ask("GET", f"leases/{lease.id}", "ada")).body.decode()
    (section,) = re.findall(r'<section[^>]*data-show="warned"[^>]*>', page)
    assert 'aria-live="polite"' in section and "hidden" not in section
    assert "Use it, or press Extend" in page and f'<a href="{PREFIX}">the page of the pool</a>' in page


async def test_a_front_end_logs_in_with_one_request(site: Web) -> None:
    answer = await site.ask("GET", "api/session", Sec_Fetch_Mode="no-cors", Sec_Fetch_Site="same-origin")
    assert (answer.code, answer.headers["Location"].startswith("/hub/api/oauth2/authorize?")) == (302, True)
    browser = {"Cookie": site.cookie("ada"), "Sec_Fetch_Site": "same-origin"}
    answer = await site.ask("GET", "api/session", Sec_Fetch_Mode="no-cors", **browser)
    shape = json.loads(answer.body)
    assert (answer.code, shape["user"], shape["prefix"]) == (200, "ada", PREFIX)
    assert f"_xsrf={shape['xsrf']}" in answer.headers["Set-Cookie"], "the browser had lost it"
    headers = {"Cookie": f"{site.cookie('ada')}; _xsrf={shape['xsrf']}"}
    code, found = await site.json("GET", "api/leases", X_XSRFToken=shape["xsrf"], **CORS, **headers)
    assert (code, found) == (200, {"leases": []})
    again = await site.ask(
        "GET", "api/session", Sec_Fetch_Mode="no-cors", Sec_Fetch_Site="same-origin", **headers
    )
    assert json.loads(again.body)["xsrf"] == shape["xsrf"]


async def test_with_a_domain_for_each_user_pages_work_and_no_other_origin_may_read(site: Web) -> None:
    """The session of a person is another origin there: its extension gets nothing, and is silent."""
    HubOAuth.instance().hub_host = "https://hub.example"
    lease = site.active("ada")
    answer = await site.ask("GET", "")
    assert answer.headers["Location"].startswith("https://hub.example/hub/api/oauth2/authorize?")
    answer = await site.ask("GET", "", Cookie=site.cookie("ada"))
    page = answer.body.decode()
    assert 'data-hub="https://hub.example/hub/"' in page and f'data-prefix="{PREFIX}"' in page
    assert 'href="https://hub.example/hub/spawn/ada/"' in page and f'src="{PREFIX}static/gpupool.js' in page
    policy = answer.headers["Content-Security-Policy"]
    for part in ("style-src 'self' https://hub.example;", "default-src 'self';", "form-action 'self';"):
        assert part in policy
    assert "connect-src" not in policy and "script-src" not in policy, "both are 'self'"
    session = {
        "Origin": "https://ada.hub.example",
        "Sec_Fetch_Site": "same-site",
        "Cookie": site.cookie("ada"),
    }
    for method, path, mode in (
        ("GET", "api/session", "no-cors"), ("GET", "api/leases", "cors"), ("OPTIONS", "api/leases", "cors"),
        ("POST", f"api/leases/{lease.id}/extend", "cors"), ("DELETE", f"api/leases/{lease.id}", "cors"),
    ):  # fmt: skip
        answer = await site.ask(method, path, Sec_Fetch_Mode=mode, **session)
        assert answer.code in (403, 405), (path, answer.body)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert site.ledger.lease(lease.id) == lease
    site.ledger.begin_stop(lease.id, actor="service", reason="idle")
    site.ledger.close(lease.id, actor="service")
    _, shape = await site.json("GET", f"api/leases/{lease.id}", "ada")
    assert shape["again"] == "https://hub.example/hub/spawn/ada?opt-profile=quarter"


@pytest.mark.parametrize(
    ("configured", "said", "link"),
    [
        ("", {}, ""),
        ("https://a.example", {}, "https://a.example/services/gpupool/"),
        ("https://a.example/hub/", {"URL": "https://b.example/x/"}, "https://a.example/services/gpupool/"),
        ("", {"HUB_URL": "https://a.example/hub/"}, "https://a.example/services/gpupool/"),
        ("", {"URL": "https://a.example/services/gpupool/"}, "https://a.example/services/gpupool/"),
        (
            "https://a.example",
            {"URL": "https://gpupool.a.example/services/gpupool/", "HOST": "https://a.example"},
            "https://gpupool.a.example/services/gpupool/",
        ),
    ],
)
def test_the_links_in_notices_lead_to_the_service(configured: str, said: dict[str, str], link: str) -> None:
    names = {
        "URL": "JUPYTERHUB_PUBLIC_URL",
        "HUB_URL": "JUPYTERHUB_PUBLIC_HUB_URL",
        "HOST": "JUPYTERHUB_HOST",
    }
    assert public_link(configured, {names[name]: value for name, value in said.items()}) == link


@pytest.mark.parametrize("where", ["cross-site", "same-site"])
async def test_the_token_is_not_for_pages_of_others(site: Web, where: str) -> None:
    sent = {"Cookie": site.cookie("ada"), "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Site": where}
    answer = await site.ask("GET", "api/session", **sent)
    assert answer.code == 403 and b"not-same-origin" in answer.body
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_fetch_that_would_not_be_known_afterwards_is_not_led_in_circles(site: Web) -> None:
    await site.refused(403, "GET", "api/session", Cookie=site.cookie("ada"), **CORS)


# --- the page of choices -------------------------------------------------------------------------


async def choose(site: Web, fields: list[tuple[str, str]], user: str = "ada") -> Any:
    headers, token, _ = await site.browser(user)
    return await site.ask("POST", "notices", body=urlencode([("_xsrf", token), *fields]), **headers)


async def test_people_choose_what_they_are_told(site: Web) -> None:
    site.notices = GPUPoolNotices(config=Config({"GPUPoolNotices": MAIL}))
    site.application.settings["notices"] = site.notices
    headers, _, _ = await site.browser("ada")
    page = (await site.ask("GET", "notices", **headers)).body.decode()
    assert "once you have asked for a session" in page and "ada@lab.example" in page and "Chat" not in page
    assert (await choose(site, [])).code == 409
    site.active("ada")
    answer = await choose(site, [("mail", "reclaimed"), ("mail", "budget")])
    assert (answer.code, answer.headers["Location"]) == (303, f"{PREFIX}notices?kept=1")
    assert site.ledger.choice("ada") == Choice(
        unwanted={"mail": frozenset({"started", "unwell"}), "webhook": frozenset()}
    )
    page = (await site.ask("GET", "notices", **headers)).body.decode()
    boxes = re.findall(r'name="mail" value="(\w+)"[^>]*?( checked)?( disabled)?>', re.sub(r"\s+", " ", page))
    assert boxes == [("warning", " checked", " disabled"), ("reclaimed", " checked", ""), ("started", "", ""),
                     ("budget", " checked", ""), ("unwell", "", "")]  # fmt: skip


@pytest.mark.parametrize(
    ("domains", "address", "taken"),
    [
        ([], "ada@evil.example", False),
        (["lab.example"], "ada@evil.example", False),
        (["lab.example"], "ada.l@lab.example", True),
        (["*"], f"{EVIL}@x.example", False),
        (["*"], "a@x.example\nBcc: b@x.example", False),
    ],
)
async def test_an_address_of_ones_own(site: Web, domains: list[str], address: str, taken: bool) -> None:
    site.notices = GPUPoolNotices(config=Config({"GPUPoolNotices": {**MAIL, "mail_domains": domains}}))
    site.application.settings["notices"] = site.notices
    site.active("ada")
    answer = await choose(site, [("address", address)])
    assert answer.code == (303 if taken else 400)
    assert EVIL.encode() not in answer.body
    found = site.ledger.choice("ada")
    assert found is not None and found.address == (address if taken else "")


@pytest.mark.parametrize("field", [("mail", "device"), ("fax", "warning"), ("mail", EVIL), ("owner", "bob")])
async def test_a_form_that_is_none_of_ours(site: Web, field: tuple[str, str]) -> None:
    site.application.settings["notices"] = GPUPoolNotices(config=Config({"GPUPoolNotices": MAIL}))
    site.active("ada")
    answer = await choose(site, [field])
    assert answer.code == 400 and EVIL.encode() not in answer.body
    assert site.ledger.choice("ada") == Choice()
    bare = await site.ask("POST", "notices", body="mail=started", Cookie=site.cookie("ada"))
    assert bare.code == 403
