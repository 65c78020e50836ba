"""A mistake in the configuration stops the hub with one sentence that names it and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from jupyterhub_gpupool import configure
from jupyterhub_gpupool.__main__ import main as gpupool
from jupyterhub_gpupool.configuration import BACKENDS
from jupyterhub_gpupool.ledger import Ledger
from jupyterhub_gpupool.notices.settings import GPUPoolNotices

GPUS = [{"model": "A100-SXM4-80GB", "memory": "80G", "compute_capability": "8.0", "count": 1}]
IMAGE = f"sha256:{'1234abcd' * 8}"
NOWHERE = "unix:///nowhere/docker.sock"
PROFILE: dict[str, Any] = {"display_name": "Mine", "slug": "mine"}


def profile(**keys: Any) -> dict[str, dict[str, Any]]:
    return {"GPUPool": {"profiles": [PROFILE | keys]}}


def limits(**keys: Any) -> dict[str, dict[str, Any]]:
    return {"GPUPool": {"limits": keys}}


MISTAKES: dict[str, tuple[dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "setting": (
        {"GPUPool": {"profile": []}},
        ("c.GPUPool.profile is not", "Did you mean 'profiles'?", "Allowed:"),
    ),
    "service": (
        {"GPUPoolService": {"sweep": 1}},
        ("c.GPUPoolService.sweep is not", "Allowed:", "sweep_interval"),
    ),
    "spawner": ({"GPUPoolLocalSpawner": {"home": "x"}}, ("c.GPUPoolLocalSpawner.home", "Allowed:", "homes")),
    "devices": ({"SimulatedDevices": {"gpu": []}}, ("c.SimulatedDevices.gpu is not", "Did you mean 'gpus'?")),
    "mode": ({"GPUPoolService": {"mode": "kill"}}, ("mode", "kill", "observe", "warn", "reclaim")),
    "interval": (
        {"GPUPoolService": {"sweep_interval": -1}},
        ("sweep_interval is -1", "allowed are 0.5 to 3600"),
    ),
    "untold": (
        {"GPUPoolService": {"undelivered_max": -1}},
        ("undelivered_max is -1", "allowed are 0 to"),
    ),
    "untold-nan": (
        {"GPUPoolService": {"undelivered_max": float("nan")}},
        ("undelivered_max is nan", "allowed"),
    ),
    "script": ({"GPUPoolService": {"before_reclaim_timeout": 601}}, ("before_reclaim_timeout", "0 to 600")),
    "notices": (
        {"GPUPoolNotices": {"mail_servr": "x"}},
        ("c.GPUPoolNotices.mail_servr is not", "Did you mean 'mail_server'?", "Allowed:"),
    ),
    "notices-sender": (
        {"GPUPoolNotices": {"mail_server": "x", "mail_address": "{user}@x.example"}},
        ("GPUPoolNotices.mail_from is ''", "such as"),
    ),
    "interval-nan": (
        {"GPUPoolService": {"sweep_interval": float("nan")}},
        ("sweep_interval is nan", "allowed"),
    ),
    "wait-nan": ({"GPUPool": {"max_wait": float("nan")}}, ("GPUPool.max_wait is nan", "allowed are seconds")),
    "wait-huge": ({"GPUPool": {"max_wait": 1e300}}, ("GPUPool.max_wait is 1e+300", "allowed are seconds")),
    "wait-text": ({"GPUPool": {"max_wait": "long"}}, ("max_wait", "long")),
    "launches": ({"GPUPool": {"max_launches": -1}}, ("max_launches", "-1")),
    "name": ({"GPUPool": {"name": "a b"}}, ("GPUPool.name is 'a b'", "allowed are")),
    "database": (
        {"GPUPool": {"database_url": "ledger"}},
        ("c.GPUPool.database_url: 'ledger'", "sqlite:////"),
    ),
    "memory": ({"GPUPool": {"database_url": "sqlite://"}}, ("c.GPUPool.database_url", "name a file")),
    "profiles": ({"GPUPool": {"profiles": [7]}}, ("profiles", "expected a dict", "7")),
    "profile-key": (profile(gpus=1), ("'mine'", "'gpus'", "allowed")),
    "gpu-key": (profile(gpu={"cuont": 1}), ("'mine'", "'cuont'", "allowed", "count")),
    "gpu-negative": (profile(gpu={"count": -1}), ("'mine'", "-1", "allowed")),
    "gpu-huge": (profile(gpu={"count": 10**30}), ("'mine'", "count", "allowed")),
    "gpu-nan": (profile(gpu={"compute": float("nan")}), ("'mine'", "nan", "allowed")),
    "window": (profile(idle={"window": "x"}), ("'mine'", "window", "'x'", "allowed")),
    "window-nan": (profile(idle={"window": float("nan")}), ("'mine'", "window", "nan", "allowed")),
    "groups": (profile(allowed_groups="vision"), ("'mine'", "allowed_groups", "allowed")),
    "override": (profile(spawner_override={"imge": "x"}), ("'mine'", "spawner_override", "'imge'")),
    "override-of-the-pool": (profile(spawner_override={"home_dir": "/"}), ("'mine'", "'home_dir'")),
    "slug-twice": ({"GPUPool": {"profiles": [PROFILE, PROFILE]}}, ("'mine'",)),
    "limit-key": (
        limits(**{"user:*": {"session": 1}}),
        ("GPUPool.limits['user:*']", "'session'", "keys are sessions"),
    ),
    "limit-scope": (limits(users={"sessions": 1}), ("GPUPool.limits", "'users'", "scopes are pool")),
    "limit-negative": (limits(pool={"gpus": -1}), ("GPUPool.limits['pool']", "gpus is -1", "must be")),
    "limit-nan": (limits(pool={"gpus": float("nan")}), ("GPUPool.limits['pool']", "gpus is nan", "must be")),
    "limit-text": (limits(pool={"sessions": "many"}), ("GPUPool.limits['pool']", "'many'", "must be")),
    "model": ({"SimulatedDevices": {"gpus": [{"model": "A100", "memry": "80G"}]}}, ("memry", "memory")),
    "no-gpus": ({"SimulatedDevices": {"gpus": 3}}, ("gpus", "3")),
    "both": (
        {"NvidiaDevices": {"exclude": ["0"]}},
        (
            "c.SimulatedDevices.gpus and c.NvidiaDevices",
            "c.GPUPoolService.devices",
            "'nvidia' or 'simulated'",
        ),
    ),
    "real-setting": (
        {"GPUPoolService": {"devices": "nvidia"}, "NvidiaDevices": {"mode": {}}},
        ("c.NvidiaDevices.mode is not", "Did you mean 'modes'?"),
    ),
    "real-mode": (
        {"GPUPoolService": {"devices": "nvidia"}, "NvidiaDevices": {"modes": {"0": "half"}}},
        ("NvidiaDevices.modes['0']", "'half'", "allowed", "'whole'"),
    ),
    "inventory": ({"GPUPoolService": {"devices": "amd"}}, ("devices", "amd", "nvidia", "simulated")),
}


def made(tmp_path: Path, sections: dict[str, dict[str, Any]]) -> Config:
    c = Config()
    c.SimulatedDevices.gpus = GPUS
    c.GPUPool.database_url = f"sqlite:///{tmp_path}/ledger.sqlite"
    for section, values in sections.items():
        c[section].update(values)
    return c


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    sections, says = MISTAKES[mistake]
    with pytest.raises(SystemExit) as ended:
        configure(made(tmp_path, sections), backend="local")
    said = str(ended.value.code)
    assert said.startswith("gpupool: ")
    assert "\n" not in said
    assert len(said) < 1500
    for part in says:
        assert part in said
    assert capsys.readouterr().out == ""


def spawner(**settings: Any) -> dict[str, dict[str, Any]]:
    return {"GPUPoolDockerSpawner": {"image": IMAGE, **settings}}


MISTAKES_WITH_CONTAINERS: dict[str, tuple[dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "spawner": (spawner(imge="x"), ("c.GPUPoolDockerSpawner.imge is not", "Did you mean 'image'?")),
    "no-image": (profile(), ("'mine' names no image", "c.GPUPoolDockerSpawner.image", "`make image`")),
    "image-by-tag": (profile(image="lab/image:1"), ("'mine'", "'lab/image:1' has no digest", "allowed")),
    "names": ({"DockerSpawner": {"name_template": "x"}}, ("name_template", "belongs to the pool")),
    "removal": (spawner(remove=False), ("remove", "belongs to the pool", "never started again")),
    "auto-remove": (spawner(extra_host_config={"auto_remove": True}), ("auto_remove", "belongs to the pool")),
    "restart": (
        spawner(extra_host_config={"restart_policy": {"Name": "always"}}),
        ("restart_policy", "belongs to the pool", "without a lease"),
    ),
    "privileged": (spawner(extra_host_config={"privileged": True}), ("privileged", "in unsafe")),
    "privileged-profile": (
        profile(image=IMAGE, spawner_override={"extra_host_config": {"privileged": True}}),
        ("Profile 'mine'", "privileged", "in unsafe"),
    ),
    "root": (spawner(run_as="0:0"), ("run_as", "root-user")),
    "unsafe": (spawner(unsafe=["danger"]), ("unsafe names 'danger'", "Allowed: privileged,")),
    "seconds": (
        profile(image=IMAGE, spawner_override={"check_timout": 1}),
        ("'check_timout'", "did you mean"),
    ),
    "engine": (spawner(), ("engine does not answer", "`systemctl start docker`", "DOCKER_HOST")),
}


@pytest.mark.parametrize("mistake", MISTAKES_WITH_CONTAINERS)
def test_a_mistake_with_containers_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    sections, says = MISTAKES_WITH_CONTAINERS[mistake]
    with pytest.raises(SystemExit) as ended:
        configure(made(tmp_path, sections), backend="docker")
    said = str(ended.value.code)
    assert said.startswith("gpupool: ") and "\n" not in said
    for part in says:
        assert part.lower() in said.lower()


class Engine:
    """An engine with a network of ours."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway

    def inspect_network(self, name: str) -> dict[str, Any]:
        assert name == "gpupool-gpupool"
        return {
            "Name": name,
            "Options": {"com.docker.network.bridge.enable_icc": "false"},
            "IPAM": {"Config": [{"Gateway": self.gateway}]},
        }

    def close(self) -> None:
        """Nothing to close."""


def test_the_hub_listens_where_containers_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect = "jupyterhub_gpupool.configuration.docker.connect"
    monkeypatch.setattr(connect, lambda **_: Engine("203.0.113.1"))  # an address that no machine has
    with pytest.raises(SystemExit, match=r"203\.0\.113\.1, which is no address of this machine.*rootless"):
        configure(made(tmp_path, spawner()), backend="docker")
    monkeypatch.setattr(connect, lambda **_: Engine("127.0.0.9"))
    c = made(tmp_path, spawner())
    configure(c, backend="docker")
    assert c.JupyterHub.hub_ip == "127.0.0.9"
    assert c.JupyterHub.spawner_class.__name__ == "GPUPoolDockerSpawner"
    handed = json.loads((tmp_path / "service.json").read_text())
    assert (handed["GPUPoolService"]["backend"], handed["GPUPoolService"]["engine"]) == ("docker", {})
    # An address of the admin's own stays; and a hub that knows the address starts without the engine.
    monkeypatch.undo()
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    c = made(tmp_path, {**spawner(), "JupyterHub": {"hub_connect_ip": "127.0.0.3"}})
    configure(c, backend="docker")
    assert "hub_ip" not in c.JupyterHub
    assert "the container engine does not answer, sessions wait for it" in capsys.readouterr().err


def test_a_backend_that_this_version_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"gpupool: configure\(backend='slurm'\).*'docker', 'local'"):
        configure(made(tmp_path, {}), backend="slurm")


def test_generated_configuration_has_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpupool(["generate-config"]) == 0
    said = capsys.readouterr().out
    for name in ("GPUPool.profiles", "GPUPoolService.mode", "GPUPoolLocalSpawner.homes"):
        assert f"# c.{name} = " in said
    assert "# c.GPUPoolDockerSpawner.gpu_access = 'auto'" in said


def test_generated_configuration_names_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKENDS, "docker", "a_package_of_nobody:Spawner")
    assert gpupool(["generate-config"]) == 0
    said = capsys.readouterr().out
    assert "# gpupool: The backend 'docker' needs the package 'a_package_of_nobody'" in said
    assert "c.GPUPoolLocalSpawner.homes" in said


def test_what_is_probably_a_slip_in_the_limits_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"group:visoin": {"gpus": 1}, "group:vision": {"gpus": 1}, "user:*": {"profiles": ["haalf"]}}
    c = made(tmp_path, {"GPUPool": {"limits": limits}})
    c.JupyterHub.load_groups = {"vision": {"users": []}}
    configure(c, backend="local")
    said = capsys.readouterr().err
    assert "GPUPool.limits: group:visoin: there is no group visoin yet." in said
    assert "GPUPool.limits: user:*: there is no profile haalf." in said
    assert "group:vision:" not in said


def test_without_mistakes_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = made(tmp_path, profile(gpu={"count": 1}, spawner_override={"environment": {"A": "b"}}))
    configure(c, backend="local")
    assert c.JupyterHub.services[0]["name"] == "gpupool"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_settings_that_were_only_appended_to_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    c = Config({"SimulatedDevices": {"gpus": GPUS}})
    c.JupyterHub.services.append({"name": "mine"})
    c.JupyterHub.load_roles.append({"name": "user"})
    c.JupyterHub.template_paths.append("templates")
    c.JupyterHub.tornado_settings.update({"headers": {}})
    c.GPUPool.profiles.append(PROFILE)
    c.GPUPool.limits.update({"pool": {"queued": 3}})
    configure(c, backend="local")
    assert [service["name"] for service in c.JupyterHub.services] == ["mine", "gpupool"]
    assert c.JupyterHub.load_roles[0]["scopes"] == ["self", "access:services!service=gpupool"]
    assert c.JupyterHub.template_paths[0] == "templates"
    assert set(c.JupyterHub.tornado_settings) == {"headers", "slow_spawn_timeout"}
    handed = json.loads((tmp_path / "service.json").read_text())
    assert handed["GPUPool"]["limits"] == {"pool": {"queued": 3}}
    assert handed["GPUPool"]["profiles"][-1] == PROFILE


def test_a_folder_with_odd_characters_holds_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p%41 q?x=1#y"
    folder.mkdir()
    monkeypatch.chdir(folder)
    c = Config({"SimulatedDevices": {"gpus": GPUS}})
    configure(c, backend="local")
    Ledger(c.GPUPool.database_url).close_database()
    assert (folder / "gpupool.sqlite").exists()


@pytest.mark.parametrize(
    ("sections", "devices"),
    [
        ({"SimulatedDevices": {"gpus": GPUS}}, "simulated"),
        ({"SimulatedDevices": {"gpus": GPUS}, "GPUPoolService": {"devices": "nvidia"}}, "nvidia"),
        ({"NvidiaDevices": {"modes": {"*": "share"}}}, "nvidia"),
        ({}, "nvidia"),
    ],
)
def test_simulated_gpus_are_taken_only_where_they_are_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, dict[str, Any]], devices: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    c = Config(sections)
    configure(c, backend="local")
    handed = json.loads((tmp_path / "service.json").read_text())
    assert handed["GPUPoolService"]["devices"] == devices
    assert handed.get("NvidiaDevices", {}) == sections.get("NvidiaDevices", {})


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({}, ("nvidia-ml-py", "pip install 'jupyterhub-gpupool[nvidia]'", "c.SimulatedDevices.gpus")),
        ({"GPUPoolService": {"devices": "simulated"}}, ("No simulated GPUs", "c.SimulatedDevices.gpus")),
    ],
)
def test_gpus_that_cannot_be_had_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, dict[str, Any]],
    says: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        configure(Config(sections), backend="local")
    assert all(part in str(ended.value.code) for part in says)


def address_of(user: str) -> str | None:
    """Stands for a function of a lab's own module."""
    return f"{user}@lab.example"


def test_a_function_that_knows_addresses_is_handed_over_by_its_name(tmp_path: Path) -> None:
    mail = {"mail_server": "m.example", "mail_from": "p@lab.example", "mail_address": address_of}
    configure(made(tmp_path, {"GPUPoolNotices": mail}), backend="local")
    written = json.loads((tmp_path / "service.json").read_text())["GPUPoolNotices"]
    assert written["mail_address"] == f"{__name__}:address_of"
    handed = GPUPoolNotices(config=Config({"GPUPoolNotices": written}))
    assert handed.known_address() is address_of
    with pytest.raises(SystemExit, match="a module of its own"):
        configure(
            made(tmp_path, {"GPUPoolNotices": {**mail, "mail_address": lambda user: None}}), backend="local"
        )


def test_the_secrets_of_notices_go_to_the_service_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUPOOL_MAIL_PASSWORD", "sesame")
    monkeypatch.setenv("GPUPOOL_WEBHOOK_URL", "https://chat.example/secret")
    c = made(tmp_path, {"GPUPoolNotices": {"retry": 5}})
    configure(c, backend="local")
    (service,) = c.JupyterHub.services
    assert service["environment"]["GPUPOOL_MAIL_PASSWORD"] == "sesame"
    assert service["environment"]["GPUPOOL_WEBHOOK_URL"].endswith("/secret")
    written = tmp_path / "service.json"
    assert json.loads(written.read_text())["GPUPoolNotices"] == {"retry": 5}
    assert "sesame" not in written.read_text() and written.stat().st_mode & 0o077 == 0
    assert "sesame" not in repr(c.Spawner) and "sesame" not in repr(c.GPUPoolLocalSpawner)
