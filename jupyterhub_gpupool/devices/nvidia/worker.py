"""The helper process: asks the driver, and answers the service one JSON line for each request.

It ends when the service closes its input, also while the driver hangs, and when the driver as a whole fails:
the next one opens it anew.  It keeps nothing that cannot be lost.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from . import codes

REOPEN = 60.0
"""Seconds after which a driver that lost a GPU, or sees none, is opened anew: only then one can come back."""


class Reader:
    """The driver, open; what it says, as plain values."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, driver: Any = None) -> None:
        from . import binding
        from .describe import Describer
        from .measure import Meter

        self._binding, self._clock = driver or binding, clock
        self._describer, self._meter = Describer(), Meter(clock)
        self._events: Any = None
        self._open()

    def _open(self) -> None:
        self._binding.ask("nvmlInit")
        self._opened_at = self._clock()
        self._events = self._binding.maybe("nvmlEventSetCreate")
        handles, _ = self._handles()
        if self._events is not None:
            for handle in handles.values():
                self._binding.register(handle, self._events)

    def _reopen(self) -> None:
        self._binding.maybe("nvmlEventSetFree", self._events)
        self._describer.forget()
        self._meter.forget()
        self._binding.ask("nvmlShutdown")
        self._open()

    def _handles(self) -> tuple[dict[int, Any], list[dict[str, Any]]]:
        """Handles of all GPUs by index, and the errors of those that have none."""
        handles, faults = {}, []
        for index in range(self._binding.ask("nvmlDeviceGetCount")):
            try:
                handles[index] = self._binding.ask("nvmlDeviceGetHandleByIndex", index)
            except self._binding.Refused as refused:
                if refused.of_driver:
                    raise
                faults.append({"index": index, "uuid": None, "fault": refused.code})
        return handles, faults

    def inventory(self) -> dict[str, Any]:
        """Describe all GPUs, with their events since the last look."""
        handles, faults = self._handles()
        if (faults or not handles) and self._clock() - self._opened_at > REOPEN:
            self._reopen()
            handles, faults = self._handles()
        version = self._binding.maybe("nvmlSystemGetDriverVersion")
        return {
            "driver": self._binding.text(version) if version is not None else "",
            "lacks": self._binding.lacks(),
            "gpus": [*self._describer.describe(handles), *faults],
            "events": self._take_events(),
        }

    def sample(self) -> dict[str, Any]:
        """Measure all GPUs."""
        handles, faults = self._handles()
        return {"gpus": [*self._meter.measure(handles), *faults]}

    def remains(self) -> dict[str, Any]:
        """Say what uses the GPUs at this moment, and nothing that is counted from look to look."""
        handles, faults = self._handles()
        return {"gpus": [*self._meter.remains(handles), *faults], "events": self._take_events()}

    def _take_events(self) -> list[dict[str, Any]]:
        found = []
        for device, kind, number, instance in self._binding.events(self._events) if self._events else ():
            try:
                uuid = self._binding.maybe("nvmlDeviceGetUUID", device)
            except self._binding.Refused as refused:
                if refused.of_driver:
                    raise
                uuid = None  # it is lost, and said so by its handle
            if uuid is not None:
                found.append(
                    {"uuid": self._binding.text(uuid), "kind": kind, "number": number, "gi": instance}
                )
        return found


def serve(requests: queue.Queue[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Open the driver and answer requests, until the driver as a whole fails."""
    try:
        from .binding import COMPLETE, Refused
    except ImportError:
        answer({"fault": codes.NO_PACKAGE})
        return
    if not COMPLETE:
        answer({"fault": codes.OLD_PACKAGE})
        return
    try:
        reader = Reader()
        answer({"ready": True})
        verbs = {"inventory": reader.inventory, "sample": reader.sample, "remains": reader.remains}
        while True:
            request = json.loads(requests.get())
            answer({"id": request["id"], **verbs[request["do"]]()})
    except Refused as refused:
        answer({"fault": refused.code})


def listen(source: TextIO, requests: queue.Queue[str]) -> None:
    """Take requests as they come.  The end of input is the end, whatever the driver is at."""
    for line in source:
        requests.put(line)
    os._exit(0)


def main() -> None:
    """Serve on standard input and output; what a driver library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=listen, args=(sys.stdin, requests), daemon=True).start()

    def answer(found: dict[str, Any]) -> None:
        out.write(json.dumps(found, separators=(",", ":")) + "\n")
        out.flush()

    serve(requests, answer)


if __name__ == "__main__":
    main()
