"""The commands that look into the ledger of a pool and change it: ``limits``, ``usage``, ``drain``, ``undrain``.

They open the ledger as the hub and the service do, so they work while these run and while they do not.  What
the hub's configuration says is read from the file that ``configure`` has handed to the service.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from traitlets import TraitError
from traitlets.config import Config

from . import books, fairness
from .errors import GPUPoolError, Rejected, Unavailable
from .ledger import Ledger, Policy, file_of, url_of
from .model import Limit
from .pool import GPUPool
from .service import sheets, tables, times
from .service.changes import Change, foresee

CONFIGURATION = "service.json"
"""Name of the file that ``configure`` writes beside the ledger."""

KEYS = tuple(item.name for item in fields(Limit))
"""What a limit may name."""

UNLIMITED = "unlimited"
"""Instead of keys: an edit that limits nothing, in the place of a configured limit."""

FAILED, MISUSED = 1, 2
"""Exit statuses: the ledger does not let it be done; what was asked for makes no sense."""


def ledger_options() -> argparse.ArgumentParser:
    """The options of every command that looks for the ledger; see :func:`places`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--database-url",
        default=os.environ.get("GPUPOOL_DATABASE_URL") or "",
        help="the hub's c.GPUPool.database_url (default: GPUPOOL_DATABASE_URL, else --config's, else the demo's)",
    )
    shared.add_argument(
        "--config",
        default="",
        help=f"the JSON file that configure() wrote (default: {CONFIGURATION} beside the ledger)",
    )
    return shared


def add(commands: Any) -> None:
    """Add the commands to the parser's own."""
    shared = ledger_options()
    reason = argparse.ArgumentParser(add_help=False)
    reason.add_argument("--why", default="", help="a sentence for the audit trail")

    limits = commands.add_parser("limits", help="show and edit the limits in force").add_subparsers(
        required=True
    )
    show = limits.add_parser(
        "show", parents=[shared], help="configured, edited, and who holds more than they may"
    )
    show.add_argument("--format", choices=["table", "json"], default="table")
    show.set_defaults(run=_show_limits)
    edit = limits.add_parser("set", parents=[shared, reason], help="replace the limit of a scope, whole")
    edit.add_argument("scope", help="pool, group:NAME, user:NAME or user:*")
    edit.add_argument("keys", nargs="+", metavar="KEY=VALUE", help=f"{', '.join(KEYS)}; or: {UNLIMITED}")
    edit.add_argument("--preview", action="store_true", help="say whom it would touch, and change nothing")
    edit.set_defaults(run=_set_limit)
    clear = limits.add_parser("clear", parents=[shared, reason], help="let the configured limit hold again")
    clear.add_argument("scope")
    clear.set_defaults(run=_clear_limit)

    usage = commands.add_parser(
        "usage", parents=[shared], help="GPU-hours used, idle and waiting, by UTC days"
    )
    usage.add_argument("--by", choices=books.BY, default="user")
    usage.add_argument(
        "--from", dest="first", default="", metavar="DATE", help="first day (default: 30 days)"
    )
    usage.add_argument("--to", dest="last", default="", metavar="DATE", help="last day (default: today)")
    usage.add_argument("--format", choices=["table", "csv", "json"], default="table")
    usage.set_defaults(run=_usage)

    drain = commands.add_parser(
        "drain", parents=[shared, reason], help="take a GPU, or the pool, out of service"
    )
    drain.add_argument("device", help="the id of a GPU, or: pool")
    drain.add_argument(
        "--at", default="", metavar="TIME", help="sessions end from this time on (default: now)"
    )
    drain.set_defaults(run=_drain)
    undrain = commands.add_parser("undrain", parents=[shared, reason], help="put a GPU, or the pool, back")
    undrain.add_argument("device", help="the id of a GPU, or: pool")
    undrain.set_defaults(run=_undrain)
    forget = commands.add_parser(
        "forget", parents=[shared, reason], help="take a GPU that is lost for good out of the pool"
    )
    forget.add_argument("device", help="the id of a GPU that is lost and that nobody holds")
    forget.set_defaults(run=_forget)


def run(chosen: argparse.Namespace, out: TextIO) -> int:
    """Run the command that was chosen; returns the exit status.  What is wrong is one sentence on stderr."""
    verb: Callable[[argparse.Namespace, TextIO], None] = chosen.run
    try:
        verb(chosen, out)
    except (ValueError, Rejected) as problem:
        return failed(str(problem), MISUSED)
    except GPUPoolError as problem:
        return failed(problem.message, FAILED)
    return 0


def failed(sentence: str, status: int) -> int:
    print(f"gpupool: {sentence}", file=sys.stderr)
    return status


# --- the ledger ------------------------------------------------------------------------------------


def places(chosen: argparse.Namespace) -> tuple[str, Path | None, Path]:
    """Where the ledger is (its URL, and its file where it is one), and the file that ``configure`` wrote.

    Raises ValueError with a sentence for an URL that is none.
    """
    state = Path(os.environ.get("GPUPOOL_STATE_DIR") or ".gpupool")
    given = Path(chosen.config) if chosen.config else None
    # A URL with a password is better read from the hub's own file than written on a command line.
    url = (
        chosen.database_url
        or (given and _section(given).get("database_url"))
        or url_of(state / "ledger.sqlite")
    )
    file = file_of(url)
    return url, file, given or (file.parent if file else state) / CONFIGURATION


@contextmanager
def open_ledger(chosen: argparse.Namespace, *, configured: bool) -> Iterator[Ledger]:
    """Open the ledger; with the policy of the hub where the verb depends on it (``configured``)."""
    url, file, config = places(chosen)
    try:
        if file is not None and not file.is_file():
            raise Unavailable(
                f"There is no ledger {file}. Name the hub's with --database-url.", reason="ledger"
            )
    except OSError as problem:
        raise Unavailable(
            f"The ledger {file} cannot be read: {problem.strerror}.", reason="ledger"
        ) from problem
    policy = _policy(config)
    if policy is None and configured:
        missing = chosen.config or f"{CONFIGURATION} {'beside the ledger' if file else f'in {config.parent}'}"
        raise Unavailable(
            f"What the hub configures is not known: there is no {missing}. "
            "Name the file that configure() wrote with --config.",
            reason="configuration",
        )
    ledger = Ledger(url, policy, prepare=False)
    try:
        yield ledger
    finally:
        ledger.close_database()


def _policy(path: Path) -> Policy | None:
    """The policy that the hub was configured with; None where there is no such file."""
    if not path.exists():
        return None
    try:
        return GPUPool(config=Config({"GPUPool": _section(path)})).policy
    except (ValueError, TypeError, TraitError) as problem:
        raise Unavailable(
            f"{path} is not a configuration that configure() wrote.", reason="configuration"
        ) from problem


def _section(path: Path) -> dict[str, Any]:
    """What the hub's configuration says of the pool; empty where there is no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["GPUPool"])
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise Unavailable(f"{path} cannot be read: {problem.strerror}.", reason="configuration") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise Unavailable(
            f"{path} is not a configuration that configure() wrote.", reason="configuration"
        ) from problem


def actor() -> str:
    """Who runs the command, for the audit trail: the account of this process, whatever its environment says."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


# --- limits ----------------------------------------------------------------------------------------


def _show_limits(chosen: argparse.Namespace, out: TextIO) -> None:
    with open_ledger(chosen, configured=True) as ledger:
        rows, over = ledger.limits(), ledger.snapshot().over
    if chosen.format == "json":
        print_json(tables.limits(rows, over), out)
        return
    lines = []
    for scope, row in rows.items():
        shape = tables.limit(row)
        edited = f"edited by {row.actor} {shape['at']}" if row.edited is not None else "configured"
        lines.append((scope, _words(shape["effective"] or {}), edited, row.why, over.get(scope, "")))
    print_table(("scope", "limit", "from", "why", "over"), lines, out)


def _words(keys: dict[str, Any]) -> str:
    parts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    return " ".join(parts) or UNLIMITED


def _set_limit(chosen: argparse.Namespace, out: TextIO) -> None:
    keys = read_keys(chosen.keys)
    limit = fairness.read_limit(chosen.scope, keys)
    with open_ledger(chosen, configured=True) as ledger:
        found = foresee(ledger.snapshot(), chosen.scope, limit, None)
        if not chosen.preview:
            ledger.set_limit(chosen.scope, keys, actor=actor(), why=chosen.why)
    print(f"{chosen.scope}: {_words(fairness.write_limit(limit))}", file=out)
    _print_change(found, out)
    if chosen.preview:
        print("Nothing was changed.", file=out)


def _print_change(found: Change, out: TextIO) -> None:
    for item in found.touched:
        users = printable(", ".join(item.users))
        print(f"Granted nothing more until it fits: {printable(item.scope)} ({item.why}): {users}", file=out)
    for scope in found.relieved:
        print(f"No longer over its limit: {printable(scope)}", file=out)
    for sentence in found.notes:
        print(f"Please check: {printable(sentence)}", file=out)


def _clear_limit(chosen: argparse.Namespace, out: TextIO) -> None:
    with open_ledger(chosen, configured=True) as ledger:
        row = ledger.clear_limit(chosen.scope, actor=actor(), why=chosen.why)
    words = "no limit" if row.effective is None else _words(fairness.write_limit(row.effective))
    print(f"{row.scope}: as configured, {words}", file=out)


def read_keys(given: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words: values as in JSON, ``profiles`` also as ``a,b``.  Raises ValueError."""
    if list(given) == [UNLIMITED]:
        return {}
    found: dict[str, Any] = {}
    for word in given:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise ValueError(f"{word!r:.60} is not KEY=VALUE; keys are {', '.join(KEYS)}.")
        if key in found:
            raise ValueError(f"{key!r:.60} is given twice; once is allowed.")
        found[key] = _value(key, text)
    return found


def _value(key: str, text: str) -> Any:
    if key == "profiles" and not text.startswith("["):
        return [slug for slug in text.split(",") if slug]
    if key == "strict" and text in ("True", "False"):  # as a configuration and the refusal of others write it
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # whoever reads the limit says what is allowed


# --- books -----------------------------------------------------------------------------------------


def _usage(chosen: argparse.Namespace, out: TextIO) -> None:
    start, end = times.period(chosen.first, chosen.last, time.time())
    with open_ledger(chosen, configured=False) as ledger:
        entries = ledger.usage(chosen.by, start, end)
    if chosen.format == "json":
        print_json(tables.usage(chosen.by, start, end, entries), out)
    elif chosen.format == "csv":
        sheets.write_usage(chosen.by, entries, out)
    else:
        lines = [
            (item.key or "(none)", f"{item.used:.2f}", f"{item.idle:.2f}", f"{item.waiting:.2f}")
            for item in books.totals(books.rounded(entries, books.SHOWN))
        ]
        print_table((chosen.by, "used", "idle", "waiting"), lines, out)


# --- drains ----------------------------------------------------------------------------------------


def _drain(chosen: argparse.Namespace, out: TextIO) -> None:
    at = times.moment("--at", chosen.at) if chosen.at else None
    with open_ledger(chosen, configured=False) as ledger:
        found = ledger.drain(_device(chosen.device), at, actor=actor(), why=chosen.why)
    print(f"Drained: {', '.join(found) or 'no GPU, there is none'}", file=out)


def _undrain(chosen: argparse.Namespace, out: TextIO) -> None:
    with open_ledger(chosen, configured=True) as ledger:  # what waits is granted by the hub's own limits
        found = ledger.undrain(_device(chosen.device), actor=actor(), why=chosen.why)
    print(f"Back in service: {', '.join(found) or 'no GPU, none was drained'}", file=out)


def _forget(chosen: argparse.Namespace, out: TextIO) -> None:
    with open_ledger(chosen, configured=True) as ledger:  # as for undrain
        ledger.forget_device(chosen.device, actor=actor(), why=chosen.why)
        beyond = ledger.check_shares()
    print(f"Forgotten: {chosen.device}", file=out)
    if beyond:
        print(beyond, file=out)


def _device(text: str) -> str | None:
    return None if text == "pool" else text


# --- what comes out --------------------------------------------------------------------------------


def print_json(shape: tables.Shape, out: TextIO) -> None:
    print(json.dumps(shape, indent=2), file=out)


def print_table(head: Sequence[str], lines: Sequence[Sequence[str]], out: TextIO) -> None:
    """Columns for a terminal, to which no name can give orders."""
    shown = [[printable(cell) for cell in line] for line in (head, *lines)]
    widths = [max(len(line[n]) for line in shown) for n in range(len(head))]
    for line in shown:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=out
        )


def printable(text: str) -> str:
    """The text with what gives orders to a terminal, or does not show, written out as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
