"""What happens around the imports of TensorFlow and Keras; ``_hook`` calls it, and catches what it raises."""

from __future__ import annotations

from types import ModuleType

from gpupool_tensorflow import _context, _precision, _process, _say, _state, _xla


def before_import() -> None:
    """Set the environment that TensorFlow reads while it is imported, or later."""
    if _state.armed() and not _state.current().prepared:
        state = _state.current()
        state.prepared = True
        _process.apply_threads(state)
        _process.apply_cache(state)


def after_import(name: str, module: ModuleType) -> None:
    """Apply what belongs to the module that has just been imported, in whichever order they come."""
    if not _state.armed():
        return
    state = _state.current()
    if name == "tensorflow":
        _context.hold(module, state)
    elif name == "tf_keras":
        _say.warn("precision and XLA are not applied to tf_keras, the Keras of before; to Keras 3 they are.")
    else:
        _apply_keras(module, state)


def _apply_keras(keras: ModuleType, state: _state.State) -> None:
    if not str(getattr(keras, "__version__", "")).startswith("3."):
        version = getattr(keras, "__version__", "of unknown version")
        _say.warn(f"precision and XLA are not applied: Keras {version} is not known, Keras 3 is.")
        return
    _precision.apply(keras, state)
    _xla.apply(keras, state)
