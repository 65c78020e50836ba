"""Trains one model for some epochs and prints wall and CPU seconds of each but the first, and what was in force.

Started by ``defaults.py`` in interpreters with the defaults on, and off.
"""

from __future__ import annotations

import json
import os
import sys
import time

import keras
import numpy as np

EPOCHS = 4


def convolutional() -> tuple[keras.Model, tuple[int, ...], int]:
    """A small convolutional net on pictures of 32 × 32."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, strides=2, activation="relu"),
            layers.Conv2D(64, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, dtype="float32"),
        ]
    )
    return model, (32, 32, 3), 2048


def matrices() -> tuple[keras.Model, tuple[int, ...], int]:
    """Large dense layers: nearly all of the time goes into products of matrices."""
    layers = keras.layers
    hidden = [layers.Dense(2048, activation="relu") for _ in range(4)]
    return (
        keras.Sequential([layers.Input((1024,)), *hidden, layers.Dense(10, dtype="float32")]),
        (1024,),
        2048,
    )


def main() -> None:
    import tensorflow as tf

    keras.utils.set_random_seed(1)  # the same start everywhere, so that the losses can be compared
    model, shape, count = {"convolutional": convolutional, "matrices": matrices}[sys.argv[1]]()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(1)
    data = random.standard_normal((count, *shape), dtype=np.float32), random.integers(0, 10, count)
    marks: list[tuple[float, float]] = []
    losses: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            marks.append((time.perf_counter(), time.process_time()))

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            marks.append((time.perf_counter(), time.process_time()))
            losses.append(float((logs or {})["loss"]))

    model.fit(*data, batch_size=256, epochs=EPOCHS, verbose=0, callbacks=[Clock()])
    pairs = list(zip(marks[::2], marks[1::2], strict=True))[1:]  # the first epoch traces and compiles
    found = {
        "wall": [end[0] - begin[0] for begin, end in pairs],
        "cpu": [end[1] - begin[1] for begin, end in pairs],
        "loss": losses[-1],
        "policy": keras.config.dtype_policy().name,
        "xla": bool(model.jit_compile),
        "gpus": [
            tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")
        ],
        "threads": os.environ.get("TF_NUM_INTRAOP_THREADS", "own"),
        "versions": f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
    }
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
