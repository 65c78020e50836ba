"""``gpupool doctor`` as a command: exit status, report, JSON; no traceback and no secret, whatever is there."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from jupyterhub_gpupool import __version__, configure, looking
from jupyterhub_gpupool.__main__ import main
from jupyterhub_gpupool.commands import printable
from jupyterhub_gpupool.doctor import CHECKS, Finding, Level, Result, collect, examine, report, system_probes
from jupyterhub_gpupool.ledger import Ledger

from .test_doctor_checks import WELL, facts


@pytest.fixture(name="nothing")
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No pool, and no engine."""
    monkeypatch.delenv("GPUPOOL_DATABASE_URL", raising=False)
    monkeypatch.setenv("GPUPOOL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    return tmp_path


@pytest.fixture(name="hub")
def a_hub(nothing: Path) -> Path:
    """The files of a hub that was configured well, with a ledger."""
    c = Config()
    c.SimulatedDevices.gpus = [{"model": "T4", "memory": "16G"}]
    c.GPUPool.database_url = f"sqlite:///{nothing}/state/ledger.sqlite"
    configure(c, backend="local")
    ledger = Ledger(c.GPUPool.database_url)
    ledger.swept(0.1, "observe")
    ledger.close_database()
    return nothing / "state"


def levels(capsys: pytest.CaptureFixture[str], status: int, *argv: str) -> dict[str, str]:
    assert main(["doctor", "--json", *argv]) == status
    said = capsys.readouterr()
    assert said.err == ""
    return {one["id"]: one["level"] for one in json.loads(said.out)["checks"]}


def test_where_nothing_is_there_nothing_is_wrong(nothing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = levels(capsys, 0)
    assert set(found) == set(CHECKS)
    assert "error" not in found.values()
    assert found["ledger"] == found["configuration"] == found["engine-answers"] == "skipped"
    assert list(nothing.iterdir()) == []


def test_a_hub_of_processes(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = levels(capsys, 0)
    for name in (
        "configuration",
        "ledger",
        "sweep",
        "file-modes",
        "folder-mode",
        "service-scopes",
        "ledger-clock",
    ):
        assert found[name] == "ok", name
    for name in ("engine-answers", "image-present", "container-network", "toolkit-version"):
        assert found[name] == "skipped", name
    assert found["hub-answers"] == "warning"


def test_an_error_is_status_1(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.chmod(0o777)
    (hub / "service.json").chmod(0o644)
    monkeypatch.setattr(
        system_probes, "_shielded", lambda path: False
    )  # pytest's own folders keep everybody out
    found = levels(capsys, 1)
    assert (found["folder-mode"], found["file-modes"]) == ("error", "error")


def test_a_ledger_that_is_none_is_an_error(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hub / "ledger.sqlite").write_text("no database at all" * 100)
    (hub / "service.json").write_text("{")
    found = levels(capsys, 1)
    assert (found["ledger"], found["configuration"]) == ("error", "error")
    assert [name for name, level in found.items() if level == "error"] == ["configuration", "ledger"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--database-url", "nonsense"],
        ["--database-url", "sqlite:////nowhere/l.sqlite"],
        ["--config", "/nowhere/s.json"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_run_is_status_2(
    argv: list[str], nothing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("gpupool: ") and said.err.count("\n") == 1


def test_an_option_that_is_none_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--yaml"])
    assert ended.value.code == 2
    capsys.readouterr()


def test_the_shape_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    shape = report.shape(examine(facts(clock=False)), __version__)
    assert set(shape) == {"version", "checks", "summary"}
    assert all(set(one) == {"id", "group", "level", "reason", "fix"} for one in shape["checks"])
    (clock,) = [one for one in shape["checks"] if one["id"] == "clock"]
    assert (clock["level"], clock["fix"]) == ("warning", "timedatectl set-ntp true")
    assert sum(shape["summary"].values()) == len(CHECKS)
    json.dumps(shape)


# --- the report ------------------------------------------------------------------------------------


def shown(*, coloured: bool = False, **changed: Any) -> list[str]:
    return list(report.lines(examine(facts(**changed)), coloured=coloured, clean=printable))


def test_the_report_fits_and_is_grouped() -> None:
    lines = shown(clock=False, books={"broken": ("x " * 300,)})
    assert [line for line in lines if line and not line.startswith(" ")][:-1] == [
        "GPUs and driver", "Container engine", "Pool", "Hub", "Machine"
    ]  # fmt: skip
    assert max(map(len, lines)) <= report.WIDTH
    assert lines[-1].startswith("1 error, 1 warning, ")
    assert any("→ timedatectl set-ntp true" in line for line in lines)
    assert not any("\033" in line for line in lines)


def test_what_is_skipped_for_one_reason_is_said_once() -> None:
    check = next(iter(CHECKS.values()))
    result = Result(Level.SKIPPED, "Nobody knows.")
    text = "\n".join(report.lines([Finding(check, result)] * 3, coloured=False, clean=str))
    assert text.count("Nobody knows.") == 1 and text.count(check.id) == 3


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "collect", lambda *_: WELL)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def said(out: io.StringIO) -> str:
        chosen = argparse.Namespace(database_url="", config="", json=False, look=looking._doctor)
        assert looking.run(chosen, out) == 0
        return out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[32m" in said(Terminal())
    assert "\033" not in said(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in said(Terminal())


def test_names_give_no_orders_to_a_terminal() -> None:
    lines = shown(hub={"cullers": (("\033[2Jeve", "5"),)})
    assert not any("\033" in line for line in lines)
    assert any("\\x1b[2Jeve" in line for line in lines)


def test_a_reader_that_goes_away_sees_no_traceback(nothing: Path) -> None:
    code = f"exec {sys.executable} -m jupyterhub_gpupool doctor | head -c 1"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, cwd=nothing, env=env)
    assert done.stderr == ""
