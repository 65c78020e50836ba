"""What a waiting person is told: the steps of a start, shared by all pages that look at it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from ..ledger import Waiting

PLACES_A_SECOND = 20
"""How many places further back a page may be a second later in telling of a change."""


class Steps:
    """The steps of one start.  A step may replace the last one of its kind, so the list stays short."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, dict[str, Any]]] = []
        self._version = 0
        self._changed = asyncio.Event()
        self._lasting = asyncio.Event()
        self._pace = 1.0

    def add(self, progress: int, message: str, *, replaces: str = "", pace: float = 1.0) -> None:
        """Tell everybody who looks.  ``progress`` is in percent, ``pace`` seconds from one place to the next."""
        self._pace = pace
        step = {"progress": progress, "message": message}
        if replaces and self._steps and self._steps[-1][0] == replaces:
            if self._steps[-1][1] == step:
                return
            self._steps.pop()
        self._steps.append((replaces, step))
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()
        if not replaces:
            self._lasting.set()
            self._lasting = asyncio.Event()

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the steps so far, then each new one, for ever: the hub ends this when the start ends."""
        told: list[dict[str, Any]] = []
        while True:
            changed, version = self._changed, self._version
            for _, step in self._steps:
                if step not in told:
                    told.append(step)
                    yield step
            if version == self._version:
                await changed.wait()
                if self._steps[-1][0]:
                    with contextlib.suppress(TimeoutError):
                        # A long queue may move quickly, and pages that all speak at once hold the hub.
                        async with asyncio.timeout(self._pace * random.uniform(0.5, 1.5)):
                            await self._lasting.wait()


def pace_of(waiting: Waiting) -> float:
    """Seconds from one message of a page to the next while places change: the nearer the turn, the fewer."""
    return 1.0 + (waiting.place or 1) / PLACES_A_SECOND


def place_in_words(waiting: Waiting) -> str:
    """A place in the queue, and why it is not the person's turn, as a sentence."""
    place = waiting.place or 1
    if place == 1:
        text = "You are next in the queue"
    else:
        text = f"You are number {place} in the queue, {waiting.ahead} before you"
    return f"{text} ({waiting.why})" if waiting.why else text
