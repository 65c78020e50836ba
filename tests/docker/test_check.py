"""The launch check in a real launch: made once for image and GPU, remembered, and a failure ends the session."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest

from jupyterhub_gpupool.model import Lease
from tests.hub.conftest import until

from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

IMAGE = "gpupool-test-session"
HALF, MIG = {"memory": "1/2"}, {"mig": "1g.10gb"}
SORRY = {"passed": False, "problems": ["The GPU fell off the bus."]}


def profile(
    slug: str, gpu: Mapping[str, Any], image: str, cuda: Mapping[str, Any] | None = None, **answer: Any
) -> dict[str, Any]:
    """A profile with an image of its own name, so that nothing is remembered of it; ``answer`` of its check."""
    said = {"TEST_CHECK_ANSWER": answer, "TEST_CUDA_ANSWER": cuda}
    return {
        "slug": slug,
        "display_name": slug,
        "gpu": gpu,
        "image": f"{IMAGE}:{image}",
        "spawner_override": {"environment": {name: json.dumps(one) for name, one in said.items() if one}},
    }


STALE = "GPU-00000000-0000-0000-0000-00000000dead"
# What CUDA shows in a session, where that is not what its lease holds.
CUDA: dict[str, dict[str, Any]] = {
    "other": {"visible": [STALE]},
    "none": {"visible": [], "reason": "CUDA finds no device"},
    "unknown": {"visible": None, "reason": "cuInit answers with error 999"},
    "silent": {"wait": 30},
}
PROFILES = [
    profile("good", HALF, "good"),
    profile("sorry", HALF, "sorry", **SORRY),
    profile("dies", HALF, "dies", dies="Segmentation fault"),
    profile("slow", HALF, "slow", wait=60),
    profile("bare", HALF, "bare"),
    profile("here", HALF, "mixed"),
    profile("there", MIG, "mixed", **SORRY),
    profile("real", HALF, "real"),
    *(profile(f"real-{name}", HALF, "real", cuda) for name, cuda in CUDA.items()),
    profile("real-bare", HALF, "bare"),
]
GIVEN: dict[str, Any] = {
    "check": "auto",
    "real": ["real", "real-bare", *(f"real-{name}" for name in CUDA)],
    "profiles": PROFILES,
    "sections": {
        "GPUPoolDockerSpawner": {"check_timeout": 3.0, "allowed_images": [one["image"] for one in PROFILES]},
        "GPUPool": {"suspect_for": 6.0},
    },
}


@pytest.fixture(autouse=True, scope="module")
def images(module_hub: HubUnderDocker) -> None:
    """Images that differ by a label alone, and one without the check."""
    for name in sorted({one["image"] for one in PROFILES}):
        lines = [f"FROM {IMAGE}", f"LABEL made-for={name}"]
        if name.endswith(":bare"):
            package = "/usr/lib/python3/dist-packages/gpupool_tensorflow"
            lines += ["USER root", f"RUN rm -r {package}", "USER 1000:100"]
        module_hub.engine.client.images.build(
            fileobj=io.BytesIO("\n".join(lines).encode()), tag=name, rm=True
        )


def run_once(hub: HubUnderDocker, slug: str) -> Mapping[str, Any]:
    """Start and stop a session; what its lease says of the check."""
    lease = hub.run("ada", slug)
    found = hub.ledger().lease(lease.id)
    assert found is not None
    hub.delete("ada")
    hub.wait_gone("ada")
    return found.checked


def refused(hub: HubUnderDocker, slug: str) -> Lease:
    """Ask for a session that is ended in its start; its lease."""
    before = {lease.id for lease in hub.ledger().closed("ada", count=1000)}
    hub.spawn("ada", slug)

    def probe() -> Lease | None:
        found = [lease for lease in hub.ledger().closed("ada", count=1000) if lease.id not in before]
        return found[0] if found else None

    closed: Lease = until(probe, "the lease to be closed")
    assert not hub.containers(user="ada")
    server = hub.server("ada")
    assert server is None or not server["ready"]
    return closed


def execs(hub: HubUnderDocker) -> int:
    return len(hub.proxy.seen("POST", r"^/containers/[^/]+/exec"))


def test_a_pass_is_remembered_for_image_and_gpu(hub: HubUnderDocker) -> None:
    start = execs(hub)
    first = run_once(hub, "good")
    between = execs(hub)
    second = run_once(hub, "good")
    assert (first["passed"], first["remembered"]) == (True, False)
    assert (second["passed"], second["remembered"], second["at"]) == (True, True, first["at"])
    assert execs(hub) - between < between - start  # it was not run again
    report = first["report"]
    assert report["tensorflow"] == "2.21.0" and report["visible"] == report["expected"] != []


@pytest.mark.parametrize(
    ("slug", "said"), [("sorry", "fell off the bus"), ("dies", "status 3"), ("slow", "within 3 s")]
)
def test_a_failing_check_ends_the_session_with_its_reason(hub: HubUnderDocker, slug: str, said: str) -> None:
    closed = refused(hub, slug)
    assert said in closed.reason, closed.reason
    assert closed.checked["passed"] is False
    # The image passes nowhere: it may be its own fault, so the GPU is not suspected.
    hub.run("ada", "whole")


def test_an_image_without_a_check_runs_unchecked(hub: HubUnderDocker) -> None:
    checked = run_once(hub, "bare")
    assert checked["passed"] is None and "no launch check" in checked["report"]["problems"][0]


def test_a_gpu_where_a_good_image_fails_is_suspect_for_a_while(hub: HubUnderDocker) -> None:
    assert run_once(hub, "here")["passed"]
    closed = refused(hub, "there")
    [device] = [one.device for one in closed.slices] or [
        one.id for one in hub.ledger().snapshot().devices if one.model == "H100"
    ]
    found = next(one for one in hub.ledger().snapshot().devices if one.id == device)
    assert found.health == "suspect"
    hub.spawn("grace", "mig")
    hub.wait_state("grace", "queued")
    hub.wait_ready("grace")  # the time is over, and the next launch is the next test


def test_each_launch_on_a_real_gpu_asks_cuda_and_none_on_a_simulated_one(hub: HubUnderDocker) -> None:
    run_once(hub, "real")
    run_once(hub, "good")
    start = execs(hub)
    real = run_once(hub, "real")
    between = execs(hub)
    simulated = run_once(hub, "good")
    assert (
        (real["passed"], real["remembered"]) == (simulated["passed"], simulated["remembered"]) == (True, True)
    )
    assert (between - start, execs(hub) - between) == (2, 1)  # what the first process sees, and CUDA


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other", f"CUDA sees {STALE}, and the lease holds"),
        ("none", "CUDA sees no GPU"),
        ("unknown", "not known: cuInit answers with error 999"),
        ("silent", "did not say within 3 s"),
    ],
)
def test_a_remembered_pass_is_no_pass_where_cuda_shows_another_gpu(
    hub: HubUnderDocker, name: str, said: str
) -> None:
    assert run_once(hub, "real")["passed"]
    closed = refused(hub, f"real-{name}")
    assert said in closed.reason, closed.reason
    assert closed.checked["passed"] is False and said in closed.checked["report"]["problems"][0]
    again = run_once(hub, "real")
    assert (again["passed"], again["remembered"]) == (True, False)  # what has failed is checked anew


def test_an_image_that_cannot_ask_cuda_runs_unchecked_on_a_real_gpu(hub: HubUnderDocker) -> None:
    assert run_once(hub, "real-bare")["passed"] is None
