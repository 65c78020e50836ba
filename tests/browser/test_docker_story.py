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
from playwright.sync_api import Page, expect

from jupyterhub_gpupool.containment import LABEL, volume_name
from jupyterhub_gpupool.spawners.docker import network_of

from ..hub.conftest import ROOT, HubUnderTest, until
from .conftest import PATIENCE, MakePerson
from .test_story import train

pytestmark = [pytest.mark.browser, pytest.mark.image]

LAUNCH = 5 * PATIENCE
"""Milliseconds for the first launch of an image, with its check."""


REPORTING = """
import tensorflow as tf
import gpupool_tensorflow
x = tf.random.normal((512, 8), seed=1)
y = tf.reduce_sum(x, axis=1, keepdims=True)
model = tf.keras.Sequential([tf.keras.layers.Input((8,)), tf.keras.layers.Dense(1)])
model.compile(tf.keras.optimizers.Adam(0.05), "mse")
losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
gpupool_tensorflow.report(json=True)
print("learned" if losses[-1] < losses[0] / 2 else f"nothing learned: {losses}")
"""


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


def release(status: Page) -> None:
    """End one's session on the status page."""
    status.get_by_role("button", name="Release now").click()
    expect(status.get_by_text("You have no session")).to_be_visible()


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
    release(status)
    until(lambda: demo.containers() == [], "the container to be removed")
    assert demo.homes() == {volume_name(demo.pool_name, "ada")}

    # What was checked once is only remembered, and files in the home are there again.
    ada.ask_for("whole-a100")
    ada.page.wait_for_url("**/user/ada/lab**", wait_until="commit", timeout=LAUNCH)
    ada.lands()
    expect(ada.page.locator(".jp-DirListing-item", has_text="train.ipynb")).to_be_visible()
    release(status)


@pytest.mark.parametrize(
    ("name", "profile", "granted", "kind"),
    [
        ("grace", "quarter-a100", "a share of 0.25 GPU, 20 GiB", "share"),
        ("linus", "mig-small", "MIG instance 1g.10gb, 10 GiB", "mig"),
        ("alan", "cpu", "a session without a GPU", "cpu"),
    ],
    ids=["share", "mig", "cpu"],
)
def test_each_kind_of_slice_trains_and_reports_what_was_asked(
    person: MakePerson, demo: DemoInContainers, name: str, profile: str, granted: str, kind: str
) -> None:
    one = person(name)
    one.ask_for(profile)
    expect(one.page.locator("#progress-log")).to_contain_text(granted, timeout=LAUNCH)
    one.page.wait_for_url(f"**/user/{name}/lab**", wait_until="commit", timeout=LAUNCH)
    one.lands()
    lease = demo.wait_state(name, "active")
    assert lease.wish.kind == kind
    one.write_notebook(f"{kind}.ipynb", REPORTING)
    output = one.run_notebook(f"{kind}.ipynb")
    expect(output).to_have_text(re.compile(r"learned\s*$"), timeout=2 * PATIENCE)
    text = output.inner_text()
    report = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert report["armed"] and report["problems"] == []
    rows = {row["setting"]: row for row in report["settings"]}
    assert not any(row["changed"] for row in rows.values())
    memory = f"memory limit of {lease.slices[0].memory_mib} MiB" if lease.slices else None
    assert rows["memory"]["asked"] == memory
    why = "this session has no GPU" if kind == "cpu" else "the GPUs of this session are simulated"
    assert rows["precision"]["note"] == f"auto: {why}, so TensorFlow uses the CPU"
    assert rows["precision"]["applied"] == rows["precision"]["in_force"] == "float32"
    assert rows["threads"]["applied"] == rows["threads"]["in_force"] == "2"  # its CPU limit
    one.shot(f"docker-report-{kind}")
    release(one.status())
