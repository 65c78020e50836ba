"""Where GPUs sit is kept, and a wish for several is served by those that belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jupyterhub_gpupool.devices.simulated import SimulatedDevices
from jupyterhub_gpupool.ledger import Policy
from jupyterhub_gpupool.model import Kind, Wish

from .conftest import WHOLE, Make, gpu, run

CARD = {"model": "A100-SXM4-80GB", "memory": "80G", "count": 2}
TWO = Wish(kind=Kind.GPU, count=2)


def test_links_and_numa_nodes_are_kept_and_unknown_stays_unknown(make: Make) -> None:
    first = gpu(0, numa=1, cpus="8-15", links=(("GPU-1", "NV12"),))
    ledger = make(Policy(), (first, gpu(1)))
    assert ledger.snapshot().devices == (first, gpu(1))
    moved = replace(first, numa=0, cpus="0-7", links=(("GPU-1", "SYS"),))
    assert ledger.sync_inventory((moved, gpu(1)))
    assert not ledger.sync_inventory((moved, gpu(1)))
    assert ledger.snapshot().devices[0] == moved


def test_two_gpus_are_the_two_that_are_linked(make: Make, tmp_path: Path) -> None:
    entries = [{**CARD, "numa": 0, "cpus": "0-7"}, {**CARD, "numa": 1, "cpus": "8-15", "links": "NV4"}]
    devices = SimulatedDevices(gpus=entries, node="n1").devices()
    ledger = make(Policy(), devices)
    pair = run(ledger, "ada", TWO)
    assert [part.device for part in pair.slices] == [devices[2].id, devices[3].id]
    alone = run(ledger, "eve", WHOLE)
    assert [part.device for part in alone.slices] == [devices[0].id]
