"""Figures, times and odd values as the sentences of this package write them."""

from __future__ import annotations

from datetime import UTC, datetime


def short(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a huge number"  # Python refuses to print the largest ones
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def figure(value: float) -> str:
    """A number with two decimals at most, without needless zeros; what is small, and something, is not 0."""
    shown = round(value, 2)
    if not shown and value >= 0.0001:
        shown = float(f"{value:.1g}")
    return f"{shown:.12g}"


def gpus_of(value: float | None) -> str:
    """GPU-equivalents: ``1 GPU``, ``2.5 GPUs``."""
    text = figure(value or 0.0)
    return f"{text} GPU" if text == "1" else f"{text} GPUs"


def count_of(value: int | None, noun: str) -> str:
    """A number of things: ``1 session``, ``3 sessions``."""
    return f"1 {noun}" if value == 1 else f"{value} {noun}s"


def span(seconds: float) -> str:
    """A duration in the largest unit that says enough: ``40 s``, ``12 min``, ``5.5 h``, ``7 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{figure(round(seconds / 3600, 1))} h"
    return f"{figure(round(seconds / 86400, 1))} days"


def moment(at: float) -> str:
    """A time, to the minute, in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "at no time a calendar has"


def whose(user: str) -> str:
    """A user in a sentence."""
    return f"user {user}"
