"""Proof that a container is what its lease says, and that its image works on its GPU, before it counts as active."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import requests

from .. import containment, faults
from ..errors import Unavailable
from ..model import Lease
from ..sessions.docker import ENGINE_ERRORS
from .readback import access_for, differences, labels_for, read_check, seen_differently

CHECK = ("python3", "-I", "-m", "gpupool_tensorflow", "check")
WHAT_IT_SEES = ("cat", "/proc/1/environ")
READ_TIMEOUT = 20.0

NOBODY = "65534:65534"
NO_HOME = {"HOME": "/nonexistent", "KERAS_HOME": "/nonexistent"}
"""The check tells of image and GPU, for everybody: what one person's home holds must not change the answer."""

KILLED = (-1, 137)
"""How a command ends that the engine or the kernel has ended: it says nothing of the GPU."""


class Verification:
    """The part of the Docker spawner that looks at what was launched.  Annotations name what the rest provides."""

    pool: Any
    labels: Mapping[str, str]
    object_id: str
    gpu_access: str
    port: int
    check: str
    check_timeout: float
    unsafe: list[str]
    _access: str
    _backend: Any
    _choice: Any
    _engine_info: Any
    _image_id: str | None
    _owner: Any
    _sessions: Any
    _slowly: Any
    _steps: Any

    async def _launched(self, lease: Lease) -> tuple[dict[str, Any], list[str]]:
        """Read back from the engine what the container got, and from inside what came of it."""
        name, visible = lease.session, [item.visible for item in lease.slices]
        try:
            found = await self._backend(self._sessions.inspect, self.object_id)
            if found is None:
                raise Unavailable("The session's container is gone already.", reason="engine")
            ran = await self._backend(
                partial(self._sessions.run, self.object_id, WHAT_IT_SEES, timeout=READ_TIMEOUT)
            )
        except ENGINE_ERRORS as problem:
            raise Unavailable(
                f"The container engine does not say what the session got: {problem}"[:300], reason="engine"
            ) from problem
        wrong = differences(
            found,
            labels=self.labels,
            image=self._image_id or "",
            visible=visible,
            access=self._access,
            dangers=(*self.unsafe, *self._choice.unsafe),
            port=self.port,
        )
        inside = seen_differently(ran.out, visible=visible, access=self._access) if ran.status == 0 else ""
        wrong += [inside] if inside else []
        return {"container": name, "id": found["Id"], "image": found["Image"]}, wrong

    async def _check(self, lease: Lease) -> None:
        """See once for each image, GPU and driver that the image works on it; later only remember."""
        image, devices = self._image_id, [item.device for item in lease.slices]
        if self.check == "off" or image is None or not devices:
            return
        known = await self.pool.ask("check_of", image, devices)
        if all(device in known and known[device].passed for device in devices):
            report = dict(known[devices[0]].report)
            await self.pool.ask("record_check", lease.id, image, report, passed=True, remembered=True)
            return
        self._steps.add(60, "Checking this image on this GPU, which takes a while the first time")
        passed, report = await self._checked()
        suspect = await self.pool.ask("record_check", lease.id, image, report, passed=passed)
        faults.point("check.done")
        problems = " ".join(report.get("problems") or ())
        if passed is False or (passed is None and self.check == "required"):
            more = " The GPU is looked into, another one may work: please try again." if suspect else ""
            raise Unavailable(
                f"The launch check failed, and the session was ended. {problems}{more}", reason="check"
            )

    async def _checked(self) -> tuple[bool | None, dict[str, Any]]:
        """Run the image's own check in the session: passed, failed, or None where the image has none."""
        try:
            async with asyncio.timeout(self.check_timeout + READ_TIMEOUT):
                ran = await self._slowly(
                    self._sessions.run,
                    self.object_id,
                    CHECK,
                    timeout=self.check_timeout,
                    user=NOBODY,
                    environment=NO_HOME,
                )
            found = await self._backend(self._sessions.inspect, self.object_id)
        except (TimeoutError, requests.ReadTimeout):
            return False, {"problems": [f"The check did not end within {self.check_timeout:g} s."]}
        except ENGINE_ERRORS as problem:
            raise Unavailable(
                "The container engine did not run the launch check.", reason="engine"
            ) from problem
        if found is None or not found["State"]["Running"] or ran.status in KILLED:
            raise Unavailable(
                "The session, or its launch check, ended too early; its memory may be too small for TensorFlow.",
                reason="engine",
            )
        return read_check(ran)

    async def _adopted(self, lease: Lease) -> list[str]:
        """Compare as after a launch, but for what only the launch knew: the image, what its profile accepts."""
        visible = [item.visible for item in lease.slices]
        devices = await self.pool.ask("devices", [item.device for item in lease.slices])
        try:
            found = await self._backend(self._sessions.inspect, lease.session)
            info = await self._engine_info()
        except ENGINE_ERRORS as problem:
            raise Unavailable("The container engine does not answer.", reason="engine") from problem
        if found is None:
            return ["its container is gone"]
        simulated = any(device.simulated for device in devices)
        return differences(
            found,
            labels=labels_for(lease, pool=self.pool.name, owner=self._owner, port=self.port),
            image="",
            visible=visible,
            access=access_for(self.gpu_access, visible, simulated, info),
            dangers=tuple(containment.DANGERS),
            port=self.port,
        )
