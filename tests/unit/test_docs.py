"""The documentation says what the program does: generated pages are fresh, quoted messages exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from jupyterhub_gpupool.configuration import SCOPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_has_help() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\*\*`(\w+)`\*\* \(default `.*?`\): (.*)$", text, re.M)
    assert len(entries) > 15
    assert [name for name, help_text in entries if len(help_text) < 30] == []


def test_messages_in_troubleshooting_are_the_programs_own() -> None:
    section = README.split("## Troubleshooting")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| “(.+?)” \|", section, re.M)
    assert len(quoted) >= 8
    folders = (ROOT / "jupyterhub_gpupool", ROOT / "scripts")
    files = [file for folder in folders for kind in ("*.py", "*.sh") for file in folder.rglob(kind)]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    for message in quoted:
        for part in filter(None, (piece.strip() for piece in message.split("…"))):
            assert part in source, f"the README quotes {part!r}, which the program does not say"


def test_scopes_are_explained() -> None:
    for scope in SCOPES:
        assert f"`{scope}`" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
