"""The owner's script before a reclaim, run in a real container, as its user and through the engine alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from docker.errors import NotFound
from docker.models.containers import Container

from jupyterhub_gpupool.sessions.docker import LABEL, DockerSessions
from jupyterhub_gpupool.sessions.script import TAIL
from tests.hub.conftest import until

from .engine import Engine
from .fault_proxy import FaultProxy
from .hub import HubUnderDocker

pytestmark = pytest.mark.docker

ASKED = {"GPUPOOL_REASON": "idle; `id` $(id) 'x'", "GPUPOOL_DEADLINE": "7"}
HOME = "/tmp/home of ada"
Launch = Callable[..., Container]


@pytest.fixture
def sessions(proxy: FaultProxy) -> DockerSessions:
    return DockerSessions("lab", {"base_url": proxy.host}, timeout=5)


@pytest.fixture
def launch(engine: Engine, session_image: str) -> Iterator[Launch]:
    made: list[Container] = []

    def launch(script: str | None, mode: str = "755", pool: str = "lab") -> Container:
        labels = {"pool": pool, "lease": "l1", "epoch": "1"}
        container = engine.client.containers.create(
            session_image, ["sleep", "600"], entrypoint=[], name="lab-l1-1", user="1234:1234",
            labels={LABEL + key: value for key, value in labels.items()},
            environment={"HOME": HOME, "OWN": "its own"},
        )  # fmt: skip
        made.append(container)
        container.start()
        if script is not None:
            write(container, script, mode)
        return container

    yield launch
    for container in made:
        with contextlib.suppress(NotFound):
            container.remove(force=True)


PUT = 'mkdir -p "$HOME/.gpupool" && cd "$HOME/.gpupool" && printf %s "$1" > before-reclaim && chmod "$2" *'


def write(container: Container, script: str, mode: str = "755") -> None:
    """Put the script into the home, as its owner does."""
    done = container.exec_run(["sh", "-c", PUT, "sh", script, mode])
    assert done.exit_code == 0, done.output


def test_it_runs_as_the_containers_user_with_its_environment(
    sessions: DockerSessions, launch: Launch
) -> None:
    launch('#!/bin/sh\necho "$(id -u) $OWN $GPUPOOL_DEADLINE"\necho "$GPUPOOL_REASON"\nexit 3\n')
    end = sessions.before_reclaim("lab-l1-1", ASKED, timeout=20)
    assert end is not None and (end.state, end.status) == ("done", 3)
    assert end.tail == f"1234 its own 7\n{ASKED['GPUPOOL_REASON']}\n"


def test_no_script_no_session_no_home_of_ours(sessions: DockerSessions, launch: Launch) -> None:
    assert sessions.before_reclaim("lab-l1-1", ASKED, timeout=20) is None
    container = launch(None)
    assert sessions.before_reclaim("lab-l1-1", ASKED, timeout=20) is None
    write(container, "#!/bin/sh\ntouch /tmp/ran\n", "644")
    assert sessions.before_reclaim("lab-l1-1", ASKED, timeout=20) is None
    container.exec_run(["sh", "-c", f"cd '{HOME}/.gpupool'; rm *; mkdir before-reclaim"])
    assert sessions.before_reclaim("lab-l1-1", ASKED, timeout=20) is None
    assert container.exec_run(["test", "-e", "/tmp/ran"]).exit_code == 1


def test_a_container_of_somebody_else_is_left_alone(sessions: DockerSessions, launch: Launch) -> None:
    container = launch("#!/bin/sh\ntouch /tmp/ran\n", pool="other")
    assert sessions.before_reclaim("lab-l1-1", ASKED, timeout=20) is None
    assert container.exec_run(["test", "-e", "/tmp/ran"]).exit_code == 1


@pytest.mark.parametrize(
    "body", ["echo working\nsleep 600\n", "while :; do echo working; sleep 0.05; done\n"]
)
def test_one_that_takes_too_long_ends_with_the_session(
    sessions: DockerSessions, launch: Launch, body: str
) -> None:
    launch(f"#!/bin/sh\n{body}")
    began = time.monotonic()
    end = sessions.before_reclaim("lab-l1-1", ASKED, timeout=2)
    assert end is not None and (end.state, end.status) == ("timeout", None) and "working\n" in end.tail
    assert time.monotonic() - began < 15
    assert sessions.remove("lab-l1-1", timeout=10)


def test_one_that_writes_much_is_told_as_it_ended(sessions: DockerSessions, launch: Launch) -> None:
    launch("#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' x\necho\necho 'the end'\nexit 5\n")
    end = sessions.before_reclaim("lab-l1-1", ASKED, timeout=60)
    assert end is not None and (end.state, end.status) == ("done", 5)
    assert len(end.tail) <= TAIL and end.tail.endswith("xxx\nthe end\n")


def test_one_whose_child_holds_its_output_has_ended(sessions: DockerSessions, launch: Launch) -> None:
    launch("#!/bin/sh\nsleep 600 &\necho done\nexit 4\n")
    end = sessions.before_reclaim("lab-l1-1", ASKED, timeout=3)
    assert end is not None and (end.state, end.status, end.tail) == ("done", 4, "done\n")


def test_an_engine_that_fails_is_said_and_raises_nothing(
    sessions: DockerSessions, launch: Launch, proxy: FaultProxy
) -> None:
    launch("#!/bin/sh\necho x\n")
    proxy.rule("status", "POST", r"/exec", status=500)
    end = sessions.before_reclaim("lab-l1-1", ASKED, timeout=5)
    assert end is not None and end.state == "failed"


def test_the_script_runs_before_an_idle_container_is_taken_back(
    make_hub: Callable[..., HubUnderDocker],
) -> None:
    hub = make_hub(idle={"window": 8, "warn": 1})
    hub.start()
    lease = hub.run("ada")
    container = hub.container(lease)
    script = '#!/bin/sh\necho "$GPUPOOL_LEASE $GPUPOOL_RULE"\nexit 4\n'
    write(container, script)
    hub.wait_gone("ada", seconds=90)
    until(lambda: hub.ledger().ending_of(lease.id).script, "the script's end")
    found = hub.ledger().ending_of(lease.id).script
    assert (found["state"], found["status"], found["tail"]) == ("done", 4, f"{lease.id} idle")
