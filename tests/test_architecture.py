"""The shape of the code: layers, sizes, and what must not be in it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jupyterhub_gpupool"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_MODULE, MAX_FUNCTION = 400, 60


def long_functions(source: str) -> list[str]:
    return [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION
    ]


def silent_handlers(source: str) -> list[str]:
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(part, ast.Pass) for part in node.body)
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_import_contracts_hold() -> None:
    check = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_short_enough_to_read(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_MODULE
    assert long_functions(source) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_error_is_swallowed_without_a_word(path: Path) -> None:
    assert silent_handlers(path.read_text()) == []


def test_nothing_is_called_utils() -> None:
    assert [path for path in MODULES if "utils" in (path.stem, path.parent.name)] == []


def test_the_checks_see_what_they_look_for() -> None:
    body = "\n".join(f"    x = {n}" for n in range(MAX_FUNCTION))
    assert long_functions(f"async def long():\n{body}\n") == [f"long: {MAX_FUNCTION + 1} lines"]
    assert silent_handlers("try:\n    x = 1\nexcept OSError:\n    pass\n") == ["line 3"]
    assert len(MODULES) > 10
