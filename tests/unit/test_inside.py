"""Commands in containers: what the engine streams of them, and how their end is told; the engine is a fake."""

from __future__ import annotations

import itertools
import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ReadTimeoutError

from jupyterhub_gpupool.sessions.inside import MOST_OUTPUT, Tail, execute, follow
from jupyterhub_gpupool.sessions.script import TAIL


def frames(*written: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack(">BxxxL", where, len(text)) + text for where, text in written)


@given(
    written=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12),
    cuts=st.lists(st.integers(0, 700), max_size=30),
    size=st.integers(1, 60),
)
def test_the_end_is_kept_however_the_stream_is_cut(
    written: list[tuple[int, bytes]], cuts: list[int], size: int
) -> None:
    stream, tail = frames(*written), Tail(size)
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(borders):
        tail.add(stream[begin:end])
    said = b"".join(text for _, text in written)[-size:]
    assert str(tail) == said.decode("utf-8", "replace")


class Engine:
    """Runs one command, which writes these pieces; then its stream ends, or is silent."""

    base_url, api_version = "http://engine", "1.41"

    def __init__(self, pieces: list[bytes], *, status: int | None = 0, silent: bool = False) -> None:
        self.pieces, self.status, self.silent = iter(pieces), status, silent

    def exec_create(self, name: str, command: list[str], **more: Any) -> dict[str, str]:
        return {"Id": "e1"}

    def post(self, url: str, **more: Any) -> Any:
        return SimpleNamespace(raise_for_status=lambda: None, raw=SimpleNamespace(read1=self.read1))

    def read1(self, size: int) -> bytes:
        found = next(self.pieces, b"")
        if not found and self.silent:
            raise ReadTimeoutError(None, "url", "silent")  # type: ignore[arg-type]
        return found

    def exec_inspect(self, key: str) -> dict[str, Any]:
        return {"ExitCode": self.status, "Running": self.status is None}


def run(engine: Engine, timeout: float = 5.0) -> tuple[int, str]:
    tail = Tail()
    return follow(engine, "c", ["x"], timeout=timeout, environment={}, tail=tail), str(tail)  # type: ignore[arg-type]


def test_one_that_writes_more_than_is_ever_kept_ends_as_it_ends() -> None:
    much = [frames((1, b"x" * 65536))] * (4 * MOST_OUTPUT // 65536) + [frames((2, b"the end\n"))]
    status, tail = run(Engine(much, status=3))
    assert status == 3 and len(tail) == TAIL and tail.endswith("xthe end\n")


def test_one_whose_child_holds_its_output_has_ended() -> None:
    assert run(Engine([frames((1, b"done\n"))], status=4, silent=True)) == (4, "done\n")


@pytest.mark.parametrize("silent", [True, False])
def test_one_that_goes_on_is_given_up(monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    if not silent:
        passed = iter(range(100))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(passed)))
    with pytest.raises(requests.Timeout):
        run(Engine([frames((1, b"x"))] * 50, status=None, silent=silent))


def test_of_a_command_whose_output_is_read_there_is_a_bound() -> None:
    with pytest.raises(requests.ReadTimeout, match="more than"):
        execute(Engine([b"x" * 65536] * 20), "c", ["x"], timeout=5)  # type: ignore[arg-type]
    ran = execute(Engine([frames((1, b"a"), (2, b"b"), (1, b"c"))]), "c", ["x"], timeout=5)  # type: ignore[arg-type]
    assert ran == (0, "ac", "b")
