"""The post of the service: makes notices of the audit trail and carries them to their receivers.

It runs beside the sweep, never in it: a receiver that hangs holds its own channel, and nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from traitlets import TraitError

from ..errors import GPUPoolError
from ..ledger import Delivery
from ..notices import Choice, NoAddress, Notice, NotTaken, Occasion, Rules, address_of, decide, pause
from ..notices.mail import Server, send
from ..notices.rules import MAIL, MOST_TRIES, WEBHOOK
from ..notices.settings import GPUPoolNotices
from ..notices.webhook import Webhook
from ..pool import GPUPool

AT_ONCE = 4
"""Notices of one channel that are on their way at the same time."""

KEPT = 30 * 86400.0
"""Seconds for which finished deliveries are kept."""

_threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gpupool-address")
"""For the admin's function that finds addresses: it may hang, and holds nobody else's threads."""

Way = Callable[[Delivery], Awaitable[None]]
"""Carries one notice.  Raises NotTaken."""

Work = Callable[[], Awaitable[None]]


class Counts(Protocol):
    """What is counted of notices."""

    def notice(self, channel: str, outcome: str) -> None: ...


class Post:
    """The ways out of one service process."""

    def __init__(
        self,
        pool: GPUPool,
        settings: GPUPoolNotices,
        counters: Counts,
        *,
        rules: Callable[[], Rules],
        ways: Mapping[str, Way],
        log: logging.Logger,
    ) -> None:
        self._pool, self._settings, self._counters, self._log = pool, settings, counters, log
        self._rules, self.ways = rules, ways
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def turn(self) -> None:
        """Make new notices and carry those that are due; returns at once, and leaves alone what still runs."""
        works: dict[str, Work] = {"": self._make, **{way: partial(self._carry, way) for way in self.ways}}
        for name, work in works.items():
            if name not in self._tasks:
                task = asyncio.create_task(self._quietly(work))
                self._tasks[name] = task
                task.add_done_callback(partial(self._ended, name))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)

    async def stop(self) -> None:
        """Give up what is on its way; it is tried again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _quietly(self, work: Work) -> None:
        try:
            await work()
        except GPUPoolError as problem:
            self._log.warning("Notices wait: %s", problem.message)
        except Exception:  # one notice that cannot be made of must not stop those after it for ever
            self._log.exception("Notices wait")

    async def _make(self) -> None:
        rules = self._rules()
        await self._pool.ask("drop_notices", tuple(self.ways))
        await self._pool.ask("make_notices", partial(self._decide, rules), self._settings.most_waiting)
        await self._pool.ask("forget_notices", KEPT)

    def _decide(self, rules: Rules, seen: Occasion) -> list[Notice]:
        try:
            return decide(rules, seen)
        except Exception:  # the place in the audit trail goes on: one bad event holds up no other
            self._log.exception("No notice can be made of the event %r", seen.action)
            return []

    async def _carry(self, channel: str) -> None:
        while True:
            found: list[Delivery] = await self._pool.ask(
                "due", channel, AT_ONCE, partial(pause, first=self._settings.retry), self._settings.per_hour
            )
            if not found:
                return
            await asyncio.gather(*(self._one(channel, item) for item in found))

    async def _one(self, channel: str, item: Delivery) -> None:
        try:
            await self.ways[channel](item)
        except NotTaken as problem:
            final = problem.final or (not item.warning and item.tries >= MOST_TRIES)
            await self._pool.ask("not_told", item.id, str(problem), final=final)
            self._counters.notice(channel, "failed" if final else "retried")
            self._log.warning("%s %s of lease=%s: %s", channel, item.event, item.lease, problem)
            return
        await self._pool.ask("told", item.id, counts=channel in self._rules().counted)
        self._counters.notice(channel, "delivered")
        self._log.info("%s %s of lease=%s delivered", channel, item.event, item.lease)


def ways_of(settings: GPUPoolNotices) -> dict[str, Way]:
    """The channels that are configured."""
    found: dict[str, Way] = {}
    server, url = settings.server(), settings.webhook()
    if server is not None:
        found[MAIL] = partial(_by_mail, server, settings)
    if url:
        webhook = Webhook(url, settings.timeout)
        found[WEBHOOK] = partial(_by_webhook, webhook)
    return found


async def _by_mail(server: Server, settings: GPUPoolNotices, item: Delivery) -> None:
    addresses = tuple(settings.admins)
    if item.user:
        try:
            addresses = (await person_address(settings, item.user, item.choice),)
        except NoAddress as problem:
            raise NotTaken(str(problem), final=True) from None
    await send(server, item.id, item.notice, addresses)


async def person_address(settings: GPUPoolNotices, user: str, choice: Choice) -> str:
    """The mail address of a person.  Raises NoAddress where there is none, NotTaken where nobody says now.

    The admin's function may ask a directory: it runs on a thread, and is not waited for for ever.
    """
    try:
        known, domains = settings.known_address(), tuple(settings.mail_domains)
        asked = asyncio.get_running_loop().run_in_executor(_threads, address_of, user, choice, known, domains)
        return await asyncio.wait_for(asked, settings.timeout)
    except NoAddress:
        raise
    except TraitError as problem:
        raise NotTaken(str(problem)) from None
    except TimeoutError:
        raise NotTaken(f"mail_address gave no address within {settings.timeout:g} s") from None
    except Exception as problem:  # whatever the admin's function raises
        raise NotTaken(f"mail_address gave no address: {type(problem).__name__}") from problem


async def _by_webhook(webhook: Webhook, item: Delivery) -> None:
    await webhook.send(item.id, item.notice)
