"""Write down from which sources the JupyterLab extension was built; ``make labextension`` does it after each build.

``--check`` ends with 1 and a sentence where the sources or the built files have changed since.  A test runs it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "labextension"
BUILT = ROOT / "jupyterhub_gpupool" / "labextension"
STAMP = BUILT / "built-from"
PARTS = ("package.json", "package-lock.json", "tsconfig.json", "core/*.json", "src/*.ts", "style/*")
"""Everything in ``labextension/`` that the result depends on."""


def digest(root: Path, files: Iterable[Path]) -> str:
    """One hash over the names and contents of these files."""
    whole = hashlib.sha256()
    for path in sorted(files):
        one = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{one}  {path.relative_to(root).as_posix()}\n".encode())
    return whole.hexdigest()


def stamp(sources: Path = SOURCES, built: Path = BUILT) -> str:
    """What the stamp of this state says."""
    given = [path for part in PARTS for path in sources.glob(part)]
    made = [path for path in built.rglob("*") if path.is_file() and path.name != STAMP.name]
    return f"sources {digest(sources, given)}\nbuilt {digest(built, made)}\n"


def main() -> int:
    """Write the stamp, or check it."""
    if "--check" not in sys.argv[1:]:
        STAMP.write_text(stamp(), encoding="utf-8")
        return 0
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == stamp():
        return 0
    built, sources = BUILT.relative_to(ROOT), SOURCES.relative_to(ROOT)
    print(f"{built} was not built from what is in {sources} now: run `make labextension`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
