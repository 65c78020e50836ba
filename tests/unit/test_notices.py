"""What is told to whom: pure rules."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError
from traitlets.config import Config

from jupyterhub_gpupool.model import Kind, Lease, State, Terms, Wish
from jupyterhub_gpupool.notices import (
    EVENTS,
    Choice,
    NoAddress,
    Notice,
    Occasion,
    Rules,
    address_of,
    check_address,
    decide,
    pause,
    why_ended,
)
from jupyterhub_gpupool.notices.mail import message_of
from jupyterhub_gpupool.notices.rules import LINE, LONGEST_PAUSE, line
from jupyterhub_gpupool.notices.settings import GPUPoolNotices
from jupyterhub_gpupool.notices.webhook import body_of

BOTH = ("mail", "webhook")
RULES = Rules(
    events=dict.fromkeys((*EVENTS, "device"), BOTH),
    titles={"quarter": "A quarter"},
    link="https://hub.example/services/gpupool/",
)
LEASE = Lease(
    id="l1", user="ada", server="", profile="quarter", state=State.ACTIVE, version=1, epoch=1, session="s",
    wish=Wish(Kind.GPU), terms=Terms(warn=600), groups=(), options={}, slices=(), gpus=1.0, group="", url="",
    runtime={}, requested_at=0.0, granted_at=10.0, active_at=20.0, warned_for="idle", deadline_seconds=600.0,
    warning="w1",
)  # fmt: skip
ENDED = replace(LEASE, state=State.CLOSED, stopped_by="service", reason="no GPU activity", closed_at=99.0)
LATE = replace(LEASE, granted_at=1000.0)
ANYTHING = st.text(max_size=60)


def occasion(action: str, lease: Lease | None = LEASE, **more: Any) -> Occasion:
    values: dict[str, Any] = {"reason": "no GPU activity for 24 min", "lease": lease, "owner": "ada", **more}
    return Occasion(action, 1000.0, **values)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (occasion("warn"), "warning"),
        (occasion("warn", replace(LEASE, deadline_seconds=None)), None),  # taken back since
        (occasion("warn", replace(LEASE, state=State.STOPPING)), None),
        (occasion("warn", owner=None), None),  # nobody by that name is left
        (occasion("unwarn"), None),
        (occasion("close", ENDED), "reclaimed"),
        (occasion("close", replace(ENDED, stopped_by="ada")), None),
        (occasion("close", replace(ENDED, stopped_by="root")), None),
        (occasion("close", replace(ENDED, warned_for="")), None),  # it ended by itself
        (occasion("stop", replace(ENDED, state=State.STOPPING)), None),
        (occasion("activate", LATE), "started"),
        (occasion("activate", LEASE), None),  # hardly waited
        (occasion("activate", replace(LATE, granted_at=None)), None),  # adopted
        (occasion("budget"), "budget"),
        (occasion("device-health", None, owner=None, device="GPU-a", reason="ok→sick: Xid 79"), "device"),
        (occasion("device-health", None, owner=None, device="GPU-a", reason="sick→ok: "), None),
        (occasion("unclean", None, owner=None, device="GPU-a", reason="2 GiB are still in use"), "device"),
        (occasion("clean", None, owner=None, device="GPU-a", reason="it is clean again"), None),
        (occasion("unwell", reason="its GPU GPU-a is sick: XID 79"), "unwell"),
        (occasion("unwell", ENDED, reason="its GPU GPU-a is sick: XID 79"), None),
        (occasion("unwell", replace(LEASE, state=State.STOPPING), reason="sick"), None),  # too late
        (occasion("cut-off", reason="it can no longer open its GPU"), "unwell"),
        (occasion("device-new", None, owner=None, device="GPU-a", reason="A100"), None),
        (occasion("request"), None),
    ],
)
def test_what_is_told_of_an_event(seen: Occasion, told: str | None) -> None:
    found = decide(RULES, seen)
    assert [(notice.event, notice.channel) for notice in found] == ([(told, c) for c in BOTH] if told else [])
    for notice in found:
        assert notice.user == ("" if told == "device" else "ada")
        assert notice.warning == ("w1" if told == "warning" else "")
        assert "https://hub.example" in notice.text


def test_a_sick_gpu_and_a_session_that_lost_its_gpu_are_told_apart() -> None:
    sick = decide(RULES, occasion("unwell", reason="its GPU GPU-a is sick: XID 79"))[0]
    assert (
        "\nIts GPU GPU-a is sick: XID 79.\n" in sick.text
        and "another GPU" in sick.text
        and sick.facts["device_is_well"] is False
    )
    cut = decide(RULES, occasion("cut-off", reason="it can no longer open its GPU"))[0]
    assert "no longer open its GPU." in cut.text and "another GPU" not in cut.text
    assert cut.facts["device_is_well"] is True


def test_a_warning_says_why_what_is_lost_and_from_when_it_counts() -> None:
    text = decide(RULES, occasion("warn"))[0].text
    for part in (
        "A quarter",
        "no GPU activity for 24 min",
        "Counted from this message, it is stopped in 10 min",
        "Kept: Files",
    ):
        assert part in text, part
    harmless = decide(replace(RULES, stops=False), occasion("warn"))[0]
    assert "Nothing is stopped" in harmless.text and "Lost" not in harmless.text
    assert "will be stopped" not in harmless.subject


def test_a_message_that_is_no_delivery_does_not_say_that_it_begins_the_countdown() -> None:
    seen = occasion("warn", replace(LEASE, server="Counted from this message,"))
    mail, chat = decide(replace(RULES, counted=("mail",)), seen)
    assert "\nCounted from this message, it is stopped in 10 min" in mail.text
    assert (
        "\nCounted from when the pool's page, JupyterLab or a message of your own has told you" in chat.text
    )
    assert chat.text.startswith("Session: “A quarter” (Counted from this message,)")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"state": "done", "status": 0}, "exit status 0"),
        ({"state": "timeout", "status": None}, "it took too long and was ended"),
        ({"state": "running", "status": None}, "its end is not known"),
        ({"state": "due", "status": None}, "if you have one, it was not run"),
        ({"state": "failed", "status": None}, "it has not run to its end"),
    ],
)
def test_the_end_says_what_became_of_the_script(script: dict[str, Any], said: str) -> None:
    (notice, _) = decide(RULES, occasion("close", ENDED, script=script))
    assert f"Your script before-reclaim: {said}" in notice.text


PINGS = ["@channel", "@here", "@all", "@everyone", "@bob", "<!channel>", "<@U1>", "<https://evil.example|x>",
         "https://evil.example", "www.evil.example", "evil.example", "mailto:x@evil.example", "[x](//evil.example)",
         "![x](http://evil.example/p.png)", "[x][y]", "~town-square", "&lt;!channel&gt;", "&#64;channel"]  # fmt: skip
ALIVE = re.compile(r"@\w|[<>]|&(?!(?:amp|lt|gt);)|://|mailto:[^\s\u200b]|\w\.[^\W\d]|\][\[(:]|(?<!\w)~\w")


@pytest.mark.parametrize("ping", PINGS)
@pytest.mark.parametrize("where", ["user", "server", "path"])
def test_nothing_that_somebody_wrote_pings_or_leads_anywhere_in_a_chat(ping: str, where: str) -> None:
    lease = replace(ENDED, server=ping if where == "server" else "", reason="idle")
    saved = {"documents": [ping if where == "path" else "a", "b"], "failed": []}
    seen = occasion("close", lease, owner=ping if where == "user" else "ada", reason="idle", saved=saved)
    body = body_of("key", decide(RULES, seen)[1])
    text = body["text"]
    assert text.endswith(": https://hub.example/services/gpupool/"), "our own link stays one"
    rest = text.removesuffix("https://hub.example/services/gpupool/")
    assert not ALIVE.search(rest), rest
    assert ping in html.unescape(rest.replace("\u200b", "")), "and it is read as it was written"
    if where != "path":
        assert body[where] == ping, "machines get it plain"


def test_the_end_says_what_was_saved_and_how_the_script_ended() -> None:
    seen = occasion(
        "close", ENDED, saved={"documents": ["a.ipynb"], "failed": ["b.ipynb"]}, script={"status": 3}
    )
    text = decide(RULES, seen)[0].text
    assert "Saved before the end: a.ipynb" in text and "Could not be saved: b.ipynb" in text
    assert "exit status 3" in text and "took the GPU back" in text


@pytest.mark.parametrize(
    ("events", "mandatory", "unwanted", "channels"),
    [
        ({"warning": BOTH}, (), {}, ["mail", "webhook"]),
        ({"warning": ("mail",)}, (), {}, ["mail"]),
        ({}, (), {}, []),
        ({"warning": BOTH}, (), {"mail": frozenset({"warning"})}, ["webhook"]),
        ({"warning": BOTH}, (), {"mail": frozenset({"started"})}, ["mail", "webhook"]),
        ({"warning": BOTH}, ("warning",), {c: frozenset({"warning"}) for c in BOTH}, ["mail", "webhook"]),
    ],
)
def test_admin_and_person_choose_the_channels(
    events: dict[str, Any], mandatory: tuple[str, ...], unwanted: dict[str, Any], channels: list[str]
) -> None:
    rules = replace(RULES, events=events, mandatory=mandatory)
    found = decide(rules, occasion("warn", choice=Choice(unwanted=unwanted)))
    assert [notice.channel for notice in found] == channels


@given(name=ANYTHING, reason=ANYTHING, title=ANYTHING, path=ANYTHING)
def test_nothing_that_somebody_wrote_becomes_a_line_or_a_header_of_its_own(
    name: str, reason: str, title: str, path: str
) -> None:
    rules = replace(RULES, titles={"quarter": title})
    lease = replace(ENDED, server=name, reason=reason)
    seen = occasion("close", lease, reason=reason, saved={"documents": [path], "failed": []})
    notice = decide(rules, seen)[0]
    assert len(notice.text.split("\n")) == 6 and all(len(part) <= LINE for part in notice.text.split("\n"))
    message = message_of("key", notice, "pool@lab.example", "ada@lab.example")
    assert set(message.keys()) == {
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-GPUPool-Event",
        "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
    }  # fmt: skip
    assert isinstance(message, EmailMessage) and message.as_bytes()
    text = body_of("key", notice)["text"]
    assert "<" not in text and ">" not in text


@given(text=st.text(max_size=1000))
def test_a_line_is_one_line(text: str) -> None:
    shown = line(text)
    assert shown.isprintable() and len(shown) <= LINE


@pytest.mark.parametrize("evil", ["a@b.example\nBcc: x@y.example", "a@b.example\r\n\r\nhello"])
def test_a_header_cannot_be_smuggled_in(evil: str) -> None:
    with pytest.raises(ValueError, match=r"linefeed|newline|header"):
        message_of("key", Notice(subject="s"), "pool@lab.example", evil)
    with pytest.raises(ValueError, match=r"linefeed|newline|header"):
        message_of("key", Notice(subject=evil), "pool@lab.example", "a@b.example")


@pytest.mark.parametrize(
    ("user", "template", "address"),
    [
        ("ada", "{user}@lab.example", "ada@lab.example"),
        ("Ada.L+x", "{user}@lab.example", "Ada.L+x@lab.example"),
        ("ada@lab.example", "{user}", "ada@lab.example"),
        ("ada@lab.example", "{user}@lab.example", None),
        ("ada b", "{user}@lab.example", None),
        ("ada,eve", "{user}@lab.example", None),
        ("ada\nBcc: eve", "{user}@lab.example", None),
        ("ada\n", "{user}@lab.example", None),
        ("<ada>", "{user}@lab.example", None),
        (".ada", "{user}@lab.example", None),
        ("ädä", "{user}@lab.example", None),
        ("", "{user}@lab.example", None),
        ("a" * 300, "{user}@lab.example", None),
        ("{user}", "{user}@lab.example", "{user}@lab.example"),
    ],
)
def test_an_address_is_made_of_a_name_or_not(user: str, template: str, address: str | None) -> None:
    if address is None:
        with pytest.raises(ValueError, match="no mail address can be made"):
            address_of(user, Choice(), template, ())
    else:
        assert address_of(user, Choice(), template, ()) == address


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("a.l@lab.example", ""),
        (None, "no mail address is known of 'ada'"),
        ("", "can be made"),
        ("a@b.example\nBcc: c@d.example", "can be made"),
        (7, "can be made"),
    ],
)
def test_an_address_is_what_the_admins_function_says(made: Any, said: str) -> None:
    if said:
        with pytest.raises(NoAddress, match=said):
            address_of("ada", Choice(), lambda user: made, ())
    else:
        assert address_of("ada", Choice(), lambda user: made, ()) == made
    own = Choice(address="me@lab.example")
    assert address_of("ada", own, lambda user: made, ("lab.example",)) == "me@lab.example"


@pytest.mark.parametrize(
    ("own", "domains", "allowed"),
    [
        ("ada@lab.example", ("lab.example",), True),
        ("ada@LAB.example", ("lab.example",), True),
        ("ada@evil.example", ("lab.example",), False),
        ("ada@lab.example.evil.example", ("lab.example",), False),
        ("ada@evil.example", ("*",), True),
        ("ada@lab.example", (), False),
        ("ada@lab.example\nBcc: x@y.z", ("*",), False),
        ("ada", ("*",), False),
    ],
)
def test_an_address_of_ones_own_only_where_the_admin_lets(
    own: str, domains: tuple[str, ...], allowed: bool
) -> None:
    if allowed:
        assert check_address(own, domains) == own
    else:
        with pytest.raises(ValueError, match=r"allowed|is no mail address"):
            check_address(own, domains)
    used = address_of("ada", Choice(address=own), "{user}@home.example", domains)
    assert used == (own if allowed else "ada@home.example"), "what is no longer allowed counts no longer"


@given(tries=st.integers(-5, 10**6), first=st.floats(0.01, 3600))
def test_pauses_grow_up_to_an_hour(tries: int, first: float) -> None:
    assert 0 < pause(tries, first) <= pause(tries + 1, first) <= LONGEST_PAUSE
    assert math.isclose(pause(1, first), first)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "The pool took the GPU back after a warning: no GPU activity."),
        (
            {"warned_for": "", "reason": "the session ended by itself"},
            "The pool ended it: the session ended by itself.",
        ),
        ({"stopped_by": "ada", "reason": "released"}, "You ended it: released."),
        ({"stopped_by": "root", "reason": ""}, "root ended it."),
        ({"stopped_by": "", "reason": "left the queue"}, "It ended: left the queue."),
    ],
)
def test_why_a_session_ended(changes: dict[str, Any], sentence: str) -> None:
    assert why_ended(replace(ENDED, **changes)) == sentence


GOOD = {
    "mail_server": "m.example",
    "mail_from": "GPU pool <p@lab.example>",
    "mail_address": "{user}@lab.example",
}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"events": {"warnings": ["mail"]}}, "'warnings'"),
        ({"events": {"warning": ["fax"]}}, "'webhook'"),
        ({"events": {"warning": "mail"}}, "allowed is a list"),
        ({"mandatory": ["device"]}, "mandatory"),
        ({"retry": 0}, "retry"),
        ({"timeout": float("nan")}, "timeout"),
        ({**GOOD, "mail_from": ""}, "mail_from"),
        ({**GOOD, "mail_from": "p@lab.example\nBcc: x"}, "mail_from"),
        ({**GOOD, "mail_address": "everybody@lab.example"}, "mail_address"),
        ({**GOOD, "mail_address": "tests.nowhere:f"}, "cannot be imported"),
        ({**GOOD, "mail_address": "tests.unit.test_notices:GOOD"}, "is no function"),
        ({**GOOD, "mail_address": lambda name: None}, "a module of its own"),
        ({"mail_address": lambda name: None}, "a module of its own"),
        ({"webhook_url": "https://{user}.example"}, "behind its host"),
        ({**GOOD, "mail_user": "u", "mail_security": "none"}, "in the clear"),
        ({**GOOD, "mail_user": "u", "mail_password_file": "/nowhere"}, "mail_password_file"),
        ({**GOOD, "admins": ["nobody"]}, "admins"),
        ({"webhook_url": "ftp://x"}, "https://"),
        ({"webhook_url": "https://[x"}, "https://"),
    ],
)
def test_settings_that_make_no_sense_are_named(values: dict[str, Any], names: str) -> None:
    with pytest.raises(TraitError, match=re.escape(names)) as problem:
        GPUPoolNotices(config=Config({"GPUPoolNotices": values})).check()
    assert str(values.get("webhook_url", "\0")) not in str(problem.value)


def test_settings_that_do(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("sesame \nmore\n")
    values = {**GOOD, "mail_user": "u", "mail_password_file": str(tmp_path / "password")}
    settings = GPUPoolNotices(config=Config({"GPUPoolNotices": values}))
    settings.check()
    server = settings.server()
    assert server is not None and (server.password, server.port) == ("sesame", 587)
    assert "sesame" not in repr(server)
    assert settings.rules().events["warning"] == ("mail",), "there is no webhook"
    assert settings.rules().events["device"] == (), "nobody to tell"
    monkeypatch.setenv("GPUPOOL_WEBHOOK_URL", "https://chat.example/x")
    assert settings.rules().events["device"] == ("webhook",)
    assert settings.rules().counted == ("mail",)
    settings.webhook_counts = True
    assert settings.rules().counted == ("mail", "webhook")
    monkeypatch.setenv("GPUPOOL_WEBHOOK_URL", "https://chat.example/{user}")
    settings.webhook_counts = False
    assert settings.rules().counted == ("mail", "webhook")
    assert settings.rules().events["device"] == (), "none of the people runs the pool"
