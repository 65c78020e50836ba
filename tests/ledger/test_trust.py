"""GPUs that a group shares through MPS: nothing of them is granted to anybody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.ledger import Policy
from jupyterhub_gpupool.model import Mode, State
from jupyterhub_gpupool.rungs import Rung

from .conftest import HALF, Make, end, gpu, request_of, run

MPS = replace(gpu(0), mode=Mode.SHARE, trust="vision")
PLAIN = replace(gpu(1), mode=Mode.SHARE)


def test_a_gpu_is_shared_by_its_group_and_others_keep_off(make: Make) -> None:
    ledger = make(Policy(), (MPS, PLAIN))
    assert ledger.snapshot().devices == (MPS, PLAIN)
    member = run(ledger, "ada", groups=("audio", "vision"))
    stranger = run(ledger, "eve", groups=("audio",))
    assert [one.slices[0].device for one in (member, stranger)] == ["GPU-0", "GPU-1"]
    assert (member.rung, stranger.rung) == (Rung.MPS, Rung.WATCHDOG)
    ledger.enqueue("hub", request_of("bob"), "")
    waits = ledger.enqueue("hub", request_of("zoe"), "")
    assert waits.state is State.QUEUED  # half of GPU-0 is free, and not for her
    later = ledger.enqueue("hub", request_of("sue", groups=("vision",)), "")
    assert later.slices[0].device == "GPU-0"  # nor does she keep it free
    end(ledger, stranger)
    assert ledger.lease(waits.id).slices[0].device == "GPU-1"


def test_what_only_another_group_could_have_is_refused(make: Make) -> None:
    ledger = make(Policy(), (MPS,))
    with pytest.raises(Rejected, match="can never serve"):
        ledger.enqueue("hub", request_of("eve", HALF), "")


def test_a_star_is_everybody(make: Make) -> None:
    ledger = make(Policy(), (replace(MPS, trust="*"),))
    assert ledger.enqueue("hub", request_of("eve"), "").slices[0].device == "GPU-0"
