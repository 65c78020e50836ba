"""What a person could have now: free slices, waits and budgets, the same for REST, form and pages."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jupyterhub_gpupool.ledger import Ledger, Policy
from jupyterhub_gpupool.model import Limit
from jupyterhub_gpupool.pool import GPUPool, available
from jupyterhub_gpupool.profiles import Availability, read
from jupyterhub_gpupool.profiles.form import state_in_words

from .conftest import WHOLE, Clock, Make, end, gpu, request_of, run

HOUR = 3600.0
OFFER = read(
    [
        {"slug": "profile", "display_name": "Whole", "gpu": {"count": 1}},
        {"slug": "short", "display_name": "Short", "gpu": {"count": 1}, "max_age": 600},
        {"slug": "cpu", "display_name": "CPU"},
    ]
)


def look(ledger: Ledger, user: str = "ada", *groups: str) -> dict[str, Availability]:
    snapshot, budget = ledger.snapshot(), ledger.budget(user, groups)
    return available(SimpleNamespace(offer=OFFER), snapshot, user, groups, False, budget)


def words(ledger: Ledger, slug: str = "profile") -> str:
    return state_in_words(OFFER[slug], look(ledger)[slug])


def test_what_is_free_now_has_no_wait(make: Make, clock: Clock) -> None:
    ledger = make(Policy(beat_age=math.inf), (gpu(0),))
    offers = {slug: profile.wish for slug, profile in OFFER.items()}
    ledger.expect(offers)
    assert (look(ledger)["profile"].place_wait, words(ledger)) == (None, "1 free")
    held = run(ledger, "eve", WHOLE)
    for _ in range(10):
        clock.forward(HOUR)
        end(ledger, held)
        held = run(ledger, "eve", WHOLE)
    ledger.expect(offers)
    assert (look(ledger)["profile"].place_wait, words(ledger)) == (
        (HOUR, HOUR),
        "none free, wait about 60 min",
    )
    end(ledger, held)  # what the last sweep found is out of date
    assert (look(ledger)["profile"].place_wait, words(ledger)) == (None, "1 free")
    assert look(ledger)["cpu"].place_wait is None


def test_until_a_drain_only_what_ends_before_it_is_free(make: Make, clock: Clock) -> None:
    ledger = make(Policy(limits={"group:brief": Limit(max_age=60)}), (gpu(0), gpu(1)))
    ledger.drain(None, clock.now + HOUR, actor="admin")
    found = look(ledger)
    assert (found["profile"].free, found["short"].free) == (0, 2)
    assert look(ledger, "ada", "brief")["profile"].free == 2
    clock.forward(HOUR - 599)
    assert look(ledger)["short"].free == 0
    ledger.undrain(None, actor="admin")
    assert look(ledger)["profile"].free == 2


def test_the_budget_is_asked_once_for_all_profiles(tmp_path: Path, monkeypatch: Any) -> None:
    async def work() -> None:
        limits = {"user:ada": {"gpu_hours": 0}, "user:*": {"gpu_hours": 7}}
        pool = GPUPool(database_url=f"sqlite:///{tmp_path}/ledger.sqlite", limits=limits)
        pool.offer = OFFER
        try:
            await pool.ask("sync_inventory", [gpu(0)])
            await pool.ask("settle")
            verbs: list[str] = []
            ask = pool.ask

            async def counted(name: str, *args: Any, **kwargs: Any) -> Any:
                verbs.append(name)
                return await ask(name, *args, **kwargs)

            monkeypatch.setattr(pool, "ask", counted)
            snapshot, found = await pool.availability("eve", [], False)
            assert verbs == ["snapshot"]
            assert {slug: seen.budget_left_hours for slug, seen in found.items()} == {
                "profile": 7,
                "short": 7,
                "cpu": None,
            }
            _, found = await pool.availability("ada", [], False, snapshot)
            assert verbs == ["snapshot", "budget"]
            assert [seen.allowed for seen in found.values()] == [False, False, True]
            assert found["short"].reason == "User ada is allowed no GPU-hours at all."
        finally:
            pool._worker.shutdown()
            pool.ledger().close_database()

    asyncio.run(work())


def test_who_waits_for_a_limit_delays_nobody(make: Make) -> None:
    ledger = make(Policy(limits={"user:linus": Limit(sessions=1)}), (gpu(0), gpu(1)))
    run(ledger, "linus", WHOLE)
    ledger.enqueue("hub", request_of("linus", WHOLE, server="two"))
    ledger.expect({slug: profile.wish for slug, profile in OFFER.items()})
    assert words(ledger) == "1 free, 1 in the queue"
