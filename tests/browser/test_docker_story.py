"""The main job in containers, as people see it: the demo as it is shipped, with the TensorFlow image."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator

import docker
import psutil
import pytest
from playwright.sync_api import expect

from jupyterhub_gpupool.containment import LABEL, volume_name
from jupyterhub_gpupool.spawners.docker import network_of

from ..hub.conftest import ROOT, HubUnderTest, until
from .conftest import PATIENCE, MakePerson
from .test_story import train

pytestmark = [pytest.mark.browser, pytest.mark.image]

LAUNCH = 5 * PATIENCE
"""Milliseconds for the first launch of an image, with its check."""


class DemoInContainers(HubUnderTest):
    """The demo on this machine's own engine; nothing of it is left there afterwards."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.environ = {"GPUPOOL_BACKEND": "docker", "GPUPOOL_IMAGE": os.environ.get("GPUPOOL_IMAGE", "")}
        self.engine = docker.from_env()

    @property
    def pool_name(self) -> str:
        return str(json.loads((self.state / "service.json").read_text())["GPUPool"]["name"])

    def containers(self) -> list[docker.models.containers.Container]:
        wanted = {"label": f"{LABEL}pool={self.pool_name}"}
        return list(self.engine.containers.list(all=True, filters=wanted, ignore_removed=True))

    def homes(self) -> set[str]:
        return {one.name for one in self.engine.volumes.list() if one.name.startswith(self.pool_name)}

    def clean(self) -> None:
        super().clean()
        for container in self.containers():
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        for name in self.homes():
            self.engine.volumes.get(name).remove()
        for network in self.engine.networks.list(names=[network_of(self.pool_name)]):
            network.remove()
        self.engine.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoInContainers]:
    hub = DemoInContainers(tmp_path_factory.mktemp("demo") / "state", config=ROOT / "jupyterhub_config.py")
    try:
        hub.start()
        yield hub
    finally:
        broken = hub.ledger().verify()
        hub.clean()
    assert broken == []


def test_the_main_job_in_a_container(person: MakePerson, demo: DemoInContainers) -> None:
    ada = person("ada")
    assert ada.open_form()["whole-a100"] == "2 free"
    expect(ada.page.get_by_text("The GPUs here are simulated")).to_be_visible()
    expect(ada.page.get_by_text("not isolated")).to_be_hidden()
    ada.shot("docker-form")
    ada.ask_for("whole-a100")
    log = ada.page.locator("#progress-log")
    expect(log).to_contain_text("Granted: a whole GPU, 80 GiB", timeout=LAUNCH)
    expect(log).to_contain_text("Checking this image on this GPU", timeout=LAUNCH)
    ada.shot("docker-launching")
    ada.page.wait_for_url("**/user/ada/lab**", wait_until="commit", timeout=LAUNCH)
    ada.lands()
    lease = demo.wait_state("ada", "active")
    [container] = demo.containers()
    assert container.name == lease.session and container.status == "running"

    status = ada.status()
    train(ada, status, "docker")

    [kernel] = [line for line in container.top()["Processes"] if "ipykernel" in line[-1]]
    assert psutil.Process(int(kernel[1])).uids().real == 1000

    # The page of the session says that its check passed; releasing it ends the container, and the home stays.
    expect(status.get_by_text(re.compile("passed on .* TensorFlow .*; the GPU is simulated"))).to_be_visible()
    status.get_by_role("button", name="Release now").click()
    expect(status.get_by_text("You have no session")).to_be_visible()
    until(lambda: demo.containers() == [], "the container to be removed")
    assert demo.homes() == {volume_name(demo.pool_name, "ada")}

    # What was checked once is only remembered, and files in the home are there again.
    ada.ask_for("whole-a100")
    ada.page.wait_for_url("**/user/ada/lab**", wait_until="commit", timeout=LAUNCH)
    ada.lands()
    expect(ada.page.locator(".jp-DirListing-item", has_text="train.ipynb")).to_be_visible()
