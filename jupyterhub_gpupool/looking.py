"""The commands that look and change nothing: ``doctor`` and ``status``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from . import __version__
from .commands import FAILED, MISUSED, failed, ledger_options, places, printable

INTERRUPTED = 130


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


def run(chosen: argparse.Namespace, out: TextIO) -> int:
    """Run the command that was chosen; returns the exit status."""
    try:
        status: int = chosen.look(chosen, out)
        out.flush()
        return status
    except ValueError as problem:
        return failed(str(problem), MISUSED)
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
