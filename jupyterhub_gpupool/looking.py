"""The commands that look and change nothing: ``doctor`` and ``status``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from . import __version__
from .commands import FAILED, MISUSED, failed, ledger_options, open_ledger, places, printable
from .errors import GPUPoolError, Rejected
from .ledger import Ledger
from .status import view
from .status.watch import watch

INTERRUPTED = 130

WATCH, WATCH_LEAST, WATCH_MOST = 2.0, 0.2, 3600.0
"""Seconds between two pictures of ``status --watch``."""

NARROW, USUAL = 60, 80
"""Places of a terminal: what is asked for at least, and where nobody says."""


def add(commands: Any) -> None:
    """Add the commands to the parser's own."""
    doctor = commands.add_parser(
        "doctor",
        parents=[ledger_options()],
        help="look for what is wrong, with the command that mends it",
        description="Look for what is wrong. Exit status: 0 without errors (warnings are none), 1 with errors, "
        "2 when the doctor could not run.",
    )
    doctor.add_argument("--json", action="store_true", help="for programs: stable ids, see docs/doctor.md")
    doctor.set_defaults(look=_doctor)
    status = commands.add_parser(
        "status",
        parents=[ledger_options()],
        help="GPUs, sessions and queue as the ledger has them",
    )
    status.add_argument(
        "--json", action="store_true", help="for programs: the shapes of REST, as an admin sees them"
    )
    status.add_argument(
        "--watch",
        nargs="?",
        const=WATCH,
        type=float,
        metavar="SECONDS",
        help=f"draw it again every so many seconds until Ctrl-C (default: {WATCH:g})",
    )
    status.set_defaults(look=_status)


def run(chosen: argparse.Namespace, out: TextIO) -> int:
    """Run the command that was chosen; returns the exit status."""
    try:
        status: int = chosen.look(chosen, out)
        out.flush()
        return status
    except (ValueError, Rejected) as problem:
        return failed(str(problem), MISUSED)
    except GPUPoolError as problem:
        return failed(problem.message, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who reads has gone, as `head` does; nothing must be written at the exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


# --- the doctor ------------------------------------------------------------------------------------


def _doctor(chosen: argparse.Namespace, out: TextIO) -> int:
    from .doctor import Level, examine, report  # takes longer to load than other commands take to run
    from .doctor.collect import collect

    url, file, config = places(chosen)
    _there(Path(chosen.config) if chosen.config else None, "--config")
    _there(file if chosen.database_url else None, "--database-url")
    findings = examine(collect(url, file, config))
    if chosen.json:
        print(json.dumps(report.shape(findings, __version__), indent=2), file=out)
    else:
        for line in report.lines(
            findings, coloured=out.isatty() and not os.environ.get("NO_COLOR"), clean=printable
        ):
            print(line, file=out)
    return FAILED if any(one.result.level is Level.ERROR for one in findings) else 0


def _there(path: Path | None, option: str) -> None:
    """Raise ValueError for a file that was named and is not there."""
    if path is not None and not os.path.lexists(path):
        raise ValueError(f"{option} names {path}, which is not there.")


# --- the status ------------------------------------------------------------------------------------


def _status(chosen: argparse.Namespace, out: TextIO) -> int:
    if chosen.watch is not None and not WATCH_LEAST <= chosen.watch <= WATCH_MOST:
        raise ValueError(
            f"--watch is {chosen.watch:g}; allowed are {WATCH_LEAST:g} to {WATCH_MOST:g} seconds."
        )
    with open_ledger(chosen, configured=False) as ledger:
        draw = partial(_json, ledger, chosen.watch is not None) if chosen.json else partial(_picture, ledger)
        first = draw()  # what is wrong from the beginning is an error, and no picture
        if chosen.watch is None:
            print("\n".join(first), file=out)
            return 0
        watch(partial(_still, draw, chosen.json), chosen.watch, out, plain=chosen.json)
    return 0


def _picture(ledger: Ledger) -> list[str]:
    total = max(NARROW, shutil.get_terminal_size((USUAL, 24)).columns)
    return view.frame(ledger.snapshot(), total, printable)


def _json(ledger: Ledger, on_one_line: bool) -> list[str]:
    return [json.dumps(view.shape(ledger.snapshot()), indent=None if on_one_line else 2)]


def _still(draw: Callable[[], list[str]], as_json: bool) -> list[str]:
    """A picture, or why there is none now: a ledger that is locked for a while ends no watch."""
    try:
        return draw()
    except GPUPoolError as problem:
        return [json.dumps({"error": problem.message}) if as_json else printable(problem.message)]
