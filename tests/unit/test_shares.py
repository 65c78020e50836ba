"""Guaranteed shares, who borrows, and who makes room for whom."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jupyterhub_gpupool.fairness import (
    Fits,
    Held,
    Queued,
    Room,
    Share,
    borrowed,
    make_room,
    may_claim,
    portions,
    standing,
    victims,
)
from jupyterhub_gpupool.model import Lease, State, Terms, When, Wish

NOW = 100_000.0
HOUR = 3600.0


def held(
    lease: str, group: str = "", gpus: float = 1.0, age: float = HOUR, idle: float = 0, **more: object
) -> Held:
    """A lease granted and active ``age`` seconds ago, whose user is the first letter of its name."""
    given = {"min_age": 600.0, "warn": 300.0, **more}
    return Held(lease, lease[0], group, gpus, NOW - age, NOW - age, idle, **given)  # type: ignore[arg-type]


def claim(lease: str, group: str, gpus: float = 1.0, own: bool = True) -> Queued:
    return Queued(lease, lease[0], gpus, NOW, 1, group, own=own)


def of_sizes(free: float, leases: Sequence[Held]) -> Fits:
    """A pool in which everything fits whose GPUs add up to no more than is free."""
    size = {item.lease: item.gpus for item in leases}

    def fits(wants: Sequence[Queued], gone: frozenset[str]) -> bool:
        return sum(want.gpus for want in wants) <= free + sum(size[lease] for lease in gone) + 1e-9

    return fits


def taken(room: Room) -> list[str]:
    return [item.lease for item in room.victims]


def test_the_oldest_that_fit_into_the_share_are_its_own() -> None:
    leases = [
        held("b", "g", 1, age=50),
        held("a", "g", 2, age=90),
        held("c", "g", 1, age=10),
        held("d", "", 1),
        held("e", "", 0),
    ]
    assert borrowed(leases, {"g": 2}) == {"b", "c", "d"}
    assert borrowed(leases, {"g": 3}) == {"c", "d"}
    assert borrowed(leases, {"g": 1.5}) == {"a", "c", "d"}  # too large for the share: it borrows, b does not
    assert borrowed(leases, {}) == {"a", "b", "c", "d"}
    thirds = [held(name, "g", 1 / 3, age=n) for n, name in enumerate("xyz")]
    assert borrowed(thirds, {"g": 1}) == set()


def test_how_groups_stand() -> None:
    leases = [held("a", "g", 2), held("b", "h", 0.5), held("c", "", 1)]
    found = standing(leases, {"g": 1, "h": 2, "idle": 1})
    assert found == {
        "group:g": Share(1, 2),
        "group:h": Share(2, 0.5),
        "group:idle": Share(1, 0),
        "user:c": Share(0, 1),
    }
    assert (found["group:g"].over, found["group:h"].left) == (1, 1.5)
    assert may_claim("h", 1.5, found) and not may_claim("h", 1.6, found)
    assert not may_claim("g", 0.1, found) and not may_claim("", 0.1, found) and not may_claim("h", 0, found)


def test_portions_follow_priority_and_are_never_less_than_the_share() -> None:
    leases = [held("a", "g", 2), held("b", "", 1)]
    assert portions(leases, {}, 8) == {"group:g": 4, "user:b": 4}
    assert portions(leases, {"g": 6}, 8, {"user:b": 3}, ["group:w"]) == {
        "group:g": 6,
        "group:w": pytest.approx(1.6),
        "user:b": pytest.approx(4.8),
    }


def test_the_facts_of_a_lease() -> None:
    lease = Lease(
        "l1", "ada", "", "p", State.ACTIVE, 1, 1, "s", Wish(), Terms(when=When.WANTED), ("g",), {}, (), 0.5, "g",
        "", {}, requested_at=1, granted_at=2, active_at=3, idle_seconds=7,
    )  # fmt: skip
    assert Held.of(lease) == Held("l1", "ada", "g", 0.5, 2, 3, 7, min_age=600, warn=600, window=1800)


def test_nobody_makes_room_while_it_fits_or_without_a_right() -> None:
    leases = [held("a", "", 1)]
    assert make_room([claim("w", "g")], leases, {"g": 1}, NOW, of_sizes(1, leases)) == Room()
    assert make_room([claim("w", "h")], leases, {"g": 1}, NOW, of_sizes(0, leases)) == Room()
    over = [held("x", "g", 1), held("a", "", 1)]
    assert make_room([claim("w", "g", 0.5)], over, {"g": 1}, NOW, of_sizes(0, over)) == Room()


def test_the_idlest_that_borrow_make_room_and_no_more_than_are_needed() -> None:
    leases = [
        held("own", "h", 1, age=9000, idle=8000),
        held("busy", "h", 1, idle=0),
        held("a", "", 1, idle=60),
        held("b", "", 1, idle=600),
        held("c", "", 2, idle=30),
    ]
    guaranteed = {"g": 2, "h": 1}
    room = make_room([claim("w", "g")], leases, guaranteed, NOW, of_sizes(0, leases))
    assert taken(room) == ["b"]
    assert room.victims[0].wanted_by == "w"
    assert room.victims[0].not_before == NOW + 300
    assert room.victims[0].why == (
        "1 GPU wanted by request w for the share of g: it borrows: "
        "user b holds 1 GPU of no guaranteed share, 1 over; idle for 10 min"
    )
    two = make_room([claim("w", "g"), claim("v", "g")], leases, guaranteed, NOW, of_sizes(0, leases))
    assert [(item.lease, item.wanted_by) for item in two.victims] == [("b", "w"), ("a", "v")]
    # c alone would be enough, but b and a are idler
    whole = make_room([claim("w", "g", 2)], leases, guaranteed, NOW, of_sizes(0, leases))
    assert taken(whole) == ["b", "a"]
    assert "own" not in taken(
        make_room([claim("w", "g", 2)], leases[:2], guaranteed, NOW, of_sizes(0, leases))
    )


def test_who_turns_out_not_to_be_needed_is_let_go() -> None:
    leases = [held("a", "", 0.5, idle=900), held("b", "", 1, idle=60)]

    def fits(wants: Sequence[Queued], gone: frozenset[str]) -> bool:
        return "b" in gone  # only there the wish fits

    assert taken(make_room([claim("w", "g")], leases, {"g": 1}, NOW, fits)) == ["b"]


def test_among_equally_idle_the_furthest_over_its_share_then_the_youngest() -> None:
    leases = [
        held("a", "", 1),
        held("b", "h", 1, age=5000),
        held("c", "h", 1, age=4000),
        held("d", "h", 1, age=3000),
    ]
    found = make_room([claim("w", "g")], leases, {"g": 1, "h": 0.5}, NOW, of_sizes(0, leases))
    assert taken(found) == ["d"]
    assert "group h holds 3 GPUs of its share of 0.5 GPUs, 2.5 over; not idle" in found.victims[0].why


def test_never_before_min_age_and_who_can_go_soonest_first() -> None:
    leases = [held("a", "", 1, age=100, idle=90), held("b", "", 1, age=700, idle=10)]
    assert taken(make_room([claim("w", "g")], leases, {"g": 1}, NOW, of_sizes(0, leases))) == ["b"]
    young = make_room([claim("w", "g")], leases[:1], {"g": 1}, NOW, of_sizes(0, leases))
    assert young.victims[0].not_before == NOW + 500
    starting = Held("s", "s", "", 1, NOW, None)
    nobody = make_room([claim("w", "g")], [starting], {"g": 1}, NOW, of_sizes(0, [starting]))
    assert nobody == Room(unmet=(("w", "every session that borrows would not make it fit"),))


def test_who_was_warned_stays_chosen() -> None:
    leases = [held("a", "", 1, idle=60), held("b", "", 1, idle=600)]
    found = make_room([claim("w", "g")], leases, {"g": 1}, NOW, of_sizes(0, leases), chosen={"a"})
    assert taken(found) == ["a"]
    assert found.victims[0].why.endswith("idle for 60 s, and was warned already")


def test_a_claim_that_nobody_can_serve_does_not_stop_the_next() -> None:
    leases = [held("a", "", 1), held("own", "h", 2)]
    found = make_room(
        [claim("w", "g", 2), claim("v", "g", 1)], leases, {"g": 3, "h": 2}, NOW, of_sizes(0, leases)
    )
    assert taken(found) == ["a"]
    assert found.victims[0].wanted_by == "v"
    assert found.unmet[0][0] == "w"


def test_claims_together_are_never_more_than_the_share() -> None:
    leases = [held("a", "", 1), held("b", "", 1)]
    found = make_room([claim("w", "g"), claim("v", "g")], leases, {"g": 1}, NOW, of_sizes(0, leases))
    assert len(taken(found)) == 1


def test_who_idles_longest_and_is_furthest_over_ends_for_who_waits() -> None:
    leases = [
        held("a", "", 1, idle=2000, window=1800),
        held("b", "h", 2, idle=1900, window=1800),
        held("c", "h", 1, idle=1700, window=1800),
        held("d", "", 1, idle=9000),
    ]
    portion = portions(leases, {}, 6)
    room = victims([claim("w", "", own=False)], leases, portion, NOW, of_sizes(0, leases))
    assert taken(room) == ["b"]
    assert room.victims[0].why == (
        "1 GPU wanted by request w: idle for 32 min, and group h holds 3 GPUs where its portion is 2 GPUs: "
        "score 1900 s × 1.5 = 2850"
    )
    more = victims([claim("w", "", 4, own=False)], leases, portion, NOW, of_sizes(0, leases))
    assert more.unmet == (("w", "every session that is idle would not make it fit"),)
    stays = victims([claim("w", "", own=False)], leases, portion, NOW, of_sizes(0, leases), chosen={"a"})
    assert taken(stays) == ["a"]
    assert victims([claim("w", "")], leases, {}, NOW, of_sizes(1, leases)) == Room()
