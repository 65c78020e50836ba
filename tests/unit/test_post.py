"""The ways out, to a real mail server and a real receiver that fail, hang and recover."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from prometheus_client import CollectorRegistry, generate_latest
from traitlets.config import Config

from jupyterhub_gpupool.ledger import Ledger, Observation
from jupyterhub_gpupool.model import Decision, Lease, Sample, Terms, Verdict
from jupyterhub_gpupool.notices import Notice, NotTaken
from jupyterhub_gpupool.notices.mail import Server, send
from jupyterhub_gpupool.notices.settings import GPUPoolNotices
from jupyterhub_gpupool.notices.webhook import Webhook
from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.service import notices
from jupyterhub_gpupool.service.metrics import Metrics
from jupyterhub_gpupool.service.notices import Post, ways_of

from ..ledger.conftest import DEVICES, run
from ..receivers import Hook, Mailbox, mail_server, webhook

NOTICE = Notice(
    event="warning",
    user="ada",
    subject="A “quarter” ends",
    text="one\ntwo <!channel>",
    facts={"rule": "idle"},
)
SHORT = 0.5


def server(box: Mailbox, **more: Any) -> Server:
    values = {
        "host": "127.0.0.1",
        "port": box.port,
        "security": "none",
        "sender": "Pool <p@lab.example>",
        "timeout": 5,
    }
    return Server(**{**values, **more})


# --- mail ----------------------------------------------------------------------------------------


async def test_a_message_arrives_whole() -> None:
    with mail_server() as box:
        await send(server(box), "key1", NOTICE, ("ada@lab.example", "bob@lab.example"))
    (message,) = box.messages
    assert box.recipients == [["ada@lab.example", "bob@lab.example"]]
    assert (message["Subject"], message["Message-ID"]) == (NOTICE.subject, "<key1@lab.example>")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content().split() == ["one", "two", "<!channel>"]


@pytest.mark.parametrize(
    ("rcpt", "answer", "final", "said"),
    [
        ("", "451 later", False, "451"),
        ("", "554 not wanted", False, "554"),
        ("550 no such user", "250 OK", True, "550"),
        ("450 busy", "250 OK", False, "450"),
    ],
)
async def test_what_the_mail_server_does_not_take(rcpt: str, answer: str, final: bool, said: str) -> None:
    with mail_server() as box:
        box.rcpt, box.answer = rcpt, answer
        with pytest.raises(NotTaken, match=said) as problem:
            await send(server(box), "key", NOTICE, ("ada@lab.example",))
    assert problem.value.final is final and box.messages == []


async def test_a_mail_server_that_hangs_is_given_up_in_time() -> None:
    with mail_server() as box:
        box.hangs.set()
        began = time.monotonic()
        with pytest.raises(NotTaken, match="did not answer within"):
            await send(server(box, timeout=SHORT), "key", NOTICE, ("ada@lab.example",))
        assert time.monotonic() - began < SHORT + 3


async def test_a_mail_server_that_is_not_there() -> None:
    with mail_server() as box:
        gone = server(box)
    with pytest.raises(NotTaken, match="did not take it"):
        await send(gone, "key", NOTICE, ("ada@lab.example",))


async def test_without_encryption_nothing_is_said_where_it_was_asked_for() -> None:
    with mail_server() as box:
        with pytest.raises(NotTaken):
            await send(server(box, security="starttls"), "key", NOTICE, ("ada@lab.example",))
        assert box.asked == 0


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of its own for this machine."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


async def test_login_over_starttls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, cert = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    logins: list[tuple[bytes, bytes]] = []

    def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"sesame")

    with mail_server(
        tls_context=context, require_starttls=True, auth_required=True, authenticator=check
    ) as box:
        wanted = server(box, security="starttls", user="pool", password="sesame")
        with pytest.raises(NotTaken) as refused:
            await send(wanted, "key", NOTICE, ("ada@lab.example",))
        assert logins == [], f"its certificate is not trusted: {refused.value}"
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        await send(wanted, "key", NOTICE, ("ada@lab.example",))
        assert logins == [(b"pool", b"sesame")] and len(box.messages) == 1
        wrong = server(box, security="starttls", user="pool", password="wrong-secret")
        with pytest.raises(NotTaken) as refused:
            await send(wrong, "key", NOTICE, ("ada@lab.example",))
        assert not refused.value.final and "wrong-secret" not in str(refused.value)


# --- webhook -------------------------------------------------------------------------------------


async def test_a_receiver_gets_text_for_people_and_fields_for_machines() -> None:
    with webhook() as hook:
        way = Webhook(hook.url, 5)
        await way.send("key1", NOTICE)
        way.close()
    assert hook.bodies == [
        {"text": "ada: A “quarter” ends\none\ntwo &lt;!channel&gt;", "id": "key1", "rule": "idle"}
    ]


@pytest.mark.parametrize(
    ("body", "length"), [(b"x" * 300_000, None), (b"ok", 10**9), (b"", 5), (b"x" * 1000, 100_000)]
)
async def test_what_is_answered_beside_success_does_not_matter(body: bytes, length: int | None) -> None:
    with webhook() as hook:
        hook.answer, hook.length = body, length
        await Webhook(hook.url, SHORT).send("key", NOTICE)
        assert len(hook.bodies) == 1
        hook.status = 500
        with pytest.raises(NotTaken, match="500"):
            await Webhook(hook.url, SHORT).send("key", NOTICE)


async def test_each_person_has_an_address_of_their_own() -> None:
    with webhook() as hook:
        way = Webhook(f"{hook.url}/{{user}}", 5)
        for name in ("ada", "../x?y#z", "a b"):
            await way.send("key", replace(NOTICE, user=name))
        assert hook.paths == [f"/hooks/secret/{end}" for end in ("ada", "..%2Fx%3Fy%23z", "a%20b")]
        for name in ("", ".", ".."):
            with pytest.raises(NotTaken, match="no webhook's address") as problem:
                await way.send("key", replace(NOTICE, user=name))
            assert problem.value.final
        way.close()
        assert hook.asked == 3


@pytest.mark.parametrize("status", [302, 404, 429, 500])
async def test_only_success_counts_as_taken(status: int) -> None:
    with webhook() as hook:
        hook.status = status
        with pytest.raises(NotTaken, match=str(status)) as problem:
            await Webhook(hook.url, 5).send("key", NOTICE)
        assert not problem.value.final and "hooks" not in str(problem.value) and hook.asked == 1


async def test_a_receiver_that_hangs_or_is_not_there() -> None:
    with webhook() as hook:
        hook.hangs.set()
        way = Webhook(hook.url, SHORT)
        began = time.monotonic()
        with pytest.raises(NotTaken, match="in time"):
            await way.send("key", NOTICE)
        assert time.monotonic() - began < SHORT + 3
        hook.hangs.clear()
        await way.send("key", NOTICE)
    with pytest.raises(NotTaken, match="cannot be reached") as problem:
        await way.send("key", NOTICE)
    assert "hooks" not in str(problem.value)


# --- the post ------------------------------------------------------------------------------------


class Office:
    """A post over a real ledger, with one warned lease."""

    def __init__(self, folder: Path, box: Mailbox, hook: Hook, **more: Any) -> None:
        self.pool = GPUPool(database_url=f"sqlite:///{folder}/ledger.sqlite")
        self.ledger: Ledger = self.pool.ledger()
        self.ledger.sync_inventory(DEVICES)
        self.ledger.settle()
        self.ledger.register_hub("hub")
        values = {
            "mail_server": "127.0.0.1", "mail_port": box.port, "mail_security": "none",
            "mail_from": "p@lab.example", "mail_address": "{user}@lab.example", "webhook_url": hook.url,
            "retry": 0.05, "timeout": 20, **more,
        }  # fmt: skip
        self.settings = GPUPoolNotices(config=Config({"GPUPoolNotices": values}))
        self.registry = CollectorRegistry()
        self.post = self.open()

    def open(self) -> Post:
        rules = self.settings.rules()
        log = logging.getLogger("post")
        metrics = Metrics(self.registry) if not hasattr(self, "metrics") else self.metrics
        self.metrics = metrics
        return Post(
            self.pool, self.settings, metrics, rules=lambda: rules, ways=ways_of(self.settings), log=log
        )

    def warned(self, user: str) -> Lease:
        lease = run(self.ledger, user, terms=Terms(warn=30))
        verdict = Verdict(Decision.WARN, "idle", 30.0, "idle")
        seen = Observation(lease.id, lease.version, Sample(0.0, 1, 1), 60, 0, 30.0, "idle", verdict)
        assert self.ledger.record([seen])
        return lease

    async def until(self, probe: Callable[[], object], seconds: float = 60) -> None:
        """Turn as the service does after each sweep, until something is so; each turn returns at once."""
        deadline = time.monotonic() + seconds
        while not probe():
            assert time.monotonic() < deadline
            began = time.monotonic()
            self.post.turn()
            assert time.monotonic() - began < 1, "nothing holds the sweep"
            await asyncio.sleep(0.03)

    def states(self, lease: Lease) -> dict[str, str]:
        return {item.channel: item.state for item in self.ledger.deliveries_of(lease.id)}

    def counted(self, channel: str, outcome: str) -> float:
        found = self.registry.get_sample_value(
            "gpupool_notices_total", {"channel": channel, "outcome": outcome}
        )
        return found or 0.0


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[tuple[Office, Mailbox, Hook]]:
    with mail_server() as box, webhook() as hook:
        made = Office(tmp_path, box, hook)
        yield made, box, hook
        box.hangs.clear()
        hook.hangs.clear()
        await made.post.stop()
        assert made.ledger.verify() == []
        made.ledger.close_database()


async def test_one_that_hangs_holds_nobody_else(office: tuple[Office, Mailbox, Hook]) -> None:
    made, box, hook = office
    made.settings.timeout = 2
    made.post = made.open()
    box.hangs.set()
    lease = made.warned("ada")
    await made.until(lambda: made.states(lease).get("webhook") == "delivered")
    assert made.states(lease)["mail"] == "waiting"
    found = made.ledger.lease(lease.id)
    assert found is not None and found.delivered_at is None, "the pool's one receiver is nobody's own"
    await made.until(lambda: made.counted("mail", "retried") >= 2)
    box.hangs.clear()
    await made.until(lambda: made.states(lease)["mail"] == "delivered")
    assert made.counted("mail", "delivered") == 1 == made.counted("webhook", "delivered")
    assert hook.bodies[0]["user"] == "ada" and len(hook.bodies) == 1
    assert b"gpupool_notices_total" in generate_latest(made.registry)


async def test_an_outage_is_survived_by_the_service_and_by_its_successor(
    office: tuple[Office, Mailbox, Hook],
) -> None:
    made, box, hook = office
    box.answer, hook.status = "451 later", 503
    lease = made.warned("ada")
    await made.until(lambda: made.counted("mail", "retried") and made.counted("webhook", "retried"))
    await made.post.stop()
    made.post = made.open()  # the service was started again
    box.answer, hook.status = "250 OK", 200
    await made.until(lambda: set(made.states(lease).values()) == {"delivered"})
    for _ in range(5):
        made.post.turn()
        await asyncio.sleep(0.05)
    assert len(box.messages) == 1 == len(hook.bodies), "told once"


async def test_who_has_no_address_is_not_mailed_and_the_lease_says_so(
    office: tuple[Office, Mailbox, Hook],
) -> None:
    made, box, _ = office
    lease = made.warned("Ada, Countess")
    await made.until(lambda: made.states(lease).get("mail") == "failed")
    error = next(d.error for d in made.ledger.deliveries_of(lease.id) if d.channel == "mail")
    assert "no mail address can be made" in error and box.asked == 0
    assert made.counted("mail", "failed") == 1


@pytest.mark.parametrize("how", ["own", "said"])
async def test_a_receiver_of_ones_own_is_a_delivery_and_the_pools_where_the_admin_says_so(
    office: tuple[Office, Mailbox, Hook], how: str
) -> None:
    made, box, hook = office
    box.answer = "451 later"
    if how == "own":
        made.settings.webhook_url = f"{hook.url}/{{user}}"
    else:
        made.settings.webhook_counts = True
    made.post = made.open()
    lease = made.warned("ada")
    await made.until(lambda: made.states(lease).get("webhook") == "delivered")
    found = made.ledger.lease(lease.id)
    assert found is not None and found.delivered_by == "webhook"
    assert hook.paths == ["/hooks/secret/ada" if how == "own" else "/hooks/secret"]
    assert "Counted from this message" in hook.bodies[0]["text"]


def people(user: str) -> str | None:
    """Stands for a lab's directory."""
    if user == "lost":
        raise ValueError("the directory is away")
    if user == "slow":
        time.sleep(1)
    return {"ada": "a.lovelace@lab.example"}.get(user)


async def test_the_admins_function_knows_the_addresses(office: tuple[Office, Mailbox, Hook]) -> None:
    made, box, _ = office
    made.settings.mail_address, made.settings.timeout = people, SHORT
    made.post = made.open()
    ada, lost, slow, nobody = (made.warned(x) for x in ("ada", "lost", "slow", "nobody"))
    await made.until(lambda: made.states(ada).get("mail") == "delivered")
    assert box.recipients == [["a.lovelace@lab.example"]]
    await made.until(lambda: made.states(nobody).get("mail") == "failed")
    await made.until(lambda: made.counted("mail", "retried") >= 2)
    errors = [
        next(d.error for d in made.ledger.deliveries_of(x.id) if d.channel == "mail")
        for x in (nobody, lost, slow)
    ]
    assert errors == [
        "no mail address is known of 'nobody'",
        "mail_address gave no address: ValueError",
        "mail_address gave no address within 0.5 s",
    ]
    assert made.states(lost)["mail"] == "waiting" == made.states(slow)["mail"], "they are tried again"
    assert len(box.messages) == 1


async def test_an_event_that_cannot_be_told_holds_up_no_other(
    office: tuple[Office, Mailbox, Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, _ = office
    real = notices.decide

    def decide(rules: Any, seen: Any) -> Any:
        if seen.owner == "bob":
            raise RuntimeError("a bug")
        return real(rules, seen)

    monkeypatch.setattr(notices, "decide", decide)
    bad, good = made.warned("bob"), made.warned("ada")
    await made.until(lambda: made.states(good).get("mail") == "delivered")
    assert made.states(bad) == {}
