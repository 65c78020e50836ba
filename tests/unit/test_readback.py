"""What a container is asked for, what it got, and what an image's own check says: pure decisions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jupyterhub_gpupool.containment.readback import (
    ACCESS,
    PORT,
    UNSAFE,
    access_for,
    differences,
    labels_of,
    request_for,
    seen_differently,
    unlike,
)
from jupyterhub_gpupool.model import Kind, Lease, Slice, State, Terms, Wish
from jupyterhub_gpupool.sessions.docker import Ran
from jupyterhub_gpupool.spawners.answers import LONGEST_REPORT, read_check, read_seen

ONE, TWO, MIG = "GPU-1", "GPU-2", "MIG-7"
CDI = {"DiscoveredDevices": [{"Source": "cdi", "ID": f"nvidia.com/gpu={one}"} for one in (ONE, MIG)]}
LABELS = {"pool": "lab", "lease": "a1"}


def got(**changed: Any) -> dict[str, Any]:
    """A container as the engine describes it, with one GPU of the runtime."""
    host = {"DeviceRequests": request_for([ONE], "runtime"), "Privileged": False, **changed.pop("host", {})}
    return {
        "HostConfig": host,
        "Config": {"Labels": {**LABELS, "other": "x"}, "User": "1000:100"},
        "Image": "sha256:1",
        **changed,
    }


@pytest.mark.parametrize(
    ("wish", "visible", "simulated", "info", "access"),
    [
        ("auto", [ONE], False, {}, "runtime"),
        ("auto", [ONE], False, {"DiscoveredDevices": None}, "runtime"),
        ("auto", [ONE], False, CDI, "cdi"),
        ("auto", [MIG], False, CDI, "cdi"),
        ("auto", [ONE, TWO], False, CDI, "runtime"),  # a name is missing: the specification is stale
        ("auto", [ONE], True, CDI, "none"),
        ("runtime", [ONE], True, CDI, "runtime"),
        ("cdi", [TWO], False, {}, "cdi"),
        ("none", [ONE], False, CDI, "none"),
        ("runtime", [], False, {}, "none"),
    ],
)
def test_how_gpus_get_in(
    wish: str, visible: list[str], simulated: bool, info: dict[str, Any], access: str
) -> None:
    assert access_for(wish, visible, simulated, info) == access


def test_requests_name_devices_by_uuid_and_are_never_empty() -> None:
    [runtime] = request_for([ONE, MIG], "runtime")
    assert runtime == {"Driver": "nvidia", "DeviceIDs": [ONE, MIG], "Capabilities": [["gpu"]]}
    [cdi] = request_for([ONE], "cdi")
    assert cdi == {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"]}
    assert request_for([], "runtime") == request_for([], "cdi") == request_for([ONE], "none") == []


@pytest.mark.parametrize(
    ("found", "access", "said"),
    [
        (got(), "runtime", ""),
        (got(host={"DeviceRequests": request_for([ONE], "cdi")}), "cdi", ""),
        (got(host={"DeviceRequests": None}), "none", ""),
        (got(host={"DeviceRequests": None}), "runtime", "given the devices none"),
        (got(), "none", "given the devices GPU-1"),
        (got(host={"DeviceRequests": request_for([TWO], "runtime")}), "runtime", "given the devices GPU-2"),
        (got(host={"DeviceRequests": request_for([ONE, TWO], "runtime")}), "runtime", "GPU-1, GPU-2"),
        (got(host={"DeviceRequests": [{"Count": -1}]}), "none", "by number"),
        (got(host={"Devices": [{"PathOnHost": "/dev/sda"}]}), "runtime", "the danger devices"),
        (got(host={"Privileged": True}), "runtime", "the danger privileged"),
        (got(Image="sha256:2"), "runtime", "sha256:2"),
        (got(Config={"Labels": {"pool": "lab", "lease": "b2"}}), "runtime", "its label lease is 'b2'"),
        (got(Config={"Labels": None}), "runtime", "its label pool is None"),
    ],
)
def test_what_differs_is_said(found: dict[str, Any], access: str, said: str) -> None:
    wrong = differences(found, labels=LABELS, image="sha256:1", visible=[ONE], access=access)
    assert said in "; ".join(wrong) if said else wrong == []


def test_what_an_admin_has_accepted_does_not_differ() -> None:
    found = got(host={"Privileged": True})
    wrong = differences(
        found, labels={}, image="sha256:1", visible=[ONE], access="runtime", dangers=["privileged"]
    )
    assert wrong == []


def held(*devices: str) -> Lease:
    """A lease with these whole GPUs."""
    slices = tuple(Slice(one, Kind.GPU, tuple(range(120)), 120, 81920, 100) for one in devices)
    return Lease(
        id="a1", user="ada", server="", profile="whole", state=State.STARTING, version=1, epoch=2,
        session="lab-a1-2", wish=Wish(Kind.GPU), terms=Terms(), groups=(), options={}, slices=slices,
        gpus=len(slices), group="", url="", runtime={}, requested_at=0.0,
    )  # fmt: skip


def launched(lease: Lease, access: str = "runtime", told: str = "", **changed: Any) -> dict[str, Any]:
    """The container of a lease as a launch makes it, but for what is ``changed`` of host or labels."""
    visible = [item.visible for item in lease.slices]
    more = {ACCESS: access, UNSAFE: "", PORT: "8888", **changed.pop("labels", {})}
    return {
        "HostConfig": {"DeviceRequests": request_for(visible, access), **changed},
        "Config": {
            "Labels": {**labels_of(lease, "lab"), **more},
            "User": "1000:100",
            "Env": ["A=b", f"NVIDIA_VISIBLE_DEVICES={told or ','.join(visible) or 'void'}"],
        },
        "Image": "sha256:1",
    }


GPU, NONE = held(ONE), held()


@pytest.mark.parametrize(
    ("lease", "found", "said"),
    [
        (GPU, launched(GPU), ""),
        (GPU, launched(GPU, "cdi"), ""),
        (GPU, launched(GPU, "none", "void"), ""),  # simulated, or never shown by an admin's wish
        (held(ONE, TWO), launched(held(ONE, TWO)), ""),
        (NONE, launched(NONE, "none"), ""),
        (GPU, launched(held(TWO)), "its label"),
        (GPU, launched(GPU, DeviceRequests=request_for([TWO], "runtime")), "given the devices GPU-2"),
        (GPU, launched(GPU, DeviceRequests=[]), "given the devices none"),
        (NONE, launched(NONE, "none", DeviceRequests=request_for([ONE], "runtime")), "given the devices GPU-1"),
        (NONE, launched(NONE, "none", DeviceRequests=[{"Count": -1}]), "by number"),
        (GPU, launched(GPU, told="all"), "NVIDIA_VISIBLE_DEVICES is 'all'"),
        (GPU, launched(GPU, "none", "all"), "NVIDIA_VISIBLE_DEVICES is 'all'"),
        (NONE, launched(NONE, "none", "all"), "NVIDIA_VISIBLE_DEVICES is 'all'"),
        (GPU, launched(GPU, Privileged=True), "the danger privileged"),
        (GPU, launched(GPU, Privileged=True, labels={UNSAFE: "devices,privileged"}), ""),
        (GPU, launched(GPU, labels={PORT: "no number"}), ""),
        (GPU, {**launched(GPU), "Config": {"Labels": None, "Env": None}}, "its label"),
    ],
)  # fmt: skip
def test_a_container_that_nobody_has_looked_at_is_compared_with_its_lease(
    lease: Lease, found: dict[str, Any], said: str
) -> None:
    wrong = unlike(found, lease, "lab")
    assert said in "; ".join(wrong) if said else wrong == []


def test_a_container_of_another_pool_is_not_that_of_the_lease() -> None:
    assert "its label" in unlike(launched(GPU), GPU, "other")[0]


@pytest.mark.parametrize(
    ("seen", "visible", "access", "right"),
    [
        ("GPU-1", [ONE], "runtime", True),
        ("GPU-1,GPU-2", [ONE, TWO], "runtime", True),
        ("GPU-2", [ONE], "runtime", False),
        ("all", [ONE], "runtime", False),
        ("void", [ONE], "runtime", False),
        ("void", [ONE], "cdi", True),
        ("all", [ONE], "cdi", False),
        ("void", [], "none", True),
        ("all", [], "none", False),
        ("GPU-1", [ONE], "none", False),
    ],
)
def test_what_the_first_process_sees(seen: str, visible: list[str], access: str, right: bool) -> None:
    environ = f"A=b\0NVIDIA_VISIBLE_DEVICES={seen}\0C=d=e\0"
    assert (seen_differently(environ, visible=visible, access=access) == "") is right


def test_an_environment_without_the_name_differs_and_an_unreadable_one_is_unknown() -> None:
    assert "None" in seen_differently("A=b\0", visible=[ONE], access="runtime")
    assert seen_differently("", visible=[ONE], access="runtime") == ""


@pytest.mark.parametrize(
    ("ran", "passed", "said"),
    [
        (Ran(0, json.dumps({"passed": True, "problems": []}), ""), True, ""),
        (Ran(0, "a line\n" + json.dumps({"passed": True}) + "\n", ""), True, ""),
        (
            Ran(1, json.dumps({"passed": False, "problems": ["It sees no GPU."]}), ""),
            False,
            "It sees no GPU.",
        ),
        (Ran(1, json.dumps({"passed": False, "problems": "none"}), ""), False, ""),
        (Ran(1, "", "/usr/bin/python3: No module named gpupool_tensorflow"), None, "no launch check"),
        (Ran(126, "OCI runtime exec failed: exec: python3", ""), None, "no launch check"),
        (Ran(127, "", ""), None, "no launch check"),
        (Ran(0, "", ""), False, "status 0 and without a result"),
        (Ran(-1, "{}", "Killed"), False, "status -1"),
        (Ran(0, json.dumps({"passed": "yes"}), ""), False, "without a result"),
        (Ran(0, "[" * 100_000, ""), False, "without a result"),
        (Ran(0, json.dumps({"passed": True, "x": "y" * LONGEST_REPORT}), ""), False, "without a result"),
    ],
)
def test_what_a_check_comes_to(ran: Ran, passed: bool | None, said: str) -> None:
    found, report = read_check(ran)
    assert found is passed
    assert said in " ".join(report["problems"])


def test_what_an_image_writes_is_bounded() -> None:
    _, report = read_check(Ran(1, json.dumps({"passed": False, "problems": ["x" * 900] * 50}), ""))
    assert len(report["problems"]) == 10
    assert max(map(len, report["problems"])) == 300


A100, CARD, SLICE = "GPU-5F2D6A6C-1b1e", "GPU-0f0e0d0c-0b0a", "MIG-0f0e0d0c-0b0a"


def cuda(*visible: str, **more: Any) -> Ran:
    return Ran(0, json.dumps({"visible": list(visible), "reason": "", **more}) + "\n", "")


@pytest.mark.parametrize(
    ("ran", "visible", "said"),
    [
        (cuda(A100.lower().replace("gpu", "GPU")), [A100], ""),
        (cuda(CARD, A100), [A100, CARD], ""),
        (cuda(CARD), [SLICE], ""),  # CUDA knows an instance by its bytes
        (cuda(CARD), [A100], f"CUDA sees {CARD}, and the lease holds {A100}"),
        (cuda(A100, CARD), [A100], f"CUDA sees {A100}, {CARD}"),
        (cuda(A100, A100), [A100], f"CUDA sees {A100}, {A100}"),
        (cuda(), [A100], "CUDA sees no GPU"),
        (Ran(0, json.dumps({"visible": None, "reason": "cuInit answers with error 999"}), ""), [A100], "error 999"),
        (Ran(0, json.dumps({"visible": None}), ""), [A100], "not known: it gives no reason"),
        (Ran(0, "{}", ""), [A100], "is not known"),
        (Ran(139, "", "Segmentation fault"), [A100], "ended with status 139"),
        (Ran(0, "[" * 100_000, ""), [A100], "without an answer"),
        (Ran(0, json.dumps([A100]), ""), [A100], "without an answer"),
        (Ran(1, "", "/usr/bin/python3: No module named gpupool_tensorflow"), [A100], ""),
        (Ran(127, "env: 'python3': No such file or directory", ""), [A100], ""),
    ],
)  # fmt: skip
def test_what_cuda_sees_is_compared_and_unknown_is_no_pass(ran: Ran, visible: list[str], said: str) -> None:
    problems = read_seen(ran, visible)
    assert said in " ".join(problems) if said else problems == []


def test_what_cuda_says_is_bounded() -> None:
    [long] = read_seen(cuda(*["GPU-" + "x" * 900] * 500), [A100])
    assert len(long) < 3000
    [long] = read_seen(Ran(0, json.dumps({"visible": None, "reason": "x" * 9000}), ""), [A100])
    assert len(long) < 300
