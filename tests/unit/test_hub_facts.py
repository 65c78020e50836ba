"""What ``configure`` keeps of the hub's configuration for the doctor: what it came to, and no secret."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from jupyterhub_gpupool import configure
from jupyterhub_gpupool.configuration import SCOPES, hub
from jupyterhub_gpupool.doctor import Unknown, pool_probes
from jupyterhub_gpupool.doctor.facts import Hub

GPUS = [{"model": "T4", "memory": "16G"}]


@pytest.fixture(name="c")
def a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    c = Config()
    c.SimulatedDevices.gpus = GPUS
    c.GPUPool.database_url = f"sqlite:///{tmp_path}/state/ledger.sqlite"
    return c


def kept(c: Config, tmp_path: Path) -> Hub:
    """What the doctor reads of a hub that was configured so."""
    configure(c, backend="local")
    found = pool_probes.hub(tmp_path / "state" / hub.HUB)
    assert not isinstance(found, Unknown)
    return found


def test_a_hub_as_configure_makes_it(c: Config, tmp_path: Path) -> None:
    found = kept(c, tmp_path)
    assert found.api == "http://127.0.0.1:8081/hub/api/"
    assert (found.cleanup_servers, found.proxy, found.proxy_started) == (
        False,
        "configurable-http-proxy",
        True,
    )
    assert (found.cullers, found.inner_cullers, found.service_admin) == ((), (), False)
    assert found.scopes == set(SCOPES)
    assert found.user_scopes == {"self", "access:services!service=gpupool"}
    assert (found.start_timeout, found.http_timeout, found.failure_limit) == (60, 60, 0)
    assert found.secrets == (f"{tmp_path}/jupyterhub_cookie_secret", f"{tmp_path}/jupyterhub.sqlite")
    assert stat.S_IMODE((tmp_path / "state" / hub.HUB).stat().st_mode) == 0o600


CULLER = ["python", "-m", "jupyterhub_idle_culler", "--timeout=3600", "--api-token=hunter2"]


def test_whoever_ends_servers_is_kept_by_name(c: Config, tmp_path: Path) -> None:
    c.JupyterHub.services = [
        {"name": "nights", "command": CULLER, "api_token": "hunter2"},
        {"name": "old", "command": "python3 cull_idle_servers.py --timeout 600"},
        {"name": "jupyterhub-idle-culler"},
        {"name": "other", "command": ["other", "--timeout=5"], "api_token": "hunter2"},
    ]
    c.Spawner.args = [
        "--MappingKernelManager.cull_idle_timeout=900",
        "--ServerApp.shutdown_no_activity_timeout=0",
        "--token=hunter2",
    ]
    found = kept(c, tmp_path)
    assert found.cullers == (("nights", "3600"), ("old", "600"), ("jupyterhub-idle-culler", ""))
    assert found.inner_cullers == ("--MappingKernelManager.cull_idle_timeout=900",)
    assert "hunter2" not in (tmp_path / "state" / hub.HUB).read_text()


def test_the_nearest_section_of_the_spawner_wins(c: Config, tmp_path: Path) -> None:
    c.Spawner.start_timeout = 10
    c.SimpleLocalProcessSpawner.start_timeout = 20
    c.GPUPoolLocalSpawner.http_timeout = 7
    found = kept(c, tmp_path)
    assert (found.start_timeout, found.http_timeout) == (20, 7)


def test_roles_are_laid_together(c: Config, tmp_path: Path) -> None:
    c.JupyterHub.load_roles = [
        {"name": "more", "services": ["gpupool", "x"], "scopes": ["admin:users"]},
        {"name": "theirs", "services": ["x"], "scopes": ["admin:servers"]},
        {"name": "user"},
    ]
    found = kept(c, tmp_path)
    assert found.scopes == {*SCOPES, "admin:users"}
    assert found.user_scopes == {"self", "access:services!service=gpupool"}


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"hub_ip": "10.0.0.5", "hub_port": 9000}, "http://10.0.0.5:9000/hub/api/"),
        ({"hub_ip": "", "hub_connect_ip": "10.0.0.6"}, "http://10.0.0.6:8081/hub/api/"),
        ({"hub_ip": "0.0.0.0"}, ""),
        ({"hub_ip": "fd00::1"}, "http://[fd00::1]:8081/hub/api/"),
        ({"base_url": "/lab/"}, "http://127.0.0.1:8081/lab/hub/api/"),
        ({"bind_url": "http://:8000/lab"}, "http://127.0.0.1:8081/lab/hub/api/"),
        ({"bind_url": "http://127.0.0.1:8000"}, "http://127.0.0.1:8081/hub/api/"),
        ({"hub_connect_url": "http://hub.example:81"}, "http://hub.example:81/hub/api/"),
        ({"hub_bind_url": "http://10.0.0.7:8081/x", "base_url": "/lab"}, "http://10.0.0.7:8081/lab/hub/api/"),
        ({"hub_bind_url": "unix+http://socket"}, ""),
        ({"internal_ssl": True}, ""),
    ],
    ids=str,
)
def test_where_sessions_find_the_hub(settings: dict[str, Any], url: str, c: Config, tmp_path: Path) -> None:
    c.JupyterHub.update(settings)
    assert kept(c, tmp_path).api == url


def test_the_proxy_by_class_name_and_command(c: Config, tmp_path: Path) -> None:
    from jupyterhub.proxy import ConfigurableHTTPProxy

    c.JupyterHub.proxy_class = ConfigurableHTTPProxy
    c.ConfigurableHTTPProxy.command = ["python3", "-m", "configurable_http_proxy.cli", "--token=hunter2"]
    c.ConfigurableHTTPProxy.should_start = False
    found = kept(c, tmp_path)
    assert found.proxy == "jupyterhub.proxy.ConfigurableHTTPProxy"
    assert (found.proxy_command, found.proxy_started) == ("python", False)
    assert "hunter2" not in (tmp_path / "state" / hub.HUB).read_text()


def test_secrets_of_the_database_stay_out(c: Config, tmp_path: Path) -> None:
    c.JupyterHub.db_url = "postgresql://hub:hunter2@db/hub"
    c.JupyterHub.cookie_secret_file = "/srv/secret"
    assert kept(c, tmp_path).secrets == ("/srv/secret",)
    assert "hunter2" not in (tmp_path / "state" / hub.HUB).read_text()


def test_lists_that_are_appended_to_and_functions(c: Config, tmp_path: Path) -> None:
    c.JupyterHub.services.append({"name": "cull-idle", "admin": True})
    c.Spawner.args = lambda spawner: []
    found = kept(c, tmp_path)
    assert found.cullers == (("cull-idle", ""),)
    assert json.loads((tmp_path / "state" / hub.HUB).read_text())["inner_cullers"] == []
