"""What keeps a session inside its container: every spelling of a way out is seen, and nothing else is."""

from __future__ import annotations

import copy
import posixpath
import re
from pathlib import Path
from typing import Any

import pytest
from docker.types import DriverConfig, HostConfig, Mount
from dockerspawner import DockerSpawner
from hypothesis import example, given
from hypothesis import strategies as st

from jupyterhub_gpupool import containment
from jupyterhub_gpupool.containment import (
    DANGERS,
    GIVEN,
    checks,
    combine,
    dangers,
    host_config,
    image_problem,
    owned,
    path_problem,
    refusals,
    rules,
    user_problem,
    volume_name,
)
from jupyterhub_gpupool.containment.paths import plain_key
from jupyterhub_gpupool.sessions import docker as docker_sessions

MIB = 1 << 20
HEX = "0123456789abcdef" * 4
DOCS = Path(__file__).parents[2] / "docs"


# --- what every container gets ------------------------------------------------------------------------


def test_every_container_gets_this() -> None:
    assert host_config(mem_limit=1024 * MIB, cpuset="0-3") == {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": 4096,
        "ipc_mode": "private",
        "shm_size": 512 * MIB,
        "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={512 * MIB}"},
        "init": True,
        "restart_policy": {"Name": "no"},
        "log_config": {"type": "json-file", "config": {"max-size": str(10 * MIB), "max-file": "3"}},
        "memswap_limit": 1024 * MIB,
        "cpuset_cpus": "0-3",
    }
    without = host_config()
    assert "memswap_limit" not in without and "cpuset_cpus" not in without
    assert (without["shm_size"], without["tmpfs"]["/tmp"].rpartition("=")[2]) == (1024 * MIB, str(2048 * MIB))


def test_each_of_it_has_a_reason_and_docker_py_takes_it() -> None:
    given = host_config(mem_limit=MIB, cpuset="0")
    assert set(given) == set(GIVEN)
    made = HostConfig("1.41", mem_limit=MIB, **given)
    assert made["CapDrop"] == ["ALL"] and made["Init"] is True and made["MemorySwap"] == MIB
    assert made["LogConfig"]["Config"] == {"max-size": str(10 * MIB), "max-file": "3"}
    assert made["PidsLimit"] == 4096 and made["CpusetCpus"] == "0" and made["IpcMode"] == "private"


def test_what_every_container_gets_is_no_danger() -> None:
    assert dangers({"extra_host_config": host_config(mem_limit=MIB, cpuset="0")}) == {}


@pytest.mark.parametrize(
    ("asked", "key", "value"),
    [
        ({"pids_limit": 100}, "pids_limit", 100),
        ({"PidsLimit": 100}, "pids_limit", 100),
        ({"cap_drop": ["NET_RAW"]}, "cap_drop", ["ALL", "NET_RAW"]),
        ({"cap_drop": None}, "cap_drop", ["ALL"]),
        ({"cap_drop": []}, "cap_drop", ["ALL"]),
        ({"CapDrop": []}, "cap_drop", ["ALL"]),
        ({"security_opt": []}, "security_opt", ["no-new-privileges"]),
        ({"security_opt": ["apparmor=strict"]}, "security_opt", ["no-new-privileges", "apparmor=strict"]),
        ({"security_opt": ["no-new-privileges:true"]}, "security_opt", ["no-new-privileges:true"]),
        ({"security_opt": ["no-new-privileges:false"]}, "security_opt", ["no-new-privileges:false"]),
        ({"log_config": {"type": "journald"}}, "log_config", {"type": "journald"}),
        ({"mem_limit": "2g"}, "memswap_limit", "2g"),
        ({"mem_limit": "2g", "memswap_limit": "4g"}, "memswap_limit", "4g"),
        ({"ulimits": [{"name": "nofile"}]}, "ulimits", [{"name": "nofile"}]),
        ({"shm_size": None}, "shm_size", None),
    ],
)
def test_an_admins_own_values_win_but_what_is_dropped_stays_dropped(
    asked: dict[str, Any], key: str, value: Any
) -> None:
    given, before = host_config(mem_limit=MIB), copy.deepcopy(asked)
    found = combine(given, asked)
    assert found.get(key) == value
    assert asked == before and given == host_config(mem_limit=MIB)


def test_another_tmpfs_stands_beside_tmp() -> None:
    found = combine(host_config(), {"tmpfs": {"/scratch": "size=1g"}})
    assert set(found["tmpfs"]) == {"/tmp", "/scratch"}


# --- the dangers --------------------------------------------------------------------------------------


def on_host(**settings: Any) -> dict[str, Any]:
    return {"extra_host_config": settings}


def raw(**settings: Any) -> dict[str, Any]:
    """As the engine spells it: docker-py hands such a dictionary on as it is."""
    return {"extra_create_kwargs": {"host_config": settings}}


def create(**settings: Any) -> dict[str, Any]:
    return {"extra_create_kwargs": settings}


def both(danger: str, snake: str, camel: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(danger, on_host(**{snake: value})), (danger, raw(**{camel: value}))]


ASKED: list[tuple[str, dict[str, Any]]] = [
    *both("privileged", "privileged", "Privileged", True),
    ("privileged", raw(PRIVILEGED=True)),
    ("privileged", {"extra_create_kwargs": {"host_config": {"Privileged": False, "privileged": True}}}),
    *both("cap-add", "cap_add", "CapAdd", ["SYS_ADMIN"]),
    *both("host-network", "network_mode", "NetworkMode", "host"),
    ("host-network", {"network_name": "host"}),
    ("host-network", on_host(network_mode="{servername}")),
    *both("host-pid", "pid_mode", "PidMode", "host"),
    *both("host-ipc", "ipc_mode", "IpcMode", "host"),
    *both("host-uts", "uts_mode", "UTSMode", "host"),
    *both("host-userns", "userns_mode", "UsernsMode", "host"),
    *both("other-container", "pid_mode", "PidMode", "container:hub"),
    *both("other-container", "ipc_mode", "IpcMode", "container:hub"),
    *both("other-container", "network_mode", "NetworkMode", "container:hub"),
    ("other-container", {"network_name": "container:hub"}),
    *both("other-container", "volumes_from", "VolumesFrom", ["hub"]),
    ("other-container", raw(Cgroup="container:hub")),
    *both("cgroup", "cgroup_parent", "CgroupParent", "/system.slice"),
    ("cgroup", on_host(security_opt=["writable-cgroups=true"])),
    *both("devices", "devices", "Devices", ["/dev/fuse"]),
    *both("devices", "device_cgroup_rules", "DeviceCgroupRules", ["c 10:229 rwm"]),
    *both("seccomp-unconfined", "security_opt", "SecurityOpt", ["seccomp=unconfined"]),
    ("seccomp-unconfined", on_host(security_opt=["SECCOMP:unconfined"])),
    ("seccomp-unconfined", on_host(security_opt=['seccomp={"defaultAction": "SCMP_ACT_ALLOW"}'])),
    *both("apparmor-unconfined", "security_opt", "SecurityOpt", ["apparmor:unconfined"]),
    *both("selinux-disabled", "security_opt", "SecurityOpt", ["label=disable"]),
    ("selinux-disabled", on_host(security_opt=["disable"])),
    ("selinux-disabled", on_host(security_opt=["label:type:spc_t"])),
    *both("new-privileges", "security_opt", "SecurityOpt", ["no-new-privileges=false"]),
    ("new-privileges", on_host(security_opt=["no-new-privileges:0"])),
    ("unmasked-paths", on_host(security_opt=["systempaths=unconfined"])),
    ("unmasked-paths", raw(MaskedPaths=[])),
    ("unmasked-paths", raw(ReadonlyPaths=["/proc/bus"])),
    ("root-user", create(user="root")),
    ("root-user", create(user=0)),
    ("root-user", create(user="0:100")),
    ("root-user", create(user="00")),
    ("root-user", create(user="+0")),
    ("root-user", create(user=" root ")),
    ("root-user", create(user="jovyan")),
    ("root-user", create(user="{username}")),
    ("root-user", {"run_as": "0:100"}),
    ("group-add", create(user="1000:0")),
    ("group-add", create(user="1000:docker")),
    *both("group-add", "group_add", "GroupAdd", ["docker"]),
    *both("group-add", "group_add", "GroupAdd", [0]),
    ("group-add", on_host(group_add=["998"])),
    *both("runtime", "runtime", "Runtime", "nvidia"),
    ("runtime", create(runtime="nvidia")),
    *both("sysctls", "sysctls", "Sysctls", {"net.ipv4.ip_forward": 1}),
    *both("published", "publish_all_ports", "PublishAllPorts", True),
    *both("published", "port_bindings", "PortBindings", {6006: ("127.0.0.1",)}),
    *both("published", "port_bindings", "PortBindings", {8888: 8888}),
    *both("published", "port_bindings", "PortBindings", {8888: None}),
    *both("published", "port_bindings", "PortBindings", {"8888/tcp": ("0.0.0.0", 80)}),
    *both("published", "port_bindings", "PortBindings", {"8888/tcp": [{"HostIp": "", "HostPort": "1"}]}),
    *both("published", "port_bindings", "PortBindings", {"8888/udp": ("127.0.0.1",)}),
    *both("published", "port_bindings", "PortBindings", {8888: [("127.0.0.1",), ("10.0.0.1",)]}),
    ("published", {"host_ip": "0.0.0.0"}),
    ("published", {"host_ip": ""}),
    ("published", {"host_ip": "192.168.1.5", "network_name": "pool"}),
    *both("links", "links", "Links", {"database": "db"}),
    ("links", {"links": {"database": "db"}}),
    ("links", create(networking_config={"EndpointsConfig": {"pool": {"Links": ["database:db"]}}})),
    *both("no-pids-limit", "pids_limit", "PidsLimit", -1),
    *both("no-pids-limit", "pids_limit", "PidsLimit", 0),
    ("no-pids-limit", on_host(pids_limit=None)),
    *both("oom-exempt", "oom_kill_disable", "OomKillDisable", True),
    *both("oom-exempt", "oom_score_adj", "OomScoreAdj", -500),
    ("engine-socket", {"environment": {"DOCKER_HOST": "tcp://10.0.0.1:2375"}}),
    ("engine-socket", create(environment=["CONTAINER_HOST=tcp://10.0.0.1:2375"])),
    ("hub-secrets", {"env_keep": ["PATH", "CONFIGPROXY_AUTH_TOKEN"]}),
    ("hub-secrets", {"env_keep": ["JUPYTERHUB_CRYPT_KEY"]}),
]


@pytest.mark.parametrize(("danger", "settings"), ASKED, ids=lambda value: str(value)[:90])
def test_each_way_out_has_its_name_and_a_sentence(danger: str, settings: dict[str, Any]) -> None:
    found = dangers(settings)
    assert set(found) == {danger}
    assert DANGERS[danger] in found[danger] and found[danger].endswith(".")
    assert any(name in found[danger] for name in settings)
    assert refusals(settings, [danger]) == []
    (refused,) = refusals(settings)
    assert f'"{danger}" in unsafe' in refused


def test_every_danger_is_asked_for_in_a_test() -> None:
    tried = {danger for danger, _ in ASKED} | {danger for danger, _ in PATHS} | {"mount-propagation"}
    assert tried == set(DANGERS)


@pytest.mark.parametrize(
    "group",
    [
        "root",
        "docker",
        "podman",
        "containerd",
        "lxd",
        "libvirt",
        "disk",
        "kmem",
        "shadow",
        "sudo",
        "wheel",
        "adm",
    ],
)
def test_groups_that_own_the_machine(group: str) -> None:
    assert set(dangers(on_host(group_add=[100, group.upper()]))) == {"group-add"}
    assert dangers(on_host(group_add=[f"{group}-lab"])) == {}


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("MaskedPaths", ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]),
        ("ReadonlyPaths", ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
    ],
)
def test_each_path_that_the_engine_covers_must_stay_covered(key: str, paths: list[str]) -> None:
    assert dangers(raw(**{key: paths})) == {} == dangers(raw(**{key: None}))
    for path in paths:
        found = dangers(raw(**{key: [other for other in paths if other != path]}))
        assert set(found) == {"unmasked-paths"} and path in found["unmasked-paths"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"network_name": "gpupool"},
        {"use_internal_ip": True, "host_ip": "0.0.0.0"},  # then nothing is published
        {"run_as": "1000:100"},
        {"host_ip": "127.0.0.1"},
        {"host_ip": "::1"},
        {"port": 9999, "extra_host_config": {"port_bindings": {9999: ("127.0.0.1",)}}},
        {"environment": {"HTTP_PROXY": "http://proxy:3128", "TF_CPP_MIN_LOG_LEVEL": "2"}},
        {"env_keep": ["LANG", "TZ"]},
        on_host(extra_hosts={"data": "10.0.0.1"}, dns=["10.0.0.1"], cpu_shares=10, ulimits=[]),
        on_host(privileged=False, cap_add=[], cap_add_=None, devices=None, sysctls={}, links={}),
        on_host(security_opt=["no-new-privileges:true", "apparmor=docker-default", "label=level:s0:c1"]),
        on_host(security_opt=["seccomp=builtin"]),
        on_host(group_add=[100, 1000, 65534]),
        on_host(runtime="runc", ipc_mode="private", pid_mode="", userns_mode="", cgroup_parent=""),
        on_host(oom_score_adj=500, pids_limit=100000),
        create(user="1000:100", hostname="lab", labels={"project": "vision"}),
        create(user=12345),
        {"volumes": {"home-{username}": "/home/jovyan", "/srv/data": {"bind": "/data", "mode": "ro"}}},
        {"extra_host_config": lambda spawner: {"privileged": True}},  # judged once its result is there
    ],
    ids=lambda settings: re.sub(r" at 0x\w+", "", str(settings)),  # the same in every worker
)
def test_what_is_harmless_is_let_through(settings: dict[str, Any]) -> None:
    assert refusals(settings) == []


def test_a_container_with_what_it_gets_is_as_harmless_when_the_engine_tells_of_it() -> None:
    told = {
        "AutoRemove": False,
        "Binds": ["pool-home-ada-0123:/home/jovyan:rw"],
        "CapAdd": None,
        "CapDrop": ["ALL"],
        "Cgroup": "",
        "CgroupParent": "",
        "CgroupnsMode": "host",  # the engine's own default where it has cgroup v1
        "DeviceCgroupRules": None,
        "Devices": None,
        "GroupAdd": None,
        "IpcMode": "private",
        "Links": None,
        "MaskedPaths": [
            "/proc/asound",
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
        ],
        "NetworkMode": "gpupool",
        "OomKillDisable": False,
        "OomScoreAdj": 0,
        "PidMode": "",
        "PidsLimit": 4096,
        "PortBindings": {"8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        "Privileged": False,
        "PublishAllPorts": False,
        "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "Runtime": "runc",
        "SecurityOpt": ["no-new-privileges"],
        "UTSMode": "",
        "UsernsMode": "",
        "VolumesFrom": None,
    }
    assert dangers(raw(**told)) == {}


def test_several_dangers_are_all_told_with_all_their_places() -> None:
    found = dangers(on_host(privileged=True, pid_mode="host") | {"network_name": "host", "links": {"a": "b"}})
    assert list(found) == ["privileged", "host-network", "host-pid", "links"]
    two = dangers(on_host(links=["a"]) | {"links": {"c": "d"}})["links"]
    assert "extra_host_config.links" in two and "; links is" in two


# --- paths --------------------------------------------------------------------------------------------

PATHS = [
    ("engine-socket", path)
    for path in [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/docker.sock/",
        "//run/docker.sock",
        "///var//run/./docker.sock",
        "/var/run/../run/docker.sock",
        "/srv/../run/docker.sock",
        "/run/./docker.sock",
        "/srv/proxy/docker.sock",
        "/home/ada/.docker/run/docker.sock",
        "/run/user/1000/docker.sock",
        "/run/docker/plugins",
        "/run/podman",
        "/run/crio",
        "/run/buildkit",
        "/run/k3s/containerd",
        "/run/user/1000",
        "/var/lib/containers/storage",
        "/run/containerd/containerd.sock",
        "/run/containerd",
        "/run/podman/podman.sock",
        "/run/user/1000/podman",
        "/run/crio/crio.sock",
        "/run/cri-dockerd.sock",
        "/run/buildkit/buildkitd.sock",
        "/run",
        "/run/",
        "/var/run",
        "/var/run/.",
        "/var",
        "/var/lib",
        "/var/lib/docker",
        "/var/lib/docker/volumes/other-home/_data",
        "/var/lib/containerd",
        "/var/{username}",
        "/var/lib/{username}",
        "/var/run/{servername}",
        "/{username}/docker.sock",
    ]
] + [
    ("host-path", path)
    for path in [
        "/",
        "//",
        "/..",
        "/srv/..",
        "/./",
        "/etc",
        "/etc/",
        "/etc/passwd",
        "/proc",
        "/proc/1/root",
        "/sys",
        "/sys/fs/cgroup",
        "/boot",
        "/dev",
        "/dev/nvidia0",
        "/root",
        "/root/.ssh",
        "/run/systemd/private",
        "/run/dbus/system_bus_socket",
        "/usr",
        "/usr/local/bin",
        *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
        "/var/spool/cron/crontabs",
        "/{username}",
        "/{prefix}/x",
        "/{{}}/../etc",
        "/proc/{{/../1",
    ]
]

SPELLINGS: list[Any] = [
    lambda path: {"volumes": {path: "/x"}},
    lambda path: {"volumes": {path: {"bind": "/x", "mode": "rw"}}},
    lambda path: {"volumes": {path: {"bind": "/x"}}},
    lambda path: {"read_only_volumes": {path: {"bind": "/x", "mode": "rw,z"}}},
    lambda path: {"mounts": [{"source": path, "target": "/x", "type": "bind"}]},
    lambda path: {"mounts": [{"src": path, "dst": "/x"}]},
    lambda path: on_host(binds=[f"{path}:/x"]),
    lambda path: on_host(binds=[f"{path}:/x:rw"]),
    lambda path: on_host(binds={path: {"bind": "/x", "ro": False}}),
    lambda path: on_host(binds={path.encode(): "/x"}),
    lambda path: on_host(mounts=[Mount("/x", path, type="bind")]),
    lambda path: on_host(
        mounts=[Mount("/x", "name", driver_config=DriverConfig("local", {"o": "bind", "device": path}))]
    ),
    lambda path: {
        "mounts": [
            {
                "source": "name",
                "target": "/x",
                "driver_config": {"name": "local", "options": {"o": "bind", "type": "none", "device": path}},
            }
        ]
    },
    lambda path: raw(Binds=[f"{path}:/x"]),
    lambda path: raw(Mounts=[{"Type": "bind", "Source": path, "Target": "/x"}]),
    lambda path: raw(mounts=[{"type": "bind", "source": path, "target": "/x"}]),
]


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
@pytest.mark.parametrize(("danger", "path"), PATHS)
def test_paths_of_the_machine_are_seen_in_every_spelling(danger: str, path: str, spelling: int) -> None:
    settings = SPELLINGS[spelling](path)
    found = dangers(settings)
    assert danger in found and set(found) <= {"engine-socket", "host-path"}
    assert not refusals(settings, list(found))


@pytest.mark.parametrize(
    "path",
    [
        "/srv/data",
        "/srv/homes/{username}",
        "/home/{username}",
        "/data/{username}/etc",
        "/mnt/run/docker",
        "/srv/docker.socket.txt/x",
        "/run/munge/munge.socket.2",
        "/run/user/1000/pulse",
        "/tmp/.X11-unix",
        "/var/data",
        "/opt/licences",
        "name",
        "{username}-home",
        "docker.sock",
        "etc",
    ],
)
def test_other_paths_and_volumes_are_not_dangerous(path: str) -> None:
    assert [dangers(spelling(path)) for spelling in SPELLINGS] == [{}] * len(SPELLINGS)


def test_read_only_system_files_are_no_danger_but_etc_as_a_whole_is() -> None:
    for path in ("/etc/localtime", "/etc/ssl/certs", "/usr", "/usr/share/zoneinfo"):
        assert dangers({"read_only_volumes": {path: "/x"}}) == {}
        assert dangers({"volumes": {path: {"bind": "/x", "mode": "ro"}}}) == {}
        assert (
            dangers({"mounts": [{"source": path, "target": "/x", "type": "bind", "read_only": True}]}) == {}
        )
        assert dangers(on_host(binds=[f"{path}:/x:ro,rslave"])) == {}
        assert set(dangers({"volumes": {path: "/x"}})) == {"host-path"}
    for path in ("/etc", "/proc", "/dev", "/"):
        assert "host-path" in dangers({"read_only_volumes": {path: "/x"}})


@pytest.mark.parametrize(
    "settings",
    [
        {"volumes": {"/srv/data": {"bind": "/x", "mode": "ro", "propagation": "rshared"}}},
        {"volumes": {"/srv/data": {"bind": "/x", "mode": "rw,rshared"}}},
        {"mounts": [{"source": "/srv/data", "target": "/x", "type": "bind", "propagation": "shared"}]},
        on_host(binds=["/srv/data:/x:ro,shared"]),
        on_host(mounts=[Mount("/x", "/srv/data", type="bind", propagation="rshared")]),
    ],
)
def test_mounts_that_come_back_to_the_machine_are_seen(settings: dict[str, Any]) -> None:
    assert set(dangers(settings)) == {"mount-propagation"}


COMPONENTS = st.sampled_from(["", ".", "..", "x", "srv"])


@given(st.lists(COMPONENTS, max_size=6), st.sampled_from(["/run/docker.sock", "/etc", "/proc/1/root", "/"]))
def test_a_detour_does_not_hide_a_place(detour: list[str], place: str) -> None:
    way = "/" + "/".join(detour)
    back = "/".join([".."] * len(detour))
    path = f"{way}/{back}/{place}"
    assert posixpath.normpath(path).lstrip("/") == place.lstrip("/")
    assert dangers({"volumes": {path: "/x"}})


ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=4)
    | st.sampled_from(["host", "/", "a:b:c", "0", "{", "{x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.integers(), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *(key.split(".")[1] for key in (*checks.CHECKS, *rules.OWNED) if not key.startswith("trait.")),
        *("binds", "mounts", "Mounts", "port_bindings", "labels", "environment", "host_config"),
    ]
)
TRAITS = st.sampled_from(
    ["volumes", "read_only_volumes", "mounts", "links", "network_name", "host_ip", "environment", "env_keep"]
)


@given(
    st.dictionaries(TRAITS, ANY_VALUE, max_size=3),
    st.dictionaries(KEYS, ANY_VALUE, max_size=3),
    st.dictionaries(KEYS, ANY_VALUE, max_size=3),
)
def test_no_value_makes_the_rules_fail(traits: Any, host: Any, container: Any) -> None:
    settings = {**traits, "extra_host_config": host, "extra_create_kwargs": container}
    for sentence in refusals(settings):
        assert sentence.isprintable() and sentence.endswith((".",))


# --- what no unsafe can allow ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name_template": "x-{username}"}, "name_template belongs to the pool"),
        ({"container_name_template": "x"}, "called after its lease"),
        ({"remove": True}, "remove belongs to the pool"),
        ({"remove_containers": False}, "remove_containers belongs"),
        ({"object_name": "x"}, "object_name belongs"),
        ({"object_id": "x"}, "object_id belongs"),
        (on_host(auto_remove=True), "extra_host_config.auto_remove"),
        (raw(AutoRemove=True), "extra_create_kwargs.host_config.AutoRemove"),
        (on_host(restart_policy={"Name": "always"}), "without a lease"),
        (raw(RestartPolicy={"Name": "always"}), "without a lease"),
        (on_host(device_requests=[]), "which GPUs a session sees says its lease"),
        (raw(DeviceRequests=[{"Count": -1}]), "which GPUs a session sees says its lease"),
        (on_host(devices=["/dev/nvidia0:/dev/nvidia0:rwm"]), "names a GPU"),
        (raw(Devices=[{"PathOnHost": "/dev//nvidia0"}]), "names a GPU"),
        (on_host(devices=["//dev/x/../nvidiactl"]), "names a GPU"),
        (on_host(devices=["/dev"]), "names a GPU"),
        (create(name="x"), "extra_create_kwargs.name"),
        (create(image="other:latest"), "the image is that of the profile"),
        (create(labels={"org.jupyterhub.gpupool.lease": "x"}), "how the pool knows its sessions"),
        (create(labels=["Org.JupyterHub.gpupool.pool"]), "how the pool knows its sessions"),
        ({"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "'NVIDIA_VISIBLE_DEVICES', which only the pool"),
        (create(environment={"GPUPOOL_LEASE": "x"}), "'GPUPOOL_LEASE'"),
        (create(environment=["LD_PRELOAD=/x.so"]), "'LD_PRELOAD'"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": ""}}, "'CUDA_VISIBLE_DEVICES'"),
        ({"environment": {"NVIDIA_DRIVER_CAPABILITIES": "all"}}, "'NVIDIA_DRIVER_CAPABILITIES'"),
        ({"volumes": {"/srv/{raw_username}": "/x"}}, "{raw_username}"),
        ({"volumes": {"home": "/home/{raw_username}"}}, "{raw_username}"),
        ({"mounts": [{"source": "/srv/{raw_servername}", "target": "/x"}]}, "{raw_servername}"),
        (on_host(binds=["/srv/{username.__class__}:/x"]), "{username.__class__}"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_what_the_pool_stands_on_no_unsafe_can_allow(settings: dict[str, Any], said: str) -> None:
    (sentence,) = owned(settings)
    assert said in sentence and sentence.endswith(".")
    assert refusals(settings, list(DANGERS)) == [sentence]


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICES",
        "GPUPOOL_",
        "GPUPOOL_LEASE",
        "LD_AUDIT",
        "LD_PRELOAD",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_GPU_MEMORY_LIMIT",
        "NVIDIA_GPU_MEMORY_REQUEST",
        "NVIDIA_IMEX_CHANNELS",
        "NVIDIA_MIG_CONFIG_DEVICES",
        "NVIDIA_MIG_MONITOR_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
    ],
)
def test_variables_that_decide_about_gpus_are_the_pools(name: str) -> None:
    for settings in (
        {"environment": {name: "x"}},
        create(environment={name: "x"}),
        create(environment=[f"{name}=x"]),
    ):
        (sentence,) = owned(settings)
        assert repr(name) in sentence


def test_an_admins_own_labels_and_variables_are_his() -> None:
    settings = create(
        labels={"org.jupyterhub": "x"}, environment={"GPUPOOLS": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    )
    assert owned(settings | {"environment": {"LD_LIBRARY_PATH": "/opt/lib"}}) == []


def test_the_settings_that_are_named_are_dockerspawners_own() -> None:
    traits = {plain_key(name) for name in (*DockerSpawner.class_traits(), "run_as")}
    host = {plain_key(name) for name in HostConfig.__init__.__code__.co_varnames}
    engines_only = {"maskedpaths", "readonlypaths", "cgroup"}
    for key in (*checks.CHECKS, *rules.OWNED, *rules.MOUNTS):
        place, _, name = key.partition(".")
        if place == "trait":
            assert name in traits, key
        elif place == "host":
            assert name in host | engines_only, key


def test_the_labels_are_those_that_the_sessions_are_found_by() -> None:
    assert docker_sessions.LABEL == containment.LABEL


# --- templates, images, names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    ["", "home", "/srv/{username}", "{prefix}-{safe_username}-{servername}", "/srv/{{literal}}/{imagename}"],
)
def test_templates_with_escaped_names_are_good(template: str) -> None:
    assert path_problem(template) is None


@pytest.mark.parametrize(
    "template",
    [
        "/srv/{raw_username}",
        "{raw_servername}",
        "/srv/{0}",
        "/srv/{}",
        "/srv/{0.__class__}",
        "/srv/{username.__class__}",
        "/srv/{username[0]}",
        "/srv/{username!r}",
        "/srv/{username:>{raw_username}}",
        "/srv/{username:>100}",
        "/srv/{unknown}",
        "/srv/{username",
        "/srv/username}",
        "/srv/\n",
        "/srv/\0",
    ],
)
def test_templates_that_could_leave_their_folder_are_refused(template: str) -> None:
    problem = path_problem(template)
    assert problem is not None and problem.isprintable() and problem.endswith(".")


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        (f"registry.lab:5000/vision/tensorflow@sha256:{HEX}", ()),
        (f"tensorflow:2.21@sha256:{HEX}", ()),
        (f"sha256:{HEX}", ()),
        ("tensorflow:2.21", ["tensorflow:2.21"]),
        ("tensorflow:2.21", {"tensorflow:2.21"}),
        ("TensorFlow 2.21 (stable)", {"TensorFlow 2.21 (stable)": "tensorflow:2.21"}),
        ("tensorflow:2.21", {"TensorFlow 2.21 (stable)": "tensorflow:2.21"}),
        ("anything/at-all:x", "*"),
    ],
)
def test_images_with_a_digest_or_on_the_list_are_good(image: str, allowed: Any) -> None:
    assert image_problem(image, allowed) is None


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("", ()),
        ("tensorflow", ()),
        ("tensorflow:2.21", ()),
        ("tensorflow:2.21", ["tensorflow:2.20"]),
        ("tensorflow:2.21", "tensorflow:2.2"),
        ("tensor", "tensorflow"),
        ("*", "*"),
        ("*", ["*"]),
        (HEX, ()),
        (HEX[:12], ()),
        (f"sha256:{HEX[:-1]}", ()),
        (f"sha256:{HEX.upper()}", ()),
        (f"sha512:{HEX}{HEX}", ()),
        (f"@sha256:{HEX}", ()),
        (f"--privileged@sha256:{HEX}", ()),
        (f"-v@sha256:{HEX}", ()),
        (f"a b@sha256:{HEX}", ()),
        (f"a\n@sha256:{HEX}", ()),
        (f"a@sha256:{HEX}\n", ()),
        (f"sha256:{HEX}\n", ()),
        (f"{{username}}@sha256:{HEX}", ()),
        (f"a/../b@sha256:{HEX}", ()),
        (f"{'a/' * 300}b@sha256:{HEX}", ()),
        (f"a@sha256:{HEX}@sha256:{HEX}", ()),
        (f"А@sha256:{HEX}", ()),
        ("{raw_username}", "*"),
        ("a\x1b[31m", "*"),
        ("x" * 100000, "*"),
        ("--help", "*"),
    ],
)
def test_other_images_are_refused_with_a_sentence(image: str, allowed: Any) -> None:
    problem = image_problem(image, allowed)
    assert problem is not None and problem.isprintable() and len(problem) < 500
    assert "allowed" in problem and "sha256:" in problem


VOLUME = re.compile(r"[a-z0-9][a-z0-9_.-]{1,99}")
NAMES = st.text(min_size=1) | st.text("ab-\x02d.AÄ/", min_size=1)


@given(NAMES, NAMES, st.sampled_from(["gpupool", "Lab.A", "lab-a"]))
@example("a\x02d", "a-", "p")
@example("a/../b", "a-b", "p")
@example("Ada", "ada", "p")
@example("\ud800", "\ud801", "p")
@example("x" * 300, "x" * 301, "p")
def test_homes_of_different_people_are_different_volumes(one: str, other: str, pool: str) -> None:
    name = volume_name(pool, one)
    assert VOLUME.fullmatch(name) and name == volume_name(pool, one)
    assert (name == volume_name(pool, other)) == (one == other)
    assert name not in (volume_name(f"{pool}-home-{one}", one), volume_name("other", one))


def test_a_volume_can_be_read_by_a_person() -> None:
    assert re.fullmatch(r"lab-a-home-ada-lovelace-[0-9a-f]{16}", volume_name("lab-a", "Ada.Lovelace"))


@pytest.mark.parametrize("user", ["ada", "ada@example.org", "Ada Lovelace", "a-b", "żółw", "李"])
def test_people_may_be_called_so(user: str) -> None:
    assert user_problem(user) is None


@pytest.mark.parametrize(
    "user", ["", "a\x02d", "a\0", "a\n", "a\x7f", "a\u202eb", "a\u200bb", "\ud800", "x" * 256]
)
def test_names_that_hide_something_are_refused(user: str) -> None:
    problem = user_problem(user)
    assert problem is not None and problem.isprintable() and len(problem) < 300


def test_the_documentation_has_every_reason() -> None:
    page = (DOCS / "docker.md").read_text(encoding="utf-8")
    assert containment.reference() in page, "stale, run `make docs`"


def let_through(frontend: str, method: str, path: str) -> bool:
    """Whether the proxy that the documentation shows lets a call through."""
    page = (DOCS / "docker.md").read_text(encoding="utf-8")
    rules_of = page.split(f"frontend {frontend}\n")[1].split("default_backend")[0]
    found = re.findall(
        r"\{ method DELETE \} \{ path_reg (\S+) \}|METH_(GET|POST) \{ path_reg (\S+) \}", rules_of
    )
    assert len(found) == 3 and "http-request deny\n" in rules_of
    patterns = {verb or "DELETE": pattern or only for only, verb, pattern in found}
    return method in patterns and re.search(patterns[method], path) is not None


SERVICE_CALLS = [
    ("GET", "/version"),
    ("GET", "/v1.41/containers/json"),
    ("GET", "/v1.41/containers/gpupool-1a-2/json"),
    ("GET", "/v1.41/containers/gpupool-1a-2/logs"),
    ("POST", "/v1.41/containers/gpupool-1a-2/stop"),
    ("POST", "/v1.41/containers/gpupool-1a-2/unpause"),
    ("DELETE", "/v1.41/containers/gpupool-1a-2"),
]
HUB_CALLS = [
    ("GET", "/v1.41/info"),
    ("GET", f"/v1.41/images/registry.lab:5000/a/b@sha256:{HEX}/json"),
    ("GET", "/v1.41/networks/gpupool-lab"),
    ("GET", f"/v1.41/exec/{HEX}/json"),
    ("POST", "/v1.41/containers/create"),
    ("POST", "/v1.41/containers/gpupool-1a-2/start"),
    ("POST", "/v1.41/containers/gpupool-1a-2/exec"),
    ("POST", f"/v1.41/exec/{HEX}/start"),
    ("POST", "/v1.41/images/create"),
    ("POST", "/v1.41/networks/create"),
]
NOBODYS_CALLS = [
    ("POST", "/v1.41/build"),
    ("POST", "/v1.41/containers/x/update"),
    ("POST", "/v1.41/swarm/init"),
    ("DELETE", "/v1.41/volumes/home"),
    ("DELETE", "/v1.41/images/x"),
    ("PUT", "/v1.41/containers/x/archive"),
    ("GET", "/v1.41/containers/x/archive"),
    ("GET", "/v1.41/containers/../images/json"),
    ("POST", "/v1.41/containers/x/../create"),
]


def test_the_proxy_of_the_documentation_lets_through_what_is_needed_and_no_more() -> None:
    for call in SERVICE_CALLS:
        assert let_through("service", *call) and let_through("hub", *call), call
    for call in HUB_CALLS:
        assert let_through("hub", *call) and not let_through("service", *call), call
    for call in NOBODYS_CALLS:
        assert not let_through("hub", *call) and not let_through("service", *call), call
