"""Proof that a container is what its lease says, and that its image works on its GPU, before it counts as active."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import requests

from .. import faults
from ..containment.readback import differences, seen_differently
from ..errors import Unavailable
from ..model import Device, Lease
from ..sessions.docker import ENGINE_ERRORS, Ran
from .answers import read_check, read_seen

CHECK = ("python3", "-I", "-m", "gpupool_tensorflow", "check")
WHAT_IT_SEES = ("cat", "/proc/1/environ")
READ_TIMEOUT = 20.0

# Not through CUDA_VISIBLE_DEVICES: that would hide a GPU which the session has and its lease does not.
WHAT_CUDA_SEES = ("env", "-u", "CUDA_VISIBLE_DEVICES", "python3", "-I", "-m", "gpupool_tensorflow._cuda")
CUDA_TIMEOUT = 60.0
"""Seconds for the driver to answer: without its persistence mode it wakes every GPU of the machine first."""

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
    port: int
    check: str
    check_timeout: float
    unsafe: list[str]
    _access: str
    _backend: Any
    _choice: Any
    _devices: tuple[Device, ...]
    _image_id: str | None
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
        """See once for each image, GPU and driver that the image works on it; later only remember.

        Which GPUs are there is looked at in every launch: what shows them may name others today.
        """
        image, devices = self._image_id, [item.device for item in lease.slices]
        if self.check == "off" or image is None or not devices:
            return
        problems = await self._looked(lease)
        known = await self.pool.ask("check_of", image, devices)
        if not problems and all(device in known and known[device].passed for device in devices):
            report = dict(known[devices[0]].report)
            await self.pool.ask("record_check", lease.id, image, report, passed=True, remembered=True)
            return
        passed: bool | None = False
        report = {"problems": problems}
        if not problems:
            self._steps.add(60, "Checking this image on this GPU, which takes a while the first time")
            passed, report = await self._checked()
        suspect = await self.pool.ask("record_check", lease.id, image, report, passed=passed)
        faults.point("check.done")
        said = " ".join(report.get("problems") or ())
        if passed is False or (passed is None and self.check == "required"):
            more = " The GPU is looked into, another one may work: please try again." if suspect else ""
            raise Unavailable(
                f"The launch check failed, and the session was ended. {said}{more}", reason="check"
            )

    async def _looked(self, lease: Lease) -> list[str]:
        """What is wrong with the GPUs that CUDA shows in the session; nothing is asked of simulated ones."""
        if self._access == "none" or any(device.simulated for device in self._devices):
            return []
        ran = await self._asked(WHAT_CUDA_SEES, CUDA_TIMEOUT)
        if ran is None:
            return [f"CUDA did not say within {CUDA_TIMEOUT:g} s which GPUs it sees."]
        return read_seen(ran, [item.visible for item in lease.slices])

    async def _checked(self) -> tuple[bool | None, dict[str, Any]]:
        """Run the image's own check in the session: passed, failed, or None where the image has none."""
        ran = await self._asked(CHECK, self.check_timeout)
        if ran is None:
            return False, {"problems": [f"The check did not end within {self.check_timeout:g} s."]}
        return read_check(ran)

    async def _asked(self, command: Sequence[str], seconds: float) -> Ran | None:
        """Run a command in the session that tells of image and GPU; None when it does not end in time.

        Raises Unavailable when the engine errs, or the session ends meanwhile: that says nothing of them.
        """
        try:
            async with asyncio.timeout(seconds + READ_TIMEOUT):
                ran: Ran = await self._slowly(
                    self._sessions.run,
                    self.object_id,
                    command,
                    timeout=seconds,
                    user=NOBODY,
                    environment=NO_HOME,
                )
            found = await self._backend(self._sessions.inspect, self.object_id)
        except (TimeoutError, requests.ReadTimeout):
            return None
        except ENGINE_ERRORS as problem:
            raise Unavailable(
                "The container engine did not run the launch check.", reason="engine"
            ) from problem
        if found is None or not found["State"]["Running"] or ran.status in KILLED:
            raise Unavailable(
                "The session, or its launch check, ended too early; its memory may be too small for TensorFlow.",
                reason="engine",
            )
        return ran
