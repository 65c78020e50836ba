"""Every check of the doctor, judged on facts: a machine where all is well, and what one thing wrong changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_gpupool import profiles
from jupyterhub_gpupool.configuration import SCOPES
from jupyterhub_gpupool.doctor import CHECKS, Failed, Level, Unknown, examine, report
from jupyterhub_gpupool.doctor.engine_checks import TOOLKIT_FLOOR, numbers
from jupyterhub_gpupool.doctor.facts import (
    Answer,
    Books,
    Card,
    Disk,
    Driver,
    Engine,
    Facts,
    Hub,
    Images,
    Kept,
    Network,
    Pool,
    Processes,
    Reach,
    Smi,
    Toolkit,
)
from jupyterhub_gpupool.doctor.model import GROUPS, check
from jupyterhub_gpupool.model import Device, Health, Instance, Mode

GIB = 1024**3
IMAGE = f"registry.example/tf@sha256:{'a' * 64}"
INSTANCE = Instance("MIG-1", "1g.10gb", 0, 15, 9984)
WHOLE = Device("GPU-a", "n1", 0, "A100", 81920)
CUT = Device("GPU-b", "n1", 1, "A100", 81920, mode=Mode.MIG, instances=(INSTANCE,))
CARDS = (Card("0", "GPU-a", "A100"), Card("1", "GPU-b", "A100", mig="Enabled", mig_pending="Enabled"))
OFFER = profiles.read(
    [
        {"slug": "whole", "display_name": "Whole", "gpu": {"count": 1}, "image": IMAGE},
        {"slug": "mig", "display_name": "MIG", "gpu": {"mig": "1g.10gb"}, "image": IMAGE},
        {"slug": "cpu", "display_name": "CPU", "image": IMAGE},
    ]
)
NOW = 1_800_000_000.0

WELL = Facts(
    driver=Driver(2, "570.86.15", ("570.86.15",)),
    smi=Smi(0, "", CARDS, ("MIG-1",)),
    toolkit=Toolkit("1.18.2", hook_changed=10.0, accepts_variable=True),
    engine=Engine("28.2.2", "systemd", "runc", ("runc", "nvidia"), live_restore=True, started=20.0),
    images=Images({IMAGE: "sha256:1"}, {IMAGE: "profile whole"}),
    network=Network("gpupool-x", True, "172.18.0.1"),
    reach=Reach("http://172.18.0.1:8081/hub/api/", 200),
    pool=Pool("x", "docker", OFFER, "reclaim", 10.0, simulated=False),
    books=Books("/srv/ledger.sqlite", (WHOLE, CUT), NOW - 3, 0.0, NOW),
    kept=(Kept("/srv", 0o700, folder=True), Kept("/srv/ledger.sqlite", 0o600)),
    hub=Hub(
        api="http://172.18.0.1:8081/hub/api/",
        cleanup_servers=False,
        proxy="configurable-http-proxy",
        proxy_command="",
        proxy_started=True,
        cullers=(),
        inner_cullers=(),
        scopes=frozenset(SCOPES),
        service_admin=False,
        user_scopes=frozenset({"self", "access:services!service=gpupool"}),
        start_timeout=60,
        http_timeout=60,
        failure_limit=0,
        image="",
        images=(),
        gpu_access="auto",
        network="",
        secrets=(),
    ),
    answer=Answer("http://172.18.0.1:8081/hub/api/", "6.1.1"),
    jupyterhub="6.1.1",
    proxy_program="node",
    processes=Processes(),
    engine_disk=Disk("The engine's folder", "/var/lib/docker", "ext4", 100 * GIB, 200 * GIB),
    state_disk=Disk("The ledger's folder", "/srv", "ext4", 10 * GIB, 20 * GIB),
    clock=True,
    gpus="real",
)

NO_CDI = WELL.engine
CDI = replace(WELL.engine, cdi=("nvidia.com/gpu=GPU-a", "nvidia.com/gpu=MIG-1"))


def facts(**changed: Any) -> Facts:
    """The well machine with some facts, or with fields of some facts, as they are given."""
    whole = {
        name: replace(getattr(WELL, name), **value) if isinstance(value, dict) else value
        for name, value in changed.items()
    }
    return replace(WELL, **whole)


def level_of(name: str, given: Facts) -> tuple[Level, str, str]:
    found = next(one.result for one in examine(given) if one.check.id == name)
    return found.level, found.reason, found.fix


OK, WARNING, ERROR, SKIPPED = Level.OK, Level.WARNING, Level.ERROR, Level.SKIPPED

CASES: list[tuple[str, dict[str, Any], Level, str]] = [
    ("driver-loaded", {"driver": Driver(2, "", ())}, ERROR, "without a driver"),
    ("driver-loaded", {"driver": Driver(2, "", (), nouveau=True)}, ERROR, "nouveau"),
    ("driver-loaded", {"driver": Driver(2, "", ("570.1",))}, ERROR, "not loaded"),
    ("driver-loaded", {"driver": Driver(2, "", ("570.1",)), "gpus": "simulated"}, WARNING, "simulated"),
    ("driver-loaded", {"driver": Driver(0, "", ())}, ERROR, "real GPUs"),
    ("driver-loaded", {"driver": Driver(None, "", ()), "gpus": ""}, SKIPPED, "no NVIDIA GPU"),
    ("driver-loaded", {"driver": Driver(0, "", ()), "gpus": "simulated"}, SKIPPED, "simulated"),
    ("driver-library", {"driver": {"libraries": ("575.1",)}}, ERROR, "upgraded while it runs"),
    ("driver-library", {"driver": {"libraries": ()}}, ERROR, "libnvidia-ml"),
    ("driver-library", {"driver": {"libraries": ("535.1", "570.86.15")}}, OK, "570.86.15"),
    ("driver-library", {"driver": {"module": ""}}, SKIPPED, "No driver"),
    ("driver-answers", {"smi": Smi(None)}, ERROR, "hangs"),
    ("driver-answers", {"smi": Smi(None), "gpus": "simulated"}, WARNING, "hangs"),
    ("driver-answers", {"smi": Smi(18, "Driver/library version mismatch")}, ERROR, "status 18: Driver/library"),
    ("driver-answers", {"smi": Smi(0, "No devices were found")}, ERROR, "no GPU: No devices"),
    ("driver-answers", {"smi": Smi(9, "x"), "driver": {"module": ""}}, SKIPPED, "No driver"),
    (
        "driver-answers",
        {"smi": Smi(0, "", (Card("3", "GPU-a", "T4", persistence="Disabled"),))},
        WARNING,
        "off on 3",
    ),
    ("driver-answers", {"smi": Unknown("nvidia-smi is not installed.")}, SKIPPED, "not installed"),
    ("inventory", {"smi": Smi(0, "", CARDS[:1], ("MIG-1",))}, ERROR, "GPU-b"),
    ("inventory", {"smi": {"instances": ("MIG-2",)}}, ERROR, "MIG-1"),
    ("inventory", {"smi": Smi(9)}, SKIPPED, "does not say"),
    ("inventory", {"books": {"devices": (replace(WHOLE, simulated=True),)}}, SKIPPED, "no real GPU"),
    ("mig-mode", {"smi": Smi(0, "", (replace(CARDS[0], mig_pending="Enabled"),))}, WARNING, "next reset"),
    ("mig-mode", {"smi": Smi(9)}, SKIPPED, "No GPU"),
    ("mps", {"smi": Smi(0, "", (Card("0", "GPU-a", "T4", "Prohibited"),))}, ERROR, "Prohibited"),
    ("mps", {"smi": Smi(0, "", (Card("0", "GPU-a", "T4", "Exclusive_Process"),))}, WARNING, "one process"),
    ("mps", {"processes": Processes(mps_controls=1)}, WARNING, "without limits"),
    (
        "mps",
        {"smi": Smi(0, "", (Card("0", "GPU-a", "T4", "Exclusive_Process"),)), "processes": Processes(0, 0, 1)},
        OK,
        "nobody else",
    ),
    ("mps", {"smi": Smi(9)}, SKIPPED, "No GPU"),
    ("profiles-served", {"books": {"devices": (WHOLE,)}}, ERROR, "mig (a 1g.10gb"),
    ("profiles-served", {"books": {"devices": ()}}, SKIPPED, "no GPU yet"),
    (
        "profiles-served",
        {"books": {"devices": (replace(WHOLE, drained=True, health=Health.LOST), CUT)}},
        OK,
        "All 2 profiles",
    ),
    (
        "mig-wanted",
        {"books": {"devices": (replace(CUT, instances=(INSTANCE, Instance("m", "2g.20gb", 15, 30, 1))),)}},
        WARNING,
        "1 × 2g.20gb",
    ),
    ("mig-wanted", {"books": {"devices": (WHOLE,)}}, SKIPPED, "no MIG"),
    ("engine-answers", {"engine": {"version": "19.3.15"}}, ERROR, "20.10 or later"),
    ("engine-answers", {"engine": {"version": "20.10.24+dfsg1"}}, OK, "20.10.24"),
    ("engine-answers", {"engine": {"security": ("name=rootless",)}}, ERROR, "rootless"),
    ("engine-answers", {"engine": Failed("It does not answer.", "start it")}, ERROR, "does not answer"),
    ("engine-answers", {"engine": Unknown("This account may not.")}, SKIPPED, "may not"),
    (
        "engine-exposed",
        {"engine": {"warnings": ("WARNING: API is accessible on http://0.0.0.0:2375 without encryption.",)}},
        ERROR,
        "2375",
    ),
    ("engine-exposed", {"engine": {"warnings": ("WARNING: No swap limit support",)}}, OK, "no address"),
    ("live-restore", {"engine": {"live_restore": False}}, WARNING, "ends all sessions"),
    ("toolkit-version", {"toolkit": {"version": "1.17.7"}}, ERROR, "CVE-2025-23266"),
    ("toolkit-version", {"toolkit": {"version": "1.13.5-1"}}, ERROR, "1.17.8"),
    ("toolkit-version", {"toolkit": {"version": "1.17.8-rc.1"}}, ERROR, "1.17.8"),
    ("toolkit-version", {"toolkit": {"version": "1.17.8"}}, WARNING, "1.18.2"),
    ("toolkit-version", {"toolkit": {"version": "1.18.2~rc.2"}}, WARNING, "1.18.2"),
    ("toolkit-version", {"toolkit": {"version": "1.20.0"}}, OK, "1.20.0"),
    ("toolkit-version", {"toolkit": {"version": ""}}, ERROR, "not installed"),
    ("toolkit-version", {"toolkit": {"version": ""}, "gpus": "simulated"}, SKIPPED, "nothing here"),
    ("toolkit-version", {"pool": {"backend": "local"}}, SKIPPED, "no containers"),
    ("toolkit-version", {"pool": Unknown("?"), "engine": Failed("?")}, OK, "1.18.2"),
    ("gpu-registration", {"engine": CDI}, OK, "CDI"),
    ("gpu-registration", {"toolkit": {"hook_changed": None}}, OK, "hook"),
    ("gpu-registration", {"toolkit": {"hook_changed": None}, "engine": {"runtimes": ()}}, ERROR, "no container"),
    (
        "gpu-registration",
        {"toolkit": {"hook_changed": None}, "engine": {"runtimes": ()}, "gpus": ""},
        SKIPPED,
        "nothing here",
    ),
    ("gpu-registration", {"toolkit": {"hook_changed": 30.0}, "engine": {"runtimes": ()}}, WARNING, "at its start"),
    ("cdi-fresh", {"engine": CDI}, OK, "all 2"),
    ("cdi-fresh", {"engine": CDI, "smi": {"instances": ("MIG-1", "MIG-2")}}, ERROR, "MIG-2"),
    (
        "cdi-fresh",
        {"engine": CDI, "smi": {"instances": ("MIG-2",)}, "toolkit": {"described": ("MIG-2",)}},
        OK,
        "all 2",
    ),
    ("cdi-fresh", {"engine": CDI, "smi": Smi(9)}, SKIPPED, "does not say"),
    ("default-runtime", {"engine": {"default_runtime": "nvidia"}}, ERROR, "whatever its lease says"),
    ("default-runtime", {"engine": {"default_runtime": "sysbox"}}, WARNING, "sysbox"),
    ("visible-devices-variable", {"engine": {"default_runtime": "nvidia"}}, ERROR, "opens all GPUs"),
    ("visible-devices-variable", {"toolkit": {"accepts_variable": False}}, WARNING, "may refuse"),
    ("visible-devices-variable", {"toolkit": {"accepts_variable": False}, "engine": CDI}, OK, "CDI"),
    ("visible-devices-variable", {"toolkit": {"accepts_variable": None}}, SKIPPED, "cannot be read"),
    ("visible-devices-variable", {"toolkit": {"version": ""}}, SKIPPED, "not installed"),
    ("daemon-reload", {"toolkit": {"nodes_without_link": ("/dev/nvidia0",)}}, ERROR, "/dev/nvidia0"),
    (
        "daemon-reload",
        {"toolkit": {"nodes_without_link": ("/dev/nvidia0",)}, "engine": {"cgroup_driver": "cgroupfs"}},
        OK,
        "cgroupfs",
    ),
    ("daemon-reload", {"toolkit": {"nodes_without_link": ("/dev/nvidia0",)}, "engine": CDI}, OK, "CDI"),
    ("daemon-reload", {"toolkit": {"version": ""}}, SKIPPED, "not installed"),
    ("image-present", {"images": {"found": {IMAGE: None}}}, WARNING, "yet"),
    (
        "image-present",
        {"images": Images({f"sha256:{'b' * 64}": None}, {f"sha256:{'b' * 64}": "profile x"})},
        ERROR,
        "profile x",
    ),
    ("image-present", {"images": Images({}, {})}, SKIPPED, "No image"),
    ("image-digest", {"images": Images({"tf:latest": "sha256:1"}, {"tf:latest": "profile y"})}, WARNING, "profile y"),
    ("image-digest", {"images": Images({"tf latest": None}, {"tf latest": "profile y"})}, ERROR, "not the name"),
    ("image-digest", {"images": Images({}, {})}, SKIPPED, "No image"),
    ("network", {"network": {"isolated": False}}, ERROR, "talk to each other"),
    ("container-network", {"reach": {"status": None, "why": "timed out"}}, ERROR, "timed out"),
    ("container-network", {"reach": {"status": 404}}, WARNING, "404"),
    ("gpus-foreign", {"books": {"devices": (replace(WHOLE, foreign="The container x."),)}}, WARNING, "container x"),
    ("configuration", {"pool": Failed("service.json is not one.")}, ERROR, "is not one"),
    ("configuration", {"pool": Unknown("There is none.")}, SKIPPED, "There is none"),
    ("ledger", {"books": Failed("is locked by another program")}, ERROR, "locked"),
    ("ledger", {"books": {"broken": ("GPU-a says 3 cells",)}}, ERROR, "3 cells"),
    ("ledger", {"books": Unknown("There is no ledger.")}, SKIPPED, "no ledger"),
    ("sweep", {"books": {"swept_at": None}}, WARNING, "not made"),
    ("sweep", {"books": {"swept_at": NOW - 61}}, ERROR, "61 s ago"),
    ("sweep", {"books": {"swept_at": NOW - 61}, "pool": {"sweep_interval": 60.0}}, OK, "61 s ago"),
    ("sick-gpus", {"books": {"devices": (replace(WHOLE, health=Health.SICK, health_reason="XID 79"),)}}, WARNING,
     "XID 79"),
    ("sick-gpus", {"books": {"devices": ()}}, SKIPPED, "no GPU"),
    ("file-modes", {"kept": (Kept("/srv/service.json", 0o644),)}, ERROR, "/srv/service.json (0644)"),
    ("file-modes", {"kept": (Kept("/srv/service.json", 0o640),)}, ERROR, "0640"),
    ("file-modes", {"kept": (Kept("/srv/jupyterhub.sqlite", 0o644, shielded=True),)}, OK, "1 file"),
    ("file-modes", {"kept": (Kept("/srv", 0o700, folder=True),)}, SKIPPED, "None"),
    ("folder-mode", {"kept": (Kept("/srv", 0o777, folder=True),)}, ERROR, "replace"),
    ("folder-mode", {"kept": (Kept("/srv", 0o755, folder=True),)}, WARNING, "look into"),
    ("ledger-disk", {"state_disk": {"kind": "nfs4"}}, ERROR, "nfs4"),
    ("state-space", {"state_disk": {"free": 10 * 1024**2}}, ERROR, "writing will fail"),
    ("state-space", {"state_disk": {"free": GIB // 2}}, WARNING, "0.5 of 20.0 GiB"),
    ("state-space", {"state_disk": {"nodes_left": 0.0}}, ERROR, "inodes"),
    ("engine-space", {"engine_disk": {"free": GIB}}, ERROR, "writing will fail"),
    ("engine-space", {"engine_disk": {"free": 10 * GIB}}, WARNING, "10.0 of 200.0"),
    ("clock", {"clock": False}, WARNING, "not kept in step"),
    ("clock", {"clock": Unknown("nobody says")}, SKIPPED, "nobody says"),
    ("ledger-clock", {"books": {"clock_ahead": 9.0}}, WARNING, "9 s ahead of"),
    ("ledger-clock", {"books": {"clock_ahead": -9.0}}, WARNING, "9 s behind"),
    ("ledger-clock", {"books": {"swept_at": NOW + 3600}}, WARNING, "set back"),
    ("hub-version", {"jupyterhub": "5.2.1"}, ERROR, "5.3 or later"),
    ("hub-version", {"jupyterhub": "5.3.0"}, OK, "5.3.0"),
    ("hub-answers", {"answer": {"version": "", "why": "Connection refused"}}, WARNING, "Connection refused"),
    ("cleanup-servers", {"hub": {"cleanup_servers": True}}, WARNING, "ends all sessions"),
    ("idle-culler", {"hub": {"cullers": (("cull-idle", "3600"),)}}, ERROR, "cull-idle ends servers after 3600 s"),
    ("idle-culler", {"hub": {"inner_cullers": ("--ServerApp.shutdown_no_activity_timeout=60",)}}, ERROR, "=60"),
    ("idle-culler", {"processes": Processes(cullers=1)}, WARNING, "does not start it"),
    ("idle-culler", {"processes": Processes(cullers=1), "hub": Unknown("?")}, WARNING, "idle culler runs"),
    ("idle-culler", {"hub": Unknown("Not known.")}, SKIPPED, "Not known"),
    ("service-scopes", {"hub": {"scopes": frozenset({"read:servers"})}}, ERROR, "delete:servers"),
    ("service-scopes", {"hub": {"scopes": frozenset({*SCOPES, "admin:users"})}}, WARNING, "admin:users"),
    ("service-scopes", {"hub": {"service_admin": True}}, ERROR, "admin of the hub"),
    ("service-access", {"hub": {"user_scopes": frozenset({"self"})}}, WARNING, "status page"),
    ("service-access", {"hub": {"user_scopes": frozenset({"access:services"})}}, OK, "access"),
    ("proxy-streams", {"proxy_program": "python"}, ERROR, "holds events back"),
    ("proxy-streams", {"hub": {"proxy_command": "python"}}, ERROR, "holds events back"),
    ("proxy-streams", {"processes": Processes(python_proxies=1)}, ERROR, "holds events back"),
    ("proxy-streams", {"hub": {"proxy": "traefik_file"}, "proxy_program": "python"}, OK, "streams"),
    ("proxy-streams", {"hub": {"proxy": "jupyterhub_traefik_proxy.x.TraefikFileProviderProxy"}}, OK, "streams"),
    ("proxy-streams", {"hub": {"proxy": "own.Proxy"}}, SKIPPED, "own.Proxy"),
    ("proxy-streams", {"hub": {"proxy_started": False}}, SKIPPED, "somebody else"),
    ("proxy-streams", {"proxy_program": Unknown("None on the PATH.")}, SKIPPED, "None on the PATH"),
    ("timeouts", {"hub": {"http_timeout": 10.0}}, WARNING, "http_timeout is 10 s"),
    ("timeouts", {"hub": {"start_timeout": 86400.0}}, WARNING, "holds its GPU"),
    ("timeouts", {"hub": {"start_timeout": None}}, OK, "function"),
    ("failure-limit", {"hub": {"failure_limit": 5}, "jupyterhub": "5.3.0"}, WARNING, "the hub stops"),
    ("failure-limit", {"hub": {"failure_limit": 5}}, OK, "stop nothing"),
]  # fmt: skip


def test_where_all_is_well_every_check_says_so_or_has_nothing_to_look_at() -> None:
    found = {one.check.id: one.result for one in examine(WELL)}
    assert {name for name, result in found.items() if result.level is not OK} == {"cdi-fresh"}
    assert [name for name, result in found.items() if result.fix] == []


@pytest.mark.parametrize(("name", "changed", "level", "words"), CASES, ids=map(str, range(len(CASES))))
def test_one_thing_wrong(name: str, changed: dict[str, Any], level: Level, words: str) -> None:
    found, reason, fix = level_of(name, facts(**changed))
    assert (found, words in reason) == (level, True), reason
    assert not fix or level in (WARNING, ERROR)


def test_every_check_is_tried_with_something_wrong() -> None:
    tried = {name for name, _, level, _ in CASES if level in (WARNING, ERROR)}
    assert set(CHECKS) - tried == set()


@pytest.mark.parametrize("level", [WARNING, ERROR])
def test_whatever_is_wrong_can_be_mended(level: Level) -> None:
    for name, changed, wanted, _ in CASES:
        broken = any(isinstance(value, Failed) for value in changed.values())
        if wanted is level and not broken:
            assert level_of(name, facts(**changed))[2], name


def test_where_nothing_is_known_nothing_is_said() -> None:
    nothing = replace(WELL, **{name: Unknown("Nobody knows.") for name in Facts.__slots__ if name != "gpus"})
    assert {one.result.level for one in examine(nothing)} == {SKIPPED}


def test_a_failure_is_one_error_and_no_more() -> None:
    found = examine(facts(books=Failed("The ledger is locked.", "wait")))
    assert [one.check.id for one in found if one.result.level is ERROR] == ["ledger"]


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("1.17.8", (1, 17, 8)),
        ("28.2.2", (28, 2, 2)),
        ("20.10.24+dfsg1", (20, 10, 24)),
        ("", ()),
        ("junk", ()),
    ],
)
def test_numbers_of_a_version(version: str, wanted: tuple[int, ...]) -> None:
    assert numbers(version) == wanted


def test_a_candidate_comes_before_its_release() -> None:
    assert numbers("1.17.8-rc.1")[:-1] <= TOOLKIT_FLOOR


def test_an_id_is_given_once() -> None:
    with pytest.raises(ValueError, match="there already"):
        check("ledger", "pool", "?")
    with pytest.raises(ValueError, match="group"):
        check("new", "nowhere", "?")


def test_every_check_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    for one in CHECKS.values():
        assert f"| `{one.id}` | {GROUPS[one.group]} |" in text
        assert one.about.endswith(".")
    for level in Level:
        assert f"| {report.MARKS[level]} |" in text
