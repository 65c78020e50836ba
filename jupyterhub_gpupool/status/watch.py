"""A picture that is drawn again and again: in its place on a terminal, one after the other elsewhere."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

ENTER, LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
"""The terminal's second screen, without a cursor; and back to what was there before."""
HOME, LINE_END, REST = "\033[H", "\033[K", "\033[J"
"""Go to the first place; forget the rest of the line, and the rest of the screen.  Nothing is wiped first."""

Draw = Callable[[], list[str]]


def watch(draw: Draw, seconds: float, out: TextIO, *, plain: bool = False) -> None:
    """Draw every so many seconds until Ctrl-C, or until the process is told to end.  Returns then.

    ``plain``: line after line, for a program.
    """
    placed = out.isatty() and not plain
    pause = threading.Event()  # waits, and lets signals in
    with _screen(out) if placed else _ends_quietly():
        while True:
            lines = draw()
            out.write(_picture(lines) if placed else "\n".join([*lines, "" if plain else "\n"]))
            out.flush()
            pause.wait(seconds)


def _picture(lines: list[str]) -> str:
    """One piece of text for the whole screen, so that no half of it is ever seen."""
    rows = shutil.get_terminal_size().lines
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"… {len(lines) - rows + 1} more lines"]
    return HOME + f"{LINE_END}\n".join(lines) + LINE_END + REST


@contextmanager
def _screen(out: TextIO) -> Iterator[None]:
    with _ends_quietly():
        out.write(ENTER)
        try:
            yield
        finally:
            out.write(LEAVE)
            out.flush()


@contextmanager
def _ends_quietly() -> Iterator[None]:
    """Take Ctrl-C and SIGTERM alike for the wish to end."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Ctrl-C too: a shell hands it down as ignored to what it starts in the background.
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
