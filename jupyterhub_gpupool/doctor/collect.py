"""Ask all probes, those that need another's answer after it, and put the facts together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import engine_probes, pool_probes, system_probes
from .asking import Probe, together
from .facts import Books, Facts, Pool
from .model import Unknown

BOOKS_SECONDS = 30.0
REACH_SECONDS = 60.0
"""More than all calls of the probe together: it has a container to remove."""


def collect(url: str, ledger: Path | None, config: Path | None, root: Path = Path("/")) -> Facts:
    """Learn everything that the checks look at.  Blocks for about a minute at most.

    ``url`` is the ledger's, ``ledger`` its file, ``config`` the file that ``configure`` wrote, ``root`` where the
    system's files are.
    """
    hub_file = config.with_name(pool_probes.HUB) if config else None
    facts = together(
        {
            "driver": Probe(partial(system_probes.driver, root)),
            "smi": Probe(system_probes.smi, 3 * system_probes.SMI_SECONDS),
            "toolkit": Probe(partial(system_probes.toolkit, root), 20),
            "processes": Probe(system_probes.processes),
            "clock": Probe(system_probes.clock),
            "jupyterhub": Probe(pool_probes.jupyterhub),
            "proxy_program": Probe(pool_probes.proxy_program),
            "pool": Probe(partial(pool_probes.pool, config)),
            "hub": Probe(partial(pool_probes.hub, hub_file)),
        }
    )
    pool, hub = facts["pool"], facts["hub"]
    folder = (ledger or config or Path.cwd()).parent if ledger or config else None
    facts |= together(
        {
            "books": Probe(partial(pool_probes.books, url), BOOKS_SECONDS),
            "engine": Probe(partial(engine_probes.engine, pool), 2 * engine_probes.ENGINE_SECONDS),
            "answer": Probe(_with(lambda hub: pool_probes.answer(hub.api), hub)),
            "kept": Probe(partial(_kept, ledger, config, hub)),
            "state_disk": Probe(partial(_disk, "The ledger's folder", folder)),
        }
    )
    facts |= together(
        {
            "images": Probe(
                _with(lambda pool, _: engine_probes.images(pool, hub), pool, facts["engine"]), 30
            ),
            "network": Probe(
                _with(lambda pool, _: engine_probes.network(pool, hub), pool, facts["engine"]), 30
            ),
            "engine_disk": Probe(_with(lambda engine: _engine_disk(engine.root), facts["engine"])),
        }
    )
    parts = (pool, facts["images"], facts["network"], facts["answer"])
    facts |= together({"reach": Probe(_with(engine_probes.reach, *parts), REACH_SECONDS)})
    return Facts(**facts, gpus=kind_of_gpus(pool, facts["books"]))


def _with(ask: Callable[..., Any], *needed: Any) -> Callable[[], Any]:
    """A probe that needs facts: where one of them is Unknown, so is its answer, for the same reason."""
    unknown = next((fact for fact in needed if isinstance(fact, Unknown)), None)
    return (lambda: Unknown(unknown.why)) if unknown else partial(ask, *needed)


def _kept(ledger: Path | None, config: Path | None, hub: Any) -> Any:
    if config is None:
        return Unknown("The folder of the pool's files is not known: name one of them with --config.")
    return system_probes.kept(config.parent, pool_probes.files_of(ledger, config, hub))


def _disk(what: str, folder: Path | None) -> Any:
    if folder is None:
        return Unknown("The ledger is no file on this machine.")
    return system_probes.disk(what, folder)


def _engine_disk(root: str) -> Any:
    if not root:
        return Unknown("The container engine runs elsewhere.")
    return system_probes.disk("The engine's folder", Path(root))


def kind_of_gpus(pool: Pool | Unknown, books: Books | Unknown) -> str:
    """``real``, ``simulated``, or empty where neither ledger nor configuration says."""
    if not isinstance(books, Unknown) and books.devices:
        return "simulated" if all(device.simulated for device in books.devices) else "real"
    if isinstance(pool, Unknown):
        return ""
    return "simulated" if pool.simulated else "real"
