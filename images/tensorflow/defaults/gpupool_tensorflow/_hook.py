"""Waits for the import of TensorFlow and Keras, and calls ``_apply`` around it.

Imported at the start of every armed interpreter: it imports nothing but ``sys``.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost more than everything here
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

WATCHED = ("tensorflow", "keras", "tf_keras")


class Finder:
    """Finds nothing itself: lends the loader that the others found an ``exec_module`` that calls us.

    It stays for the life of the process, since a probe (``find_spec``) or a failed import must not use it up.
    """

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            look = _nothing if finder is self else getattr(finder, "find_spec", _nothing)
            found: ModuleSpec | None = look(name, path, target)
            if found is not None:
                _lend(found, name)
                return found
        return None


def start() -> None:
    """Arm this interpreter, when ``GPUPOOL_LEASE`` is set; more than once is as once."""
    from os import environ

    if environ.get("GPUPOOL_LEASE") and not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def _nothing(*_: object) -> None:
    return None


def _lend(spec: "ModuleSpec", name: str) -> None:
    loader = spec.loader
    run = getattr(loader, "exec_module", None)
    if loader is None or run is None:  # a folder without __init__.py, or a loader of the past: not TensorFlow
        return

    def exec_module(module: "ModuleType") -> None:
        _call("before_import")
        run(module)  # the user's own error stays the user's own
        _call("after_import", name, module)

    try:
        # On the instance: the loader stays of its own class for everybody who looks at it.
        loader.exec_module = exec_module  # type: ignore[method-assign]
    except AttributeError:
        _complain(f"{name} is loaded by {type(loader).__name__}, which cannot be followed")


def _call(what: str, *args: object) -> None:
    try:
        from gpupool_tensorflow import _apply

        getattr(_apply, what)(*args)
    except Exception as error:  # whatever it is: it must not become an error of the user's import
        _complain(f"{type(error).__name__}: {error}")


def _complain(reason: str) -> None:
    try:
        if sys.stderr is not None:
            line = " ".join(f"gpupool: TensorFlow defaults were not applied: {reason}".split())
            sys.stderr.write(line + "\n")
    except (OSError, ValueError):  # stderr is closed: there is nobody left to tell
        return
