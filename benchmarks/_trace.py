"""Measures in a running hub what holds its event loop, and whose code that is.

Every pass of the loop (from the moment its file descriptors were polled until all that was ready has run) is
timed, and in it every step of our code: the coroutines and functions by which the hub enters the pool are
wrapped, and what the stock spawner does inside them is taken off.  Times are of the wall clock, since that is
what others wait for, and of the thread's CPU, which other work on the machine does not blur.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from jupyterhub.spawner import SimpleLocalProcessSpawner, Spawner

from jupyterhub_gpupool.pool import GPUPool
from jupyterhub_gpupool.spawners import base
from jupyterhub_gpupool.spawners.adoption import Adoption
from jupyterhub_gpupool.spawners.base import GPUPoolMixin
from jupyterhub_gpupool.spawners.steps import Steps

FLUSH_INTERVAL = 0.5

ENTRIES: dict[type, tuple[str, ...]] = {
    GPUPoolMixin: ("_start", "start", "stop", "run_post_stop_hook", "get_env", "get_url", "_from_form"),
    Adoption: ("poll",),
    GPUPool: ("_watch",),
}
STOCK = ("start", "stop", "poll", "get_env", "run_post_stop_hook")


class Clock:
    """Wall and CPU seconds of our code in the pass that runs, without what it calls of the stock spawner."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._stack: list[bool] = []  # is it ours, from the outermost frame inwards
        self._since = (0.0, 0.0)

    def enter(self, ours: bool) -> None:
        self._account()
        self._stack.append(ours)

    def leave(self) -> None:
        self._account()
        self._stack.pop()

    def _account(self) -> None:
        now = time.perf_counter(), time.thread_time()
        if self._stack and self._stack[-1]:
            self.wall += now[0] - self._since[0]
            self.cpu += now[1] - self._since[1]
        self._since = now


clock = Clock()


class Timed:
    """An awaitable whose every step is timed."""

    def __init__(self, coroutine: Any, ours: bool) -> None:
        self._coroutine, self._ours = coroutine, ours

    def __await__(self) -> Generator[Any, Any, Any]:
        generator = self._coroutine.__await__()
        value, error = None, None
        while True:
            clock.enter(self._ours)
            try:
                asked = generator.send(value) if error is None else generator.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                clock.leave()
            value = error = None
            try:
                value = yield asked
            except BaseException as thrown:
                error = thrown


def timed(function: Callable[..., Any], ours: bool) -> Callable[..., Any]:
    """Wrap a function, a coroutine function or an asynchronous generator function."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return await Timed(function(*args, **kwargs), ours)

        return coroutine
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generator(*args: Any, **kwargs: Any) -> Any:
            made = function(*args, **kwargs)
            try:
                while True:
                    try:
                        item = await Timed(_Next(made), ours)
                    except StopAsyncIteration:
                        return
                    yield item
            finally:
                await made.aclose()

        return generator

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        clock.enter(ours)
        try:
            return function(*args, **kwargs)
        finally:
            clock.leave()

    return plain


class _Next:
    """The next item of an asynchronous generator, as an awaitable."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._made.__anext__().__await__())


def _wrap(owner: Any, name: str, ours: bool) -> None:
    if name in vars(owner):
        setattr(owner, name, timed(vars(owner)[name], ours))


def install(path: str) -> None:
    """Wrap the entries, and append a line of JSON to the file twice a second while anything was measured.

    A line holds the time, and the longest of: a pass, and our part of a pass, in wall and CPU seconds.
    """
    for owner, names in ENTRIES.items():
        for name in names:
            _wrap(owner, name, True)
    _wrap(Steps, "follow", True)
    for name in ("one_door", "render_form"):
        setattr(base, name, timed(getattr(base, name), True))
    for owner in (SimpleLocalProcessSpawner, *SimpleLocalProcessSpawner.__mro__[1:]):
        if owner is not GPUPoolMixin and issubclass(owner, Spawner):
            for name in STOCK:
                _wrap(owner, name, False)
    _time_passes(Path(path))


def _time_passes(path: Path) -> None:
    loop_class: Any = asyncio.base_events.BaseEventLoop
    run_once, process = loop_class._run_once, asyncio.selector_events.BaseSelectorEventLoop._process_events
    began = [0.0]
    worst = {"pass": 0.0, "ours": 0.0, "ours_cpu": 0.0}
    flushed = [time.time()]

    def process_events(loop: Any, events: Any) -> None:
        began[0] = time.perf_counter()  # what came before was waiting
        clock.wall = clock.cpu = 0.0
        process(loop, events)

    def once(loop: Any) -> None:
        run_once(loop)
        worst["pass"] = max(worst["pass"], time.perf_counter() - began[0])
        worst["ours"] = max(worst["ours"], clock.wall)
        worst["ours_cpu"] = max(worst["ours_cpu"], clock.cpu)
        if time.time() - flushed[0] >= FLUSH_INTERVAL:
            flushed[0] = time.time()
            with path.open("a") as file:
                file.write(json.dumps({"at": flushed[0], **worst}) + "\n")
            worst.update(dict.fromkeys(worst, 0.0))

    asyncio.selector_events.BaseSelectorEventLoop._process_events = process_events  # type: ignore[method-assign]
    loop_class._run_once = once
