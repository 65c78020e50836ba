"""TensorFlow defaults of a jupyterhub-gpupool session: applied at the first import, armed by ``GPUPOOL_LEASE``.

``gpupool_tensorflow.report()`` says what was asked, applied, changed by the user and is in force;
``python -m gpupool_tensorflow check`` proves it.  This module is imported at the start of every armed
interpreter, so it imports nothing.
"""

__version__ = "0.1.0"
__all__ = ["report"]


def report(json: bool = False) -> None:
    """Print what was asked, applied, changed by the user and is in force, as a table or as JSON.

    What is in force is read back from TensorFlow and Keras, which are imported for it.  TensorFlow is not
    brought to initialise its devices: what waits for that is said to wait.
    """
    from gpupool_tensorflow import _report

    print(_report.as_json() if json else _report.as_table())
