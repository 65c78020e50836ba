"""The CPUs of a session of several GPUs, as the engine has them."""

from __future__ import annotations

import os

import pytest

from .conftest import MakeHub

pytestmark = pytest.mark.docker

CARD = {"model": "A100-SXM4-80GB", "memory": "80G", "count": 2}


def test_several_gpus_are_linked_ones_and_the_cpus_are_those_near_them(make_hub: MakeHub) -> None:
    last = (os.cpu_count() or 1) - 1
    gpus = [{**CARD, "numa": 0, "cpus": "0"}, {**CARD, "numa": 1, "cpus": str(last), "links": "NV12"}]
    pair = {"slug": "pair", "display_name": "Two", "gpu": {"count": 2}}
    hub = make_hub(profiles=[pair], sections={"SimulatedDevices": {"gpus": gpus}})
    hub.start()
    lease = hub.run("ada", "pair")
    devices = {device["id"]: device for device in hub.pool("GET", "api/pool").json()["devices"]}
    assert [devices[part.device]["index"] for part in lease.slices] == [2, 3]
    assert {devices[part.device]["numa"] for part in lease.slices} == {1}
    host = hub.inspect(lease)["HostConfig"]
    assert (host["CpusetCpus"], host["CpusetMems"]) == (str(last), "")
    alone = hub.run("grace", "whole")
    assert hub.inspect(alone)["HostConfig"]["CpusetCpus"] == ""
