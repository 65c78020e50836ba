"""Asks sessions what their kernels and terminals do, through Jupyter's own API.

Only those are asked whose GPU has been quiet for their whole window, with the session's own token, which the
backend knows: the service needs no right of the hub to people's servers.  What comes back is under a person's
control, so it is small, soon, and of the right form, or unknown.  Asking is no activity of the session.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from .. import signals
from ..errors import GPUPoolError
from ..idleness import is_busy
from ..model import Lease, Sample
from ..signals import Work
from .hub import Server

AT_ONCE = 16
"""Sessions that are asked at the same time."""
ROUNDS = 4
"""All together may take as long as this many of them one after the other."""
HUB_EVERY = 60.0
"""Seconds for which what the hub said of a server is taken as it is."""
SILENCE = 30.0
"""Seconds for which a session that took all its time is left alone, and stays unknown."""
MOST_BYTES = 256 * 1024
"""Of one answer."""

ABSENT = 404
REFUSED = (401, 403)
NO_ANSWER = 599
"""What the client calls a connection that broke, or an answer that is too long."""


class Tokens(Protocol):
    """What is asked of a backend."""

    def token(self, name: str) -> str | None: ...


class Hub(Protocol):
    """What is asked of the hub."""

    async def server(self, user: str, name: str) -> Server | None: ...


class SilentError(Exception):
    """A session could not be asked; the text says why."""


@dataclass(slots=True)
class _Known:
    """What need not be asked again for each look; in memory alone, for one of it is a secret."""

    token: str = ""
    server: Server | None = None
    server_at: float = 0.0
    silent_until: float = 0.0
    why: str = ""


class Prober:
    """Asks sessions; ``timeout`` in seconds bounds all that is asked about one."""

    def __init__(
        self,
        sessions: Tokens,
        hub: Hub,
        *,
        timeout: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        log: logging.Logger | None = None,
    ) -> None:
        self._sessions, self._hub, self._timeout = sessions, hub, timeout
        self._clock, self._wall = clock, wall
        self._log = log or logging.getLogger(__name__)
        self._known: dict[str, _Known] = {}
        # Not the sweep's own threads: who waits here for a token holds up no other answer of the backend.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="gpupool-token")

    async def look(self, leases: Iterable[Lease]) -> Mapping[str, Work]:
        """Ask these sessions at the same time.  Whoever does not answer in time is unknown.  Does not raise."""
        asked = {lease.id: lease for lease in leases}
        if not asked:
            return {}
        places = asyncio.Semaphore(AT_ONCE)
        # One client for one look: no connection to a session stays open, and none is used again.
        client = SimpleAsyncHTTPClient(
            force_instance=True,
            max_clients=2 * AT_ONCE,
            max_buffer_size=MOST_BYTES,
            max_body_size=MOST_BYTES,
        )
        tasks = {key: asyncio.create_task(self._work(lease, client, places)) for key, lease in asked.items()}
        try:
            await asyncio.wait(tasks.values(), timeout=ROUNDS * self._timeout)
        finally:
            for task in tasks.values():
                task.cancel()
            client.close()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return {
            key: signals.silent("too many sessions are asked") if task.cancelled() else task.result()
            for key, task in tasks.items()
        }

    async def quiet_ones(
        self, leases: Collection[Lease], samples: Mapping[str, Sample], tick: float
    ) -> Mapping[str, Work]:
        """Ask those of all active sessions whose GPUs have been quiet for their whole window, with this look.

        ``tick`` are the seconds that it adds to their idle time.
        """
        names = {lease.session for lease in leases}
        self._known = {name: known for name, known in self._known.items() if name in names}
        return await self.look(
            lease
            for lease in leases
            if lease.gpus > 0
            and lease.idle_seconds + tick >= lease.terms.window > 0
            and is_busy(samples.get(lease.id, Sample()), lease.terms.threshold) is False
        )

    def close(self) -> None:
        """Wait for nobody any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _work(self, lease: Lease, client: SimpleAsyncHTTPClient, places: asyncio.Semaphore) -> Work:
        """Ask one session, when there is a place."""
        known = self._known.setdefault(lease.session, _Known())
        if self._clock() < known.silent_until:
            return signals.silent(known.why)
        async with places:
            try:
                async with asyncio.timeout(self._timeout):
                    found = await self._ask(lease, known, client)
                    known.why = ""
                    return found
            except TimeoutError:
                why = f"no answer within {self._timeout:g} s"
                known.silent_until = self._clock() + SILENCE
            except SilentError as problem:
                why = str(problem)
            except GPUPoolError as problem:
                why = "the hub does not answer"
                self._log.warning("lease=%s cannot be asked: %s", lease.id, problem.message)
            except Exception:  # a session may answer anything; whatever it is, what it does is unknown
                why = "it cannot be asked"
                self._log.exception("lease=%s cannot be asked", lease.id)
        if why != known.why:  # not again at each look
            self._log.info("lease=%s does not say what its kernels do: %s", lease.id, why)
        known.why = why
        return signals.silent(why)

    async def _ask(self, lease: Lease, known: _Known, client: SimpleAsyncHTTPClient) -> Work:
        if not known.token:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._threads, self._sessions.token, lease.session)
            if not found:
                raise SilentError("the backend does not know its token")
            known.token = found
        server = await self._server(lease, known)
        address, path = urlsplit(lease.url), urlsplit(server.url).path
        if address.scheme not in ("http", "https") or not address.netloc or not path.startswith("/"):
            raise SilentError("its address is not known")
        root = f"{address.scheme}://{address.netloc}{path.rstrip('/')}/api"
        of_kernels, of_terminals = await asyncio.gather(
            self._get(f"{root}/kernels", known, client), self._get(f"{root}/terminals", known, client)
        )
        now, recent = self._wall(), lease.terms.window
        # A server without such an API has no such thing: then that is no signal.
        found_signals = [signals.kernels(answer) for answer in of_kernels]
        found_signals += [signals.terminals(answer, now, recent) for answer in of_terminals]
        return Work((*found_signals, signals.hub(server.last_activity, now, recent)))

    async def _server(self, lease: Lease, known: _Known) -> Server:
        """What the hub says of the server; it is asked once in a while."""
        if known.server is None or self._clock() - known.server_at >= HUB_EVERY:
            known.server = await self._hub.server(lease.user, lease.server)
            known.server_at = self._clock()
        if known.server is None:
            raise SilentError("the hub does not know its server")
        return known.server

    async def _get(self, url: str, known: _Known, client: SimpleAsyncHTTPClient) -> tuple[object, ...]:
        """The answer, parsed; none where there is nothing at this address.  Redirects are not followed."""
        request = HTTPRequest(
            f"{url}?no_track_activity=1",
            headers={"Authorization": f"token {known.token}", "Accept": "application/json"},
            request_timeout=self._timeout,
            connect_timeout=self._timeout,
            follow_redirects=False,
            decompress_response=False,  # what is small on the way may be huge here
        )
        try:
            answer = await client.fetch(request)
            return (json.loads(answer.body),)
        except HTTPClientError as problem:
            if problem.code == ABSENT:
                return ()
            if problem.code in REFUSED:
                known.token = ""
            what = "does not answer" if problem.code == NO_ANSWER else f"answers {problem.code}"
            raise SilentError(f"its server {what}") from problem
        except OSError as problem:
            raise SilentError("its server cannot be reached") from problem
        except (ValueError, RecursionError) as problem:
            raise SilentError("its server answers something else") from problem
