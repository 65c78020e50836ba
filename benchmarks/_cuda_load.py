"""A real CUDA workload in a process of its own: it holds memory, and computes while it is told to.

Commands come as lines on standard input (``hold MIB``, ``busy``, ``rest``; the end of input ends it), and each is
answered by a line: ``ok`` with what computes, or ``no`` with the reason.  TensorFlow is used where it is
installed and sees the GPU, else the driver's own interface with a kernel in PTX.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from typing import Any, Protocol

MIB = 1024 * 1024
BLOCKS, THREADS, ROUNDS = 2048, 256, 50_000
"""One launch of the kernel: milliseconds on any GPU of the last ten years."""

SPIN = b"""
.version 6.0
.target sm_60
.address_size 64
.visible .entry spin(.param .u64 where, .param .u32 rounds)
{
    .reg .pred %p<2>;
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;
    .reg .f32 %f<2>;
    ld.param.u64 %rd1, [where];
    ld.param.u32 %r1, [rounds];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r2, 0;
    mov.f32 %f1, 0f3F800000;
AGAIN:
    fma.rn.f32 %f1, %f1, 0f3F000000, 0f3F000000;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, %r1;
    @%p1 bra AGAIN;
    st.global.f32 [%rd2], %f1;
    ret;
}
"""


class Work(Protocol):
    """What can hold memory and compute."""

    name: str

    def hold(self, mib: int) -> None: ...

    def step(self) -> None: ...


class Driver:
    """The first GPU that is visible, by the driver's own interface."""

    name = "a kernel in PTX"

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._ask("cuInit", 0)
        self._ask("cuDeviceGet", ctypes.byref(device), 0)
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context, self._kernel, self._memory = context, ctypes.c_void_p(), ctypes.c_uint64()
        self._ask("cuCtxSetCurrent", context)
        module = ctypes.c_void_p()
        self._ask("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(SPIN))
        self._ask("cuModuleGetFunction", ctypes.byref(self._kernel), module, b"spin")

    def _ask(self, function: str, *args: Any) -> None:
        if error := getattr(self._cuda, function)(*args):
            raise OSError(f"{function} answers with error {error}")

    def hold(self, mib: int) -> None:
        self._ask("cuMemAlloc_v2", ctypes.byref(self._memory), ctypes.c_size_t(mib * MIB))

    def step(self) -> None:
        self._ask("cuCtxSetCurrent", self._context)  # of this thread
        rounds = ctypes.c_uint32(ROUNDS)
        given = (ctypes.c_void_p * 2)(ctypes.addressof(self._memory), ctypes.addressof(rounds))
        self._ask("cuLaunchKernel", self._kernel, BLOCKS, 1, 1, THREADS, 1, 1, 0, None, given, None)
        self._ask("cuCtxSynchronize")


class TensorFlow:
    """The first GPU that is visible, by TensorFlow."""

    name = "TensorFlow"

    def __init__(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow

        self._tf = tensorflow
        found = tensorflow.config.list_physical_devices("GPU")
        if not found:
            raise OSError("TensorFlow sees no GPU")
        tensorflow.config.experimental.set_memory_growth(found[0], True)
        self._held: list[Any] = []

    def hold(self, mib: int) -> None:
        with self._tf.device("/GPU:0"):
            self._held = [self._tf.zeros([mib, MIB // 4]), self._tf.random.normal([4096, 4096])]

    def step(self) -> None:
        with self._tf.device("/GPU:0"):
            float(self._tf.reduce_sum(self._tf.matmul(self._held[1], self._held[1])))


def work() -> Work:
    """TensorFlow where it is there and sees a GPU, else the driver.  Raises OSError where neither works."""
    if importlib.util.find_spec("tensorflow") is not None:
        try:
            return TensorFlow()
        except (ImportError, OSError) as problem:
            print(f"without TensorFlow: {problem}", file=sys.stderr)
    return Driver()


def compute(worker: Work, busy: threading.Event, failed: list[str]) -> None:
    """Compute whenever that is wanted."""
    while True:
        busy.wait()
        try:
            worker.step()
        except Exception as problem:  # whatever it is, the next command is answered with it
            failed.append(str(problem))
            return


def main() -> None:
    """Obey until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    busy, failed = threading.Event(), list[str]()
    try:
        worker = work()
    except OSError as problem:
        answers.write(f"no {problem}\n")
        return
    threading.Thread(target=compute, args=(worker, busy, failed), daemon=True).start()
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        try:
            if word == "hold":
                worker.hold(int(number))
                worker.step()  # the module is loaded and the context is whole before anybody looks
            (busy.set if word == "busy" else busy.clear)()
        except Exception as problem:
            failed.append(str(problem))
        answers.write(f"no {failed[0]}\n" if failed else f"ok {worker.name}\n")
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
