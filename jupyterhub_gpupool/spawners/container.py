"""DockerSpawner without what the pool owns: names, old containers, a person's own image, one thread for all.

A call whose answer was lost is looked up by the container's name, which was written in the ledger before,
and never guessed: "did not answer in time" is neither "failed" nor "done".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import requests
from docker.errors import APIError, NotFound
from dockerspawner import DockerSpawner
from traitlets import Bool

from .. import faults
from ..errors import Unavailable

LOST = (requests.Timeout, requests.ConnectionError)
"""The engine may have done what it was asked, or not, or may still be at it."""

ENGINE_THREADS = 16
LOOK_PAUSE = 0.5
LONGEST_REASON = 300


class Container(DockerSpawner):
    """A container that is made once, started once and never used again."""

    # The trait of the stock spawner; False would keep the API token and start the old container again.  It is
    # a setting, so that whoever sets it is told by configure() whose it is.
    remove = Bool(True, help="Fixed: a session's container is removed when it has ended.").tag(config=True)

    _executor: ClassVar[ThreadPoolExecutor] = ThreadPoolExecutor(
        ENGINE_THREADS, thread_name_prefix="gpupool-engine"
    )

    labels: Mapping[str, str]
    """What tells this container from every other; set before the launch."""

    async def start(self) -> tuple[str, int]:
        """Create and start the container; returns where its notebook port answers.

        Raises Unavailable with the engine's reason when it refuses.
        """
        try:
            await self.compose()
            self.object_id = await self._create()
            faults.point("create.done")
            await self._run()
            if self.post_start_cmd:
                await self.post_start_exec()
            return await self._address()
        except APIError as problem:
            raise Unavailable(
                f"The container engine could not start the session: {reason_of(problem)}", reason="engine"
            ) from problem
        except LOST as problem:
            raise Unavailable("The container engine does not answer.", reason="engine") from problem

    async def compose(self) -> None:
        """Put together what the container is made of, once, right before it is made."""
        raise NotImplementedError

    async def stop(self, now: bool = False) -> None:
        """Nothing: what ends a session is the backend's proof, see ``_end``."""

    async def poll(self) -> int | None:
        """Without a lease there is no session: running only while the engine does not deny it."""
        if not self.object_id:
            return 0
        try:
            found = await self.docker("inspect_container", self.object_id)
        except NotFound:
            self.object_id = ""
            return 0
        except (APIError, *LOST) as problem:
            self.log.warning("%s: the engine does not say whether it runs: %s", self._log_name, problem)
            return None
        return None if found["State"]["Running"] else int(found["State"]["ExitCode"])

    async def _address(self) -> tuple[str, int]:
        try:
            ip, port = await self.get_ip_and_port()
        except RuntimeError as problem:  # the stock spawner's word for "no port is published"
            found = await self._definite()
            status = "it was removed" if found is None else f"status {found['State']['ExitCode']}"
            raise Unavailable(
                f"The session ended right after its start: {status}.", reason="engine"
            ) from problem
        return str(ip), int(port)

    async def _create(self) -> str:
        try:
            return str((await self.create_object())["Id"])
        except APIError as problem:
            if problem.status_code != 409:
                raise
            self.log.warning("Container %s is there already", self.object_name)
        except LOST as problem:
            self.log.warning("Whether container %s was created is not known: %s", self.object_name, problem)
        found = await self._definite()
        if found is None:
            return str((await self.create_object())["Id"])
        theirs = found["Config"].get("Labels") or {}
        if any(theirs.get(key) != value for key, value in self.labels.items()):
            raise Unavailable(
                f"Another container has the name {self.object_name}; it was left alone.", reason="engine"
            )
        if found["State"]["Status"] != "created":
            raise Unavailable(
                f"Container {self.object_name} was started before; a container is never started again.",
                reason="engine",
            )
        return str(found["Id"])

    async def _run(self) -> None:
        try:
            await self.start_object()
            return
        except APIError:
            found = await self._definite()
            if found is None or not found["State"]["Running"]:
                raise
        except LOST as problem:
            self.log.warning("Whether container %s was started is not known: %s", self.object_name, problem)
        while True:  # the launch has a time limit of its own
            found = await self._definite()
            if found is None:
                raise Unavailable(
                    "The session's container was removed while it was being started.", reason="engine"
                )
            if found["State"]["Running"]:
                return
            if found["State"]["Status"] != "created":
                why = found["State"].get("Error") or f"it ended with status {found['State']['ExitCode']}"
                raise Unavailable(
                    f"The session's container did not start: {why[:LONGEST_REASON]}", reason="engine"
                )
            await asyncio.sleep(LOOK_PAUSE)

    async def _definite(self) -> Mapping[str, Any] | None:
        """Look the container up by its name until the engine answers; None when there is none."""
        while True:
            try:
                found: Mapping[str, Any] = await self.docker("inspect_container", self.object_name)
                return found
            except NotFound:
                return None
            except (APIError, *LOST) as problem:
                self.log.warning("Container %s cannot be looked up: %s", self.object_name, problem)
            await asyncio.sleep(LOOK_PAUSE)


def reason_of(problem: APIError) -> str:
    """The engine's own words, bounded and on one line."""
    words = " ".join(str(problem.explanation or problem).split())
    return words if len(words) <= LONGEST_REASON else words[: LONGEST_REASON - 1] + "…"
