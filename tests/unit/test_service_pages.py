"""The pages of those who run the pool and of the books, as a browser without JavaScript gets them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.conditions import Condition
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.model import Lease, Sample, State
from jupyterhub_gpupool.service import usage_pages

from .test_service_web import EVIL, PREFIX, Listener, Web, a_hub, a_site

__all__ = ["a_hub", "a_site"]  # fixtures

PAGES = ["limits", "limits/edit?scope=pool", "drain", "drain?device=GPU-a"]


class Reader:
    """Somebody with a browser without JavaScript."""

    def __init__(self, site: Web, headers: dict[str, str], token: str) -> None:
        self.site, self.headers, self.token = site, headers, token

    @classmethod
    async def of(cls, site: Web, user: str) -> Reader:
        headers, token, _ = await site.browser(user)
        return cls(site, headers, token)

    async def get(self, path: str, status: int = 200) -> str:
        answer = await self.site.ask("GET", path, **self.headers)
        assert answer.code == status, answer.body
        return checked(answer.body.decode())

    async def post(self, path: str, status: int = 200, **fields: str) -> str:
        """Send a form; a redirect gives where it leads to."""
        body = urlencode({"_xsrf": self.token, **fields})
        answer = await self.site.ask("POST", path, body=body, **self.headers)
        assert answer.code == status, answer.body
        return str(answer.headers["Location"]) if status == 303 else checked(answer.body.decode())

    async def edit(self, scope: str, step: str, status: int = 200, **fields: str) -> str:
        return await self.post("limits/edit", status, scope=scope, step=step, **fields)


def checked(page: str) -> str:
    """What is true of every page: nothing inline, unique ids, labels that lead somewhere; as text for people."""
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script(?![^>]*src=)|javascript:", page)
    assert "<script>alert" not in page
    shown = re.sub(r"<template.*?</template>", "", page, flags=re.DOTALL)
    ids = re.findall(r'\sid="([^"]+)"', shown)
    assert sorted(set(ids)) == sorted(ids)
    for targets in re.findall(r'(?:aria-(?:labelledby|describedby)|<label[^>]* for)="([^"]+)"', shown):
        assert set(targets.split()) <= set(ids), targets
    for control in re.findall(r'<(?:input(?![^>]*type="hidden")|select|textarea)\b[^>]*>', shown):
        assert re.search(r'\sid="([^"]+)"', control), control
    return unescape(shown)


def state(ledger: Ledger) -> Any:
    found = ledger.snapshot()
    return ledger.limits(), found.devices, len(ledger.events())


def fields_of(page: str) -> dict[str, str]:
    """What the last form of a page would send."""
    form = page[page.rindex("<form") :]
    return dict(re.findall(r'<input[^>]* name="([^"]+)" value="([^"]*)"', form))


def row_of(page: str, scope: str, label: str) -> list[str]:
    """The cells of a line in the table of limits: configured, edited, in force, now."""
    part = page[page.index(f'gp-break">{scope}</span>') :].partition("</tbody>")[0]
    line = part[part.index(f">{label}</th>") :].partition("</tr>")[0]
    return [
        re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL)
    ]


# --- who may -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
async def test_pages_for_admins_are_refused_to_others_in_words(site: Web, path: str) -> None:
    assert (await site.ask("GET", path)).code == 302  # to the login
    for user in ("ada", "ada-service"):
        answer = await site.ask("GET", path, user)
        assert answer.code == 403 and b"This is for admins." in answer.body
    ada = await Reader.of(site, "ada")
    assert "limits" not in re.findall(r'nav-link" href="[^"]*/(\w+)"', await ada.get(""))
    root = await Reader.of(site, "root")
    assert "h1" in await root.get(path)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("limits/edit", {"scope": "pool", "step": "apply", "gpus": "1"}),
        ("limits/edit", {"scope": "pool", "step": "preview", "gpus": "1"}),
        ("limits/edit", {"scope": "pool", "step": "apply-back"}),
        ("drain", {"device": "", "step": "drain"}),
        ("drain", {"device": "GPU-a", "step": "undrain"}),
    ],
)
async def test_forms_for_admins_change_nothing_for_others_or_without_the_token(
    site: Web, path: str, fields: dict[str, str]
) -> None:
    site.ledger.set_limit("pool", {"gpus": 2}, actor="root")
    before = state(site.ledger)
    ada, root = await Reader.of(site, "ada"), await Reader.of(site, "root")
    assert "This is for admins." in await ada.post(path, 403, **fields)
    assert "This is for admins." in await ada.post(path, 403, odd="1")
    for body in (
        urlencode(fields),
        urlencode({**fields, "_xsrf": "wrong"}),
        urlencode({**fields, "_xsrf": ada.token}),
    ):
        assert (await site.ask("POST", path, body=body, **root.headers)).code == 403
    assert (await site.ask("POST", path, body=urlencode(fields))).code == 403
    assert (await site.ask("PUT", path, "root", body=b"")).code == 405
    assert state(site.ledger) == before


@pytest.mark.parametrize(
    "body",
    ["step=explode&scope=pool", "scope=pool", "step=apply&scope=pool&odd=1", "step=apply&scope=pool&gpus=1&gpus=2",
     "step=apply&scope=everybody", "step=apply", "step=apply&scope=pool&gpus=%ff", "x" * 70_000],
)  # fmt: skip
async def test_forms_that_no_page_sends_change_nothing(site: Web, body: str) -> None:
    root, before = await Reader.of(site, "root"), state(site.ledger)
    answer = await site.ask("POST", "limits/edit", body=f"{body}&_xsrf={root.token}", **root.headers)
    assert answer.code == 400, answer.body
    assert state(site.ledger) == before


# --- limits ------------------------------------------------------------------------------------------------


async def test_a_limit_is_previewed_applied_shown_and_taken_back(site: Web) -> None:
    configured = fairness.read_limits({"user:*": {"sessions": 3, "gpus": 2}})
    site.pool.ledger().policy = replace(site.pool.ledger().policy, limits=configured)
    for server in ("", "b"):
        site.active("ada", server)
    root = await Reader.of(site, "root")
    assert row_of(await root.get("limits"), "user:*", "Sessions at once") == ["3", "–", "3", "2 (ada)"]
    page = await root.get("limits/edit?scope=user:*")
    assert fields_of(page) | {"sessions": "3", "gpus": "2", "scope": "user:*"} == fields_of(page)

    before = state(site.ledger)
    page = await root.edit("user:*", "preview", sessions="1", gpu_hours="40", window="7 d")
    assert "Nothing is changed yet" in page and "Apply" in page
    assert "ada</strong>: Over limit: user ada holds 2 of its 1 session." in page
    assert "40 in 7 days" in page and "no session is ended" in page
    assert state(site.ledger) == before

    sent = fields_of(page)
    assert (sent["sessions"], sent.get("gpus", ""), sent["window"]) == ("1", "", "7 d")
    leads = await root.post(
        "limits/edit", 303, **{**sent, "_xsrf": root.token, "step": "apply", "why": "exams"}
    )
    assert leads == f"{PREFIX}limits?done=user%3A%2A"
    (row,) = site.ledger.limits().values()
    assert row.edited is not None and (row.edited.sessions, row.edited.gpus, row.actor, row.why) == (
        1,
        None,
        "root",
        "exams",
    )
    page = await root.get(leads.removeprefix(PREFIX))
    assert row_of(page, "user:*", "Sessions at once") == ["3", "1", "1", "2 (ada), over limit"]
    assert row_of(page, "user:*", "GPU-equivalents at once") == ["2", "no limit", "no limit", "0.5 (ada)"]
    assert row_of(page, "user:*", "GPU-hours")[:3] == ["no limit", "40 in 7 days", "40 in 7 days"]
    assert "Edited by root" in page and ": exams" in page
    assert "Over limit: user ada holds 2 of its 1 session." in page

    page = await root.edit("user:*", "back")
    assert (
        "The configured limit would hold again." in page
        and "user:ada would no longer be over its limit" in page
    )
    assert site.ledger.limits()["user:*"].edited is not None
    sent = {**fields_of(page), "_xsrf": root.token, "step": "apply-back", "why": "exams are over"}
    await root.post("limits/edit", 303, **sent)
    assert site.ledger.limits()["user:*"].edited is None
    assert "Over limit" not in await root.get("limits")
    assert [
        "exams are over" in event.reason for event in site.ledger.events() if event.action == "limit"
    ] == [False, True]


async def test_bad_values_stand_beside_their_field_and_what_was_typed_stays(site: Web) -> None:
    root, before = await Reader.of(site, "root"), state(site.ledger)
    typed = {"sessions": "-1", "gpus": EVIL, "priority": "7", "reservations": "1 now then", "why": "w"}
    for step in ("preview", "apply"):
        page = await root.edit("group:vision", step, 400, **typed)
        for name in ("sessions", "gpus", "reservations"):
            assert re.search(rf'aria-describedby="hint-{name} wrong-{name}"\s+aria-invalid="true"', page) or (
                f'aria-describedby="hint-{name} wrong-{name}" aria-invalid="true"' in page
            )
        assert "Nothing was changed: some fields need another value." in page
        assert 'name="sessions" value="-1"' in page and 'name="priority" value="7"' in page
        assert f'value="{EVIL}"' in page and "\n1 now then</textarea>" in page
        assert page.index("Sessions is -1; it must be a whole number") < page.index('id="key-gpus"')
        assert "wrong-priority" not in page
    page = await root.edit("group:vision", "preview", 400, guaranteed_gpus="3")
    assert "3 GPUs are guaranteed (3 to vision), and the pool has 2 GPUs." in page
    assert page.index("3 GPUs are guaranteed") < page.index('id="key-reservations"')
    assert state(site.ledger) == before


async def test_a_way_back_for_which_there_is_no_room_any_more_says_so(site: Web) -> None:
    limits = fairness.read_limits({"group:vision": {"guaranteed_gpus": 2}})
    site.pool.ledger().policy = replace(site.pool.ledger().policy, limits=limits)
    site.ledger.set_limit("group:vision", {}, actor="root")
    site.ledger.set_limit("group:lab", {"guaranteed_gpus": 2}, actor="root")
    root = await Reader.of(site, "root")
    page = await root.edit("group:vision", "back")
    assert "4 GPUs are guaranteed (2 to lab, 2 to vision)" in page
    sent = {**fields_of(page), "_xsrf": root.token, "step": "apply-back"}
    page = await root.post("limits/edit", 400, **sent)
    assert "The edit still holds. 4 GPUs are guaranteed (2 to lab, 2 to vision)" in page
    assert site.ledger.limits()["group:vision"].edited is not None


async def test_what_guarantees_nothing_is_previewed_while_too_much_is_guaranteed(site: Web) -> None:
    site.ledger.set_limit("group:vision", {"guaranteed_gpus": 2}, actor="root")
    limits = fairness.read_limits({"group:lab": {"guaranteed_gpus": 1}})
    site.pool.ledger()._grants.policy = replace(site.pool.ledger().policy, limits=limits)
    site.pool.ledger()._grants.forget()
    root = await Reader.of(site, "root")
    page = await root.edit("user:ada", "preview", sessions="1")
    await root.post("limits/edit", 303, **{**fields_of(page), "_xsrf": root.token, "step": "apply"})
    assert "3 GPUs are guaranteed" in await root.edit("group:lab", "preview", 400, guaranteed_gpus="1")


async def test_a_preview_may_be_typed_further(site: Web) -> None:
    root = await Reader.of(site, "root")
    page = await root.edit("group:vision", "preview", sessions="2", strict="yes")
    page = await root.post(
        "limits/edit", **{**fields_of(page), "_xsrf": root.token, "step": "change", "why": "so"}
    )
    assert 'name="sessions" value="2"' in page and " checked>" in page and 'name="why" value="so"' in page


async def test_an_edit_of_somebody_else_in_the_meantime_is_shown_first(site: Web) -> None:
    root = await Reader.of(site, "root")
    page = await root.edit("pool", "preview", gpus="2")
    site.ledger.set_limit("pool", {"gpus": 1}, actor="another", why="sooner")
    sent = {**fields_of(page), "_xsrf": root.token, "step": "apply"}
    page = await root.post("limits/edit", **sent)
    assert "edited in the meantime, by another" in page
    assert site.ledger.limits()["pool"].actor == "another"
    back = {**sent, "step": "apply-back"}
    assert "edited in the meantime" in await root.post("limits/edit", **back)
    assert site.ledger.limits()["pool"].edited is not None
    await root.post("limits/edit", 303, **{**fields_of(page), "_xsrf": root.token, "step": "apply"})
    assert site.ledger.limits()["pool"].actor == "root"


@pytest.mark.parametrize("step", ["apply", "apply-back"])
async def test_an_edit_of_somebody_else_while_mine_is_made_is_not_lost(
    site: Web, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    root = await Reader.of(site, "root")
    page = await root.edit("pool", "preview", gpus="2")
    ask = site.pool.ask

    async def late(name: str, *given: Any, **more: Any) -> Any:
        if name in ("set_limit", "clear_limit") and site.ledger.limits().get("pool") is None:
            site.ledger.set_limit("pool", {"gpus": 1}, actor="another")
        return await ask(name, *given, **more)

    monkeypatch.setattr(site.pool, "ask", late)
    page = await root.post("limits/edit", **{**fields_of(page), "_xsrf": root.token, "step": step})
    assert "edited in the meantime, by another" in page
    assert site.ledger.limits()["pool"].actor == "another"


@pytest.mark.parametrize("scope", ["", "nobody", "group:*", "user:" + "x" * 300, "user:a\nb", EVIL])
async def test_what_is_no_scope_gets_a_sentence_beside_the_field(site: Web, scope: str) -> None:
    root = await Reader.of(site, "root")
    page = await root.get(f"limits/edit?scope={quote(scope)}", 400)
    assert (
        'aria-describedby="scope-hint scope-wrong" aria-invalid="true"' in page and "is not a scope" in page
    )


async def test_hostile_names_and_reasons_are_text(site: Web) -> None:
    site.active(EVIL)
    root, scope = await Reader.of(site, "root"), f"user:{EVIL}"
    page = await root.edit(scope, "preview", sessions="0")
    assert f"{EVIL}</strong>: Over limit: user {EVIL} holds 1 of its 0 sessions." in page
    sent = {**fields_of(page), "_xsrf": root.token, "step": "apply", "why": EVIL}
    assert sent["scope"] == scope
    leads = await root.post("limits/edit", 303, **sent)
    for path in (leads.removeprefix(PREFIX), f"limits/edit?scope={quote(scope)}", "events", "use"):
        assert EVIL in await root.get(path)
    await root.post("drain", 303, device="GPU-a", step="drain", why=EVIL)
    for path in ("", "drain", "drain?device=GPU-a"):
        assert EVIL in await root.get(path)
    assert f": {EVIL}</span>" in await (await Reader.of(site, "bob")).get("")


async def test_a_typo_is_noted_and_no_error(site: Web) -> None:
    root = await Reader.of(site, "root")
    page = await root.edit("group:visoin", "preview", profiles="quarter, haalf")
    assert "there is no profile haalf" in page and "Nobody of a group visoin" in page


# --- GPUs ---------------------------------------------------------------------------------------------------


async def test_where_a_gpu_sits_and_its_condition_are_on_the_page_and_unknown_is_said_so(site: Web) -> None:
    await site.feed.refresh()
    page = await (await Reader.of(site, "bob")).get("")
    for name in ("numa", "power", "temperature", "errors"):
        assert page.count(f'<dd data-field="{name}">unknown</dd>') == 2, name
    first, second = site.ledger.snapshot().devices
    site.ledger.sync_inventory([replace(first, numa=1, links=((second.id, "NV12"),)), second])
    site.ledger.record([], {first.id: Sample(10.0, 100, 1)}, {first.id: Condition(61.6, 40.0, 3)})
    await site.feed.refresh()
    page = await (await Reader.of(site, "bob")).get("")
    for name, words in (("numa", "1"), ("power", "62 W"), ("temperature", "40 °C"), ("errors", "3")):
        assert page.count(f'<dd data-field="{name}">{words}</dd>') == 1, name
    assert f'data-field="links">NV12 to GPU {second.index}</dd>' in page


# --- drains ------------------------------------------------------------------------------------------------


async def test_a_gpu_is_drained_with_its_sessions_named_and_put_back(site: Web) -> None:
    lease = site.active("ada")
    (device,) = (part.device for part in lease.slices)
    root = await Reader.of(site, "root")
    assert f'href="{PREFIX}drain?device={device}"' in await root.get("")
    page = await root.get(f"drain?device={device}")
    assert "<strong>ada</strong>: A quarter" in page and "is warned 25 s before it ends" in page
    at = (datetime.now(UTC) + timedelta(hours=2)).replace(second=0, microsecond=0)
    typed = {"device": device, "step": "drain", "why": "new fan"}
    assert await root.post("drain", 303, at=f"{at:%Y-%m-%dT%H:%M}", **typed) == f"{PREFIX}#devices-heading"
    one = next(item for item in site.ledger.snapshot().devices if item.id == device)
    assert (one.drained, one.drain_at, one.drain_by, one.drain_why) == (
        True,
        at.timestamp(),
        "root",
        "new fan",
    )
    for user, by in (("root", ", by root"), ("bob", "")):
        page = await (await Reader.of(site, user)).get("")
        assert f'<span data-field="drain-by">{by}</span>' in page and ": new fan" in page
        assert f"{at:%Y-%m-%d %H:%M}:00 UTC" in page
        assert ("Back into service…" in page) is (user == "root")
    assert "by root: new fan" in await root.get(f"drain?device={device}")
    await root.post("drain", 303, device=device, step="undrain", why="it turns")
    assert not any(item.drained for item in site.ledger.snapshot().devices)
    await root.post("drain", 303, device="", step="drain")
    assert all(item.drained for item in site.ledger.snapshot().devices)
    await root.post("drain", 303, device="", step="undrain")
    undrained = next(event for event in site.ledger.events() if event.action == "undrain")
    assert undrained.reason.endswith("it turns")


async def test_a_lost_gpu_is_forgotten_when_nobody_is_on_it(site: Web) -> None:
    root, devices = await Reader.of(site, "root"), site.ledger.snapshot().devices
    button = 'name="step" value="forget"'
    assert button not in await root.get("drain?device=GPU-b")
    page = await root.post("drain", 400, device="GPU-b", step="forget")
    assert re.search(r'role="alert">GPU GPU-b is not lost', page) and "is-invalid" not in page
    site.ledger.sync_inventory([device for device in devices if device.id != "GPU-b"])
    held = {item.device for lease in site.ledger.snapshot().leases for item in lease.slices}
    assert (button in await root.get("drain?device=GPU-b")) is ("GPU-b" not in held)
    for lease in site.ledger.snapshot().leases:
        if lease.slices:
            site.ledger.begin_stop(lease.id, actor="root", reason="")
            site.ledger.close(lease.id, actor="root")
    assert button in await root.get("drain?device=GPU-b")
    assert (
        await root.post("drain", 303, device="GPU-b", step="forget", why=EVIL) == f"{PREFIX}#devices-heading"
    )
    assert [device.id for device in site.ledger.snapshot().devices] == ["GPU-a"]
    await root.get("drain?device=GPU-b", 404)


@pytest.mark.parametrize("at", ["tomorrow", "2999-01-01T00:00", "2026-13-01T00:00", EVIL, "nan", "-1"])
async def test_an_odd_time_of_a_drain_gets_a_sentence_and_drains_nothing(site: Web, at: str) -> None:
    root, before = await Reader.of(site, "root"), state(site.ledger)
    page = await root.post("drain", 400, device="GPU-a", step="drain", at=at, why="kept")
    assert 'aria-describedby="at-hint at-wrong" aria-invalid="true"' in page
    assert f"What was sent: {at}" in page and 'name="why" value="kept"' in page
    assert state(site.ledger) == before


async def test_an_unknown_gpu_is_404(site: Web) -> None:
    root = await Reader.of(site, "root")
    await root.get("drain?device=GPU-z", 404)
    for step in ("drain", "undrain"):
        await root.post("drain", 404, device="GPU-z", step=step)


# --- books -------------------------------------------------------------------------------------------------


def held_for(site: Web, user: str, hours: float, server: str = "") -> Lease:
    """A session that began hours ago, by the ledger's own clock."""
    lease = site.active(user, server)
    store = site.ledger.store
    with store.write() as tx:
        ago = dict.fromkeys(("requested_at", "granted_at", "active_at"), tx.now - hours * 3600)
        tx.conn.exec_driver_sql(
            "UPDATE leases SET requested_at=:requested_at, granted_at=:granted_at, active_at=:active_at WHERE id=:id",
            {**ago, "id": lease.id},
        )
    found = site.ledger.lease(lease.id)
    assert found is not None
    return found


async def test_everybody_sees_their_own_use_and_an_admin_all(site: Web) -> None:
    for user in ("ada", EVIL):
        held_for(site, user, 8)
    root, ada = await Reader.of(site, "root"), await Reader.of(site, "ada")
    page = await ada.get("use?by=profile&from=2020-01-01")
    assert "A quarter" in page and "2.00" in page and EVIL not in page
    page = await root.get("use")
    assert EVIL in page and page.index(">Totals<") < page.index(">Days<")
    assert re.search(r"All</th>\s*<td[^>]*>4\.00", page)
    csv_link, json_link = re.findall(r'href="([^"]*use/csv[^"]*|[^"]*api/usage[^"]*)"', page)
    answer = await site.ask("GET", csv_link.removeprefix(PREFIX), **root.headers)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(
        r'attachment; filename="gpu-hours-by-user-[-\d]+\.csv"', answer.headers["Content-Disposition"]
    )
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert {row["user"] for row in rows} == {"ada", EVIL}
    assert sum(float(row["used"]) for row in rows) == pytest.approx(4, abs=0.01)
    assert (await site.json("GET", json_link.removeprefix(PREFIX), **root.headers))[1]["by"] == "user"
    mine = (await site.ask("GET", "use/csv", "ada")).body.decode()
    assert EVIL not in mine and "ada," in mine


async def test_names_in_the_csv_are_no_formulas(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(site.ledger.__dict__, "usage", lambda *_: [usage_pages.books.Entry(
            "=1+1", datetime(2026, 6, 1).date(), 1, 0, 0)])  # fmt: skip
        answer = await site.ask("GET", "use/csv", "root")
    assert answer.body.decode().splitlines()[1] == "'=1+1,2026-06-01,1.0000,0.0000,0.0000"


@pytest.mark.parametrize(
    ("query", "field"),
    [("by=lease", "by"), ("from=soon", "from"), ("to=2026-02-30", "to"), ("from=2026-06-02&to=2026-06-01", "to"),
     ("from=1960-01-01", "to"), (f"from={quote(EVIL)}", "from")],
)  # fmt: skip
async def test_odd_questions_stand_beside_their_field(site: Web, query: str, field: str) -> None:
    for user in ("ada", "root"):
        page = await (await Reader.of(site, user)).get(f"use?{query}", 400)
        assert f'id="{field}-wrong"' in page and ">Totals<" not in page
        assert (await site.ask("GET", f"use/csv?{query}", user)).code == 400
    assert (await site.ask("GET", "use?odd=1", "ada")).code == 400


async def test_a_session_that_used_little_is_told_so(site: Web) -> None:
    lease = held_for(site, "ada", 5)
    with site.ledger.store.write() as tx:
        tx.conn.exec_driver_sql(
            "UPDATE leases SET peak_utilization=12, peak_memory_mib=100 WHERE id=?", (lease.id,)
        )
    ada = await Reader.of(site, "ada")
    assert "Half of it would have done: at most 100 of 20480 MiB" in await ada.get(f"leases/{lease.id}")
    site.ledger.begin_stop(lease.id, actor="ada", reason="released")
    site.ledger.close(lease.id, actor="ada")
    for path in ("leases", f"leases/{lease.id}"):
        assert "Half of it would have done" in await ada.get(path)
    _, shape = await site.json("GET", "api/leases?state=closed", "ada")
    assert shape["leases"][0]["advice"].startswith("Half of it")


# --- how one stands ----------------------------------------------------------------------------------------


async def test_budget_and_exceeded_limits_are_on_the_status_page_and_in_the_stream(site: Web) -> None:
    bob = await Listener.open(site, Authorization="token bob")
    listener = await Listener.open(site, Authorization="token ada")
    assert await listener.next("me") == {"budget": None, "over": []}
    held_for(site, "ada", 6)
    site.ledger.set_limit("user:ada", {"gpu_hours": 4}, actor="root")
    page = await (await Reader.of(site, "ada")).get("")
    assert "2.5 of 4 GPU-hours left (user ada, in any 7 days)." in page and "uses them up by" in page
    me = await listener.next("me")
    assert (me["budget"]["state"], me["budget"]["hours"]) == ("ok", 4)
    assert datetime.fromisoformat(me["budget"]["lasts_until"]) > datetime.now(UTC) + timedelta(hours=9)
    site.ledger.set_limit("user:ada", {"gpu_hours": 1.8, "gpus": 0.1}, actor="root")
    me = await listener.next("me")
    assert me["budget"]["words"].startswith("Only 0.3 of 1.8 GPU-hours left")
    (sentence,) = me["over"]
    assert sentence.startswith("Over limit: user ada holds 0.25 of its 0.1 GPUs.")
    site.ledger.set_limit("user:ada", {"gpu_hours": 1}, actor="root")
    me = await listener.next("me")
    assert "a start works again in" in me["budget"]["words"] and me["budget"]["again_at"] and me["over"] == []
    assert "a start works again in" in await (await Reader.of(site, "ada")).get("")
    assert await bob.next("me") == {"budget": None, "over": []}
    for one in (listener, bob):
        await one.close()


async def test_a_wait_has_a_range_or_is_unknown(site: Web) -> None:
    for user in ("ada", "bob"):
        site.active(user, fraction="1")
    waiting = site.lease("ada", "later", "1")
    assert waiting.state is State.QUEUED
    ada = await Reader.of(site, "ada")
    page = await ada.get("")
    assert '<dd data-field="wait">unknown</dd>' in page and '<td data-field="wait">unknown</td>' in page


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("idle", "its GPU is not used"),
        ("max_age", "it reaches the age"),
        ("share", "another group is guaranteed"),
        ("drain", "taken out of service"),
        ("budget", "GPU-hours that pay for it are used up"),
    ],
)
async def test_a_warning_says_its_rule_and_whether_extend_works(site: Web, rule: str, says: str) -> None:
    lease = site.active("ada")
    site.warn(lease)
    with site.ledger.store.write() as tx:
        tx.conn.exec_driver_sql("UPDATE leases SET warned_for=? WHERE id=?", (rule, lease.id))
    page = await (await Reader.of(site, "ada")).get("")
    assert says in page
    disabled = re.search(r'aria-describedby="cap-\w+" disabled>', page) is not None
    assert disabled is ("Extend does not put this end off" in page) is (rule != "idle")


async def test_what_is_borrowed_and_for_whom_it_counts_is_said(site: Web) -> None:
    mine = site.active("ada")
    own = (await site.json("GET", f"api/leases/{mine.id}", "ada"))[1]
    assert (own["borrowed"], own["group"]) == (False, None)
    site.ledger.set_limit("group:vision", {"guaranteed_gpus": 1}, actor="root")
    assert (await site.json("GET", f"api/leases/{mine.id}", "ada"))[1]["borrowed"] is True
    page = await (await Reader.of(site, "ada")).get("")
    assert '<div class="gp-wide" data-show="borrowed">' in page
