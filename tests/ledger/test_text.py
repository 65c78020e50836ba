"""What is kept of a session's own words: its end, without control characters and without secrets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool.errors import LeaseConflict
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.ledger.text import LOG_BYTES, LOG_LINES, clean, last_lines, redact, sentence

from .conftest import WHOLE, end, run

SECRET = "0123456789abcdef0123456789abcdef"


def test_a_log_stays_on_its_lease_after_the_end(ledger: Ledger) -> None:
    lease = run(ledger, "ada", WHOLE)
    assert ledger.log_of(lease.id) == ""
    ledger.keep_log(lease.id, "first\n")
    end(ledger, lease)
    assert ledger.log_of(lease.id) == "first"
    ledger.keep_log(lease.id, "later\nand more\r\n")
    assert ledger.log_of(lease.id) == "later\nand more"
    version = ledger.snapshot().version
    for nothing in ("", " \n\n", "\x00\x1b[0m"):
        ledger.keep_log(lease.id, nothing)
    assert ledger.log_of(lease.id) == "later\nand more", "what is not known does not wipe out what is"
    assert ledger.snapshot().version == version
    with pytest.raises(LeaseConflict):
        ledger.keep_log("nobody's", "x")
    assert ledger.log_of("nobody's") == ""


def test_the_last_lines_are_kept() -> None:
    assert last_lines("\n".join(map(str, range(1000)))) == "\n".join(map(str, range(1000 - LOG_LINES, 1000)))


def test_the_bytes_are_bounded_and_the_end_wins() -> None:
    kept = last_lines("\n".join(f"{n} " + "ä" * 1000 for n in range(100)))
    assert LOG_BYTES - 2500 < len(kept.encode()) <= LOG_BYTES
    lines = kept.split("\n")
    assert lines[-1].startswith("99 ") and lines[-1].endswith("ää") and lines[0].endswith("ä…")
    assert len(last_lines("x" * 10_000_000).encode()) <= LOG_BYTES


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("a\tb\x00\x07c\x9b", "a\tbc"),
        ("\x1b[1;31mred\x1b[0m and \x1b]0;title\x07rest", "red and rest"),
        ("  1%|  | 1/100\r 50%|##| 50/100\r100%|####| 100/100", "100%|####| 100/100"),
        ("line of Windows\r", "line of Windows"),
        ("half a pair \ud83d, turned \u202eround\u202c", "half a pair , turned round"),
        ("Grüße, 日本, 🎉", "Grüße, 日本, 🎉"),
    ],
)
def test_control_characters_are_gone(line: str, kept: str) -> None:
    assert last_lines(f"before\n{line}\nafter") == f"before\n{kept}\nafter"


@pytest.mark.parametrize(
    "line",
    [
        f"http://127.0.0.1:8888/lab?token={SECRET}",
        f"http://127.0.0.1:8888/lab?token={SECRET}&reset=1",
        f"GET /hub/login?next=%2Flab%3Ftoken%3D{SECRET}",
        f"JUPYTERHUB_API_TOKEN={SECRET}",
        f'os.environ["JPY_API_TOKEN"] = "{SECRET}"',
        f"c.Spawner.token = '{SECRET}'",
        f'{{"token": "{SECRET}", "user": "ada"}}',
        f"Authorization: token {SECRET}",
        f"{{'Authorization': 'token {SECRET}', 'Accept': '*/*'}}",
        f"authorization: Bearer {SECRET}",
        f"Authorization={SECRET}",
        f'curl -H "Authorization: Basic {SECRET}=="',
        f"sent Bearer {SECRET}",
        f"GET /oauth_callback?code={SECRET}&state={SECRET}",
        f"to\x00ken={SECRET}",
        f"\x1b[1mtoken=\x1b[0m{SECRET}",
        f"To access it: http://h/?TOKEN={SECRET} (quiet)",
    ],
)
def test_secrets_are_left_out(line: str) -> None:
    kept = last_lines(line)
    assert SECRET[:8] not in kept and "…" in kept
    assert SECRET[:8] not in sentence(line)


def test_no_cut_leaves_half_a_secret() -> None:
    for n in range(40):
        filled = "x" * (LOG_BYTES - 30 + n)
        assert SECRET[:4] not in last_lines(f"{filled} token={SECRET}")
        assert SECRET[-4:] not in last_lines(f"token={SECRET}{filled}")


@pytest.mark.parametrize(
    "line", ["Tokenizer loaded 32000 tokens", "unexpected token: ;", "exit code=1 state=2"]
)
def test_ordinary_lines_stay(line: str) -> None:
    assert last_lines(line) == line


@given(
    st.text(
        alphabet=st.sampled_from("ab 1=:&?\"'\n\r\t\x1b[];token%3Dauthorizationbearer…é\u2028"), max_size=300
    )
)
@settings(max_examples=300, deadline=None)
def test_what_was_kept_is_kept_as_it_is(text: str) -> None:
    kept = last_lines(text)
    assert last_lines(kept) == kept
    assert clean(kept) == kept and redact(kept) == "\n".join(map(redact, kept.split("\n")))
    assert "\n" not in sentence(text)


@pytest.mark.parametrize(
    "part", ["token", "token=", "\x1b[", "\x1b]", "a-", "authorization: ", "bearer ", " ", "\r", "token "]
)
def test_no_text_takes_long(part: str) -> None:
    began = time.process_time()
    last_lines(part * (500_000 // len(part)))
    assert time.process_time() - began < 5
