"""A limit as the fields of a form: what is shown is read back as the same, what is odd gets a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool import fairness
from jupyterhub_gpupool.fairness.limits import KEYS
from jupyterhub_gpupool.service import limit_form

NUMBERS = st.one_of(st.integers(0, 10**6), st.floats(0, 10**6, allow_subnormal=False))
SECONDS = st.one_of(st.integers(1, 10**8), st.sampled_from([60, 3600, 86400, 604800, 5400]))
BOOKED = {"gpus": 1, "start": "2026-06-01T09:00:00+00:00", "end": "2026-06-05T18:00:00+00:00"}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "sessions": st.integers(0, 10**6),
            "gpus": st.floats(10, 10**6),
            "queued": st.integers(0, 10**6),
            "gpu_hours": NUMBERS,
            "max_age": SECONDS,
            "profiles": st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=4),
            "priority": st.integers(1, 100),
            "strict": st.booleans(),
            "guaranteed_gpus": st.integers(0, 5),
            "reservations": st.sampled_from([[], [BOOKED], [{**BOOKED, "gpus": 1 / 3}]]),
        },
    )
)
def test_what_the_form_shows_is_read_as_the_same_limit(keys: dict[str, Any]) -> None:
    limit = fairness.read_limit("group:vision", keys)
    found, wrong = limit_form.read("group:vision", limit_form.typed(limit))
    assert wrong == {}
    assert fairness.read_limit("group:vision", found) == limit


@given(st.fixed_dictionaries({}, optional={name: st.text(max_size=30) for name in KEYS}))
def test_whatever_is_typed_is_a_limit_or_gets_a_sentence(typed: dict[str, str]) -> None:
    keys, wrong = limit_form.read("group:vision", typed)
    if wrong:
        assert set(wrong) <= set(KEYS) and all(text.endswith(".") for text in wrong.values())
    else:
        fairness.read_limit("group:vision", keys)


def test_all_keys_have_a_field_where_they_belong() -> None:
    assert {field.name for field in limit_form.FIELDS} == set(KEYS)
    named = {
        scope: {field.name for field in limit_form.fields_of(scope)}
        for scope in ("pool", "user:*", "group:a")
    }
    assert named["group:a"] == set(KEYS)
    assert named["user:*"] - named["pool"] == {"priority"}
    assert "strict" not in named["user:*"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_age", "12 h", 43200),
        ("max_age", "1.5h", 5400),
        ("max_age", "90", 90),
        ("gpus", "0.25", 0.25),
        ("gpus", "0", 0),
        ("profiles", "a, b,", ("a", "b")),
        ("profiles", "[]", ()),
        ("strict", "yes", True),
    ],
)
def test_what_people_type_is_understood(name: str, text: str, value: object) -> None:
    keys, wrong = limit_form.read("group:a", {name: text})
    assert wrong == {} and getattr(fairness.read_limit("group:a", keys), name) == value


@pytest.mark.parametrize(
    ("typed", "field", "says"),
    [
        ({"sessions": "-1"}, "sessions", "Sessions is -1; it must be a whole number"),
        ({"sessions": "1.5"}, "sessions", "whole number"),
        ({"sessions": "two"}, "sessions", "'two'"),
        ({"gpus": "NaN"}, "gpus", "'NaN'"),
        ({"gpus": "1e999"}, "gpus", "it must be a number"),
        ({"gpus": "9" * 500}, "gpus", "it must be a number"),
        ({"gpus": "1,5"}, "gpus", "Leave it empty for no limit."),
        ({"max_age": "soon"}, "max_age", "seconds"),
        ({"max_age": "0"}, "max_age", "from 1"),
        ({"window": "7 d"}, "window", "no"),
        ({"window": "7 weeks", "gpu_hours": "1"}, "window", "'7 weeks'"),
        ({"profiles": "[1]"}, "profiles", "slugs"),
        ({"profiles": "[" * 5000}, "profiles", "slugs"),
        ({"priority": "0"}, "priority", "from 1 to 100"),
        ({"strict": "no"}, "strict", "True or False"),
        ({"reservations": "2 tomorrow"}, "reservations", "2 tomorrow"),
        ({"reservations": "2 2026-06-01T09:00 2026-06-02T09:00"}, "reservations", "with its zone"),
        ({"reservations": "2 2026-06-05T09:00Z 2026-06-01T09:00Z"}, "reservations", "not after its start"),
        ({"reservations": "1 2026-06-01T09:00Z 2026-06-03T09:00Z\n1 2026-06-02T09:00Z 2026-06-04T09:00Z"},
         "reservations", "overlap"),
        ({"gpus": "1", "guaranteed_gpus": "2"}, "guaranteed_gpus", "2 GPUs are guaranteed"),
    ],
)  # fmt: skip
def test_odd_values_get_a_sentence_at_their_field(typed: dict[str, str], field: str, says: str) -> None:
    _, wrong = limit_form.read("group:vision", typed)
    assert list(wrong) == [field]
    assert says in wrong[field] and "GPUPool.limits" not in wrong[field]


def test_each_odd_field_has_its_own_sentence() -> None:
    _, wrong = limit_form.read("pool", {"sessions": "x", "gpus": "y", "queued": "3"})
    assert sorted(wrong) == ["gpus", "sessions"]
