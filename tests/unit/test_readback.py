"""What a container is asked for, what it got, and what an image's own check says: pure decisions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jupyterhub_gpupool.sessions.docker import Ran
from jupyterhub_gpupool.spawners.readback import (
    LONGEST_REPORT,
    access_for,
    differences,
    read_check,
    request_for,
    seen_differently,
)

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
