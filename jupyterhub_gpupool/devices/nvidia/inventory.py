"""The inventory and the telemetry of this machine's NVIDIA GPUs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil
from traitlets import Dict, Float, Integer, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from ...model import Device, Health, Mode, Process, Slice
from .. import Readings, Residue
from .attribution import Attribution, Shown
from .health import APPLICATION_XIDS, Watch, judge_fault
from .helper import Broken, Helper, Silent
from .layout import Wanted, device_of
from .remains import Remains, find

LONGEST_GROUP = 255
NO_GPU = "The NVIDIA driver works, but it sees no GPU."


class NvidiaDevices(LoggingConfigurable):
    """The NVIDIA GPUs of this machine, as the driver's library NVML tells them.

    NVML runs in a process of its own: a driver that hangs or fails makes the use of the GPUs unknown, and
    unknown never ends a session.  Run the service as root where MIG is used: the driver tells the places of
    instances, and all their processes, to nobody else.
    """

    modes = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""What each GPU may be used for: a dictionary of shell pattern to mode. A pattern is compared with the
        GPU's index, its UUID and its model, without regard to case; the first one that matches counts. Modes:
        ``"any"`` (whole or in shares, whichever is asked for first), ``"whole"``, ``"share"``, ``"mig"``. Default: a
        GPU on which MIG is on is ``"mig"``, every other ``"any"``. The pool never switches MIG on or off: a GPU whose
        mode contradicts this is shown with the reason, and nothing of it is granted. Example:
        ``{"0": "whole", "GPU-8a0f*": "share", "T4": "whole", "*": "any"}``.""",
    ).tag(config=True)

    exclude = List(
        Unicode(),
        help="""GPUs with which the pool has nothing to do: a list of shell patterns, compared as those of ``modes``.
        Prefer UUIDs (``nvidia-smi -L``): an index can mean another GPU after a reboot. Empty (the default): none is
        left out. Example: ``["GPU-8a0f2c1e-*", "GeForce*"]``.""",
    ).tag(config=True)

    mps = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""GPUs whose shares go through NVIDIA's MPS: a dictionary of shell pattern, compared as those of
        ``modes``, to the JupyterHub group whose members trust each other on that GPU; the first pattern that matches
        counts. Nothing on it is granted to anybody else. ``"*"``: everybody may have it, because everybody trusts
        everybody. Such a GPU is handed out in shares only (its mode is ``"share"`` or ``"any"``). It needs the
        backend ``docker``, the service as root and ``nvidia-cuda-mps-control``; what it gives up is told in
        ``docs/gpus.md``. Empty (the default): MPS is not used. Example: ``{"GPU-8a0f*": "vision-lab"}``.""",
    ).tag(config=True)

    ignored_programs = List(
        Unicode(),
        ["nvidia-*", "nv-hostengine", "Xorg", "Xwayland"],
        help="""Programs that may use a GPU beside the pool, as shell patterns of the name that ``ps -o comm`` shows.
        A process of any other program that belongs to no session makes its GPU unavailable until it has ended; the
        pool never ends it. Empty: every such process does. Example: ``["nvidia-*", "nv-hostengine", "dcgmi"]``.""",
    ).tag(config=True)

    ignored_xids = List(
        Integer(),
        list(APPLICATION_XIDS),
        help="""XIDs (error numbers of the driver, see its log) that do not make a GPU sick, because programs cause
        them and not the hardware. Default: those that NVIDIA's device plugin leaves out. Empty: every XID makes a GPU
        sick for ``heal_after``. Example: ``[13, 31, 43, 45, 68, 94, 109]``.""",
    ).tag(config=True)

    heal_after = Float(
        600,
        help="""Seconds after a critical event (XID, memory error) for which nothing new is granted on its GPU. Then
        it is given again, unless the driver still asks for a reset or reports memory that waits for one. 0: at once.
        Example: ``3600``.""",
    ).tag(config=True)

    timeout = Float(
        5,
        help="""Seconds that the driver has to answer; must be between 0.1 and 20. After that the process that asks it
        is killed, and started again after a pause that grows from 1 to 60 seconds. Example: ``5``.""",
    ).tag(config=True)

    library_dir = Unicode(
        "",
        help="""Folder with the driver's library ``libnvidia-ml.so.1``. Empty (the default): where the system's loader
        finds it. Example: ``"/usr/lib/wsl/lib"``.""",
    ).tag(config=True)

    node = Unicode(
        help="""Name of this machine in the pool. Default: the host name. Example: ``"gpu1"``."""
    ).tag(config=True)

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        elsewhere: Callable[[], Mapping[tuple[str, int], float]] | None = None,
        **kwargs: Any,
    ) -> None:
        """``elsewhere`` tells the use of MIG instances, by GPU and number, that the driver does not say."""
        super().__init__(**kwargs)
        self._clock, self._elsewhere = clock, elsewhere
        self._helper = Helper(self.library_dir, self.timeout, log=self.log)
        self._wanted = Wanted(tuple(self.exclude), dict(self.modes), dict(self.mps))
        self._watch = Watch(self.ignored_xids, self.heal_after)
        self._attribution = Attribution(tuple(self.ignored_programs), shown)
        self._remains = Remains(tuple(self.ignored_programs), shown)
        self._measured: Sequence[Any] = ()  # the GPUs as the last look found them
        self._known: dict[str, Device] = {}  # every GPU that has ever answered, as it was then
        self._said: dict[str, tuple[str, ...]] = {}
        self.state = ""
        """Why there is nothing to be had of the driver, in a sentence; empty while there is."""

    @default("node")
    def _default_node(self) -> str:
        return socket.gethostname()

    @validate("modes")
    def _valid_modes(self, proposal: Any) -> Any:
        for pattern, mode in proposal.value.items():
            if mode not in list(Mode):
                raise TraitError(
                    f"NvidiaDevices.modes[{pattern!r}] is {mode!r}; allowed: {', '.join(map(repr, map(str, Mode)))}."
                )
        return proposal.value

    @validate("mps")
    def _valid_mps(self, proposal: Any) -> Any:
        for pattern, group in proposal.value.items():
            if not pattern or not 0 < len(group) <= LONGEST_GROUP or group != group.strip():
                raise TraitError(
                    f"NvidiaDevices.mps[{pattern!r:.80}] is {group!r:.80}; allowed is the name of a group "
                    f'(1 to {LONGEST_GROUP} characters) or "*" for everybody.'
                )
        return proposal.value

    @validate("timeout", "heal_after")
    def _valid_seconds(self, proposal: Any) -> float:
        least, most = (0.1, 20.0) if proposal.trait.name == "timeout" else (0.0, 7 * 86400.0)
        if not least <= proposal.value <= most:
            name = f"NvidiaDevices.{proposal.trait.name}"
            raise TraitError(f"{name} is {proposal.value!r}; allowed are {least:g} to {most:g} seconds.")
        return float(proposal.value)

    def devices(self) -> tuple[Device, ...]:
        """Find the GPUs with their health.  Raises Silent while the driver does not answer.

        Where the driver says that it does not work, the GPUs that it had are sick with its reason.  One that
        has stopped answering is lost, one that others use or whose mode is not the configured one is barred.
        """
        try:
            found = self._helper.ask("inventory")
        except Broken as broken:
            self._enter(broken.message)
            return tuple(
                replace(device, health=Health.SICK, health_reason=broken.message)
                for device in self._known.values()
            )
        except Silent as silent:
            self._enter(silent.message)
            raise
        self._enter("" if found["gpus"] else NO_GPU)
        self._say(
            "lacks", tuple(f"Driver {found['driver']} does not say {words}." for words in found["lacks"])
        )
        for sentence in self._watch.note(found["events"], self._clock()):
            self.log.error("%s", sentence)
        return self._judge(found)

    def _judge(self, found: Mapping[str, Any]) -> tuple[Device, ...]:
        now = self._clock()
        devices: dict[str, Device] = {}
        problems: list[str] = []
        faults: dict[int, int] = {}
        for gpu in found["gpus"]:
            if "fault" in gpu:
                faults[gpu["index"]] = gpu["fault"]
            elif not self._wanted.leaves_out(gpu):
                device, more = device_of(gpu, self.node, found["driver"], self._wanted)
                problems += more
                devices[device.id] = self._with_health(device, self._watch.judge(gpu, now))
        self._known |= devices
        # Where a GPU does not answer, it may be the one that is meant.
        lacking = () if faults or not found["gpus"] else self._wanted.unmet(found["gpus"])
        self._say("layout", (*problems, *lacking))
        if faults:
            gone = [device for device in self._known.values() if device.id not in devices]
            for device in gone:
                # A GPU that does not answer does not say who it is, and the others may have moved up.
                code = faults.get(device.index, next(iter(faults.values())))
                devices[device.id] = self._with_health(device, judge_fault(code))
            if len(faults) > len(gone):
                problems = [
                    f"GPU {index} does not answer: {judge_fault(code)[1]}." for index, code in faults.items()
                ]
        self._say("faults", tuple(problems) if faults else ())
        return tuple(devices.values())

    def _with_health(self, device: Device, judged: tuple[Health, str]) -> Device:
        health, reason = judged
        foreign = self._attribution.foreign.get(device.id, ())
        if health is not Health.OK:
            return replace(device, health=health, health_reason=reason)
        if foreign:
            # Without names: everybody who may use the pool reads this.
            count = f"{len(foreign)} processes that are" if len(foreign) > 1 else "a process that is"
            pids = ", ".join(str(pid) for pid, _ in foreign)
            return replace(
                device, health=Health.BARRED, health_reason=f"in use by {count} not of this pool (pid {pids})"
            )
        return device

    def sample(
        self,
        slices: Mapping[str, tuple[Slice, ...]],
        processes: Mapping[str, tuple[Process, ...] | None],
    ) -> Readings:
        """Measure every GPU and the slices of each lease, since the last look; see :class:`Telemetry`.

        Where the driver does not answer everything is unknown.
        """
        try:
            found = self._helper.ask("sample")
        except Silent as silent:
            self._enter(silent.message)
            self._measured = ()
            return Readings()
        self._measured = found["gpus"]
        self._fill_in(found["gpus"])
        readings = self._attribution.look(found["gpus"], self._known, slices, processes)
        self._say(
            "foreign",
            tuple(
                f"GPU {uuid} is used by process {pid} ({name or 'which this machine does not show'}), which is of no "
                "session: nothing is granted on it until that has ended."
                for uuid, found in self._attribution.foreign.items()
                for pid, name in found
            ),
        )
        return readings

    def recall(self, devices: tuple[Device, ...]) -> None:
        """Take the GPUs that this machine had when the service last looked, with the events of sick ones.

        So a driver that is broken at the start is said to be, instead of that there are no GPUs.
        """
        for device in devices:
            facts = {"index": device.index, "uuid": device.id, "name": device.model}
            mine = device.node == self.node and not device.simulated and not self._wanted.leaves_out(facts)
            if mine and device.health is not Health.LOST:
                self._known.setdefault(device.id, device)
                if device.health is Health.SICK:
                    self._watch.recall(device.id, device.health_reason, self._clock())

    def residues(
        self,
        asked: Collection[tuple[str, str]],
        held: Collection[str],
        processes: Mapping[str, tuple[Process, ...] | None],
    ) -> Mapping[str, Residue]:
        """Look at parts on which no session should be any more; see :class:`Examiner`."""
        self._remains.learn(self._measured, {*held, *(part for _, part in asked)})
        if not asked:
            return {}
        try:
            found = self._helper.ask("remains")
        except Silent as silent:
            self._enter(silent.message)
            return {part: Residue() for _, part in asked}
        for sentence in self._watch.note(found["events"], self._clock()):
            self.log.error("%s", sentence)
        ours = {one.pid for listed in processes.values() for one in listed or ()}
        # Where others may be, processes of a session of which none are known look like left ones.
        unclear = held if None in processes.values() else ()
        return {
            part: Residue()
            if part in unclear
            else self._residue(found["gpus"], gpu, part, part in held, ours)
            for gpu, part in asked
        }

    def _residue(
        self, gpus: Sequence[Any], gpu: str, part: str, shared: bool, ours: Collection[int]
    ) -> Residue:
        if find(gpus, gpu) is None:
            return Residue()
        if trouble := self._watch.trouble(gpu, self._clock()):
            return Residue(True, trouble)
        facts = find(gpus, part)
        # An instance that is no more holds nothing, and nobody is given it again.
        return Residue(True) if facts is None else self._remains.of(facts, shared=shared, ours=ours)

    def _fill_in(self, gpus: Sequence[Any]) -> None:
        """Ask elsewhere for the use of MIG instances with processes, where the driver leaves it unknown."""
        unknown = [
            (gpu["uuid"], part)
            for gpu in gpus
            for part in gpu.get("instances") or ()
            if part["use"] is None and part["processes"] != []
        ]
        if unknown and self._elsewhere is not None:
            told = self._elsewhere()
            for uuid, part in unknown:
                part["use"] = told.get((uuid, part["gi"]))

    def close(self) -> None:
        """End the helper process."""
        self._helper.close()

    # --- what the admin is told --------------------------------------------------------------------------

    def _enter(self, state: str) -> None:
        """Log the state of the driver when it changes."""
        if state != self.state:
            if state:
                self.log.error("%s", state)
            else:
                self.log.info("The NVIDIA driver answers again.")
        self.state = state

    def _say(self, about: str, sentences: tuple[str, ...]) -> None:
        """Log what is new among the sentences about something."""
        for sentence in sentences:
            if sentence not in self._said.get(about, ()):
                self.log.warning("%s", sentence)
        self._said[about] = sentences


def shown(pid: int) -> Shown | None:
    """What this machine shows of a process; None where it shows none with this number."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Shown(process.name(), time.time() - process.create_time())
    except (psutil.Error, OSError):
        return None
