"""What DCGM measures and NVML does not say, asked of a Prometheus server.

On an A100 or A30 in MIG mode nothing but DCGM's profiling tells how an instance is used.  Its exporter puts
that into Prometheus, which is asked for the highest value of the last seconds.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from traitlets import Float, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

LONGEST_ANSWER = 1 << 23
KINDS = ("http", "https")


class PrometheusTelemetry(LoggingConfigurable):
    """A Prometheus server that knows how MIG instances are used, where the driver itself does not say it."""

    url = Unicode(
        "",
        help="""Address of a Prometheus server that collects NVIDIA's ``dcgm-exporter`` of this machine, for the use
        of MIG instances on GPUs before Hopper (A100, A30): the driver does not tell it, and without it such a session
        is idle only when no process is on its instance. Empty (the default): none is asked. Example:
        ``"http://127.0.0.1:9090"``.""",
    ).tag(config=True)

    metric = Unicode(
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        help="""Name of the metric, a part of 1, with the labels ``UUID`` (of the GPU) and ``GPU_I_ID`` (number of
        the GPU instance). Add it to the exporter's list of metrics: it is not always among the defaults. Example:
        ``"DCGM_FI_PROF_GR_ENGINE_ACTIVE"``.""",
    ).tag(config=True)

    window = Float(
        60,
        help="""Seconds that are looked back for the highest value; must be between 1 and 3600. Take at least twice
        the interval at which Prometheus asks the exporter: without a value the use is unknown. Example: ``60``.""",
    ).tag(config=True)

    timeout = Float(
        3, help="""Seconds that the server has to answer; must be between 0.1 and 20. Example: ``3``."""
    ).tag(config=True)

    token_file = Unicode(
        "",
        help="""File with a bearer token for the server, read at each request. Empty (the default): none is sent.
        Example: ``"/etc/gpupool/prometheus-token"``.""",
    ).tag(config=True)

    _problem = ""

    @validate("url")
    def _valid_url(self, proposal: Any) -> str:
        found = urllib.parse.urlsplit(proposal.value)
        if proposal.value and not (found.scheme in KINDS and found.hostname):
            raise TraitError(
                f"PrometheusTelemetry.url is {proposal.value!r}; allowed is an address such as 'http://127.0.0.1:9090'."
            )
        return str(proposal.value)

    @validate("metric")
    def _valid_metric(self, proposal: Any) -> str:
        name = str(proposal.value)
        if not (name.isascii() and name.replace(":", "_").isidentifier()):
            raise TraitError(f"PrometheusTelemetry.metric is {name!r}, which is no name of a metric.")
        return name

    @validate("window", "timeout")
    def _valid_seconds(self, proposal: Any) -> float:
        name = proposal.trait.name
        least, most = (1.0, 3600.0) if name == "window" else (0.1, 20.0)
        if not least <= proposal.value <= most:
            raise TraitError(
                f"PrometheusTelemetry.{name} is {proposal.value!r}; allowed are {least:g} to {most:g} seconds."
            )
        return float(proposal.value)

    def utilization(self) -> dict[tuple[str, int], float]:
        """Percent in use, at the highest of the window, by GPU and number of the GPU instance.

        What is not known is missing; does not raise.
        """
        try:
            found = dict(_values(self._ask()))
        except (OSError, ValueError) as problem:  # also every error of HTTP, and of what is no JSON
            self._say(f"Prometheus does not say how MIG instances are used: {problem}")
            return {}
        self._say(
            "" if found else f"Prometheus knows no {self.metric} of a MIG instance within {self.window:g} s"
        )
        return found

    def _ask(self) -> Any:
        query = f'max_over_time({self.metric}{{GPU_I_ID!=""}}[{math.ceil(self.window)}s])'
        address = f"{self.url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        request = urllib.request.Request(address)
        if self.token_file:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.loads(answer.read(LONGEST_ANSWER))

    def _say(self, problem: str) -> None:
        if problem and problem != self._problem:
            self.log.warning("%s", problem)
        self._problem = problem


def _values(answer: Any) -> Iterator[tuple[tuple[str, int], float]]:
    """The values of an answer of Prometheus.  Raises ValueError where it is none."""
    try:
        rows = answer["data"]["result"]
        for row in rows:
            labels: Mapping[str, Any] = row["metric"]
            value = float(row["value"][1])
            if "UUID" in labels and math.isfinite(value) and 0 <= value <= 1:
                yield (str(labels["UUID"]), int(labels["GPU_I_ID"])), 100 * value
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("the answer is not that of a query") from error
