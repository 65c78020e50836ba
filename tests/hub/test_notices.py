"""Warnings that reach their people, or do not: a real hub, a real mail server, a script of the owner's."""

from __future__ import annotations

import html
import re
import time
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_gpupool.model import Lease
from jupyterhub_gpupool.spawners.local import home_name

from ..receivers import mail_server, webhook
from .conftest import HubUnderTest, MakeHub, until

WARN = 3.0
SWEEP = 0.5


def events_of(hub: HubUnderTest, lease: str) -> dict[str, Any]:
    """The last event of each action of a lease."""
    return {event.action: event for event in hub.ledger().events(count=5000) if event.lease == lease}


def now(hub: HubUnderTest, lease: str) -> Lease:
    found = hub.ledger().lease(lease)
    assert found is not None
    return found


def mail_to(port: int, **more: Any) -> dict[str, Any]:
    return {
        "mail_server": "127.0.0.1",
        "mail_port": port,
        "mail_security": "none",
        "mail_from": "GPU pool <pool@lab.example>",
        "mail_address": "{user}@lab.example",
        "retry": 0.5,
        "timeout": 3,
        **more,
    }


def test_a_warning_that_only_the_mail_server_took_is_counted_from_then(make_hub: MakeHub) -> None:
    with mail_server() as box:
        box.answer = "451 come again later"
        hub = make_hub(
            idle={"window": 1, "warn": WARN},
            sections={"GPUPoolService": {"undelivered_max": None}, "GPUPoolNotices": mail_to(box.port)},
        )
        hub.start()
        lease = hub.run("ada")
        until(lambda: now(hub, lease.id).deadline_seconds is not None, "a warning")
        until(lambda: box.asked >= 2, "a second try")
        waited_until = time.monotonic() + 2 * WARN
        while time.monotonic() < waited_until:  # twice as long as the warning: it does not run out
            held = now(hub, lease.id)
            assert (held.state, held.deadline_seconds, held.counting) == ("active", WARN, False)
            time.sleep(0.2)
        shape = hub.pool("GET", "api/leases", hub.token_of("ada")).json()["leases"][0]
        assert (shape["warning"]["delivered_at"], shape["warning"]["deadline_seconds"]) == (None, None)
        assert now(hub, lease.id).delivered_at is None, "a program that reads the list is no delivery"
        box.answer = "250 OK"
        hub.wait_gone("ada", seconds=60)
        found = events_of(hub, lease.id)
        assert found["told"].reason == "of the warning, by mail"
        assert found["stop"].at - found["told"].at >= WARN
        warning = next(m for m in box.messages if "will be stopped" in m["Subject"])
        assert (warning["To"], warning["From"]) == ("ada@lab.example", "GPU pool <pool@lab.example>")
        text = warning.get_content()
        assert "no GPU activity" in text and "Kept: Files in the home folder." in text
        until(lambda: any("was stopped" in m["Subject"] for m in box.messages), "the second message")
        assert len([m for m in box.messages if "will be stopped" in m["Subject"]]) == 1, "told once"
        told = hub.pool("GET", f"api/leases/{lease.id}", hub.token_of("ada")).json()["deliveries"]
        assert [(d["event"], d["channel"], d["state"]) for d in told] == [
            ("warning", "mail", "delivered"),
            ("reclaimed", "mail", "delivered"),
        ]
        assert told[0]["tries"] >= 3


def test_a_warning_that_reached_nobody_postpones_the_reclaim_until_the_limit(make_hub: MakeHub) -> None:
    limit = 12.0
    with webhook() as hook:
        hook.hangs.set()
        notices = {"webhook_url": hook.url, "retry": 0.5, "timeout": 1}
        hub = make_hub(
            idle={"window": 1, "warn": WARN},
            sections={"GPUPoolService": {"undelivered_max": limit}, "GPUPoolNotices": notices},
        )
        hub.start()
        lease = hub.run("ada")
        hub.wait_gone("ada", seconds=60)
        found = events_of(hub, lease.id)
        assert "told" not in found
        assert limit - 2 * SWEEP <= found["stop"].at - found["warn"].at
        assert hook.asked >= 2
        assert "/hooks/" not in hub.log.read_text(), "whoever knows the address can write there"
        states = {d.event: (d.state, d.error) for d in hub.ledger().deliveries_of(lease.id)}
        until(lambda: hub.ledger().deliveries_of(lease.id)[0].state == "dropped", "the warning is given up")
        assert states["warning"][1], "why it was not taken is on the lease"


@pytest.mark.parametrize("at", [None, 3600.0])
def test_nobody_is_stopped_untold_while_the_limit_is_far(make_hub: MakeHub, at: float | None) -> None:
    hub = make_hub(idle={"window": 1, "warn": 1}, sections={"GPUPoolService": {"undelivered_max": at}})
    hub.start()
    lease = hub.run("ada")
    until(lambda: now(hub, lease.id).deadline_seconds is not None, "a warning")
    waited_until = time.monotonic() + 6
    while time.monotonic() < waited_until:
        assert now(hub, lease.id).state == "active"
        time.sleep(0.2)
    browser = hub.browser_session("ada")
    page = browser.get(f"{hub.url}/services/gpupool/", timeout=20)
    assert "will be stopped" in page.text
    assert now(hub, lease.id).delivered_at is None, "nobody has seen it yet"
    picture = re.search(r'<noscript>.*?<img src="([^"]+)"', page.text, re.DOTALL)
    assert picture is not None
    shown = {"Sec-Fetch-Dest": "image", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": "same-origin"}
    answer = browser.get(f"{hub.url}{html.unescape(picture[1])}", headers=shown, timeout=20)
    assert answer.headers["Content-Type"] == "image/gif", answer.text
    hub.wait_gone("ada")
    found = events_of(hub, lease.id)
    assert (found["told"].reason, found["told"].actor) == ("of the warning, by page", "ada")
    assert found["stop"].at - found["told"].at >= 1


def write_script(hub: HubUnderTest, user: str, text: str) -> Path:
    home = hub.state / "homes" / home_name(user)
    script = home / ".gpupool" / "before-reclaim"
    script.parent.mkdir(parents=True)
    script.write_text(text)
    script.chmod(0o755)
    return home


SCRIPT = """#!/bin/sh
echo "once" >> "$HOME/ran"
echo "$GPUPOOL_LEASE $GPUPOOL_RULE $GPUPOOL_REASON" > "$HOME/why"
test "$GPUPOOL_DEADLINE" -gt 1000000000 || exit 9
echo "saving <b>all</b>"
exit 3
"""


def test_the_owners_script_runs_once_before_a_reclaim_and_its_end_is_told(make_hub: MakeHub) -> None:
    hub = make_hub(idle={"window": 2, "warn": 1})
    hub.start()
    home = write_script(hub, "ada", SCRIPT)
    lease = hub.run("ada")
    hub.wait_gone("ada")
    assert (home / "ran").read_text() == "once\n"
    assert (home / "why").read_text().startswith(f"{lease.id} idle no GPU activity")
    shape = hub.pool("GET", f"api/leases/{lease.id}", hub.token_of("ada")).json()
    assert {name: shape["script"][name] for name in ("state", "status", "tail")} == {
        "state": "done", "status": 3, "tail": "saving <b>all</b>",
    }  # fmt: skip
    page = hub.browser_session("ada").get(f"{hub.url}/services/gpupool/leases/{lease.id}", timeout=20).text
    assert "saving &lt;b&gt;all&lt;/b&gt;" in page and "exit status 3" in page


def test_a_release_by_its_owner_runs_no_script(make_hub: MakeHub) -> None:
    hub = make_hub()
    hub.start()
    home = write_script(hub, "ada", SCRIPT)
    lease = hub.run("ada")
    assert hub.pool("DELETE", f"api/leases/{lease.id}", hub.token_of("ada")).ok
    hub.wait_gone("ada")
    assert not (home / "ran").exists()


def test_a_service_that_is_killed_meanwhile_neither_runs_it_twice_nor_loses_the_reclaim(
    make_hub: MakeHub,
) -> None:
    hub = make_hub(idle={"window": 2, "warn": 1})
    hub.start()
    home = write_script(hub, "ada", "#!/bin/sh\necho once >> $HOME/ran\nsleep 25\n")
    lease = hub.run("ada")
    until((home / "ran").exists, "the script")
    assert now(hub, lease.id).state == "stopping", "its slice is held meanwhile"
    hub.kill_service()
    hub.wait_gone("ada", seconds=90)  # the hub starts the service again
    assert (home / "ran").read_text() == "once\n"
    assert hub.sessions(lease.id) == [], "the script has ended with the session"
    shape = hub.pool("GET", f"api/leases/{lease.id}", hub.token_of("ada")).json()
    assert shape["script"]["state"] == "failed"
