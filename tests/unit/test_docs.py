"""The documentation says what the program does: generated pages are fresh, quoted messages exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jupyterhub_gpupool.commands import KEYS
from jupyterhub_gpupool.configuration import BACKENDS, SCOPES, spawner_of

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


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_settings_of_every_backend(backend: str) -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    section = text.split(f"## `c.{spawner_of(backend).__name__}`\n")[1].split("\n## ")[0]
    for name in spawner_of(backend).class_own_traits(config=True):
        assert f"**`{name}`**" in section


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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{one.name}" for one in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        aim = (ROOT / page).parent / target if target else ROOT / page
        assert aim.exists(), target
        titles = re.findall(r"^#+ (.+)$", aim.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in {
            re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in titles
        }


def test_every_key_of_a_limit_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for key in KEYS:
        assert f"`{key}`" in text
